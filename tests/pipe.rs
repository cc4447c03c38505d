//! Pipes between a launcher and its workers: what is sent arrives, whatever its size, and each side learns of the other's end.

mod common;
#[path = "common/kept.rs"]
mod kept;

use std::time::{Duration, Instant};

use common::{
    SOON, await_post, board, by, by_each_method, file_of, kill_and_join, kill_self, launched, post,
    under_both_strategies, wait_for_ever, watched, with_worker,
};
use kept::Kept;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use phalanx::{
    Connection, Descriptor, Never, Options, QueueError, Shard, Tensor, one_way, pipe, start_processes,
};
use serde::{Deserialize, Serialize};

phalanx::auto_init!();

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Ask {
    Double(i64),
    Say(String),
    End,
}

fn answer(_: usize, asker: Connection<String, Ask>) -> anyhow::Result<()> {
    loop {
        match asker.recv()? {
            Ask::Double(number) => asker.send(format!("{}", 2 * number))?,
            Ask::Say(text) => asker.send(&text)?,
            Ask::End => return Ok(()),
        }
    }
}

#[test]
fn worker_and_launcher_converse_by_each_start_method() {
    launched(|_, ()| {
        by_each_method(|method| {
            let (ours, theirs) = pipe::<Ask, String>().unwrap();
            let context = start_processes(answer, theirs, by(method, 1)).unwrap();
            for number in 0..200 {
                ours.send(Ask::Double(number)).unwrap();
                assert_eq!(ours.recv().unwrap(), (2 * number).to_string());
            }
            ours.send(Ask::Say("word".to_owned())).unwrap();
            assert_eq!(ours.recv().unwrap(), "word");
            ours.send(Ask::End).unwrap();
            context.join().unwrap();
            assert!(matches!(ours.recv(), Err(QueueError::Disconnected)));
        })
    });
}

/// Elements of a tensor of bytes that has a segment of its own.
const LARGE: usize = 300 << 10;

#[test]
fn tensors_in_messages_are_shared_not_copied() {
    fn work(_: usize, launcher: Connection<Tensor<u8>, Tensor<u8>>) -> anyhow::Result<()> {
        for _ in 0..2 {
            let tensor = launcher.recv()?;
            tensor.set(1, 7)?;
            launcher.send(tensor)?;
        }
        launcher.send(Tensor::from_slice(&vec![9; LARGE], &[LARGE])?)?;
        Ok(())
    }
    under_both_strategies(|| {
        with_worker(work, |worker| {
            for len in [4, LARGE] {
                let tensor = Tensor::<u8>::zeros(&[len]).unwrap();
                worker.send(&tensor).unwrap();
                let back = worker.recv().unwrap();
                assert_eq!((back.storage_id(), tensor.get(1).unwrap()), (tensor.storage_id(), 7));
            }
            assert_eq!(worker.recv().unwrap().get(LARGE - 1).unwrap(), 9);
        });
    });
}

#[test]
fn hundreds_of_large_tensors_are_one_message() {
    const COUNT: usize = 300;
    fn work(_: usize, launcher: Connection<Vec<Tensor<u8>>, Vec<Tensor<u8>>>) -> anyhow::Result<()> {
        let tensors = launcher.recv()?;
        tensors.iter().enumerate().try_for_each(|(number, tensor)| tensor.set(number, 1))?;
        launcher.send(tensors)?;
        Ok(())
    }
    under_both_strategies(|| {
        with_worker(work, |worker| {
            let tensors: Vec<_> = (0..COUNT).map(|_| Tensor::<u8>::zeros(&[LARGE]).unwrap()).collect();
            worker.send(&tensors).unwrap();
            let back = worker.recv().unwrap();
            assert_eq!(back.len(), COUNT);
            for (number, (tensor, back)) in tensors.iter().zip(&back).enumerate() {
                assert!(back.storage().is_same(tensor.storage()) && tensor.get(number).unwrap() == 1);
            }
        });
    });
}

#[test]
fn large_values_arrive_whole() {
    fn work(_: usize, launcher: Connection<String, String>) -> anyhow::Result<()> {
        while let Ok(text) = launcher.recv() {
            launcher.send(text)?;
        }
        Ok(())
    }
    watched(|| {
        with_worker(work, |worker| {
            // None, about as many bytes as go in the message itself, 50 MiB.
            for count in [0, 3_274, 3_277, 5 << 20] {
                let text = "0123456789".repeat(count);
                worker.send(&text).unwrap();
                assert!(worker.recv().unwrap() == text, "{count}");
            }
        });
    });
}

#[test]
#[expect(unsafe_code, reason = "signal(2) is unsafe")]
fn end_of_a_killed_worker_is_seen_after_what_it_sent_by_each_start_method() {
    fn work(_: usize, (launcher, sent): (Kept<Connection<u32, u32>>, Tensor<i64>)) -> anyhow::Result<()> {
        (0..3).try_for_each(|number| launcher.send(number))?;
        post(&sent, 0, 1);
        wait_for_ever()
    }
    launched(|_, ()| {
        // SAFETY: SIG_DFL runs no code.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        by_each_method(|method| {
            let (ours, theirs) = pipe::<u32, u32>().unwrap();
            let (theirs, sent) = (Kept::new(theirs), board(1));
            // It is closed here though it is kept.
            let context = start_processes(work, (theirs.clone(), sent.clone()), by(method, 1)).unwrap();
            // Something that it never reads.
            ours.send(99).unwrap();
            await_post(&sent, 0);
            assert_eq!(ours.recv().unwrap(), 0);
            assert!(kill_and_join(context));
            assert!(ours.poll(Duration::ZERO).unwrap());
            assert_eq!((ours.recv().unwrap(), ours.recv().unwrap()), (1, 2));
            for _ in 0..2 {
                assert!(ours.poll(Duration::ZERO).unwrap());
                assert!(matches!(ours.recv(), Err(QueueError::Disconnected)));
                assert!(matches!(ours.try_recv(), Err(QueueError::Disconnected)));
                assert!(matches!(ours.send(1), Err(QueueError::Disconnected)));
                assert!(matches!(ours.try_send(1), Err(QueueError::Disconnected)));
            }
        })
    });
}

#[test]
fn who_waits_is_woken_by_the_end_of_the_other_side() {
    fn work(_: usize, launcher: Connection<(), u64>) -> anyhow::Result<()> {
        launcher.recv()?;
        kill_self()
    }
    watched(|| {
        let (ours, theirs) = pipe().unwrap();
        let context = start_processes(work, theirs, Options::new(1)).unwrap();
        std::thread::scope(|scope| {
            let receivers = [(); 2].map(|()| scope.spawn(|| ours.recv()));
            // More than there is room for, which nobody reads.
            let full = loop {
                if let Err(error) = ours.send(1) {
                    break error;
                }
            };
            assert!(matches!(full, QueueError::Disconnected), "{full}");
            for receiver in receivers {
                assert!(matches!(receiver.join().unwrap(), Err(QueueError::Disconnected)));
            }
        });
        context.join().unwrap_err();
    });
}

#[test]
fn calls_end_when_their_time_is_up() {
    watched(|| {
        let (sender, receiver) = one_way::<Vec<u8>>().unwrap();
        assert!(matches!(receiver.try_recv(), Err(QueueError::Empty)));
        assert!(!receiver.poll(Duration::ZERO).unwrap());
        let began = Instant::now();
        let waited = |error| match error {
            QueueError::TimedOut { waited, .. } => waited >= SOON && began.elapsed() >= SOON,
            _ => false,
        };
        assert!(waited(receiver.recv_timeout(SOON).unwrap_err()));
        assert!(!receiver.poll(SOON).unwrap());
        let mut sent = 0;
        while sender.try_send(vec![0; 1000]).is_ok() {
            sent += 1;
        }
        assert!(matches!(sender.try_send(vec![]), Err(QueueError::Full)));
        assert!(waited(sender.send_timeout(vec![], SOON).unwrap_err()));
        for _ in 0..sent {
            assert!(receiver.poll(Duration::MAX).unwrap());
            assert_eq!(receiver.recv_timeout(Duration::MAX).unwrap().len(), 1000);
        }
        assert!(matches!(receiver.try_recv(), Err(QueueError::Empty)));
        sender.send_timeout(vec![], SOON).unwrap();
        drop(receiver);
        assert!(matches!(sender.send(vec![]), Err(QueueError::Disconnected)));
    });
}

#[test]
fn shard_that_is_sent_is_gone_here_and_whole_there() {
    fn work(_: usize, launcher: Connection<Shard<i32>, Shard<i32>>) -> anyhow::Result<()> {
        let mut shard = launcher.recv()?;
        shard.as_mut_slice()?.fill(5);
        launcher.send(&shard)?;
        anyhow::ensure!(shard.as_mut_slice().is_err(), "it is still here");
        Ok(())
    }
    under_both_strategies(|| {
        with_worker(work, |worker| {
            let mut shards = Tensor::<i32>::zeros(&[LARGE]).unwrap().into_shards(2).unwrap();
            worker.send(&shards[1]).unwrap();
            let error = shards[1].as_mut_slice().unwrap_err().to_string();
            assert!(error.contains("it was sent to another process"), "{error}");
            shards[1] = worker.recv().unwrap();
            let whole = Tensor::from_shards(shards).unwrap();
            assert_eq!((whole.get(0).unwrap(), whole.get(LARGE - 1).unwrap()), (0, 5));
        });
        // What could not be sent is still here.
        let (ours, theirs) = pipe::<Shard<i32>, ()>().unwrap();
        drop(theirs);
        let mut shard = Tensor::from_slice(&[1], &[1]).unwrap().into_shards(1).unwrap().remove(0);
        assert!(matches!(ours.send(&shard), Err(QueueError::Disconnected)));
        assert_eq!(shard.as_mut_slice().unwrap(), [1]);
    });
}

#[test]
fn message_that_cannot_be_read_is_lost_and_the_next_one_is_not() {
    #[derive(Debug, Serialize)]
    struct Even(u32);
    impl<'de> Deserialize<'de> for Even {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let number = u32::deserialize(deserializer)?;
            if number % 2 == 1 {
                return Err(serde::de::Error::custom("odd"));
            }
            Ok(Self(number))
        }
    }
    watched(|| {
        let (sender, receiver) = one_way::<(Even, Descriptor)>().unwrap();
        for number in [1, 2] {
            sender.send((Even(number), Descriptor::from(file_of("")))).unwrap();
        }
        assert!(matches!(receiver.recv(), Err(QueueError::Decode { .. })));
        assert_eq!(receiver.recv().unwrap().0.0, 2);
    });
}

#[test]
fn first_message_with_descriptors_is_told_of_when_it_is_there() {
    watched(|| {
        let (one, other) = pipe::<Vec<Tensor<u8>>, ()>().unwrap();
        let tensor = Tensor::<u8>::zeros(&[LARGE]).unwrap();
        for tensors in [vec![], vec![tensor.clone()], vec![], vec![tensor.clone(), tensor]] {
            assert!(!other.poll(Duration::ZERO).unwrap());
            one.send(&tensors).unwrap();
            assert!(other.poll(Duration::ZERO).unwrap());
            assert_eq!(other.recv().unwrap().len(), tensors.len());
        }
        // Whether messages may have descriptors goes with the end.
        let (ours, theirs) = pipe::<_, ()>().unwrap();
        ours.send(other).unwrap();
        let other = theirs.recv().unwrap();
        one.send(vec![Tensor::<u8>::zeros(&[LARGE]).unwrap()]).unwrap();
        assert_eq!(other.recv().unwrap().len(), 1);
    });
}

#[test]
fn receiver_makes_room_for_descriptors_before_they_come() {
    const COUNT: usize = 200;
    fn work(_: usize, launcher: Connection<usize, Vec<Tensor<u8>>>) -> anyhow::Result<()> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard)?;
        for _ in 0..2 {
            launcher.send(launcher.recv()?.len())?;
        }
        Ok(())
    }
    watched(|| {
        with_worker(work, |worker| {
            for count in [0, COUNT] {
                let tensors: Vec<_> = (0..count).map(|_| Tensor::<u8>::zeros(&[LARGE]).unwrap()).collect();
                worker.send(tensors).unwrap();
                assert_eq!(worker.recv().unwrap(), count);
            }
        });
    });
}

#[test]
fn threads_of_both_ends_mix_messages_with_and_without_descriptors() {
    const EACH: usize = 200;
    watched(|| {
        for _ in 0..20 {
            let (one, other) = pipe::<(usize, Option<Tensor<u64>>), ()>().unwrap();
            let seen = std::sync::Mutex::new(vec![0; 3]);
            std::thread::scope(|scope| {
                for sender in 0..3 {
                    let one = &one;
                    scope.spawn(move || {
                        for number in 0..EACH {
                            // Only some, and the first ones of each thread at the same time.
                            let tensor = (number % 7 == sender)
                                .then(|| Tensor::from_slice(&[number as u64], &[1]).unwrap());
                            one.send((sender, tensor)).unwrap();
                        }
                    });
                }
                for _ in 0..3 {
                    scope.spawn(|| {
                        for _ in 0..EACH {
                            let (sender, tensor) = other.recv().unwrap();
                            assert!(tensor.is_none_or(|tensor| tensor.get(0).unwrap() % 7 == sender as u64));
                            seen.lock().unwrap()[sender] += 1;
                        }
                    });
                }
            });
            assert_eq!(*seen.lock().unwrap(), [EACH; 3]);
            assert!(matches!(other.try_recv(), Err(QueueError::Empty)));
        }
    });
}

#[test]
fn connections_are_for_threads() {
    fn check<T: Send + Sync>() {}
    check::<Connection<std::rc::Rc<()>, Never>>();
    check::<Descriptor>();
}
