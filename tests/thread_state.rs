//! What Linux keeps for each thread: a worker has it from the thread that asked for it, and from no other.

mod common;
#[path = "common/thread_state.rs"]
mod thread_state;

use std::fs;
use std::sync::mpsc;

use common::{await_post, await_that, board, post, state_of, wait_for_ever, watched};
use phalanx::{Options, Tensor, spawn, start_processes};
use thread_state::{State, become_special, own_state, set_no_new_privileges};

phalanx::auto_init!();

fn state_of_worker(_: usize, _: ()) -> anyhow::Result<State> {
    Ok(own_state())
}

/// The state of a thread that starts a worker, and of that worker.
fn in_thread(special: bool) -> [State; 2] {
    let start = move || {
        if special {
            become_special();
            set_no_new_privileges();
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
                assert_eq!(worker.is_special(), special, "{worker:?}");
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
