//! Joining: what each call says and when, and what is told of workers that end well.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{SOON, await_post, await_that, board, poll_join, post, raised, wait_for_ever, watched};
use nix::sys::signal::Signal as NixSignal;
use phalanx::{Error, Options, Status, Tensor, start_processes, start_processes_with};

phalanx::auto_init!();

#[test]
fn join_timeout_is_false_while_something_runs_and_true_ever_after() {
    watched(|| {
        let gate = board(2);
        let wait = |rank, gate: Tensor<i64>| anyhow::Ok(await_post(&gate, rank));
        let mut context = start_processes(wait, gate.clone(), Options::new(2)).unwrap();
        assert!(!context.join_timeout(Duration::ZERO).unwrap());
        post(&gate, 1, 11);
        await_that(|| context.status(1).unwrap() == Status::Succeeded);
        assert!(!context.join_timeout(SOON).unwrap());
        assert_eq!(context.status(0).unwrap(), Status::Running);
        assert!(matches!(context.status(2), Err(Error::NoSuchRank { rank: 2, nprocs: 2 })));
        post(&gate, 0, 10);
        poll_join(&mut context).unwrap();
        assert!(context.join_timeout(Duration::ZERO).unwrap());
        assert!(context.join_timeout(Duration::ZERO).unwrap());
        assert_eq!(context.into_results().unwrap(), [10, 11]);
    });
}

#[test]
fn join_timeout_waits_its_time() {
    watched(|| {
        let mut context = start_processes(
            |_, ()| -> anyhow::Result<()> { wait_for_ever() },
            (),
            Options::new(1).daemon(true),
        )
        .unwrap();
        let start = Instant::now();
        assert!(!context.join_timeout(Duration::from_millis(120)).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(120));
    });
}

#[test]
fn two_hundred_workers_at_once() {
    watched(|| {
        let context = start_processes(|rank, ()| anyhow::Ok(rank), (), Options::new(200)).unwrap();
        assert_eq!(context.join().unwrap(), (0..200).collect::<Vec<_>>());
        let work = |rank, ()| -> anyhow::Result<()> {
            if rank == 133 { anyhow::bail!("the one") } else { wait_for_ever() }
        };
        let exception = raised(start_processes(work, (), Options::new(200)).unwrap().join().unwrap_err());
        assert_eq!(exception.error_index(), 133);
        assert_eq!(exception.outcomes().iter().filter(|outcome| outcome.is_victim()).count(), 199);
    });
}

#[test]
fn signal_storm_during_join_timeout_changes_nothing() {
    watched(|| {
        let hits = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&hits);
        #[expect(unsafe_code, reason = "a signal handler")]
        // SAFETY: the handler only counts, which is async-signal-safe.
        let handler = unsafe {
            signal_hook::low_level::register(libc::SIGUSR1, move || {
                let _ = counter.fetch_add(1, Ordering::Relaxed);
            })
        };
        let gate = board(1);
        let work = |_, gate: Tensor<i64>| anyhow::Ok(await_post(&gate, 0));
        let mut context = start_processes(work, gate.clone(), Options::new(2)).unwrap();
        let stop = AtomicBool::new(false);
        let target = nix::sys::pthread::pthread_self();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    nix::sys::pthread::pthread_kill(target, NixSignal::SIGUSR1).unwrap();
                }
            });
            let (start, timeout) = (Instant::now(), Duration::from_millis(200));
            assert!(!context.join_timeout(timeout).unwrap());
            assert!(start.elapsed() >= timeout);
            post(&gate, 0, 3);
            assert_eq!(context.join().unwrap(), [3, 3]);
            stop.store(true, Ordering::Relaxed);
        });
        assert!(hits.load(Ordering::Relaxed) > 0);
        signal_hook::low_level::unregister(handler.unwrap());
    });
}

#[test]
fn context_may_be_joined_on_another_thread_than_it_was_started_on() {
    watched(|| {
        let context =
            std::thread::spawn(|| start_processes(|rank, ()| anyhow::Ok(rank), (), Options::new(2)).unwrap());
        let context = context.join().unwrap();
        assert_eq!(std::thread::spawn(|| context.join().unwrap()).join().unwrap(), [0, 1]);
    });
}

const COMPUTED: Duration = Duration::from_millis(50);

/// What this process has computed so far.
fn cpu_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time = usage.user_time() + usage.system_time();
    Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
}

#[test]
fn resource_use_is_told() {
    watched(|| {
        let work = |_, megabytes: usize| -> anyhow::Result<()> {
            let mut memory = vec![1_u8; megabytes << 20];
            while cpu_time() < COMPUTED {
                memory.iter_mut().step_by(4096).for_each(|byte| *byte = byte.wrapping_add(1));
            }
            anyhow::ensure!(std::hint::black_box(&memory)[0] > 0 || megabytes > 0);
            Ok(())
        };
        let args = |rank: usize| if rank == 0 { 64 } else { 1 };
        let mut context = start_processes_with(work, args, Options::new(2)).unwrap();
        poll_join(&mut context).unwrap();
        let outcomes = context.outcomes().unwrap();
        let usage = outcomes[0].usage();
        assert!(usage.user + usage.system >= COMPUTED, "{usage:?}");
        let peaks: Vec<_> =
            outcomes.iter().map(|outcome| outcome.usage().peak_memory.unwrap() >> 20).collect();
        assert!(peaks[0] >= 64 && peaks[1] < 64, "{peaks:?}");
        assert!(outcomes[0].lifetime().unwrap() >= COMPUTED);
    });
}

#[test]
fn peak_memory_is_the_workers_own_though_the_launcher_has_more() {
    watched(|| {
        let ballast = std::hint::black_box(vec![1_u8; 200 << 20]);
        let mut context = start_processes(|_, ()| anyhow::Ok(()), (), Options::new(1)).unwrap();
        poll_join(&mut context).unwrap();
        let peak = context.outcomes().unwrap()[0].usage().peak_memory.unwrap() >> 20;
        assert!(peak < 100, "{peak} MiB of a launcher with {} MiB", ballast.len() >> 20);
    });
}
