//! Open files beside values, in arguments, results and messages.

mod common;

use std::fs::File;
use std::io::{Read, Seek};
use std::time::Instant;

use common::{SOON, by, by_each_method, file_of, kill_and_join, launched, skipped, watched, with_worker};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{geteuid, setuid};
use phalanx::{Connection, Descriptor, Options, QueueError, one_way, pipe, spawn, start_processes};

phalanx::auto_init!();

fn text_of(file: Descriptor) -> anyhow::Result<String> {
    let mut text = String::new();
    File::from(file.into_owned()?).read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn descriptors_travel_in_arguments_and_results_by_each_start_method() {
    fn work(rank: usize, given: Vec<Descriptor>) -> anyhow::Result<(String, Descriptor)> {
        let text = text_of(given[rank].clone())?;
        let back = file_of(&format!("{text} of rank {rank}"));
        Ok((text, back.into()))
    }
    launched(|_, ()| {
        by_each_method(|method| {
            let given = vec![Descriptor::from(file_of("a")), Descriptor::from(file_of("b"))];
            let results = start_processes(work, given.clone(), by(method, 2)).unwrap().join().unwrap();
            let texts = results.into_iter().map(|(text, back)| (text, text_of(back).unwrap()));
            assert_eq!(
                texts.collect::<Vec<_>>(),
                [("a".to_owned(), "a of rank 0".to_owned()), ("b".to_owned(), "b of rank 1".to_owned())]
            );
            // The sender keeps its own: the same open file, which is read to its end.
            let mut kept = File::from(given[0].clone().into_owned().unwrap());
            assert_eq!(
                (kept.stream_position().unwrap(), text_of(given[0].clone()).unwrap()),
                (1, String::new())
            );
        })
    });
}

#[test]
fn hundreds_of_descriptors_arrive_each_as_itself() {
    const COUNT: usize = 300;
    fn work(_: usize, given: Vec<Descriptor>) -> anyhow::Result<Vec<Descriptor>> {
        Ok(given)
    }
    watched(|| {
        let given = (0..COUNT).map(|number| Descriptor::from(file_of(&number.to_string())));
        let back = spawn(work, given.collect(), 1).unwrap().remove(0);
        let texts: Vec<_> = back.into_iter().map(|file| text_of(file).unwrap()).collect();
        assert_eq!(texts, (0..COUNT).map(|number| number.to_string()).collect::<Vec<_>>());
    });
}

#[test]
fn descriptor_of_a_result_asked_for_again_is_the_same() {
    watched(|| {
        let make = |_, ()| anyhow::Ok(Descriptor::from(file_of("once")));
        let mut context = start_processes(make, (), Options::new(1)).unwrap();
        common::poll_join(&mut context).unwrap();
        let texts = [(); 2].map(|()| text_of(context.result(0).unwrap().unwrap()).unwrap());
        assert_eq!(texts, ["once", ""]);
    });
}

#[test]
fn open_file_is_read_where_it_arrives() {
    fn work(_: usize, launcher: Connection<String, Descriptor>) -> anyhow::Result<()> {
        Ok(launcher.send(text_of(launcher.recv()?)?)?)
    }
    watched(|| {
        with_worker(work, |worker| {
            worker.send(Descriptor::from(file_of("in the file"))).unwrap();
            assert_eq!(worker.recv().unwrap(), "in the file");
        });
    });
}

#[test]
fn descriptors_for_which_there_is_no_room_cost_one_message() {
    fn work(_: usize, launcher: Connection<String, Vec<Descriptor>>) -> anyhow::Result<()> {
        let hard = getrlimit(Resource::RLIMIT_NOFILE)?.1;
        let open = common::descriptors().len() as u64;
        // As many as there is room for, the soft limit raised to the hard one.
        setrlimit(Resource::RLIMIT_NOFILE, open + 2, open + 40)?;
        anyhow::ensure!(hard > 400, "the hard limit is {hard}");
        loop {
            match launcher.recv() {
                Ok(files) => launcher.send(format!("{} files", files.len()))?,
                Err(QueueError::Decode { reason }) => launcher.send(reason)?,
                Err(QueueError::Disconnected) => return Ok(()),
                Err(other) => return Err(other.into()),
            }
        }
    }
    watched(|| {
        with_worker(work, |worker| {
            for (count, answer) in [
                (30, "30 files"),
                (100, "of its 100 descriptors arrived: RLIMIT_NOFILE is"),
                (300, "descriptors arrived: RLIMIT_NOFILE is"),
                (30, "30 files"),
            ] {
                let files = (0..count).map(|_| Descriptor::from(file_of("")));
                worker.send(files.collect::<Vec<_>>()).unwrap();
                let answered = worker.recv().unwrap();
                assert!(answered.contains(answer), "{count}: {answered}");
            }
        });
    });
}

#[test]
fn sender_that_is_killed_leaves_no_half_message() {
    fn work(_: usize, launcher: Connection<Vec<Descriptor>, ()>) -> anyhow::Result<()> {
        let files: Vec<_> = (0..300).map(|_| Descriptor::from(file_of(""))).collect();
        loop {
            launcher.send(&files)?;
        }
    }
    watched(|| {
        let end = Instant::now() + common::race_time();
        while Instant::now() < end {
            let (ours, theirs) = pipe().unwrap();
            let context = start_processes(work, theirs, Options::new(1)).unwrap();
            assert_eq!(ours.recv().unwrap().len(), 300);
            assert!(kill_and_join(context));
            let error = loop {
                match ours.recv() {
                    Ok(files) => assert_eq!(files.len(), 300),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, QueueError::Disconnected), "{error}");
        }
    });
}

#[test]
fn sender_waits_while_too_many_descriptors_are_on_their_way() {
    /// A user who has none on their way.
    const NOBODY: u32 = 65_533;
    fn fill(_: usize, (): ()) -> anyhow::Result<()> {
        // Only who has no privileges is limited (unix(7), ETOOMANYREFS), to as many as it may have open.
        setrlimit(Resource::RLIMIT_NOFILE, 60, 100)?;
        let (sender, receiver) = one_way::<Vec<Descriptor>>()?;
        let files: Vec<_> = (0..30).map(|_| Descriptor::from(file_of(""))).collect();
        setuid(NOBODY.into())?;
        let mut sent = 0;
        while sender.try_send(&files).is_ok() {
            sent += 1;
        }
        let full = sender.send_timeout(&files, SOON).unwrap_err();
        anyhow::ensure!(matches!(full, QueueError::TimedOut { .. }) && sent == 4, "{sent}: {full}");
        anyhow::ensure!(getrlimit(Resource::RLIMIT_NOFILE)? == (100, 100), "the soft limit is as it was");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sender.send(&files));
            for _ in 0..=sent {
                assert_eq!(receiver.recv().unwrap().len(), 30);
            }
            waiting.join().unwrap().unwrap();
        });
        Ok(())
    }
    if !geteuid().is_root() {
        skipped("only root can become another user");
        return;
    }
    watched(|| spawn(fill, (), 1).unwrap());
}
