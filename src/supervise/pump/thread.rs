//! The pump's thread: reads what is there, tells it, and sleeps.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::console::Console;
use super::followers::{self, Followers};
use super::packet;
use super::source::{self, Source};
use super::{Channel, Command, News, SourceId};
use crate::sys::clock::Moment;
use crate::sys::epoll::Epoll;
use crate::sys::event::EventFd;
use crate::sys::pipe::{Read, read_now, waiting};
use crate::sys::socket::Socket;

/// How much is read at once.
const CHUNK: usize = 128 * 1024;
/// How much is buffered for the console before it is written.
const BUFFERED: usize = 256 * 1024;
/// The token of the bell, which is no source's number.
const BELL: u64 = u64::MAX;

pub(super) struct Pumping {
    epoll: Epoll,
    console: Console,
    commands: Receiver<Command>,
    bell: Arc<EventFd>,
    closed: Arc<EventFd>,
    news: Arc<Mutex<News>>,
    sources: BTreeMap<SourceId, Source>,
    followers: Followers,
    chunk: Vec<u8>,
}

impl Pumping {
    pub(super) fn new(
        console: Console,
        commands: Receiver<Command>,
        (bell, closed): (Arc<EventFd>, Arc<EventFd>),
        news: Arc<Mutex<News>>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(bell.as_fd(), BELL)?;
        let (sources, followers, chunk) = (BTreeMap::new(), Followers::default(), vec![0; CHUNK]);
        Ok(Self { epoll, console, commands, bell, closed, news, sources, followers, chunk })
    }

    pub(super) fn run(mut self) {
        // The first search asks the processor what it can (CPUID, which each time traps under a hypervisor): now, while the children
        // begin, and not when their first line has come.
        let _ = memchr::memchr(b'\n', b"");
        loop {
            let ready = self.epoll.ready().unwrap_or_default();
            for &token in ready.iter().filter(|&&token| token != BELL) {
                if token >= followers::FIRST {
                    self.advance(token);
                } else {
                    self.read(token as SourceId);
                }
            }
            // After the reads: a source that a command finishes has been read at least once since the command was given.
            if ready.contains(&BELL) && !self.obey() {
                return self.end();
            }
            source::show_parts(&mut self.sources, &mut self.console, Moment::now());
            self.flush();
            if ready.is_empty() {
                // An error of poll(2) here would be want of memory in the kernel: the next turn asks again.
                let next = [self.next_part(), self.console.next_status()].into_iter().flatten().min();
                let _ = self.epoll.wait_until(next);
            }
        }
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_broken(&mut self, broken: Vec<String>) {
        if broken.is_empty() {
            return;
        }
        self.news().broken.extend(broken);
        self.closed.ring();
    }

    fn tell_seen(&self, id: SourceId, seen: &[usize]) {
        if seen.is_empty() {
            return;
        }
        self.news().seen.extend(seen.iter().map(|&number| (id, number)));
        self.closed.ring();
    }

    /// Reads a chunk of a source, if it is open; how many bytes.
    fn read(&mut self, id: SourceId) -> usize {
        let Some(source) = self.sources.get_mut(&id) else { return 0 };
        match read_now(source.pipe(), &mut self.chunk) {
            Ok(Read::Bytes(count)) => {
                let (bytes, now) = (&self.chunk[..count], Moment::now());
                let broken = source.carry(bytes, &mut self.console, now);
                let seen = source.take_seen();
                if let Some(channel) = source.channel() {
                    keep(&self.news, (&mut self.followers, &self.epoll), channel, bytes);
                }
                if let Some(source) = self.news().sources.get_mut(&id) {
                    source.first.get_or_insert(now);
                }
                self.tell_broken(broken);
                self.tell_seen(id, &seen);
                if self.console.buffered() > BUFFERED {
                    self.flush();
                }
                count
            }
            Ok(Read::Nothing) => 0,
            // A pipe that cannot be read any more has ended, whatever the reason.
            Ok(Read::End) | Err(_) => {
                self.close(id);
                0
            }
        }
    }

    /// Takes what is in a pipe at this moment, and closes it. What comes later is not waited for: a process that the child has left
    /// behind may write for ever.
    fn finish(&mut self, id: SourceId) {
        let pipe = self.sources.get(&id).map(Source::pipe);
        // Where the kernel does not tell how much that is: until nothing is there.
        let mut left = pipe.map_or(0, |pipe| waiting(pipe).unwrap_or(usize::MAX));
        while left > 0 {
            match self.read(id) {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        self.close(id);
    }

    fn close(&mut self, id: SourceId) {
        let Some(mut source) = self.sources.remove(&id) else { return };
        let broken = source.finish(&mut self.console, Moment::now());
        let seen = source.take_seen();
        // Closing the descriptor would not take it out of the epoll: a child that was just forked has a copy until its exec
        // (epoll(7)).
        let _ = self.epoll.remove(source.pipe());
        drop(source);
        self.flush();
        self.tell_broken(broken);
        self.tell_seen(id, &seen);
        if let Some(source) = self.news().sources.get_mut(&id) {
            source.is_closed = true;
        }
        self.closed.ring();
    }

    /// Carries out the commands; false after the one that ends the thread.
    fn obey(&mut self) -> bool {
        // Cleared first: a command that comes after it rings again.
        self.bell.clear();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Add(id, pipe, route)) => self.add(Source::new(id, pipe, route)),
                Ok(Command::Finish(id)) => self.finish(id),
                Ok(Command::Say(line)) => self.console.say(&line, Moment::now()),
                Ok(Command::Status(text)) => self.console.set_status(text),
                Ok(Command::Follow(socket, channels)) => self.follow(socket, channels),
                Err(TryRecvError::Empty) => return true,
                Ok(Command::Close) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn add(&mut self, source: Source) {
        let id = source.id;
        let watched = self.epoll.add(source.pipe(), id as u64);
        self.sources.insert(id, source);
        if let Err(error) = watched {
            self.tell_broken(vec![format!("a worker's output cannot be watched: {error}")]);
            self.close(id);
        }
    }

    fn follow(&mut self, socket: Socket, channels: Vec<(Channel, u64)>) {
        let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let added = self.followers.add(socket, channels, &self.epoll, &news.tails);
        drop(news);
        if let Err(error) = added {
            self.tell_broken(vec![format!("a follower of the output cannot be watched: {error}")]);
        }
    }

    fn advance(&mut self, follower: u64) {
        let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        self.followers.advance(follower, &self.epoll, &news.tails);
    }

    fn next_part(&self) -> Option<Moment> {
        self.sources.values().filter_map(|source| source.part_is_due(&self.console)).min()
    }

    fn flush(&mut self) {
        let broken = self.console.flush(Moment::now());
        self.tell_broken(broken);
    }

    /// Takes what is in the pipes, and closes them.
    fn end(mut self) {
        for id in self.sources.keys().copied().collect::<Vec<_>>() {
            self.finish(id);
        }
        self.console.set_status(None);
        self.flush();
        let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        self.followers.end(&self.epoll, &news.tails);
    }
}

/// Keeps the last bytes of a channel, and sends them to those who follow it.
fn keep(news: &Mutex<News>, (followers, epoll): (&mut Followers, &Epoll), channel: Channel, bytes: &[u8]) {
    let mut news = news.lock().unwrap_or_else(PoisonError::into_inner);
    if followers.is_empty() {
        return news.tails.entry(channel).or_default().push(bytes);
    }
    // In pieces: one that is larger than what is kept would be lost to a follower that is not slow at all.
    for piece in bytes.chunks(packet::PIECE) {
        news.tails.entry(channel).or_default().push(piece);
        followers.advance_all(epoll, &news.tails);
    }
}
