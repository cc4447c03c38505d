//! socketpair(2), sendmsg(2) and recvmsg(2): messages with descriptors beside them (unix(7), SCM_RIGHTS).

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

use super::clock::Moment;
use super::epoll::{pause, wait_writable};
use super::fd::above_stdio;

/// The most descriptors that the kernel takes in one message (SCM_MAX_FD).
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// When to try again after the user had too many descriptors on their way.
const FULL_RETRY: Duration = Duration::from_millis(1);

/// One end of a pair. What is sent arrives whole, in order, and also when its sender is dead by then.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

/// One message.
#[derive(Debug)]
pub(crate) struct Message<const N: usize> {
    pub(crate) bytes: [u8; N],
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Socket {
    /// Two ends, close-on-exec.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (one, two) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(above_stdio(one)?), Self(above_stdio(two)?)))
    }

    /// Takes over one end.
    pub(crate) fn from_descriptor(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Sends one message. While the other end is full, or too many of this user's descriptors are on their way, it waits
    /// until `deadline`.
    pub(crate) fn send(
        &self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
        deadline: Option<Moment>,
    ) -> io::Result<()> {
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let beside = if numbers.is_empty() { &rights[..0] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            let sent = sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], beside, flags, None);
            match sent {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    if !wait_writable(self.0.as_fd(), deadline)? {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                // So many of this user's descriptors are on their way already (unix(7)). That changes when somebody
                // receives, of which nobody tells us.
                Err(Errno::ETOOMANYREFS) if deadline.is_none_or(|at| Moment::now() < at) => {
                    pause(FULL_RETRY)?;
                }
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// The next message, if one is there. It does not wait. Descriptors for which this process has no room are lost:
    /// the sender has to say how many there were.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other end is closed, `InvalidData` for a message of another size.
    pub(crate) fn try_receive<const N: usize>(&self) -> io::Result<Option<Message<N>>> {
        let mut bytes = [0; N];
        let mut control = [0_u64; CONTROL_WORDS];
        let (length, control_length) = loop {
            match self.receive_raw(&mut bytes, &mut control) {
                Ok(lengths) => break lengths,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        };
        let control = bytemuck::cast_slice::<u64, u8>(&control);
        let descriptors = take_descriptors(&control[..control_length.min(control.len())])?;
        match length {
            length if length == N => Ok(Some(Message { bytes, descriptors })),
            // Nobody has the other end any more (or has sent nothing at all).
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// recvmsg(2) by libc: nix gives no descriptors at all when some were cut off, so that the others would leak.
    fn receive_raw(&self, bytes: &mut [u8], control: &mut [u64]) -> io::Result<(usize, usize)> {
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: a plain record, for which zeros are valid.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(control);
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the header points to a buffer and a control buffer of ours with their lengths; all outlive the call.
        let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut header, flags) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        Ok((length, header.msg_controllen))
    }
}

/// Words of the control buffer: one control message with as many descriptors as there can be.
const CONTROL_WORDS: usize = (HEADER + MAX_DESCRIPTORS * size_of::<RawFd>()).div_ceil(8);
/// Bytes of a control message before its data: length, level, type (cmsg(3)).
const HEADER: usize = size_of::<libc::cmsghdr>();

/// The descriptors of the one control message that there can be; the kernel has made them for us.
fn take_descriptors(control: &[u8]) -> io::Result<Vec<OwnedFd>> {
    let Some((length, rest)) = control.split_first_chunk::<8>() else { return Ok(Vec::new()) };
    let Some((kind, _)) = rest.split_first_chunk::<8>() else { return Ok(Vec::new()) };
    let rights = [libc::SOL_SOCKET.to_ne_bytes(), libc::SCM_RIGHTS.to_ne_bytes()].concat();
    let end = usize::try_from(u64::from_ne_bytes(*length)).unwrap_or(0).min(control.len());
    if kind[..] != rights[..] || end < HEADER {
        return Ok(Vec::new());
    }
    let (numbers, _) = control[HEADER..end].as_chunks::<4>();
    let owned = numbers.iter().map(|raw| {
        // SAFETY: the kernel has just made this descriptor and put its number here.
        unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(*raw)) }
    });
    owned.collect::<Vec<_>>().into_iter().map(above_stdio).collect()
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::epoll::wait_readable;
    use super::*;

    #[test]
    fn messages_arrive_with_their_descriptors_after_the_sender_is_gone() {
        let (here, there) = Socket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        there.send(b"one", &[file.as_fd(), file.as_fd()], None).unwrap();
        there.send(b"two", &[], None).unwrap();
        drop(there);
        let message = here.try_receive::<3>().unwrap().unwrap();
        assert_eq!((&message.bytes, message.descriptors.len()), (b"one", 2));
        assert_eq!(&here.try_receive::<3>().unwrap().unwrap().bytes, b"two");
        let end = here.try_receive::<3>().unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn nothing_there_is_told_without_waiting_and_too_many_are_refused() {
        let (here, there) = Socket::pair().unwrap();
        assert!(here.try_receive::<1>().unwrap().is_none());
        let file = tempfile::tempfile().unwrap();
        assert!(there.send(b"x", &[file.as_fd(); MAX_DESCRIPTORS + 1], None).is_err());
        there.send(b"x", &[file.as_fd(); MAX_DESCRIPTORS], None).unwrap();
        assert_eq!(here.try_receive::<1>().unwrap().unwrap().descriptors.len(), MAX_DESCRIPTORS);
    }
    #[test]
    fn full_socket_is_waited_for_until_the_deadline_and_no_longer() {
        let (here, there) = Socket::pair().unwrap();
        let soon = || Moment::now().checked_add(Duration::from_millis(5));
        let full = loop {
            if let Err(error) = there.send(b"x", &[], soon()) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| there.send(b"y", &[], None));
            while here.try_receive::<1>().unwrap().is_none_or(|message| &message.bytes != b"y") {
                wait_readable(here.as_fd(), None).unwrap();
            }
            sent.join().unwrap().unwrap();
        });
        drop(here);
        let error = there.send(b"z", &[], Some(Moment::now())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "whatever the deadline");
    }
}
