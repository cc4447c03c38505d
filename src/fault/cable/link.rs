//! One connection of a cable: the two sockets that it lies between.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use super::allowance::Allowance;
use super::order::End;
use crate::sys::clock::Moment;
use crate::sys::epoll::Readiness;
use crate::sys::tcp;

/// How much of a direction is on its way at most, in bytes.
const ROOM: usize = 64 * 1024;

/// What is on its way in one direction.
#[derive(Debug, Default)]
struct Flow {
    bytes: Vec<u8>,
    /// Whether the sender has ended its side.
    is_ended: bool,
    /// Whether the receiver has been told so.
    is_told: bool,
}

#[derive(Debug)]
pub(super) struct Link {
    client: TcpStream,
    server: TcpStream,
    /// Whether the connection to the server is still being made.
    is_connecting: bool,
    to_server: Flow,
    to_client: Flow,
}

impl Link {
    /// Begins a connection to the server for a client; the client is reset where that fails at once.
    pub(super) fn begin(client: TcpStream, server: SocketAddr) -> Option<Self> {
        let begun = client.set_nonblocking(true).and_then(|()| tcp::begin_to_connect(server));
        let Ok(stream) = begun else {
            tcp::reset(client);
            return None;
        };
        // What comes is passed on as it comes. Refused for no socket of TCP.
        let _ = client.set_nodelay(true).and_then(|()| stream.set_nodelay(true));
        let (to_server, to_client) = Default::default();
        Some(Self { client, server: stream, is_connecting: true, to_server, to_client })
    }

    /// Carries what it can in both directions, once; false: the link is over.
    ///
    /// # Errors
    /// When an end has reset its connection, or the server has refused it: the other end is to be reset, too.
    pub(super) fn carry(&mut self, allowance: &mut Allowance) -> io::Result<bool> {
        if self.is_connecting && !self.finish_to_connect()? {
            return Ok(true);
        }
        let Self { client, server, to_server, to_client, .. } = self;
        to_server.carry((client, server), End::Server, allowance)?;
        to_client.carry((server, client), End::Client, allowance)?;
        Ok(!(self.to_server.is_told && self.to_client.is_told))
    }

    /// Whether the connection to the server is made.
    fn finish_to_connect(&mut self) -> io::Result<bool> {
        match self.server.take_error()? {
            Some(error) => return Err(error),
            None => match self.server.peer_addr() {
                Ok(_) => self.is_connecting = false,
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(error) => return Err(error),
            },
        }
        Ok(!self.is_connecting)
    }

    /// What it waits for: that an end has sent something, or takes something.
    pub(super) fn waits_for(
        &self,
        allowance: &mut Allowance,
        now: Moment,
    ) -> Vec<(BorrowedFd<'_>, Readiness)> {
        if self.is_connecting {
            return vec![(self.server.as_fd(), Readiness::Writable)];
        }
        let directions = [
            (&self.to_server, &self.client, &self.server, End::Server),
            (&self.to_client, &self.server, &self.client, End::Client),
        ];
        let mut waits = Vec::new();
        for (flow, from, to, end) in directions {
            if !flow.bytes.is_empty() && allowance.of(end, now) > 0 {
                waits.push((to.as_fd(), Readiness::Writable));
            } else if flow.bytes.is_empty() && !flow.is_ended {
                waits.push((from.as_fd(), Readiness::Readable));
            }
        }
        waits
    }

    /// Whether bytes are on their way that an end is to have.
    pub(super) fn holds_bytes(&self) -> bool {
        !(self.to_server.bytes.is_empty() && self.to_client.bytes.is_empty())
    }

    /// Ends both connections by an end of file, after what they have been sent. What they still send is to be taken and thrown away: closing a
    /// socket that has unread bytes would reset it, and an end of file would be an error (tcp_close in the kernel).
    pub(super) fn cut(self) -> [TcpStream; 2] {
        for stream in [&self.client, &self.server] {
            // Refused where it is not connected any more.
            let _ = stream.shutdown(Shutdown::Write);
        }
        [self.client, self.server]
    }

    pub(super) fn reset(self) {
        tcp::reset(self.client);
        tcp::reset(self.server);
    }

    /// Closes one end; the other one, which hears nothing of it.
    pub(super) fn forget(self, closed: End) -> TcpStream {
        match closed {
            End::Client => self.server,
            End::Server => self.client,
        }
    }
}

impl Flow {
    /// Takes what one end has sent, if nothing is on its way, and gives the other one what it takes.
    fn carry(
        &mut self,
        (mut from, mut to): (&TcpStream, &TcpStream),
        end: End,
        allowance: &mut Allowance,
    ) -> io::Result<()> {
        if self.bytes.is_empty() && !self.is_ended {
            let mut bytes = vec![0; ROOM];
            if let Some(count) = unless_it_waits(from.read(&mut bytes))? {
                bytes.truncate(count);
                (self.bytes, self.is_ended) = (bytes, count == 0);
            }
        }
        let allowed = allowance.of(end, Moment::now()).min(self.bytes.len());
        if allowed > 0
            && let Some(count) = unless_it_waits(to.write(&self.bytes[..allowed]))?
        {
            self.bytes.drain(..count);
            allowance.pass(end, count);
        }
        if self.is_ended && self.bytes.is_empty() && !self.is_told {
            self.is_told = true;
            // ENOTCONN: it has gone meanwhile.
            let _ = to.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}

/// Takes what has come and throws it away; false: nothing more comes.
pub(super) fn discard(mut stream: &TcpStream) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match unless_it_waits(stream.read(&mut bytes)) {
            Ok(Some(1..)) => {}
            Ok(None) => return true,
            Ok(Some(0)) | Err(_) => return false,
        }
    }
}

/// `None`: nothing can be done now.
fn unless_it_waits(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
