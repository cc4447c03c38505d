//! What a worker of `launch` does that runs a function of this program: in all else it is a program like any other.

use std::io;
use std::os::fd::{AsFd, RawFd};

use super::info::{self, WorkerInfo};
use super::{entry, late_init, report};
use crate::error::{RaisedError, with_limit};
use crate::sys::image::Image;
use crate::sys::{fd, signal};
use crate::wire::job::OpenJob;
use crate::wire::roster;

/// Runs the function of an inherited job, enters this worker into the inherited roster, and returns what it failed with.
///
/// `tell` is called with that too, and with a panic of any thread where panics abort: then nothing is returned.
///
/// # Errors
/// When the function cannot be found, or its arguments' memory has not come: it was not called.
pub(crate) fn run(
    [job, roster]: [RawFd; 2],
    worker: WorkerInfo,
    tell: fn(&RaisedError),
) -> io::Result<Result<(), RaisedError>> {
    roster::apply(fd::adopt(roster)?.as_fd(), worker.rank)?;
    late_init::refuse_inside_of_a_runtime()?;
    // std ignores SIGPIPE before main; `auto_init!` runs earlier than that, from .init_array.
    signal::ignore(signal::Signal::PIPE)?;
    let open = OpenJob::read(fd::adopt(job)?.as_fd())?;
    let entry = entry::find(&open.job, Image::main()?).map_err(io::Error::other)?.entry;
    let received = open.received(None, fd::adopt).map_err(|os| {
        io::Error::other(format!("taking over what its arguments share: {}", with_limit(&os)))
    })?;
    let (mut rank, callee) = (worker.rank, entry.callee(None));
    info::set(worker);
    let at_abort = move |raised| tell(&RaisedError::new(raised, callee));
    let called = report::call_launched(at_abort, || {
        entry.call(&mut rank, open.arguments(), received, Vec::new()).map(drop)
    });
    Ok(called.map_err(|raised| RaisedError::new(raised, callee)).inspect_err(tell))
}
