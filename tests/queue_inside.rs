//! Queues and locks where nobody expects them: in the serde code of their own values, in destructors, in themselves.

mod common;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use phalanx::sync::{Lock, LockGuard, SyncError};
use phalanx::{JoinableQueue, Queue, QueueError, Tensor, wait};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

phalanx::auto_init!();

thread_local! {
    static QUEUE: RefCell<Option<Queue<Nested>>> = const { RefCell::new(None) };
}

/// Puts another value, or takes one, while it is serialised or deserialised.
#[derive(Debug)]
struct Nested(u8, Tensor<u8>);

fn own() -> Queue<Nested> {
    QUEUE.with_borrow(|queue| queue.clone().unwrap())
}

fn tensor(value: u8) -> Tensor<u8> {
    Tensor::from_slice(&[value], &[1]).unwrap()
}

impl Serialize for Nested {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert_ne!(self.0, 66, "on purpose");
        if self.0 > 0 && self.0 < 60 {
            own().put(Self(self.0 - 1, tensor(self.0 - 1))).unwrap();
        }
        (self.0, &self.1).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (value, tensor) = <(u8, Tensor<u8>)>::deserialize(deserializer)?;
        if value == 0 {
            // The next one, meanwhile.
            assert_eq!(own().try_get().unwrap().0, 1);
        }
        assert_ne!(value, 77, "on purpose");
        Ok(Self(value, tensor))
    }
}

#[test]
fn serde_code_that_uses_the_queue_it_is_in_or_panics() {
    common::watched(|| {
        let queue = Queue::bounded(8).unwrap();
        QUEUE.set(Some(queue.clone()));
        queue.put(Nested(3, tensor(3))).unwrap();
        let mut got = Vec::new();
        while let Ok(Nested(value, tensor)) = queue.try_get() {
            assert_eq!(tensor.to_vec(), [value]);
            got.push(value);
        }
        assert_eq!(got, [0, 2, 3]);
        assert!(catch_unwind(AssertUnwindSafe(|| queue.put(Nested(66, tensor(0))))).is_err());
        queue.put(Nested(77, tensor(0))).unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| queue.get())).is_err());
        queue.put(Nested(88, tensor(9))).unwrap();
        assert_eq!(queue.get().unwrap().1.to_vec(), [9]);
        assert!(matches!(queue.try_get(), Err(QueueError::Empty)));
        QUEUE.set(None);
    });
}

#[derive(Serialize, Deserialize)]
struct Itself(Queue<Itself>);

#[test]
fn queues_in_themselves_leave_no_descriptors() {
    common::watched(|| {
        let sockets = || std::fs::read_to_string("/proc/net/unix").unwrap().lines().count();
        let (before, sockets_before) = (common::descriptors(), sockets());
        for _ in 0..200 {
            let queue = Queue::bounded(4).unwrap();
            queue.put(Itself(queue.clone())).unwrap();
            let Itself(other) = queue.get().unwrap();
            other.put(Itself(other.clone())).unwrap();
        }
        assert_eq!(common::descriptors(), before);
        // The kernel collects sockets that are only in themselves when it likes to, as when another is closed.
        common::await_that(|| {
            drop(std::os::unix::net::UnixStream::pair().unwrap());
            sockets() <= sockets_before + 20
        });
    });
}

#[test]
fn empty_values_and_room_for_one() {
    common::watched(|| {
        let queue = Queue::<()>::bounded(1).unwrap();
        for _ in 0..10_000 {
            queue.put(()).unwrap();
            assert!(matches!(queue.try_put(()), Err(QueueError::Full)) && queue.is_full());
            queue.get().unwrap();
            assert!(queue.is_empty() && !queue.is_full());
        }
        assert_eq!(wait(&[&queue, &queue, &queue.clone()], Some(Duration::ZERO)).unwrap(), [0; 0]);
        queue.put(()).unwrap();
        assert_eq!(wait(&[&queue, &queue, &queue.clone()], None).unwrap(), [0, 1, 2]);
    });
}

thread_local! {
    static GUARD: RefCell<Option<LockGuard<'static, u64>>> = const { RefCell::new(None) };
    static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
}

/// Uses a lock when its thread has nearly ended.
struct Late(&'static Lock<u64>, std::sync::mpsc::Sender<Option<SyncError>>);

impl Drop for Late {
    fn drop(&mut self) {
        let told = self.0.lock().map(|mut guard| *guard += 1).err();
        self.1.send(told).unwrap();
    }
}

#[test]
fn destructors_of_thread_locals_may_have_and_use_locks() {
    common::alone(|| {
        let lock: &'static Lock<u64> = Box::leak(Box::new(Lock::new(0).unwrap()));
        for early in [false, true] {
            let other: &'static Lock<u64> = Box::leak(Box::new(Lock::new(0).unwrap()));
            let (send, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                if early {
                    LATE.set(Some(Late(lock, send.clone())));
                    GUARD.set(None);
                }
                drop(lock.lock().unwrap());
                if !early {
                    LATE.set(Some(Late(lock, send)));
                }
                GUARD.set(Some(other.lock().unwrap()));
            })
            .join()
            .unwrap();
            assert!(told.recv().unwrap().is_none(), "the thread has not ended yet");
            assert!(other.lock().is_ok());
        }
        assert_eq!(*lock.lock().unwrap(), 2);
    });
}

/// Cannot be read.
#[derive(Debug, Serialize)]
struct Unreadable;

impl<'de> Deserialize<'de> for Unreadable {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("on purpose"))
    }
}

#[test]
fn task_that_cannot_be_read_counts_as_done() {
    common::watched(|| {
        let tasks = JoinableQueue::<Unreadable>::bounded(4).unwrap();
        tasks.put(Unreadable).unwrap();
        assert!(matches!(tasks.get(), Err(QueueError::Decode { .. })));
        tasks.join().unwrap();
        assert!(matches!(tasks.task_done(), Err(QueueError::TooManyDone)));
    });
}

#[test]
fn timeouts_are_not_cut_short_and_may_be_endless() {
    common::watched(|| {
        let queue = Queue::<u8>::bounded(1).unwrap();
        for timeout in [0, 1, 50].map(Duration::from_millis) {
            let begin = Instant::now();
            let got = queue.get_timeout(timeout);
            assert!(matches!(got, Err(QueueError::TimedOut { waited, .. }) if waited == timeout), "{got:?}");
            assert!(begin.elapsed() >= timeout);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| queue.put(1).unwrap());
            assert_eq!(queue.get_timeout(Duration::MAX).unwrap(), 1);
        });
    });
}

/// Puts a value with a struct, a sequence and a tensor in it when it is destroyed.
struct PutsAtEnd(Queue<Message>);

#[derive(Serialize, Deserialize)]
struct Message {
    numbers: Vec<u64>,
    tensor: Tensor<u8>,
}

impl Drop for PutsAtEnd {
    fn drop(&mut self) {
        self.0.put(Message { numbers: vec![1, 2], tensor: tensor(3) }).unwrap();
    }
}

thread_local! {
    static LAST: RefCell<Option<PutsAtEnd>> = const { RefCell::new(None) };
}

#[test]
fn destructor_of_a_thread_local_may_put_after_what_the_thread_keeps_for_queues_is_gone() {
    common::watched(|| {
        let queue = Queue::bounded(8).unwrap();
        let putter = PutsAtEnd(queue.clone());
        let thread = std::thread::spawn(move || {
            // Registered first, so destroyed last.
            LAST.set(Some(putter));
            LAST.with_borrow(|last| {
                let queue = &last.as_ref().unwrap().0;
                queue.put(Message { numbers: vec![], tensor: tensor(0) }).unwrap();
                queue.get().unwrap();
            });
        });
        thread.join().unwrap();
        let Message { numbers, tensor } = queue.get().unwrap();
        assert_eq!((numbers, tensor.to_vec()), (vec![1, 2], vec![3]));
    });
}
