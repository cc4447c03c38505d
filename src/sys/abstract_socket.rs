//! unix(7): sockets with abstract names. They stand in no directory, and are gone with the process that listens.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect as nix_connect, getsockopt,
    listen, socket,
};

use super::fd::above_stdio;
use super::socket::Socket;

/// How many that have connected may wait for [`Listener::accept`].
const WAITING: i32 = 64;
/// In /proc/net/unix, of a socket that listens (__SO_ACCEPTCON).
const LISTENS: u32 = 1 << 16;

/// Who is at the other end: the process that called connect(2), or listen(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// 0 where this process does not see it, as one of another PID namespace.
    pub(crate) pid: u32,
    pub(crate) user: u32,
}

/// The effective user of this process.
pub(crate) fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// A socket to which others connect. Its name is free when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// Takes a name.
    ///
    /// # Errors
    /// `AddrInUse`: another process of this network namespace has it; `InvalidInput`: it is too long.
    pub(crate) fn bind(name: &str) -> io::Result<Self> {
        let fd = endpoint()?;
        bind(fd.as_raw_fd(), &address(name)?)?;
        listen(&fd, Backlog::new(WAITING)?)?;
        Ok(Self(fd))
    }

    /// The next one that has connected, if there is one.
    pub(crate) fn accept(&self) -> io::Result<Option<(Socket, Peer)>> {
        loop {
            return match accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
                // It has gone already.
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                Err(Errno::EAGAIN) => Ok(None),
                Err(error) => Err(error.into()),
                Ok(raw) => {
                    // SAFETY: the kernel has just made this descriptor.
                    let fd = above_stdio(unsafe { OwnedFd::from_raw_fd(raw) })?;
                    let peer = peer(&fd)?;
                    Ok(Some((Socket::from_descriptor(fd), peer)))
                }
            };
        }
    }
}

impl AsFd for Listener {
    /// Readable when one has connected.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Connects to who listens under a name, without waiting.
///
/// # Errors
/// `ConnectionRefused`: nobody listens; `WouldBlock`: too many wait to be accepted.
pub(crate) fn connect(name: &str) -> io::Result<(Socket, Peer)> {
    let fd = endpoint()?;
    nix_connect(fd.as_raw_fd(), &address(name)?)?;
    let peer = peer(&fd)?;
    Ok((Socket::from_descriptor(fd), peer))
}

/// The abstract names that begin with `start` and under which somebody listens, in this network namespace.
pub(crate) fn listening(start: &str) -> io::Result<Vec<String>> {
    let table = std::fs::read("/proc/net/unix")?;
    Ok(names(&String::from_utf8_lossy(&table), start))
}

/// proc_net_unix(5): number, references, protocol, flags, type, state, inode, and a path, whose `@` stands for an abstract name.
fn names(table: &str, start: &str) -> Vec<String> {
    let name = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let name = fields.nth(3)?.strip_prefix('@')?;
        (flags & LISTENS != 0 && name.starts_with(start)).then(|| name.to_owned())
    };
    let mut names: Vec<_> = table.lines().filter_map(name).collect();
    names.sort();
    names
}

fn endpoint() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    above_stdio(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

fn address(name: &str) -> io::Result<UnixAddr> {
    UnixAddr::new_abstract(name.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn peer(fd: &OwnedFd) -> io::Result<Peer> {
    let credentials = getsockopt(fd, PeerCredentials)?;
    Ok(Peer { pid: credentials.pid().unsigned_abs(), user: credentials.uid() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_one_listeners_and_is_listed_while_it_lives() {
        let start = format!("phalanx-test-{}-", std::process::id());
        let name = format!("{start}one");
        let listener = Listener::bind(&name).unwrap();
        assert_eq!(Listener::bind(&name).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(listener.accept().unwrap().is_none());
        let (client, launcher) = connect(&name).unwrap();
        let (served, visitor) = listener.accept().unwrap().unwrap();
        let own = Peer { pid: std::process::id(), user: user() };
        assert_eq!((launcher, visitor), (own, own));
        client.send(b"hi", &[], None).unwrap();
        assert_eq!(&served.try_receive::<2>().unwrap().unwrap().bytes, b"hi");
        // Once, though the connection has the name too.
        assert_eq!(listening(&start).unwrap(), std::slice::from_ref(&name));
        drop(listener);
        assert_eq!(listening(&start).unwrap(), [""; 0]);
        assert_eq!(connect(&name).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(Listener::bind(&"x".repeat(200)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn only_listeners_with_an_abstract_name_are_read_from_the_table() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0000000000000000: 00000002 00000000 00010000 0005 01 26 @phalanx-7-b\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 27 /run/phalanx-7-x\n\
                     0000000000000000: 00000003 00000000 00000000 0005 03 28 @phalanx-7-c\n\
                     0000000000000000: 00000003 00000000 00010000 0005 03 29\n\
                     0000000000000000: 00000002 00000000 00010000 0005 01 30 @phalanx-7-a\n\
                     0000000000000000: 00000002 00000000 00010000 0005 01 31 @phalanx-77-a\n";
        assert_eq!(names(table, "phalanx-7-"), ["phalanx-7-a", "phalanx-7-b"]);
    }
}
