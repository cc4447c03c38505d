//! Ask the fork server for workers: the launcher's side.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::server_link::{ANSWER, ServerLink, died, message};
use super::spawn::{check_executable, check_init};
use crate::error::{Error, RaisedError, WorkerError};
use crate::sys::clock::Moment;
use crate::sys::image::Image;
use crate::sys::standing::Difference;
use crate::wire::service::{Request, Trouble};
use crate::worker::entry::{self, Entry};

// Locked for a whole question with its answer: one socket carries the questions of all threads, and answers come in their order.
static LINK: Mutex<Option<ServerLink>> = Mutex::new(None);
static PRELOAD: Mutex<Option<&'static Entry>> = Mutex::new(None);
/// How many spares each server of this process is to have. Changed with the link locked.
static SPARES: AtomicUsize = AtomicUsize::new(0);

/// The server that forks the workers of [`StartMethod::ForkServer`](crate::StartMethod).
///
/// It is this executable once more, with a single thread. The first start that needs it starts it, and it ends with this
/// process. If it dies, its workers die with it, and the next start begins a new one.
#[derive(Clone, Copy, Debug)]
pub struct ForkServer;

impl ForkServer {
    /// Has the server run `f` once, before its first fork: for what takes long or much memory and is then there in every
    /// worker, copy-on-write, such as a data set in a static. It runs in the server, not here, when that is started.
    ///
    /// `f` is a plain function or a closure that captures nothing. It must not leave threads behind. When it fails, every
    /// start fails with [`Error::Preload`] and its traceback.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::sync::OnceLock;
    /// use phalanx::{ForkServer, Options, StartMethod, start_processes};
    ///
    /// static WORDS: OnceLock<Vec<String>> = OnceLock::new();
    ///
    /// fn load() -> anyhow::Result<()> {
    ///     WORDS.get_or_init(|| vec!["loaded".to_owned(), "once".to_owned()]);
    ///     Ok(())
    /// }
    ///
    /// fn work(rank: usize, _: ()) -> anyhow::Result<String> {
    ///     Ok(WORDS.get().expect("the server has loaded them")[rank].clone())
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// ForkServer::preload(load)?;
    /// let options = Options::new(2).start_method(StartMethod::ForkServer);
    /// assert_eq!(start_processes(work, (), options)?.join()?, ["loaded", "once"]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::ForkServerRuns`] when the server has been started already.
    pub fn preload<F, E>(f: F) -> Result<(), Error>
    where
        F: Fn() -> Result<(), E> + Copy + Send + 'static,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        let _ = f;
        // Held until it is set: another thread may be about to start the server.
        let known = link();
        if let Some(link) = known.as_ref().filter(|link| link.is_usable()) {
            return Err(Error::ForkServerRuns { pid: link.pid() });
        }
        *PRELOAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry::of_preload::<F, E>());
        Ok(())
    }

    /// Has the server keep `count` processes forked ahead of demand, from now on. A start takes as many of its workers from these as there
    /// are, and forks the rest; soon after that the server forks others in their place. So a few workers come at the cost of a message each,
    /// and a [`Pool`](crate::pool::Pool) replaces its workers sooner. None without this call, or with 0.
    ///
    /// A worker that was a spare has what any other has: environment, working directory, limits and the like of the thread that starts it,
    /// as they are then, and a [`seed`](crate::seed()) of its own. [`after_fork`](crate::after_fork) hooks run when it becomes a worker.
    /// Spares end with the server. One that was ended meanwhile is replaced a second later; a start never gets it. An idle one
    /// costs some 100 KiB and no processor time; three descriptors of the server's.
    ///
    /// It starts the server if there is none, and returns when the spares are there. A later server, after the death of this one, has as
    /// many.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::{ForkServer, Options, StartMethod, start_processes};
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// ForkServer::spares(2)?;
    /// let options = Options::new(2).start_method(StartMethod::ForkServer);
    /// let work = |rank: usize, ()| anyhow::Ok(rank);
    /// assert_eq!(start_processes(work, (), options)?.join()?, [0, 1]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of a start by [`StartMethod::ForkServer`](crate::StartMethod::ForkServer), also where the system allows no more processes or
    /// descriptors. Then there are as many as it allows, or none.
    pub fn spares(count: usize) -> Result<(), Error> {
        check_init(true)?;
        check_executable()?;
        let mut known = link();
        SPARES.store(count, Relaxed);
        // A new server forks them before it is known.
        if known.as_ref().is_some_and(ServerLink::is_usable) {
            keep_spares(connected(&mut known)?)
        } else {
            connected(&mut known).map(drop)
        }
    }

    /// The server's process, while there is one.
    #[must_use]
    pub fn pid() -> Option<u32> {
        link().as_ref().filter(|link| link.is_usable()).map(ServerLink::pid)
    }
}

/// The link to the server, if one was started. While it is held, no other thread asks the server for anything.
pub(super) fn link() -> MutexGuard<'static, Option<ServerLink>> {
    LINK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The socket by which workers ask the server to guard them.
pub(crate) fn guards() -> Result<Arc<OwnedFd>, Error> {
    let mut known = link();
    let link = connected(&mut known)?;
    // The worker asks the server itself, and waits for the answer. It may not be allowed to signal the server (kill(2)), so a
    // server that is stopped (SIGSTOP) has to be continued first.
    link.wake();
    Ok(link.guards())
}

/// The running server; a new one if there is none.
pub(super) fn connected(known: &mut Option<ServerLink>) -> Result<&mut ServerLink, Error> {
    if !known.as_ref().is_some_and(ServerLink::is_usable) {
        match known.take() {
            // The link of the process of which this one is a fork. `close_all` may have closed its descriptors here, and their
            // numbers may mean other descriptors by now, which dropping the link would close.
            Some(link) if !link.is_own() => std::mem::forget(link),
            // Dropping the link reaps the server.
            dead => drop(dead),
        }
        let link = ServerLink::start()?;
        // Before the link is known: a server whose preload function failed is ended, and the next start begins a new one.
        preload(&link)?;
        if SPARES.load(Relaxed) > 0 {
            keep_spares(&link)?;
        }
        *known = Some(link);
    }
    known.as_mut().ok_or_else(|| died("before it could be used"))
}

/// Has the server run the preload function, for which there is no time limit.
fn preload(link: &ServerLink) -> Result<(), Error> {
    let Some(entry) = *PRELOAD.lock().unwrap_or_else(PoisonError::into_inner) else { return Ok(()) };
    let image = Image::main().map_err(Error::system("identify this executable"))?;
    // The function goes as an offset into this executable, with the build's id: the server runs the same file, but mapped
    // elsewhere (ASLR).
    let (function, image_id) = (entry.name().to_owned(), image.id().to_vec());
    let request = Request::Preload { image: image_id, entry: entry.offset(image)?, function };
    let (reply, _) = link.ask(message(&request, Vec::new())?, None)?;
    reply.trouble.map_or(Ok(()), |trouble| Err(before_any_rank(trouble)))
}

/// Has the server fork as many spares as are wanted.
fn keep_spares(link: &ServerLink) -> Result<(), Error> {
    let count = SPARES.load(Relaxed);
    let each = ANSWER.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1));
    let (reply, _) =
        link.ask(message(&Request::Spares(count), Vec::new())?, Moment::now().checked_add(each))?;
    reply.trouble.map_or(Ok(()), |trouble| Err(before_any_rank(trouble)))
}

/// The error of trouble that concerns no rank.
pub(super) fn before_any_rank(trouble: Trouble) -> Error {
    let reason = match trouble {
        Trouble::Preload(raised) => {
            let preload = *PRELOAD.lock().unwrap_or_else(PoisonError::into_inner);
            let callee = preload.map(|entry| entry.callee(None)).unwrap_or_default();
            return Error::Preload(Box::new(RaisedError::new(raised, callee)));
        }
        Trouble::Differs(Difference { what, here, there }) => format!(
            "a worker would have the server's {what}, not the calling thread's: {there:?} in the server, {here:?} in the \
             thread. Use StartMethod::Spawn, or start from a thread as the one that started the server"
        ),
        Trouble::Threads(threads) => format!(
            "it has {threads} threads, so it cannot fork: its preload function has left some behind, or a library has \
             started some"
        ),
        Trouble::System { step, errno } => {
            format!("{}: {}", step.name(), io::Error::from_raw_os_error(errno))
        }
        Trouble::Malformed(reason) => reason,
    };
    Error::ForkServer { reason }
}
