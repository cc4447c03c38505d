//! Cable: what can happen to a network between a server and its clients.

mod allowance;
mod link;
mod order;
mod relay;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

pub use order::End;
use order::Order;
use relay::Relay;

use crate::sys::event::EventFd;

/// A cable between a server and its clients: a TCP proxy on this machine that can be pulled, slowed, and cut.
///
/// For tests of whatever speaks over TCP: a rendezvous, a store, a ring of ranks. Clients connect to [`address`](Self::address) in place of the
/// server's own. As long as nothing is done to it, each connection is carried as it is, both ways, with its half-closes, its resets and its
/// refusals. What is done to it is in effect when its method returns. Dropping the cable closes all connections.
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::{TcpListener, TcpStream};
///
/// use phalanx::fault::{Cable, End};
///
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// let cable = Cable::to(server.local_addr()?)?;
/// let mut client = TcpStream::connect(cable.address())?;
/// let (mut accepted, _) = server.accept()?;
///
/// // The server dies in the middle of the client's message.
/// cable.cut_after(End::Server, 4);
/// client.write_all(b"message")?;
/// let mut received = Vec::new();
/// accepted.read_to_end(&mut received)?;
/// assert_eq!(received, b"mess");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Cable {
    address: SocketAddr,
    /// Each with what is dropped when it is done. `None`: the cable is being dropped.
    orders: Option<Sender<(Order, Sender<Infallible>)>>,
    /// Rung when there is an order.
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Cable {
    /// A cable to a server, of which the first address counts. It listens on a free port of 127.0.0.1.
    ///
    /// The server need not be there: a client that connects before it is sees its connection reset, as if it had been refused a moment later.
    ///
    /// # Errors
    /// When the address is none, or there is no port, descriptor or thread left.
    pub fn to(server: impl ToSocketAddrs) -> io::Result<Self> {
        let no_address = || io::Error::new(io::ErrorKind::InvalidInput, "the server has no address");
        let server = server.to_socket_addrs()?.next().ok_or_else(no_address)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let ((orders, received), bell) = (channel(), Arc::new(EventFd::new()?));
        let relay = Relay::new((listener, server), received, Arc::clone(&bell));
        let thread = std::thread::Builder::new().name("phalanx-cable".to_owned());
        let thread = thread.spawn(move || relay.run())?;
        Ok(Self { address, orders: Some(orders), bell, thread: Some(thread) })
    }

    /// Where clients connect: 127.0.0.1 and a port of its own.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nothing pass, in either direction, and tells neither end: what is sent waits, and so does a client that connects. So it is with a
    /// pulled cable, a switch that is off, a node that has lost its power.
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::net::{TcpListener, TcpStream};
    /// use phalanx::fault::{Cable, End};
    ///
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let cable = Cable::to(server.local_addr()?)?;
    /// let mut client = TcpStream::connect(cable.address())?;
    /// let (mut accepted, _) = server.accept()?;
    /// cable.pull();
    /// client.write_all(b"hello")?; // it fills the socket's buffer
    /// accepted.set_nonblocking(true)?;
    /// assert_eq!(accepted.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn pull(&self) {
        self.order(Order::Pull);
    }

    /// Lets everything pass at full speed, also what has waited: it ends [`pull`](Self::pull) and [`slow`](Self::slow).
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::net::{TcpListener, TcpStream};
    /// use phalanx::fault::{Cable, End};
    ///
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let cable = Cable::to(server.local_addr()?)?;
    /// let mut client = TcpStream::connect(cable.address())?;
    /// let (mut accepted, _) = server.accept()?;
    /// cable.pull();
    /// client.write_all(b"hello")?;
    /// cable.plug();
    /// let mut received = [0; 5];
    /// accepted.read_exact(&mut received)?;
    /// assert_eq!(&received, b"hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn plug(&self) {
        self.order(Order::Plug);
    }

    /// Limits the rate to a number of bytes a second, at least one, for all connections and both directions together.
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::net::{TcpListener, TcpStream};
    /// use phalanx::fault::{Cable, End};
    ///
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let cable = Cable::to(server.local_addr()?)?;
    /// let mut client = TcpStream::connect(cable.address())?;
    /// let (mut accepted, _) = server.accept()?;
    /// cable.slow(10_000);
    /// let begin = std::time::Instant::now();
    /// client.write_all(&[0; 1_000])?;
    /// accepted.read_exact(&mut [0; 1_000])?;
    /// assert!(begin.elapsed().as_millis() >= 50);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn slow(&self, bytes_a_second: u64) {
        self.order(Order::Slow(bytes_a_second.max(1)));
    }

    /// Closes all connections once this number of bytes more has reached one end, over all connections together. That end reads the begin of a
    /// message, and then an end of file. Later connections are carried.
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::net::{TcpListener, TcpStream};
    /// use phalanx::fault::{Cable, End};
    ///
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let cable = Cable::to(server.local_addr()?)?;
    /// let mut client = TcpStream::connect(cable.address())?;
    /// let (mut accepted, _) = server.accept()?;
    /// cable.cut_after(End::Client, 2);
    /// accepted.write_all(b"answer")?;
    /// let mut received = Vec::new();
    /// client.read_to_end(&mut received)?;
    /// assert_eq!(received, b"an");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn cut_after(&self, end: End, bytes: u64) {
        self.order(Order::CutAfter(end, bytes));
    }

    /// Resets all connections that there are now: both ends get ECONNRESET. Later ones are carried.
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::net::{TcpListener, TcpStream};
    /// use phalanx::fault::{Cable, End};
    ///
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let cable = Cable::to(server.local_addr()?)?;
    /// let mut client = TcpStream::connect(cable.address())?;
    /// let (mut accepted, _) = server.accept()?;
    /// cable.reset();
    /// for end in [&mut client, &mut accepted] {
    ///     assert_eq!(end.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn reset(&self) {
        self.order(Order::Reset);
    }

    /// Leaves all connections half open: closes them to one end, and tells the other end nothing, whatever it sends. So it is when a machine was
    /// started anew. Later connections are carried.
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::net::{TcpListener, TcpStream};
    /// use phalanx::fault::{Cable, End};
    ///
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let cable = Cable::to(server.local_addr()?)?;
    /// let mut client = TcpStream::connect(cable.address())?;
    /// let (mut accepted, _) = server.accept()?;
    /// cable.half_open(End::Server);
    /// assert_eq!(accepted.read(&mut [0])?, 0);
    /// client.write_all(b"are you there?")?; // and no answer comes
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn half_open(&self, closed: End) {
        self.order(Order::HalfOpen(closed));
    }

    /// Has the thread do it, and returns when it is done.
    fn order(&self, order: Order) {
        let (done, is_done) = channel();
        // An error means that the thread has panicked, which dropping the cable tells.
        let _ = self.orders.as_ref().map(|orders| orders.send((order, done)));
        self.bell.ring();
        let _ = is_done.recv();
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.orders = None;
        self.bell.ring();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}
