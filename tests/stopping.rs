//! Workers and programs that ask whether they are being ended.

mod common;

use std::fs;
use std::time::Duration;

use common::{await_post, board, by, by_each_method, ignore_term, launched, post, raised, watched};
use phalanx::launch::{Command, Ending, Launch, Nproc};
use phalanx::{Options, Queue, QueueError, StartMethod, Status, Tensor, start_processes, stopping, wait};

phalanx::auto_init!();

const LONG: Duration = Duration::from_secs(3600);

type Args = (Tensor<i64>, Queue<u8>);

/// Rank 1 fails when rank 0 works; rank 0 notices that it is to end, cleans up and says so.
fn work(rank: usize, (ready, empty): Args) -> anyhow::Result<usize> {
    anyhow::ensure!(!stopping(), "the teardown has not begun");
    if rank == 1 {
        await_post(&ready, 0);
        anyhow::bail!("out of luck");
    }
    post(&ready, 0, 1);
    common::await_that(stopping);
    // Nobody has asked for an abort of waits.
    let waited = empty.get_timeout(common::SOON);
    anyhow::ensure!(matches!(waited, Err(QueueError::TimedOut { .. })), "{waited:?}");
    // This worker is being ended. Those that it starts now are not.
    let own = std::process::id();
    for method in [StartMethod::Fork, StartMethod::Spawn] {
        let of_others = start_processes(|_, _: u32| anyhow::Ok(stopping()), own, by(method, 1))?.join()?;
        anyhow::ensure!(of_others == [false], "{method:?}");
    }
    post(&ready, 1, 1);
    Ok(7)
}

fn survivor_cleans_up(method: StartMethod) {
    let ready = board(2);
    let options = by(method, 2).grace_period(LONG);
    let context = start_processes(work, (ready.clone(), Queue::bounded(1).unwrap()), options).unwrap();
    let exception = raised(context.join().unwrap_err());
    assert_eq!((exception.error_index(), exception.chain()), (1, &["out of luck".to_owned()][..]));
    assert_eq!(exception.outcomes()[0].status(), Status::Succeeded, "{exception}");
    assert_eq!(ready.get(1).unwrap(), 1);
    assert!(!stopping(), "the launcher itself is not ended");
    let of_the_next = start_processes(|_, ()| anyhow::Ok(stopping()), (), by(method, 1)).unwrap();
    assert_eq!(of_the_next.join().unwrap(), [false]);
}

#[test]
fn worker_sees_that_it_is_being_ended_and_ends_by_itself() {
    launched(|_, ()| by_each_method(survivor_cleans_up));
}

/// Waits for the descriptor; SIGTERM does not end it.
fn wait_for_the_stop(_: usize, (ready, never): Args) -> anyhow::Result<()> {
    ignore_term();
    let stop = phalanx::stop_fd().expect("this is a worker");
    anyhow::ensure!(wait(&[&never, &stop], Some(common::SOON))?.is_empty());
    post(&ready, 0, 1);
    anyhow::ensure!(wait(&[&never, &stop], None)? == [1] && stopping());
    post(&ready, 1, 1);
    Ok(())
}

#[test]
fn drop_of_the_context_is_seen_through_the_descriptor() {
    watched(|| {
        let ready = board(2);
        let options = Options::new(1).grace_period(LONG);
        let args = (ready.clone(), Queue::bounded(1).unwrap());
        let context = start_processes(wait_for_the_stop, args, options).unwrap();
        await_post(&ready, 0);
        drop(context);
        assert_eq!(ready.get(1).unwrap(), 1);
        assert!(!stopping() && phalanx::stop_fd().is_none(), "this process is no worker");
    });
}

/// Ranks 0 and 2 are ready, and rank 1 fails; they see it, each attempt for itself.
const PROGRAM: &str = r#"
attempt=$TORCHELASTIC_RESTART_COUNT
if [ $RANK = 1 ]; then
    while [ ! -e up.$attempt.0 ] || [ ! -e up.$attempt.2 ]; do sleep 0.01; done
    exit 3
fi
trap '' TERM
dd if=/dev/fd/$PHALANX_STOP_FD iflag=nonblock bs=64 count=1 2>/dev/null && exit 5
touch up.$attempt.$RANK
read word </dev/fd/$PHALANX_STOP_FD
echo $PHALANX_STOP_PIPE >seen.$attempt.$RANK
"#;

#[test]
fn program_polls_the_stop_pipe_and_each_attempt_has_its_own() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch::new(Command::new("sh").args(["-c", PROGRAM])).directory(dir.path());
        let summary = launch.nproc(Nproc::Count(3)).max_restarts(1).shutdown_timeout(LONG).run().unwrap();
        assert_eq!((summary.attempts.len(), summary.exit_code()), (2, 3), "{summary}");
        let seen = |attempt, rank| fs::read_to_string(dir.path().join(format!("seen.{attempt}.{rank}")));
        for attempt in &summary.attempts {
            assert_eq!(attempt.root_cause().unwrap().rank, 1);
            assert!(
                [0, 2].iter().all(|&rank| attempt.workers[rank].ending == Ending::Succeeded),
                "{summary}"
            );
            assert_eq!(seen(attempt.number, 0).unwrap(), seen(attempt.number, 2).unwrap());
        }
        assert_ne!(seen(0, 0).unwrap(), seen(1, 0).unwrap());
    });
}

#[test]
fn workers_of_a_program_do_not_take_its_stop_for_theirs() {
    watched(|| {
        // As a program under the launcher has them, and its workers inherit them.
        let options = Options::new(1).env("PHALANX_STOP_FD", "0").env("PHALANX_STOP_PIPE", "0:0");
        let variables = |_: usize, ()| {
            anyhow::Ok(["PHALANX_STOP_FD", "PHALANX_STOP_PIPE"].map(|key| std::env::var(key).is_ok()))
        };
        assert_eq!(start_processes(variables, (), options).unwrap().join().unwrap(), [[false; 2]]);
    });
}
