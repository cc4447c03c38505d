//! The thread of a cable: it accepts, connects, carries, and does what the handle asks.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::Duration;

use super::allowance::Allowance;
use super::link::{Link, discard};
use super::order::Order;
use crate::sys::clock::Moment;
use crate::sys::epoll::{Readiness, wait_any};
use crate::sys::event::EventFd;
use crate::sys::signal;
use crate::sys::tcp;

/// How long a listener rests that can accept nothing, as where no descriptor is left.
const REST: Duration = Duration::from_millis(10);

pub(super) struct Relay {
    listener: TcpListener,
    server: SocketAddr,
    orders: Receiver<(Order, Sender<Infallible>)>,
    bell: Arc<EventFd>,
    links: Vec<Link>,
    /// Ends of connections whose other end was closed without a word to them.
    forgotten: Vec<TcpStream>,
    /// Connections that were cut, until their ends have closed them.
    ending: Vec<TcpStream>,
    allowance: Allowance,
    is_pulled: bool,
    /// Until when nothing is accepted.
    rests: Option<Moment>,
}

impl Relay {
    pub(super) fn new(
        (listener, server): (TcpListener, SocketAddr),
        orders: Receiver<(Order, Sender<Infallible>)>,
        bell: Arc<EventFd>,
    ) -> Self {
        let allowance = Allowance::new(Moment::now());
        let (links, forgotten, ending) = Default::default();
        Self {
            listener,
            server,
            orders,
            bell,
            links,
            forgotten,
            ending,
            allowance,
            is_pulled: false,
            rests: None,
        }
    }

    pub(super) fn run(mut self) {
        // The program's handlers run on its own threads. Refused for no set of signals.
        let _ = signal::block_all_in_thread();
        loop {
            // Cleared first: an order that comes after it rings again.
            self.bell.clear();
            if !self.obey() {
                return;
            }
            if !self.is_pulled {
                self.accept();
                self.carry();
            }
            self.wait();
        }
    }

    /// Does what the handle asks; false: there is no handle any more.
    fn obey(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok((order, _done)) => self.carry_out(order),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        let now = Moment::now();
        match order {
            Order::Pull => self.is_pulled = true,
            Order::Plug => {
                self.is_pulled = false;
                self.allowance.set_rate(None, now);
            }
            Order::Slow(rate) => self.allowance.set_rate(Some(rate), now),
            Order::CutAfter(end, bytes) => self.allowance.set_cut((end, bytes)),
            Order::HalfOpen(closed) => {
                let links = std::mem::take(&mut self.links);
                self.forgotten.extend(links.into_iter().map(|link| link.forget(closed)));
            }
            Order::Reset => {
                std::mem::take(&mut self.links).into_iter().for_each(Link::reset);
                std::mem::take(&mut self.forgotten).into_iter().for_each(tcp::reset);
            }
        }
    }

    fn accept(&mut self) {
        if self.rests.is_some_and(|until| Moment::now() < until) {
            return;
        }
        self.rests = None;
        loop {
            match self.listener.accept() {
                Ok((client, _)) => self.links.extend(Link::begin(client, self.server)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.rests = Moment::now().checked_add(REST);
                    return;
                }
            }
        }
    }

    fn carry(&mut self) {
        for mut link in std::mem::take(&mut self.links) {
            match link.carry(&mut self.allowance) {
                Ok(true) => self.links.push(link),
                Ok(false) => {}
                Err(_) => link.reset(),
            }
        }
        if self.allowance.take_cut() {
            self.ending.extend(std::mem::take(&mut self.links).into_iter().flat_map(Link::cut));
        }
        self.ending.retain(discard);
    }

    fn wait(&mut self) {
        let now = Moment::now();
        let mut waits = vec![(self.bell.as_fd(), Readiness::Readable)];
        let mut until = None;
        if !self.is_pulled {
            let links = self.links.iter();
            waits.extend(links.flat_map(|link| link.waits_for(&mut self.allowance, now)));
            waits.extend(self.ending.iter().map(|stream| (stream.as_fd(), Readiness::Readable)));
            if self.rests.is_none() {
                waits.push((self.listener.as_fd(), Readiness::Readable));
            }
            let by_rate = self.allowance.next(now).filter(|_| self.links.iter().any(Link::holds_bytes));
            until = self.rests.into_iter().chain(by_rate).min();
        }
        // An error of poll(2) would be want of memory in the kernel: the next turn asks again.
        let _ = wait_any(&waits, until);
    }
}
