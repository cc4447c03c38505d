//! `phalanx::launch` in a process that is given to the job, and programs of Rust as workers.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;

mod common;

use common::{ignore_term, watched};
use phalanx::launch::{Command, Event, Launch, Nproc};
use phalanx::{Signal, spawn};

phalanx::auto_init!();

/// What this process does about each signal: blocked, ignored, caught.
fn dispositions() -> Vec<u64> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    ["SigBlk", "SigIgn", "SigCgt"].map(|name| common::signal_set(&status, name)).to_vec()
}

#[test]
fn signals_that_were_taken_over_are_given_back() {
    /// In a worker, which has one thread.
    fn work(_: usize, (): ()) -> anyhow::Result<(Vec<u64>, Vec<u64>, Vec<u64>)> {
        // One of them is ignored, as under nohup.
        ignore_term();
        let before = dispositions();
        let during = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&during);
        let launch = Launch::new(Command::new("true")).handle_signals(true);
        let launch = launch.on_event(move |event| {
            if matches!(event, Event::Started { .. }) {
                *seen.borrow_mut() = dispositions();
            }
        });
        anyhow::ensure!(launch.run()?.succeeded());
        let during = during.borrow().clone();
        Ok((before, during, dispositions()))
    }
    watched(|| {
        let (before, during, after) = spawn(work, (), 1).unwrap().pop().unwrap();
        assert_eq!(before, after);
        let bit = |signal: Signal| 1 << (signal.number() - 1);
        assert_eq!(during[1], before[1], "what is ignored stays so");
        let taken = [Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::TSTP];
        let taken = taken.iter().fold(0, |all, &signal| all | bit(signal));
        assert_eq!(during[2] & taken, taken);
    });
}

#[test]
fn pids_are_those_of_the_workers_by_rank() {
    watched(|| {
        let told = Rc::new(RefCell::new(Vec::new()));
        let events = Rc::clone(&told);
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch::new(Command::new("sh").args(["-c", "echo $$ > pid$RANK"]));
        let launch = launch.nproc(Nproc::Count(3)).directory(dir.path()).on_event(move |event| {
            if let Event::Started { pids, .. } = event {
                events.borrow_mut().clone_from(pids);
            }
        });
        let summary = launch.run().unwrap();
        let written: Vec<u32> = (0..3)
            .map(|rank| {
                fs::read_to_string(dir.path().join(format!("pid{rank}"))).unwrap().trim().parse().unwrap()
            })
            .collect();
        assert_eq!(*told.borrow(), written);
        let workers = &summary.attempts[0].workers;
        assert_eq!(workers.iter().map(|worker| worker.pid).collect::<Vec<_>>(), written);
    });
}
