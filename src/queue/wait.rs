//! Waiting for several things at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::core::Core;
use super::error::QueueError;
use super::fifo::Queue;
use super::joinable::{JoinableQueue, SimpleQueue};
use crate::sync::wait_policy::{Interrupted, WaitPolicy};
use crate::sys::epoll::{self, Epoll, Readiness};
use crate::sys::limits::with_room;

/// What [`wait`] can wait for: a [`Queue`], [`JoinableQueue`] or [`SimpleQueue`], and everything that has a descriptor
/// ([`AsFd`]), such as a [`Connection`](crate::Connection), a [`ProcessContext`](crate::ProcessContext) or a socket.
///
/// The trait is sealed. A type of yours is `Waitable` when it has `AsFd`; its descriptor counts when it is readable.
pub trait Waitable: sealed::Source {}

impl<W: sealed::Source> Waitable for W {}

mod sealed {
    use super::{BorrowedFd, Core};

    #[expect(unnameable_types, reason = "this is what seals Waitable")]
    pub trait Source {
        #[expect(private_interfaces, reason = "the trait is sealed: nobody outside can call it")]
        fn source(&self) -> Telltale<'_>;
    }

    /// What tells that a source has something: its descriptor is readable, or the queue's event rings.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) enum Telltale<'a> {
        Descriptor(BorrowedFd<'a>),
        Queue(&'a Core),
    }
}

use sealed::Telltale;

#[expect(private_interfaces, reason = "the trait is sealed")]
impl<F: AsFd> sealed::Source for F {
    fn source(&self) -> Telltale<'_> {
        Telltale::Descriptor(self.as_fd())
    }
}

// A queue has no `AsFd`, on purpose. A descriptor that is readable whenever a queue has a message would cost a system call a message;
// its event only says that something has changed since a wait began, and is of no use without `Core::watch`.
#[expect(private_interfaces, reason = "the trait is sealed")]
impl<T> sealed::Source for Queue<T> {
    fn source(&self) -> Telltale<'_> {
        Telltale::Queue(self.core())
    }
}

#[expect(private_interfaces, reason = "the trait is sealed")]
impl<T> sealed::Source for SimpleQueue<T> {
    fn source(&self) -> Telltale<'_> {
        Telltale::Queue(self.core())
    }
}

#[expect(private_interfaces, reason = "the trait is sealed")]
impl<T> sealed::Source for JoinableQueue<T> {
    fn source(&self) -> Telltale<'_> {
        Telltale::Queue(self.core())
    }
}

/// Waits until at least one of these has something, and returns the indices of all that have, in ascending order. Python's
/// `multiprocessing.connection.wait`, for queues too.
///
/// `timeout` is by CLOCK_MONOTONIC, and `None` is as long as it takes. The list is empty when the time was up. With
/// `Duration::ZERO` the call looks once and does not wait.
///
/// - A queue has something when a value is in it or it was closed.
/// - A connection has something when there is a message or its peer is gone.
/// - A context has something when a worker has ended: then call its
///   [`join_timeout`](crate::ProcessContext::join_timeout).
/// - Any other descriptor has something when it is readable, or has an error or a hangup (poll(2)).
///
/// Nothing is taken out, and another process may be faster: take what there is by `try_get` and the like.
///
/// A process that is killed in the middle of a put or a close may leave no sign for this call, which therefore looks at the
/// queues once a second too.
///
/// ```
/// # phalanx::auto_init!();
/// use std::time::Duration;
/// use phalanx::{Options, Queue, start_processes, wait};
///
/// fn work(rank: usize, results: Queue<usize>) -> anyhow::Result<()> {
///     results.put(rank)?;
///     anyhow::ensure!(rank != 1, "rank 1 does not feel well");
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let results = Queue::bounded(8)?;
/// let mut context = start_processes(work, results.clone(), Options::new(2))?;
/// let error = loop {
///     // Waiting for the queue alone could take for ever: a worker that has died puts nothing.
///     wait(&[&results, &context], None)?;
///     for rank in results.try_iter() {
///         println!("rank {} is there", rank?);
///     }
///     if let Err(error) = context.join_timeout(Duration::ZERO) {
///         break error;
///     }
/// };
/// assert!(error.to_string().contains("does not feel well"));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// - [`QueueError::Aborted`] when the wait is ended because another worker has failed
/// - [`QueueError::Gone`] in a forked worker that has one of the queues from the fork alone
/// - [`QueueError::System`] when the system refuses, as for want of a descriptor: with queues in the list the call needs one
pub fn wait(sources: &[&dyn Waitable], timeout: Option<Duration>) -> Result<Vec<usize>, QueueError> {
    let policy = timeout.map_or(WaitPolicy::Forever, WaitPolicy::of);
    let sources: Vec<_> = sources.iter().map(|source| source.source()).collect();
    // Before the first look at the queues, so that a ring between that look and the sleep is an edge that this epoll has seen.
    let rings = rings(&sources)?;
    loop {
        // Every time all of them: another process may have taken what an event was rung for, and each look notes in the queues
        // that the wait goes on, for which they ring again.
        let ready = ready(&sources)?;
        if !ready.is_empty() {
            return Ok(ready);
        }
        let descriptors = sources.iter().filter_map(descriptor).map(|fd| (fd, Readiness::Readable));
        let all: Vec<_> =
            descriptors.chain(rings.as_ref().map(|rings| (rings.as_fd(), Readiness::Readable))).collect();
        // An epoll is itself a descriptor that poll(2) takes, readable while it has an event: one sleep covers queues and
        // descriptors.
        match policy.await_any(&all, rings.as_ref().map(|_| LOOK_AGAIN)) {
            Ok(()) => {}
            Err(Interrupted::TimedOut(_)) => return Ok(Vec::new()),
            Err(stop) => return Err(QueueError::not_got("nothing happened")(stop)),
        }
        if let Some(rings) = &rings {
            // Takes the edges out of the epoll, which stays readable otherwise. A ring after this is a new edge.
            rings.ready().map_err(QueueError::system("ask which queues have rung (epoll_wait)"))?;
        }
    }
}

/// How often a wait looks for what no event was rung for.
//
// A process may be killed between its change of the queue and the ring, and no other put may follow. For a robust word the kernel
// would wake a waiter then; it writes no eventfd.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

const WAITING: &str = "wait for several things (epoll)";

fn descriptor<'a>(source: &Telltale<'a>) -> Option<BorrowedFd<'a>> {
    match *source {
        Telltale::Descriptor(fd) => Some(fd),
        Telltale::Queue(_) => None,
    }
}

/// An epoll of the events of the queues, if there are queues.
fn rings(sources: &[Telltale<'_>]) -> Result<Option<Epoll>, QueueError> {
    let queues = sources.iter().filter_map(|source| match source {
        Telltale::Queue(core) => Some(core),
        Telltale::Descriptor(_) => None,
    });
    let mut rings = None;
    for core in queues {
        let event = core.event()?;
        let rings = match &mut rings {
            Some(rings) => rings,
            none => none.insert(with_room(Epoll::new).map_err(QueueError::system(WAITING))?),
        };
        // Edge-triggered (EPOLLET of epoll(7)), since several processes wait with one eventfd. If each waiter read it, one would
        // take the ring from the others. So nobody reads it, it stays readable for good, and only a new write is an event, in
        // each epoll.
        match rings.add_edge(event, 0) {
            // EEXIST: the same queue twice in the list.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            added => added.map_err(QueueError::system(WAITING))?,
        }
    }
    Ok(rings)
}

/// The places of those that have something.
fn ready(sources: &[Telltale<'_>]) -> Result<Vec<usize>, QueueError> {
    let fds: Vec<_> = sources.iter().filter_map(descriptor).map(|fd| (fd, Readiness::Readable)).collect();
    let polled =
        epoll::poll_now(&fds).map_err(QueueError::system("ask which descriptors are ready (ppoll)"))?;
    let mut polled = polled.into_iter();
    let mut has_something = |source: &Telltale<'_>| match source {
        Telltale::Descriptor(_) => polled.next().unwrap_or(false),
        // Notes the wait before it looks (`Core::watch`), so that a message is either seen here or rung for.
        Telltale::Queue(core) => core.watch(),
    };
    let numbered = sources.iter().enumerate();
    Ok(numbered.filter_map(|(place, source)| has_something(source).then_some(place)).collect())
}
