//! socket(2), bind(2): a TCP port that is kept for another process.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};

use super::fd::above_stdio;

/// A TCP port that the kernel gives no other socket by chance while this lives. The socket is bound and never listens, so a process that sets
/// SO_REUSEADDR, as servers do, can bind and listen on the port all the same (socket(7)).
#[derive(Debug)]
pub(crate) struct ReservedPort {
    number: u16,
    _socket: OwnedFd,
}

impl ReservedPort {
    /// A free port, on all addresses of this machine.
    pub(crate) fn any() -> io::Result<Self> {
        let socket =
            above_stdio(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        let any: SockaddrIn = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0).into();
        bind(socket.as_raw_fd(), &any)?;
        let bound: SockaddrIn = getsockname(socket.as_raw_fd())?;
        Ok(Self { number: bound.port(), _socket: socket })
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn is_free(number: u16) -> bool {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok()
    }

    #[test]
    fn reserved_port_is_free_for_a_server_and_is_not_given_out_again() {
        let port = ReservedPort::any().unwrap();
        // std's listener sets SO_REUSEADDR.
        assert!(is_free(port.number()));
        let listener = TcpListener::bind(("127.0.0.1", port.number())).unwrap();
        assert!(!is_free(port.number()));
        drop(listener);
        for _ in 0..100 {
            assert_ne!(ReservedPort::any().unwrap().number(), port.number());
        }
    }
}
