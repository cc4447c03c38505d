//! An end of a pipe, as programs use it: what is sent and received.

use std::borrow::Borrow;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::end::End;
use super::error::QueueError;
use super::packet::{self, Announced, Arrived, Packet};
use crate::memory::descriptor::Descriptor;
use crate::sync::parker::{self, SHORT};
use crate::sync::wait_policy::{Interrupted, WaitPolicy};
use crate::sys::clock::Moment;
use crate::sys::epoll::{self, Readiness};
use crate::sys::socket::{Attempt, CROWDED_RETRY, Socket};
use crate::wire::codec;
use crate::wire::framed::ReceiveFault;

/// An end of a [`pipe`](crate::pipe()), which sends `S` and receives `R`: Python's `multiprocessing.connection.Connection`.
///
/// # Which process has it
///
/// A connection is in one process at a time. Once it was sent to another process it is gone from here, as a
/// [`Shard`](crate::Shard) is, and using it is [`QueueError::Gone`]. If it could not be sent, or its worker was not started, it
/// is still here. It cannot be sent while another thread is in a call of it: the call that would send it fails. A copy that a
/// forked worker has from the fork alone is `Gone` too. Dropping the connection closes the end.
///
/// It is `Send` and `Sync`, and threads may share it. A message goes to one of the threads that receive.
///
/// # When the other process dies
///
/// The kernel closes the end of a process that ends, whatever ends it. A message arrives whole or not at all, so what was sent
/// before can still be received; after that `recv`, like each `send`, is [`QueueError::Disconnected`]. A call that waits
/// ends at once. Messages that the dead process had not received are lost.
///
/// The clock of timeouts is CLOCK_MONOTONIC. `Duration::ZERO` looks once and does not wait; `Duration::MAX` has no end.
pub struct Connection<S, R> {
    end: Arc<End>,
    values: PhantomData<fn(S) -> R>,
}

impl<S, R> Connection<S, R> {
    pub(super) fn over(socket: Socket) -> Self {
        let end = Arc::new(End::new(socket.into_descriptor().into(), Announced::default()));
        Self { end, values: PhantomData }
    }

    pub(super) fn socket(&self) -> &Socket<Descriptor> {
        self.end.socket()
    }
}

impl<S: Serialize, R> Connection<S, R> {
    /// Sends a value, and waits as long as there is no room for it.
    ///
    /// The value is given, or lent. Memory and descriptors in it are shared; shards and connections in it are gone from here once
    /// it is sent, and still here after an error. What was sent can be received though this process end.
    ///
    /// ```
    /// use phalanx::{QueueError, pipe};
    ///
    /// let (one, other) = pipe::<String, u32>()?;
    /// one.send("hello".to_owned())?;
    /// other.send(5)?;
    /// assert_eq!((other.recv()?, one.recv()?), ("hello".to_owned(), 5));
    /// drop(other);
    /// assert!(matches!(one.send("anybody?".to_owned()), Err(QueueError::Disconnected)));
    /// # Ok::<(), QueueError>(())
    /// ```
    ///
    /// # Errors
    /// - [`QueueError::Disconnected`] when the other end was dropped, or its process has ended
    /// - [`QueueError::Encode`] when the value cannot be serialised
    /// - [`QueueError::Gone`] when this end was sent to another process, or came by a fork alone
    /// - [`QueueError::Aborted`] when the wait is ended because another worker has failed
    /// - [`QueueError::System`] when the system refuses, as for want of memory or descriptors
    pub fn send(&self, value: impl Borrow<S>) -> Result<(), QueueError> {
        self.send_by(value.borrow(), &WaitPolicy::Forever)
    }

    /// As [`send`](Self::send), but waits for nothing.
    ///
    /// # Errors
    /// - [`QueueError::Full`] when there is no room at the moment
    /// - the others of [`send`](Self::send)
    pub fn try_send(&self, value: impl Borrow<S>) -> Result<(), QueueError> {
        self.send_by(value.borrow(), &WaitPolicy::Never)
    }

    /// As [`send`](Self::send), but waits for room no longer than `timeout`.
    ///
    /// # Errors
    /// - [`QueueError::TimedOut`] when the other end has received nothing in that time; the value was not sent
    /// - the others of [`send`](Self::send)
    pub fn send_timeout(&self, value: impl Borrow<S>, timeout: Duration) -> Result<(), QueueError> {
        self.send_by(value.borrow(), &WaitPolicy::of(timeout))
    }

    /// Sends a value, which is ready before anything is waited for.
    fn send_by(&self, value: &S, policy: &WaitPolicy) -> Result<(), QueueError> {
        // Before the end is entered: `Serialize` is the user's code, and may send this very connection, which works only while no
        // call uses it.
        let encoded = codec::encode_behind(value, Packet::buffer());
        let encoded = encoded.map_err(|reason| QueueError::Encode { reason })?;
        let mut packet = Packet::new(encoded).map_err(QueueError::system("make a message ready"))?;
        let end = self.end.enter()?;
        loop {
            // Never blocking in sendmsg itself: the wait has to end at the deadline and at an abort too, which are
            // other descriptors.
            let waited = match packet.try_send(end.socket(), end.announced()).map_err(not_sent)? {
                Attempt::Sent => break,
                Attempt::Full => policy.await_descriptor(end.socket().as_fd(), Readiness::Writable),
                // ETOOMANYREFS: too many descriptors of this user are in sockets (unix(7)), maybe in those of another program. No
                // event tells when some of them have been received.
                Attempt::Crowded => policy.pause(CROWDED_RETRY),
            };
            waited.map_err(QueueError::not_put("the other end received nothing"))?;
        }
        // Only now do shards and connections in the value leave this process: after an error they are still here.
        packet.deliver();
        Ok(())
    }
}

fn not_sent(error: io::Error) -> QueueError {
    match error.kind() {
        // EPIPE: the other end is closed. ECONNRESET (once, instead): it was closed while messages to it were unread.
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QueueError::disconnected(),
        _ => QueueError::System { doing: "send a message (sendmsg)", os: error },
    }
}

impl<S, R: DeserializeOwned> Connection<S, R> {
    /// Receives the next value, and waits as long as there is none.
    ///
    /// # Errors
    /// - [`QueueError::Disconnected`] when the other end is gone and all that it has sent was received
    /// - [`QueueError::Decode`] when a message cannot be deserialised, or did not arrive whole for want of descriptors; it is
    ///   lost, and the next one can be received
    /// - [`QueueError::Gone`] when this end was sent to another process, or came by a fork alone
    /// - [`QueueError::Aborted`] when the wait is ended because another worker has failed
    /// - [`QueueError::Corrupt`] when the other process has written something else to its descriptor
    /// - [`QueueError::System`] when the system refuses, as for want of memory
    pub fn recv(&self) -> Result<R, QueueError> {
        self.recv_by(&WaitPolicy::Forever)
    }

    /// As [`recv`](Self::recv), but waits for nothing.
    ///
    /// ```
    /// use phalanx::{QueueError, one_way};
    ///
    /// let (sender, receiver) = one_way::<u8>()?;
    /// assert!(matches!(receiver.try_recv(), Err(QueueError::Empty)));
    /// sender.send(7)?;
    /// drop(sender);
    /// assert_eq!(receiver.try_recv()?, 7);
    /// assert!(matches!(receiver.try_recv(), Err(QueueError::Disconnected)));
    /// # Ok::<(), QueueError>(())
    /// ```
    ///
    /// # Errors
    /// - [`QueueError::Empty`] when there is no message at the moment
    /// - the others of [`recv`](Self::recv)
    pub fn try_recv(&self) -> Result<R, QueueError> {
        self.recv_by(&WaitPolicy::Never)
    }

    /// As [`recv`](Self::recv), but waits no longer than `timeout`.
    ///
    /// # Errors
    /// - [`QueueError::TimedOut`] when the other end has sent nothing in that time
    /// - the others of [`recv`](Self::recv)
    pub fn recv_timeout(&self, timeout: Duration) -> Result<R, QueueError> {
        self.recv_by(&WaitPolicy::of(timeout))
    }

    /// Waits, no longer than `timeout`, until [`recv`](Self::recv) has something to return, and says whether it has.
    ///
    /// The end of the other process counts: `recv` is then [`QueueError::Disconnected`]. Another thread may be faster.
    ///
    /// # Errors
    /// - [`QueueError::Gone`] when this end was sent to another process, or came by a fork alone
    /// - [`QueueError::Aborted`] when the wait is ended because another worker has failed
    /// - [`QueueError::System`] when the system refuses
    pub fn poll(&self, timeout: Duration) -> Result<bool, QueueError> {
        // Entered for the whole wait: the descriptor must not come to mean /dev/null under a poll that has begun.
        let end = self.end.enter()?;
        let policy = WaitPolicy::of(timeout);
        loop {
            // Readable is not yet a message for this thread: another one may be faster. But EOF is readable too, and stays so.
            let ready = epoll::poll_now(&[(end.socket().as_fd(), Readiness::Readable)]);
            if ready.map_err(QueueError::system("ask whether there is a message (ppoll)"))?.contains(&true) {
                match packet::take_announcement(end.socket(), end.announced()) {
                    Ok(true) => continue,
                    // An error is for `recv` to tell.
                    Ok(false) | Err(_) => return Ok(true),
                }
            }
            match policy.await_descriptor(end.socket().as_fd(), Readiness::Readable) {
                Ok(()) => {}
                // The one end of a wait that is an answer here. An abort or an error of the system is none.
                Err(Interrupted::TimedOut(_)) => return Ok(false),
                Err(stop) => return Err(QueueError::not_got("the other end sent nothing")(stop)),
            }
        }
    }

    fn recv_by(&self, policy: &WaitPolicy) -> Result<R, QueueError> {
        // After `next` has left the end: decoding runs the type's own code, which may send the connection away, or panic.
        self.next(policy)?.decode().map_err(|reason| QueueError::Decode { reason })
    }

    fn next(&self, policy: &WaitPolicy) -> Result<Arrived, QueueError> {
        let end = self.end.enter()?;
        let look = || packet::try_receive(end.socket(), end.announced()).map_err(not_received).transpose();
        // A look before the wait, so that a call that does not wait receives what is there.
        if let Some(found) = look() {
            return found;
        }
        let not_got = |stop| QueueError::not_got("the other end sent nothing")(stop);
        policy.check().map_err(not_got)?;
        // An answer that comes soon is not worth a sleep, from which the kernel would have to wake this thread.
        let short = Moment::now().as_nanos() + SHORT;
        if !end.skips_spin.load(Relaxed)
            && let Some(found) = parker::spin(|| Moment::now().as_nanos(), short, look)
        {
            return found;
        }
        let found = loop {
            let waited = policy.await_descriptor(end.socket().as_fd(), Readiness::Readable);
            waited.map_err(not_got)?;
            // Another thread may be faster.
            if let Some(found) = look() {
                break found;
            }
        };
        end.skips_spin.store(Moment::now().as_nanos() > short, Relaxed);
        found
    }
}

fn not_received(fault: ReceiveFault) -> QueueError {
    match fault {
        ReceiveFault::Ended => QueueError::disconnected(),
        ReceiveFault::Lost(reason) => QueueError::Decode { reason },
        ReceiveFault::Damaged(reason) => QueueError::Corrupt { reason },
        ReceiveFault::System(os) => QueueError::System { doing: "receive a message (recvmsg)", os },
    }
}

impl<S, R> AsFd for Connection<S, R> {
    /// The socket: readable when [`recv`](Self::recv) has something to return, the end of the other process included.
    ///
    /// Before the first message with descriptors it may be readable a moment early, while that is being sent.
    ///
    /// It is for poll(2), epoll(7) and [`wait`](crate::wait()); bytes that are read from it are lost to `recv`. The descriptor of
    /// a connection that was sent away is /dev/null.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.socket().as_fd()
    }
}

impl<S, R> fmt::Debug for Connection<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sent = self.end.is_sent();
        let fd = self.as_fd().as_raw_fd();
        f.debug_struct("Connection").field("fd", &fd).field("sent", &sent).finish()
    }
}

impl<S, R> Serialize for Connection<S, R> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        End::serialize(&self.end, serializer)
    }
}

impl<'de, S, R> Deserialize<'de> for Connection<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let end = Arc::new(End::deserialize(deserializer)?);
        Ok(Self { end, values: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{one_way, pipe};
    use super::*;

    #[test]
    fn what_is_no_message_is_told_and_the_next_one_is_received() {
        let (sender, receiver) = one_way::<String>().unwrap();
        let send_garbage = |garbage: &[u8]| sender.socket().send(garbage, &[], None).unwrap();
        for garbage in [&[9_u8][..], &[0, 3, 0, 0, 0, 1], &vec![1; 100_000]] {
            send_garbage(garbage);
            sender.send("well".to_owned()).unwrap();
            assert!(matches!(receiver.recv(), Err(QueueError::Corrupt { .. })), "{:?}", garbage[0]);
            assert_eq!(receiver.recv().unwrap(), "well");
        }
        // Behind an announcement, by which it is a message with descriptors.
        let (sender, receiver) = one_way::<String>().unwrap();
        let send_garbage = |garbage: &[u8]| sender.socket().send(garbage, &[], None).unwrap();
        for garbage in [&[packet::ANNOUNCES][..], &[9], &[0, 3, 0, 0, 0, 1], &vec![1; 100_000]] {
            send_garbage(garbage);
        }
        sender.send("well".to_owned()).unwrap();
        assert!(matches!(receiver.recv(), Err(QueueError::Corrupt { .. })));
        let lost = receiver.recv().unwrap_err().to_string();
        assert!(lost.contains("only 0 of its 3 descriptors arrived"), "{lost}");
        assert!(matches!(receiver.recv(), Err(QueueError::Corrupt { .. })));
        assert_eq!(receiver.recv().unwrap(), "well");
    }

    #[test]
    fn announcement_alone_is_nothing_to_receive() {
        let (one, other) = pipe::<u8, ()>().unwrap();
        one.socket().send(&[packet::ANNOUNCES], &[], None).unwrap();
        assert!(!other.poll(Duration::ZERO).unwrap());
        assert!(matches!(other.try_recv(), Err(QueueError::Empty)));
        one.send(4).unwrap();
        assert!(other.poll(Duration::ZERO).unwrap());
        assert_eq!(other.recv().unwrap(), 4);
    }

    #[test]
    fn what_is_no_socket_is_an_error_of_the_system() {
        let file = Descriptor::from(tempfile::tempfile().unwrap());
        let end = Arc::new(End::new(file, Announced::default()));
        let connection = Connection::<u8, u8> { end, values: PhantomData };
        assert!(matches!(connection.send(1), Err(QueueError::System { .. })));
        assert!(matches!(connection.recv(), Err(QueueError::System { .. })));
    }

    #[test]
    fn value_that_refuses_is_told_before_anything_is_sent() {
        let (sender, receiver) = one_way::<Vec<std::cell::RefCell<u8>>>().unwrap();
        let value = vec![std::cell::RefCell::new(1)];
        let borrowed = value[0].borrow_mut();
        assert!(matches!(sender.send(&value), Err(QueueError::Encode { .. })));
        drop(borrowed);
        assert!(matches!(receiver.try_recv(), Err(QueueError::Empty)));
        sender.send(&value).unwrap();
        assert_eq!(receiver.recv().unwrap(), value);
    }
}
