//! The pump: a thread that carries what children print, from their pipes to files and to the console.
//!
//! Lines reach the console whole and with a prefix; files get every byte as it came. A child never waits for another's output, and
//! a file or console that cannot be written any more (EPIPE, a full disk) is reported once and then left out, so that it ends no job.
//!
//! - `lines`: pure: lines, parts of lines and progress bars out of bytes
//! - `console`: stdout and stderr of this process, shared by all children
//! - `source`: one pipe, and where its bytes go
//! - `status`: pure: one line at the bottom of a terminal
//! - `tail`: pure: the last bytes of an output
//! - `followers`, `packet`: other processes that are sent what comes, as it comes
//! - `thread`: the thread's loop

mod console;
mod followers;
mod lines;
mod packet;
mod source;
mod status;
mod tail;
#[cfg(test)]
mod tests;
mod thread;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

pub(crate) use console::{Console, Stream};
pub(crate) use lines::last_lines;
pub(crate) use packet::Packet;
pub(crate) use source::{Filter, Route};
pub(crate) use status::clock;

use crate::sys::clock::Moment;
use crate::sys::event::EventFd;
use crate::sys::socket::Socket;
use tail::Tail;

/// The number of a source, in the order in which they were added.
pub(crate) type SourceId = usize;

/// Whose last bytes are kept: a number of the caller's. Sources that follow one another, as those of a rank in several attempts, may
/// have one.
pub(crate) type Channel = u64;

enum Command {
    Add(SourceId, OwnedFd, Route),
    /// The child has ended: take what is in its pipe, and close that, even if another process still has the pipe.
    Finish(SourceId),
    /// A line of this process's own, to stderr.
    Say(String),
    /// What the line at the bottom of the terminal says; `None`: there is none.
    Status(Option<String>),
    /// Sends the channels from these positions on.
    Follow(Socket, Vec<(Channel, u64)>),
    Close,
}

/// What is known of a source.
#[derive(Debug)]
struct SourceNews {
    /// Where its last bytes are kept, and the position of its first one.
    kept: Option<(Channel, u64)>,
    /// When its first bytes were read.
    first: Option<Moment>,
    is_closed: bool,
}

/// What the thread reports to the launcher.
#[derive(Debug, Default)]
struct News {
    sources: BTreeMap<SourceId, SourceNews>,
    /// How many there have been.
    added: usize,
    tails: BTreeMap<Channel, Tail>,
    /// The files and streams that could not be written any more, in sentences.
    broken: Vec<String>,
    /// The texts that were watched for and have come, by source and number.
    seen: Vec<(SourceId, usize)>,
}

/// The handle of the thread. Dropping it lets the thread carry what has come so far, and ends it.
#[derive(Debug)]
pub(crate) struct Pump {
    commands: Sender<Command>,
    /// Signalled when there is a command for the thread.
    bell: Arc<EventFd>,
    /// Signalled by the thread when a source is closed, an output has broken, or a text was seen.
    closed: Arc<EventFd>,
    news: Arc<Mutex<News>>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there is no room for a thread, an epoll, or two events.
    pub(crate) fn start(console: Console) -> io::Result<Self> {
        let (commands, received) = channel();
        let (bell, closed) = (Arc::new(EventFd::new()?), Arc::new(EventFd::new()?));
        let news = Arc::new(Mutex::new(News::default()));
        let thread = thread::Pumping::new(console, received, (bell.clone(), closed.clone()), news.clone())?;
        // With all signals blocked no handler of the program's runs on this thread, and a thread that waits for signals gets them.
        let run = move || {
            let _ = crate::sys::signal::block_all_in_thread();
            thread.run();
        };
        let thread = std::thread::Builder::new().name("phalanx-output".to_owned()).spawn(run)?;
        Ok(Self { commands, bell, closed, news, thread: Some(thread) })
    }

    fn send(&self, command: Command) {
        // Sending fails only when the thread has panicked, and `drop` passes that panic on.
        let _ = self.commands.send(command);
        self.bell.ring();
    }

    fn news(&self) -> std::sync::MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries the bytes of a pipe (its end that is read, without waiting) from now on.
    pub(crate) fn add(&self, pipe: OwnedFd, route: Route) -> SourceId {
        let id = {
            let mut news = self.news();
            let kept = route.channel.map(|channel| (channel, news.tails.entry(channel).or_default().end()));
            let id = news.added;
            news.added += 1;
            news.sources.insert(id, SourceNews { kept, first: None, is_closed: false });
            id
        };
        self.send(Command::Add(id, pipe, route));
        id
    }

    /// Takes what is in the pipe now, and closes it, even if a process still has its other end open.
    pub(crate) fn finish(&self, id: SourceId) {
        self.send(Command::Finish(id));
    }

    /// Whether all that came from a source has been written.
    pub(crate) fn is_closed(&self, id: SourceId) -> bool {
        self.news().sources.get(&id).is_none_or(|source| source.is_closed)
    }

    /// Keeps nothing more of a source, which still is carried to its end: one of many that follow one another.
    pub(crate) fn forget(&self, id: SourceId) {
        self.news().sources.remove(&id);
    }

    /// When the first bytes came from a source.
    pub(crate) fn first(&self, id: SourceId) -> Option<Moment> {
        self.news().sources.get(&id)?.first
    }

    /// The last bytes that came from a source, at most 64 KiB; none if its route has no channel.
    pub(crate) fn tail(&self, id: SourceId) -> Vec<u8> {
        let news = self.news();
        let Some((channel, begin)) = news.sources.get(&id).and_then(|source| source.kept) else {
            return Vec::new();
        };
        news.tails[&channel].from(begin, usize::MAX).1
    }

    /// The last bytes of a channel, and the position of what comes next.
    pub(crate) fn channel(&self, channel: Channel) -> (Vec<u8>, u64) {
        let news = self.news();
        news.tails.get(&channel).map_or((Vec::new(), 0), |tail| (tail.from(0, usize::MAX).1, tail.end()))
    }

    /// Sends what comes in these channels from these positions on, as [`Packet`]s, until the other end of the socket is closed. A
    /// follower that is too slow misses what is not kept any more, and holds nobody up.
    pub(crate) fn follow(&self, socket: Socket, channels: Vec<(Channel, u64)>) {
        self.send(Command::Follow(socket, channels));
    }

    /// Writes a line of this process's own to stderr, between those of the children.
    pub(crate) fn say(&self, line: impl Into<String>) {
        self.send(Command::Say(line.into()));
    }

    /// Keeps a line at the bottom of the terminal, if stderr is one and this process has it; `None`: no more. It is gone with the pump.
    pub(crate) fn status(&self, text: Option<String>) {
        self.send(Command::Status(text));
    }

    /// The outputs that could not be written any more, each once.
    pub(crate) fn take_broken(&self) -> Vec<String> {
        std::mem::take(&mut self.news().broken)
    }

    /// The texts that were watched for and have come, each as often as a line has had it: by source and by number in its route.
    pub(crate) fn take_seen(&self) -> Vec<(SourceId, usize)> {
        std::mem::take(&mut self.news().seen)
    }

    /// Makes [`as_fd`](Self::as_fd) unreadable until there is something new.
    pub(crate) fn clear(&self) {
        self.closed.clear();
    }

    /// Lets go of the thread without waiting for it, as when the console takes nothing more.
    pub(crate) fn abandon(mut self) {
        self.thread = None;
    }
}

impl AsFd for Pump {
    /// Readable when a source has been closed, an output has broken, or a text was seen.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.closed.as_fd()
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.send(Command::Close);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }
}
