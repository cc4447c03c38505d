//! Followers: other processes that are sent what comes, as it comes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::Channel;
use super::packet::{PIECE, encoded};
use super::tail::Tail;
use crate::sys::clock::Moment;
use crate::sys::epoll::{Epoll, Readiness, wait_any};
use crate::sys::socket::{Attempt, Socket};

/// How long the pump's end waits for followers that have not taken all.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// One of them, and how much of each channel it was sent. A slow one costs nothing: what it has not taken stays in the tails, and what
/// has left them is skipped.
#[derive(Debug)]
struct Follower {
    socket: Socket,
    channels: Vec<(Channel, u64)>,
    /// The channel whose turn it is.
    next: usize,
}

impl Follower {
    /// Sends what there is and what the socket takes; false: nobody takes it any more.
    fn advance(&mut self, tails: &BTreeMap<Channel, Tail>) -> bool {
        let mut nothing_for = 0;
        while nothing_for < self.channels.len() {
            let (channel, sent) = &mut self.channels[self.next];
            let (at, bytes) = tails.get(channel).map_or((*sent, Vec::new()), |tail| tail.from(*sent, PIECE));
            if bytes.is_empty() {
                nothing_for += 1;
            } else {
                nothing_for = 0;
                match self.socket.try_send(&encoded(*channel, at - *sent, &bytes), &[]) {
                    Ok(Attempt::Sent) => *sent = at + bytes.len() as u64,
                    Ok(Attempt::Full | Attempt::Crowded) => return true,
                    Err(_) => return false,
                }
            }
            self.next = (self.next + 1) % self.channels.len();
        }
        true
    }

    fn has_all(&self, tails: &BTreeMap<Channel, Tail>) -> bool {
        self.channels.iter().all(|(channel, sent)| tails.get(channel).is_none_or(|tail| tail.end() == *sent))
    }
}

/// All of them, by their tokens in the pump's epoll.
#[derive(Debug, Default)]
pub(super) struct Followers {
    by_token: BTreeMap<u64, Follower>,
    added: u64,
}

/// The tokens of followers begin here.
pub(super) const FIRST: u64 = 1 << 32;

impl Followers {
    pub(super) fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }

    /// Sends the channels to a socket, from these positions on.
    pub(super) fn add(
        &mut self,
        socket: Socket,
        channels: Vec<(Channel, u64)>,
        epoll: &Epoll,
        tails: &BTreeMap<Channel, Tail>,
    ) -> io::Result<()> {
        let token = FIRST + self.added;
        self.added += 1;
        epoll.add_writable_edge(socket.as_fd(), token)?;
        self.by_token.insert(token, Follower { socket, channels, next: 0 });
        self.advance(token, epoll, tails);
        Ok(())
    }

    /// Sends one what its socket takes.
    pub(super) fn advance(&mut self, token: u64, epoll: &Epoll, tails: &BTreeMap<Channel, Tail>) {
        if let Some(follower) = self.by_token.get_mut(&token)
            && !follower.advance(tails)
        {
            // Closing it would not be enough: the launcher has a copy.
            let _ = epoll.remove(follower.socket.as_fd());
            self.by_token.remove(&token);
        }
    }

    /// Sends all of them what their sockets take.
    pub(super) fn advance_all(&mut self, epoll: &Epoll, tails: &BTreeMap<Channel, Tail>) {
        for token in self.by_token.keys().copied().collect::<Vec<_>>() {
            self.advance(token, epoll, tails);
        }
    }

    /// Nothing more will come: waits a moment for those that have not taken all.
    pub(super) fn end(mut self, epoll: &Epoll, tails: &BTreeMap<Channel, Tail>) {
        let deadline = Moment::now().checked_add(LAST_WORDS);
        loop {
            self.advance_all(epoll, tails);
            let slow = self.by_token.values().filter(|follower| !follower.has_all(tails));
            let slow: Vec<_> = slow.map(|follower| (follower.socket.as_fd(), Readiness::Writable)).collect();
            if slow.is_empty() || !wait_any(&slow, deadline).unwrap_or(false) {
                return;
            }
        }
    }
}
