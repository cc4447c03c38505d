//! connect(2), SO_LINGER: TCP connections that are begun without waiting, and ended without a farewell.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, setsockopt, socket, sockopt,
};

use super::fd::above_stdio;

/// Begins a connection. It is made, or has failed, when the stream is writable; `take_error` then says which. The stream never waits.
///
/// # Errors
/// When there is no descriptor left, or it fails at once.
pub(crate) fn begin_to_connect(to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = above_stdio(socket(family, SockType::Stream, flags, None)?)?;
    let begun = match to {
        SocketAddr::V4(to) => connect(socket.as_raw_fd(), &SockaddrIn::from(to)),
        SocketAddr::V6(to) => connect(socket.as_raw_fd(), &SockaddrIn6::from(to)),
    };
    match begun {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

/// Ends a connection by RST: what was not taken by the other side yet is lost (tcp(7), SO_LINGER of 0).
pub(crate) fn reset(stream: TcpStream) {
    // Refused for no socket that is one of TCP; it ends by FIN then.
    let _ = setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
    drop(stream);
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::super::epoll::wait_writable;
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn connection_is_made_and_reset() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // Where the machine has no IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let stream = begin_to_connect(listener.local_addr().unwrap()).unwrap();
            let mut accepted = listener.accept().unwrap().0;
            wait_writable(stream.as_fd(), None).unwrap();
            assert!(stream.take_error().unwrap().is_none());
            reset(stream);
            assert_eq!(accepted.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[test]
    fn refusal_is_told_when_it_has_come() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let told = begin_to_connect(address).and_then(|stream| {
            wait_writable(stream.as_fd(), None)?;
            stream.take_error()?.map_or(Ok(()), Err)
        });
        assert_eq!(told.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
