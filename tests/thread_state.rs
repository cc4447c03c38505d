//! What Linux keeps for each thread: a worker has it from the thread that asked for it, and from no other.

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;

use common::{await_post, await_that, board, post, state_of, wait_for_ever, watched};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;
use phalanx::{Options, Tensor, spawn, start_processes};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

const IOPRIO_WHO_PROCESS: i32 = 1;
const SCHED_BATCH: i32 = 3;

/// What a thread has, and its children have from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    nice: i32,
    policy: i32,
    timer_slack: i32,
    io_priority: i64,
    affinity: Vec<usize>,
    umask: Option<String>,
    directory: PathBuf,
    no_new_privileges: Option<String>,
}

#[expect(unsafe_code, reason = "neither std nor nix has these calls")]
fn own_state() -> State {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let field =
        |name| status.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned());
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
    State {
        // SAFETY: takes integers.
        nice: unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) },
        // SAFETY: likewise.
        policy: unsafe { libc::sched_getscheduler(0) },
        // SAFETY: likewise.
        timer_slack: unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) },
        // SAFETY: likewise.
        io_priority: unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) },
        affinity: (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap()).collect(),
        umask: field("Umask:"),
        directory: std::env::current_dir().unwrap(),
        no_new_privileges: field("NoNewPrivs:"),
    }
}

/// Makes the calling thread another than all others of this process.
#[expect(unsafe_code, reason = "neither std nor nix has these calls")]
fn become_special() {
    let mut one = CpuSet::new();
    one.set(own_state().affinity[0]).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    // From here on this thread has its own umask and working directory.
    unshare(CloneFlags::CLONE_FS).unwrap();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
    std::env::set_current_dir("/proc").unwrap();
    let param = libc::sched_param { sched_priority: 0 };
    // Best effort class, level 6 (ioprio_set(2)).
    let io_priority = (2 << 13) | 6;
    let done = [
        // SAFETY: takes integers.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 7) },
        // SAFETY: and a pointer to a record that outlives the call.
        unsafe { libc::sched_setscheduler(0, SCHED_BATCH, &raw const param) },
        // SAFETY: takes integers.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 123_000) },
        // SAFETY: likewise.
        unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, io_priority) } as i32,
        // SAFETY: likewise.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) },
    ];
    assert_eq!(done, [0; 5], "{}", std::io::Error::last_os_error());
}

fn state_of_worker(_: usize, _: ()) -> anyhow::Result<State> {
    Ok(own_state())
}

/// The state of a thread that starts a worker, and of that worker.
fn in_thread(special: bool) -> [State; 2] {
    let start = move || {
        if special {
            become_special();
        }
        [own_state(), spawn(state_of_worker, (), 1).unwrap().remove(0)]
    };
    std::thread::spawn(start).join().unwrap()
}

#[test]
fn workers_have_the_state_of_the_thread_that_starts_them_whoever_was_first() {
    for order in [[true, false], [false, true], [true, true]] {
        watched(|| {
            for special in order {
                let [thread, worker] = in_thread(special);
                assert_eq!(worker, thread);
                assert_eq!(
                    worker.nice == 7 && worker.directory.as_os_str() == "/proc",
                    special,
                    "{worker:?}"
                );
            }
        });
    }
}

#[test]
fn starting_thread_ends_with_its_workers_and_not_before() {
    watched(|| {
        let starters = || {
            let tasks = fs::read_dir("/proc/self/task").unwrap();
            let comms = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
            comms.filter(|comm| comm.trim() == "phalanx-start").count()
        };
        let board: Tensor<i64> = board(2);
        let (done, ended) = mpsc::channel();
        let own = board.clone();
        let caller = std::thread::spawn(move || {
            let work = |rank: usize, board: Tensor<i64>| -> anyhow::Result<()> {
                post(&board, rank, std::process::id());
                wait_for_ever()
            };
            done.send(start_processes(work, own, Options::new(2)).unwrap()).unwrap();
        });
        let mut context = ended.recv().unwrap();
        caller.join().unwrap();
        let pids = [0, 1].map(|rank| await_post(&board, rank));
        assert_eq!(starters(), 1);
        assert!(pids.iter().all(|&pid| state_of(pid).is_some_and(|state| state != 'Z')), "they live on");
        context.kill().unwrap();
        context.join().unwrap_err();
        await_that(|| starters() == 0);
    });
}
