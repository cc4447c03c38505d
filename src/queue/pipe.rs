//! Pipes: how their two ends are made.

use super::connection::Connection;
use super::error::QueueError;
use crate::sys::limits::with_room;
use crate::sys::socket::Socket;

/// Makes a pipe of two ends: one sends `A` and receives `B`, the other sends `B` and receives `A`. Python's
/// `multiprocessing.Pipe()`.
///
/// Each end is in one process at a time. It moves to a worker in its arguments, or through a queue or another pipe. Values are
/// any serde type, tensors, descriptors and other connections included; messages are of any size.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Connection, Options, Tensor, pipe, start_processes};
///
/// fn work(_rank: usize, launcher: Connection<f32, Tensor<f32>>) -> anyhow::Result<()> {
///     let tensor = launcher.recv()?; // the same memory as the launcher's
///     launcher.send(tensor.to_vec().iter().sum::<f32>())?;
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let (ours, theirs) = pipe()?;
/// let context = start_processes(work, theirs, Options::new(1))?;
/// ours.send(Tensor::from_slice(&[1.0, 2.0, 3.5], &[3])?)?;
/// assert_eq!(ours.recv()?, 6.5);
/// context.join()?;
/// assert!(ours.recv().is_err(), "the worker has ended");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`QueueError::System`] when this process has no descriptors left, of which a pipe needs two.
#[expect(clippy::type_complexity, reason = "what each end sends is what is to be seen")]
pub fn pipe<A, B>() -> Result<(Connection<A, B>, Connection<B, A>), QueueError> {
    // SOCK_SEQPACKET: a message arrives whole or not at all, so a sender that is killed leaves no half of one, and threads that
    // share an end need no lock to receive. EOF after the last copy of an end is closed is what tells the peer of a death, by any
    // signal.
    let (one, other) = with_room(Socket::pair).map_err(QueueError::system("make a pipe (socketpair)"))?;
    Ok((Connection::over(one), Connection::over(other)))
}

/// Makes a pipe with a direction: the first end sends, the second receives. Python's `Pipe(duplex=False)`, in the opposite order.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Connection, Never, Options, one_way, start_processes_with};
///
/// fn work(rank: usize, results: Connection<String, Never>) -> anyhow::Result<()> {
///     results.send(format!("rank {rank} begins"))?;
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let mut receivers = Vec::new();
/// let mut sender = |_| {
///     let (sender, receiver) = one_way().expect("two descriptors");
///     receivers.push(receiver);
///     sender
/// };
/// let context = start_processes_with(work, &mut sender, Options::new(2))?;
/// assert_eq!(receivers[1].recv()?, "rank 1 begins");
/// context.join()?;
/// # Ok(())
/// # }
/// ```
///
/// Receiving at the end that sends is refused when it is compiled:
///
/// ```compile_fail
/// let (sender, receiver) = phalanx::one_way::<u8>().unwrap();
/// sender.recv();
/// ```
///
/// # Errors
/// [`QueueError::System`] when this process has no descriptors left, of which a pipe needs two.
#[expect(clippy::type_complexity, reason = "what each end sends is what is to be seen")]
pub fn one_way<T>() -> Result<(Connection<T, Never>, Connection<Never, T>), QueueError> {
    let (sender, receiver) = pipe::<T, Never>()?;
    // shutdown(2) works on the socket, not on the descriptor, so it travels with the end to whatever process. The receiver's type
    // has no `send`, but raw bytes written to its descriptor would fill a buffer that is never read; now they are refused (EPIPE).
    let directed = sender.socket().refuse_to_receive();
    directed.map_err(QueueError::system("give a pipe its direction (shutdown)"))?;
    Ok((sender, receiver))
}

/// The type of what an end of a [`one_way`] pipe never sends or receives: it has no values, and is neither `Serialize` nor
/// `Deserialize`. So a [`Connection<T, Never>`](Connection) has no `recv`, and a `Connection<Never, T>` has no `send`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Never {}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn direction_is_one() {
        let (sender, receiver) = one_way::<u8>().unwrap();
        let error = receiver.socket().send(b"x", &[], None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        sender.send(4).unwrap();
        assert_eq!(receiver.try_recv().unwrap(), 4);
    }
}
