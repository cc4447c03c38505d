//! Values from process to process while these run.
//!
//! - `fifo`: queues, of many processes
//! - `joinable`: queues of tasks that are to be done, and the plain one
//! - `tasks`: how many tasks are done, and which threads hold the others
//! - `wait`: waiting for several things at once
//! - `asynchronous`: waiting in asynchronous programs
//! - `core`: what all of them are: a ring with a mutex at either side, and a socket
//! - `put`, `get`: a message into one of them, and out of it
//! - `side`: the producers or the consumers, one of which at a time owns the mutex
//! - `ring`: messages one after the other in a ring of bytes
//! - `fd_channel`: what goes beside messages
//! - `sending`: sending that, past what dead producers have left
//! - `message`: a value on its way through
//! - `hostile`: for tests: what lies in a ring, read as a message whatever it is
//! - `error`: what can go wrong
//! - `pipe`: how the two ends of one are made
//! - `connection`: an end, as programs use it
//! - `packet`: a value on its way through one
//! - `end`: one of these, which one process has at a time

mod asynchronous;
mod connection;
mod core;
mod end;
mod error;
mod fd_channel;
mod fifo;
mod get;
#[cfg(any(test, fuzzing))]
mod hostile;
mod joinable;
mod message;
mod packet;
mod pipe;
mod put;
mod ring;
mod sending;
mod side;
mod tasks;
mod wait;

pub use connection::Connection;
pub use error::QueueError;
pub use fifo::{Queue, QueueIter};
#[cfg(fuzzing)]
pub use hostile::fuzz_message;
pub use joinable::{JoinableQueue, SimpleQueue, TaskIter};
pub(crate) use message::{Incoming, Outgoing};
pub use pipe::{Never, one_way, pipe};
pub(crate) use ring::message_buffer;
pub use wait::{Waitable, wait};
