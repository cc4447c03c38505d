//! How a worker gets what the pool has for it alone, and what it keeps of that: environments of maps, and its own state.
//!
//! It runs in the worker, on the thread that serves, between two calls; an environment is fetched within the call of the first item that needs
//! it. The worker makes a socket pair for each request, and sends one end along. So an answer cannot reach the process that takes the place
//! of a dead worker, and a pool that has died, or has nothing to send, is seen as the end of the socket.

use std::any::Any;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Acquire;

use anyhow::Context;

use super::errands::{FORGET, NEXT};
use super::label::TaskLabel;
use super::serve::Server;
use crate::queue::Incoming;
use crate::sys::epoll;
use crate::sys::limits::{self, with_room};
use crate::sys::socket::{MAX_DESCRIPTORS, Socket};

impl Server {
    /// Makes the state that this worker has for its functions, where it has none.
    pub(super) fn restore_state(&self) -> anyhow::Result<()> {
        self.beside.borrow_mut().restore_state().context("make the state of a worker of a pool")
    }

    /// Drops the state, after a panic that may have left it half changed.
    pub(super) fn lose_state(&self) {
        self.beside.borrow_mut().lose_state();
    }

    /// Does the errands that have been posted.
    ///
    /// The word at the desk counts what was posted, and this worker what it has done, so that an errand that is posted while another is done is seen
    /// in the next round. They go before the tasks of the queue, as [`Pool::broadcast`](super::Pool::broadcast) promises.
    ///
    /// # Errors
    /// When the pool cannot be asked. The worker ends with it.
    pub(super) fn run_errands(&self) -> anyhow::Result<()> {
        while self.desk().errands.load(Acquire) != self.errands.get() {
            self.errands.set(self.errands.get() + 1);
            // `None`: it was dropped, as when its call was cancelled.
            let Some((label, message)) = self.fetch(NEXT)? else { continue };
            if label.ticket.cell == FORGET {
                self.beside.borrow_mut().forget(label.environment);
            } else if let Some((label, cell)) = self.claim(&label.to_bytes(), 0) {
                self.do_task(label, cell, message)?;
            }
        }
        Ok(())
    }

    /// Asks the pool for something, and waits for the answer. `None`: it has no such thing any more, or could not send it.
    pub(super) fn fetch(&self, wanted: u32) -> anyhow::Result<Option<(TaskLabel, Incoming)>> {
        let (here, there) =
            with_room(Socket::pair).context("make a socket for an answer of the pool (socketpair)")?;
        let request = [u32::from(self.seat).to_ne_bytes(), wanted.to_ne_bytes()].concat();
        let requests = Socket::from_descriptor(self.place.requests.as_fd());
        requests.send(&request, &[there.as_fd()], None).context("ask the pool (sendmsg)")?;
        // The pool has the only other one: when it closes that, there is no answer.
        drop(there);
        limits::make_room_for_descriptors(MAX_DESCRIPTORS);
        loop {
            epoll::wait_readable(here.as_fd(), None).context("wait for an answer of the pool")?;
            match here.try_receive::<{ TaskLabel::LEN }>() {
                Ok(Some(message)) => {
                    let label = TaskLabel::read(&message.bytes).context("read the label of an answer")?;
                    return Ok(Some((label, Incoming::of_sent(message.bytes.to_vec(), message.descriptors))));
                }
                Ok(None) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error).context("receive an answer of the pool (recvmsg)"),
            }
        }
    }

    /// Gets an environment, and reads it.
    ///
    /// `entry` is a record like that of a function, whose "call" decodes the arguments and leaves the value. The error is the text with
    /// which each item of the map fails here; it is kept like a value, so that it is not fetched again for each item.
    pub(super) fn environment(&self, number: u32) -> Result<Box<dyn Any>, String> {
        let fetched = self.fetch(number).map_err(|error| format!("the environment of the map: {error:#}"))?;
        let (label, message) = fetched.ok_or("the environment of the map is gone, or could not be sent")?;
        let entry = self.entry(label.function).map_err(|error| format!("{error:#}"))?;
        let mut value: Option<Box<dyn Any>> = None;
        let read = message.open(TaskLabel::LEN, |bytes, received| {
            entry.call(&mut value, bytes, received.unwrap_or_default(), Vec::new())
        });
        match read {
            Ok(Ok(_)) => value.ok_or_else(|| "the environment of the map has no value".to_owned()),
            Ok(Err(error)) => Err(format!("the environment of the map: {error:#}")),
            Err(reason) => Err(format!("the environment of the map: {reason}")),
        }
    }
}
