//! Connections that are sent: in one process at a time, and back when they could not be sent.

mod common;
#[path = "common/kept.rs"]
mod kept;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use common::{SOON, by, by_each_method, launched, watched, with_worker};
use kept::Kept;
use nix::sys::resource::{Resource, setrlimit};
use phalanx::{
    Connection, Never, Options, QueueError, one_way, pipe, spawn, start_processes, start_processes_with,
};
use serde::Serialize;

phalanx::auto_init!();

#[test]
fn connection_that_is_sent_is_gone_here_and_works_there() {
    type Numbers = Connection<Never, u32>;
    fn work(rank: usize, launcher: Connection<u32, Numbers>) -> anyhow::Result<()> {
        let numbers = launcher.recv()?;
        let sum = std::iter::from_fn(|| numbers.recv().ok()).sum::<u32>();
        Ok(launcher.send(sum + rank as u32)?)
    }
    watched(|| {
        with_worker(work, |worker| {
            let (sender, receiver) = one_way::<u32>().unwrap();
            sender.send(1).unwrap();
            let number = receiver.as_fd().as_raw_fd();
            worker.send(&receiver).unwrap();
            for gone in [receiver.try_recv().unwrap_err(), receiver.poll(SOON).unwrap_err()] {
                assert!(matches!(gone, QueueError::Gone { .. }), "{gone}");
                assert!(gone.to_string().contains("it was sent to another process"), "{gone}");
            }
            // Whoever has borrowed it has an open descriptor, but not the pipe.
            let target = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
            assert_eq!((receiver.as_fd().as_raw_fd(), target.to_str()), (number, Some("/dev/null")));
            let again = worker.send(&receiver).unwrap_err().to_string();
            assert!(again.contains("it was sent to another process"), "{again}");
            sender.send(2).unwrap();
            drop(sender);
            assert_eq!(worker.recv().unwrap(), 3);
        });
    });
}

#[test]
fn workers_are_connected_with_each_other_and_see_each_others_end() {
    fn work(rank: usize, neighbour: Connection<usize, usize>) -> anyhow::Result<usize> {
        neighbour.send(rank)?;
        let other = neighbour.recv()?;
        if rank == 1 {
            anyhow::ensure!(matches!(neighbour.recv(), Err(QueueError::Disconnected)), "it has not ended");
        }
        Ok(other)
    }
    launched(|_, ()| {
        by_each_method(|method| {
            let (one, other) = pipe::<usize, usize>().unwrap();
            let mut ends = [one, other].into_iter();
            let context = start_processes_with(work, |_| ends.next().unwrap(), by(method, 2)).unwrap();
            assert_eq!(context.join().unwrap(), [1, 0]);
        })
    });
}

#[test]
fn connection_in_a_result_comes_from_its_worker() {
    fn work(_: usize, (): ()) -> anyhow::Result<(Connection<u8, u8>, Connection<u8, u8>)> {
        let (one, other) = pipe()?;
        one.send(7)?;
        Ok((one, other))
    }
    watched(|| {
        let (one, other) = spawn(work, (), 1).unwrap().remove(0);
        assert_eq!(other.recv().unwrap(), 7);
        drop(one);
        assert!(matches!(other.recv(), Err(QueueError::Disconnected)));
    });
}

#[test]
fn connection_for_all_ranks_or_of_a_failed_start_is_still_here() {
    fn launch(_: usize, (): ()) -> anyhow::Result<String> {
        let (ours, theirs) = pipe::<u8, u8>()?;
        let theirs = Kept::new(theirs);
        let work = |_, _: Kept<Connection<u8, u8>>| anyhow::Ok(());
        let error = spawn(work, theirs.clone(), 2).unwrap_err().to_string();
        anyhow::ensure!(error.contains("a connection can go to one rank only"), "{error}");
        setrlimit(Resource::RLIMIT_NOFILE, 14, 14)?;
        let files: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        let error = start_processes(work, theirs.clone(), Options::new(1)).err();
        drop(files);
        ours.send(3)?;
        anyhow::ensure!(theirs.recv()? == 3, "it is not here");
        Ok(error.map_or_else(String::new, |error| error.to_string()))
    }
    watched(|| {
        let error = spawn(launch, (), 1).unwrap().remove(0);
        assert!(error.contains("Too many open files"), "{error}");
    });
}

#[test]
fn connection_that_another_thread_waits_on_is_not_sent() {
    watched(|| {
        let (ours, theirs) = pipe::<u8, u8>().unwrap();
        let (carrier, _other) = pipe::<Connection<u8, u8>, ()>().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                loop {
                    match ours.recv() {
                        // Just then it was being serialised below.
                        Err(QueueError::Gone { .. }) => std::thread::yield_now(),
                        other => return other,
                    }
                }
            });
            let error = loop {
                // Until the thread waits it is only refused for want of a message.
                match refusal(&ours) {
                    error if error.contains("used by another thread") => break error,
                    _ => std::thread::yield_now(),
                }
            };
            assert!(error.contains("end the call that waits first"), "{error}");
            let sent = carrier.send(&ours);
            // Before anything can fail here: the thread waits for it.
            theirs.send(1).unwrap();
            assert_eq!(waiting.join().unwrap().unwrap(), 1);
            assert!(matches!(sent, Err(QueueError::Encode { reason }) if reason.ends_with(&error)));
        });
        carrier.send(ours).unwrap();
    });
}

/// Why it cannot be serialised outside of a message.
fn refusal<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_err().to_string()
}
