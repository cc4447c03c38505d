//! Wakes tasks of asynchronous programs when descriptors have events: one thread for all futures of this process, as long as
//! there are some.
//
// A future asks to be woken (`Watch::arm`), looks once more at what it waits for, and only then returns `Pending`: what changes after
// that look is an event of which the thread tells. Each event is an edge (EPOLLET of epoll(7)), so that several futures, and other
// processes, can wait by one descriptor that nobody reads: see `queue::wait`.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use crate::sys::clock::Moment;
use crate::sys::epoll::{Epoll, pause};
use crate::sys::forks::Here;
use crate::sys::global::Global;
use crate::sys::limits::with_room;

/// How often all futures look again, for what no event came of: a process may be killed between its change of a queue and the ring.
/// The thread ends when nobody has awaited anything for as long.
const LOOK_AGAIN: Duration = Duration::from_secs(if cfg!(test) { 1000 } else { 1 });

static REACTOR: Global<Reactor> = Global::new();

/// What the thread and the futures share.
#[derive(Debug)]
struct Reactor {
    /// The process that made it. A fork has a copy, whose thread is not there, and whose epoll is the parent's.
    here: Here,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Of each future; `None` from when it was woken until it asks again.
    wakers: HashMap<u64, Option<Waker>>,
    /// By descriptor, which future waits for it: the descriptor is in the epoll as long as there is one.
    waiters: HashMap<RawFd, Vec<u64>>,
    /// The number of the next future.
    next: u64,
    /// What the thread sleeps on, as long as it is there.
    epoll: Option<Arc<Epoll>>,
}

/// A future's place in the table. The descriptors stay open at least as long as this lives.
#[derive(Debug)]
struct Registration {
    reactor: &'static Reactor,
    number: u64,
    fds: Vec<RawFd>,
}

/// By what a future is woken, if it has returned `Pending`.
#[derive(Debug, Default)]
pub(crate) struct Watch(Option<Registration>);

impl Watch {
    /// Has the task of `context` woken by the next event of the descriptors, and once a second. The caller looks at what it waits for
    /// after this, and keeps the descriptors open as long as this lives.
    ///
    /// # Errors
    /// When the system has no descriptor or no thread left.
    pub(crate) fn arm(&mut self, context: &Context<'_>, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        match &self.0 {
            Some(registration) if registration.reactor.here.is_now() => {
                let waker = Some(context.waker().clone());
                let earlier = registration.reactor.lock().wakers.insert(registration.number, waker);
                // Without the lock, as all code of the program: the last waker of a task drops the task.
                drop(earlier);
            }
            _ => self.0 = Some(Registration::new(context.waker().clone(), fds)?),
        }
        Ok(())
    }
}

impl Registration {
    fn new(waker: Waker, fds: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let reactor = Reactor::here();
        let mut table = reactor.lock();
        let epoll = match &table.epoll {
            Some(epoll) => epoll.clone(),
            None => reactor.begin(&mut table)?,
        };
        let number = table.next;
        table.next += 1;
        table.wakers.insert(number, Some(waker));
        // From here on its drop takes out what has been put in.
        let mut registration = Self { reactor, number, fds: Vec::new() };
        for fd in fds {
            let waiters = table.waiters.entry(fd.as_raw_fd()).or_default();
            waiters.push(number);
            let is_first = waiters.len() == 1;
            registration.fds.push(fd.as_raw_fd());
            if is_first && let Err(error) = epoll.add_edge(*fd, fd.as_raw_fd() as u64) {
                // Before the registration, whose drop locks it.
                drop(table);
                return Err(error);
            }
        }
        Ok(registration)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Self { reactor, number, fds } = self;
        // In a fork the epoll is the parent's, which still waits.
        if !reactor.here.is_now() {
            return;
        }
        let mut table = reactor.lock();
        let Table { wakers, waiters, epoll, .. } = &mut *table;
        let waker = wakers.remove(number);
        for fd in fds {
            let Some(of_fd) = waiters.get_mut(fd) else { continue };
            of_fd.retain(|waiter| waiter != number);
            if of_fd.is_empty() {
                waiters.remove(fd);
                epoll.iter().for_each(|epoll| epoll.forget(*fd));
            }
        }
        drop(table);
        // Without the lock: see `arm`.
        drop(waker);
    }
}

impl Reactor {
    /// That of this process.
    fn here() -> &'static Self {
        if let Some(reactor) = REACTOR.get().filter(|reactor| reactor.here.is_now()) {
            return reactor;
        }
        let new = &*Box::leak(Box::new(Self { here: Here::now(), table: Mutex::default() }));
        // Two threads may come here at once: then each has one, of which the later one is used from then on, and both work.
        REACTOR.set(new);
        new
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No code of the program runs with the lock held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread.
    fn begin(&'static self, table: &mut Table) -> io::Result<Arc<Epoll>> {
        let epoll = Arc::new(with_room(Epoll::new)?);
        let of_thread = epoll.clone();
        let thread = std::thread::Builder::new().name("phalanx-async".to_owned());
        thread.spawn(move || self.run(&of_thread))?;
        table.epoll = Some(epoll.clone());
        Ok(epoll)
    }

    /// Wakes tasks until there are none.
    fn run(&self, epoll: &Epoll) {
        let mut look = Moment::now().checked_add(LOOK_AGAIN);
        loop {
            let slept = epoll.wait_until(look);
            let ready = slept.and_then(|()| epoll.ready());
            if ready.is_err() {
                // The system is out of memory, say: all are woken once a second nevertheless.
                let _ = pause(LOOK_AGAIN);
            }
            let is_due = look.is_none_or(|look| look <= Moment::now());
            let woken = match ready {
                Ok(fds) if !is_due => self.waiting_for(&fds),
                _ => {
                    look = Moment::now().checked_add(LOOK_AGAIN);
                    match self.all() {
                        Some(wakers) => wakers,
                        None => return,
                    }
                }
            };
            woken.into_iter().for_each(Waker::wake);
        }
    }

    /// The wakers of those that wait for one of the descriptors.
    fn waiting_for(&self, fds: &[u64]) -> Vec<Waker> {
        let Table { wakers, waiters, .. } = &mut *self.lock();
        let numbers = fds.iter().filter_map(|&fd| waiters.get(&(fd as RawFd))).flatten();
        numbers.filter_map(|number| wakers.get_mut(number)?.take()).collect()
    }

    /// All wakers. `None`: there are none, and the thread is not to be there any more.
    fn all(&self) -> Option<Vec<Waker>> {
        let mut table = self.lock();
        if table.wakers.is_empty() {
            table.epoll = None;
            return None;
        }
        Some(table.wakers.values_mut().filter_map(Option::take).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::SeqCst;
    use std::task::Wake;
    use std::thread::Thread;

    use super::*;
    use crate::sys::event::EventFd;

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Parks this thread until `look` says that it is done.
    fn block_on(watch: &mut Watch, event: &EventFd, look: impl Fn() -> bool) {
        let waker = Arc::new(Unpark(std::thread::current())).into();
        let context = Context::from_waker(&waker);
        watch.arm(&context, &[event.as_fd()]).unwrap();
        while !look() {
            std::thread::park();
            watch.arm(&context, &[event.as_fd()]).unwrap();
        }
    }

    #[test]
    fn each_ring_wakes_all_that_wait_for_an_event_that_nobody_reads() {
        const ROUNDS: usize = 100;
        let (event, rung) = (EventFd::new().unwrap(), AtomicUsize::new(0));
        let seen = [(); 3].map(|()| AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for seen in &seen {
                let (event, rung) = (&event, &rung);
                scope.spawn(move || {
                    let mut watch = Watch::default();
                    for round in 1..=ROUNDS {
                        block_on(&mut watch, event, || rung.load(SeqCst) >= round);
                        seen.store(round, SeqCst);
                    }
                });
            }
            for round in 1..=ROUNDS {
                rung.store(round, SeqCst);
                event.ring();
                // Each ring is needed: nobody looks again by itself meanwhile (`LOOK_AGAIN`).
                while seen.iter().any(|seen| seen.load(SeqCst) < round) {
                    std::thread::yield_now();
                }
            }
        });
        assert!(!Reactor::here().lock().waiters.contains_key(&event.as_fd().as_raw_fd()));
    }
}
