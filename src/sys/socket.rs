//! socketpair(2), sendmsg(2) and recvmsg(2): messages with descriptors beside them (unix(7), SCM_RIGHTS).

use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, send, sendmsg, shutdown,
    socketpair,
};

use super::clock::Moment;
use super::epoll::{pause, wait_writable};
use super::fd::above_stdio;
use crate::point::point;

/// The most descriptors that the kernel takes in one message (SCM_MAX_FD).
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// When to try again after the user had too many descriptors on their way.
pub(crate) const CROWDED_RETRY: Duration = Duration::from_millis(1);

/// One end of a pair. What is sent arrives whole, in order, and also when its sender is dead by then.
#[derive(Debug)]
pub(crate) struct Socket<F = OwnedFd>(F);

/// One message.
#[derive(Debug)]
pub(crate) struct Message<B> {
    pub(crate) bytes: B,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// What came of an attempt to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Attempt {
    Sent,
    /// The other end has no room: until this one is writable.
    Full,
    /// Too many of this user's descriptors are on their way already (unix(7), ETOOMANYREFS). That changes when a process receives some, which
    /// no event tells.
    Crowded,
}

impl Socket {
    /// Two ends, close-on-exec.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (one, two) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(above_stdio(one)?), Self(above_stdio(two)?)))
    }

    pub(crate) fn into_descriptor(self) -> OwnedFd {
        self.0
    }
}

impl<F: AsFd> Socket<F> {
    /// Takes over one end.
    pub(crate) fn from_descriptor(fd: F) -> Self {
        Self(fd)
    }

    pub(crate) fn descriptor(&self) -> &F {
        &self.0
    }

    /// Says that nothing is to be received here: the other end cannot send any more.
    pub(crate) fn refuse_to_receive(&self) -> io::Result<()> {
        Ok(shutdown(self.raw(), Shutdown::Read)?)
    }

    /// Sends one message. While the other end is full, or too many of this user's descriptors are on their way, it waits
    /// until `deadline`.
    pub(crate) fn send(
        &self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
        deadline: Option<Moment>,
    ) -> io::Result<()> {
        self.until_sent(deadline, || self.try_send(bytes, descriptors))
    }

    /// Repeats an attempt to send to this socket until it succeeds, or until `deadline`.
    pub(crate) fn until_sent(
        &self,
        deadline: Option<Moment>,
        mut attempt: impl FnMut() -> io::Result<Attempt>,
    ) -> io::Result<()> {
        loop {
            match attempt()? {
                Attempt::Sent => return Ok(()),
                Attempt::Full => {
                    if !wait_writable(self.0.as_fd(), deadline)? {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Attempt::Crowded if deadline.is_none_or(|at| Moment::now() < at) => pause(CROWDED_RETRY)?,
                Attempt::Crowded => return Err(Errno::ETOOMANYREFS.into()),
            }
        }
    }

    /// Sends one message, if that can be done without waiting.
    pub(crate) fn try_send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<Attempt> {
        point!("sys.sendmsg", call);
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let beside = if numbers.is_empty() { &rights[..0] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            return match sendmsg::<()>(self.raw(), &[IoSlice::new(bytes)], beside, flags, None) {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Ok(Attempt::Full),
                Err(Errno::ETOOMANYREFS) => Ok(Attempt::Crowded),
                other => Ok(other.map(|_| Attempt::Sent)?),
            };
        }
    }

    /// As [`try_send`](Self::try_send), without descriptors.
    pub(crate) fn try_send_bytes(&self, bytes: &[u8]) -> io::Result<Attempt> {
        loop {
            return match send(self.raw(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Ok(Attempt::Full),
                other => Ok(other.map(|_| Attempt::Sent)?),
            };
        }
    }

    /// Fills `bytes` with the next message, if one is there that has at most `limit` bytes; says whether it has. It does not wait, and
    /// drops the message's descriptors.
    ///
    /// # Errors
    /// As [`try_receive`](Self::try_receive).
    pub(crate) fn try_receive_bytes(&self, bytes: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
        bytes.clear();
        bytes.reserve(limit);
        let length = loop {
            // MSG_TRUNC: the length of the message, though there is less room.
            let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
            // SAFETY: the vector has room for `limit` bytes.
            let length = unsafe { libc::recv(self.raw(), bytes.as_mut_ptr().cast(), limit, flags) };
            match usize::try_from(length) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) if length > limit => return Err(io::ErrorKind::InvalidData.into()),
                Ok(length) => break length,
                Err(_) => match Errno::last() {
                    Errno::EAGAIN => return Ok(false),
                    // As in `receive_raw`.
                    Errno::ECONNRESET | Errno::EINTR => {}
                    error => return Err(error.into()),
                },
            }
        };
        // SAFETY: the kernel has written that number of bytes.
        unsafe { bytes.set_len(length) };
        Ok(true)
    }

    /// The next message, if one is there. It does not wait. Descriptors for which this process has no room are lost:
    /// the sender has to say how many there were.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other end is closed, `InvalidData` for a message of another size.
    pub(crate) fn try_receive<const N: usize>(&self) -> io::Result<Option<Message<[u8; N]>>> {
        let mut bytes = [MaybeUninit::uninit(); N];
        let Some((length, descriptors)) = self.try_receive_into(&mut bytes)? else { return Ok(None) };
        if length != N {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: the kernel has written all of them.
        let bytes = bytes.map(|byte| unsafe { byte.assume_init() });
        Ok(Some(Message { bytes, descriptors }))
    }

    /// As [`try_receive`](Self::try_receive), of a message that has at most `limit` bytes.
    pub(crate) fn try_receive_up_to(&self, limit: usize) -> io::Result<Option<Message<Vec<u8>>>> {
        let mut bytes = Vec::with_capacity(limit);
        let room = &mut bytes.spare_capacity_mut()[..limit];
        let Some((length, descriptors)) = self.try_receive_into(room)? else { return Ok(None) };
        // SAFETY: the kernel has written that number, which is no more than there is room for.
        unsafe { bytes.set_len(length) };
        Ok(Some(Message { bytes, descriptors }))
    }

    /// The first bytes of the next message, if one is there, and zeros where it has fewer. It stays there, with its
    /// descriptors.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other end is closed.
    pub(crate) fn peek<const N: usize>(&self) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [MaybeUninit::new(0); N];
        let received = self.receive_raw(&mut bytes, &mut [], libc::MSG_PEEK)?;
        // SAFETY: each was zero, and may have been written by the kernel.
        Ok(received.map(|_| bytes.map(|byte| unsafe { byte.assume_init() })))
    }

    /// How many bytes the next message has, and its descriptors.
    fn try_receive_into(&self, bytes: &mut [MaybeUninit<u8>]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
        let mut control = [0_u64; CONTROL_WORDS];
        let Some(received) = self.receive_raw(bytes, &mut control, 0)? else { return Ok(None) };
        let control = bytemuck::cast_slice::<u64, u8>(&control);
        let descriptors = take_descriptors(&control[..received.control.min(control.len())])?;
        if received.cut_short {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Some((received.length, descriptors)))
    }

    /// What is there, if something is.
    fn receive_raw(
        &self,
        bytes: &mut [MaybeUninit<u8>],
        control: &mut [u64],
        flags: i32,
    ) -> io::Result<Option<Received>> {
        point!("sys.recvmsg", call);
        loop {
            match self.receive_once(bytes, control, flags) {
                // No process has the other end any more (or none has sent anything).
                Ok(Received { length: 0, .. }) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => return Ok(Some(received)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // The other end was closed with something unread in it: this is told once, before what it has sent.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn raw(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }

    /// recvmsg(2) by libc: nix gives no descriptors at all when some were cut off, so that the others would leak.
    fn receive_once(
        &self,
        bytes: &mut [MaybeUninit<u8>],
        control: &mut [u64],
        flags: i32,
    ) -> io::Result<Received> {
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: a plain record, for which zeros are valid.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(control);
        let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the header points to a buffer and a control buffer of ours with their lengths; all outlive the call.
        let length = unsafe { libc::recvmsg(self.raw(), &raw mut header, flags) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        let cut_short = header.msg_flags & libc::MSG_TRUNC != 0;
        Ok(Received { length, control: header.msg_controllen, cut_short })
    }
}

/// What recvmsg(2) says of a message.
struct Received {
    length: usize,
    /// Bytes of the control message.
    control: usize,
    /// Whether it had more bytes than there was room for.
    cut_short: bool,
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

impl<F: AsFd> AsFd for Socket<F> {
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
    fn message_of_any_size_is_received_and_one_of_another_is_refused() {
        let (here, there) = Socket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        for length in [1, 5, 100] {
            there.send(&vec![7; length], &[file.as_fd()], None).unwrap();
            assert_eq!(here.peek::<1>().unwrap(), Some([7]));
            let message = here.try_receive_up_to(100).unwrap().unwrap();
            assert_eq!((message.bytes, message.descriptors.len()), (vec![7; length], 1));
        }
        assert!(here.peek::<1>().unwrap().is_none() && here.try_receive_up_to(9).unwrap().is_none());
        let refused = |error: io::Error| error.kind() == io::ErrorKind::InvalidData;
        there.send(&[7; 101], &[file.as_fd()], None).unwrap();
        assert!(refused(here.try_receive_up_to(100).unwrap_err()));
        there.send(&[7; 4], &[], None).unwrap();
        assert_eq!(here.peek::<5>().unwrap(), Some([7, 7, 7, 7, 0]));
        assert!(refused(here.try_receive::<3>().unwrap_err()));
        there.send(&[7; 2], &[], None).unwrap();
        assert!(refused(here.try_receive::<3>().unwrap_err()));
    }

    #[test]
    fn what_was_sent_is_received_though_its_sender_left_something_unread() {
        let (here, there) = Socket::pair().unwrap();
        here.send(b"unread", &[], None).unwrap();
        there.send(b"last", &[], None).unwrap();
        drop(there);
        assert_eq!(&here.try_receive::<4>().unwrap().unwrap().bytes, b"last");
        assert_eq!(here.try_receive::<4>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
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
