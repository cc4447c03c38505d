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

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Nothing passes any more, in neither direction, and no end is told: what is sent waits, and so does who connects. As a pulled cable, a
    /// switch that is off, a node that has lost its power.
    pub fn pull(&self) {
        self.order(Order::Pull);
    }

    /// What has waited passes, at full speed.
    pub fn plug(&self) {
        self.order(Order::Plug);
    }

    /// No more bytes a second pass than this, of all connections in both directions together. At least one.
    pub fn slow(&self, bytes_a_second: u64) {
        self.order(Order::Slow(bytes_a_second.max(1)));
    }

    /// When so many more bytes have reached this end, over whichever connections, all connections are closed: the end has the begin of a message and
    /// then an end of file. Later connections are carried again.
    pub fn cut_after(&self, end: End, bytes: u64) {
        self.order(Order::CutAfter(end, bytes));
    }

    /// Resets all connections that there are: both ends get ECONNRESET. Later ones are carried.
    pub fn reset(&self) {
        self.order(Order::Reset);
    }

    /// Leaves all connections half open: they are closed to this end, and the other one hears nothing of it, whatever it sends. As a machine that
    /// has started again. Later connections are carried.
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
