//! The socket of a running job: visitors connect to it, ask, and are answered. The job waits for none of them: a visitor that says
//! nothing for a while, says too much, or does not take its answer is let go.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use super::protocol::{Answer, Ask, LONGEST_REQUEST, socket_name};
use crate::sys::abstract_socket::{self, Listener};
use crate::sys::clock::Moment;
use crate::sys::epoll::Epoll;
use crate::sys::socket::{Attempt, Socket};

/// How many visitors there may be at a time.
const MOST_VISITORS: usize = 32;
/// How long a visitor may think before it asks.
const PATIENCE: Duration = Duration::from_secs(2);

/// The token of the listening socket in the epoll; those of visitors follow.
pub(super) const LISTENER: u64 = 1 << 16;

/// Why a visitor is kept after its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is told how the job has ended.
    UntilTheEnd,
    /// It is sent what workers print, and told when another attempt has begun.
    Following,
}

/// How far a visitor has come.
#[derive(Debug)]
enum State {
    /// It has not asked yet, and has until this moment; `None`: for ever.
    Asking(Option<Moment>),
    /// It has been answered, and more is to follow.
    Kept(Kept),
}

/// A process that has connected.
#[derive(Debug)]
struct Visitor {
    socket: Socket,
    state: State,
}

/// The listening socket, and the visitors that are connected.
#[derive(Debug)]
pub(super) struct JobSocket {
    listener: Listener,
    /// Watches the listener and the visitors.
    epoll: Rc<Epoll>,
    /// By their tokens in the epoll.
    visitors: BTreeMap<u64, Visitor>,
    /// The token of the next visitor.
    next: u64,
}

impl JobSocket {
    /// Takes the name of a job of this user.
    ///
    /// # Errors
    /// `AddrInUse`: another job has it.
    pub(super) fn open(job: &str, epoll: Rc<Epoll>) -> std::io::Result<Self> {
        let listener = Listener::bind(&socket_name(abstract_socket::user(), job))?;
        epoll.add(listener.as_fd(), LISTENER)?;
        Ok(Self { listener, epoll, visitors: BTreeMap::new(), next: LISTENER + 1 })
    }

    /// Lets in the processes that have connected and belong to this user or to root. Others are closed before they can ask.
    pub(super) fn admit(&mut self) {
        let user = abstract_socket::user();
        // An error means that there is no descriptor left for it. epoll tells of it again as long as one waits.
        while let Ok(Some((socket, peer))) = self.listener.accept() {
            let is_known = peer.user == user || peer.user == 0;
            if !is_known || self.visitors.len() == MOST_VISITORS {
                continue;
            }
            if self.epoll.add(socket.as_fd(), self.next).is_ok() {
                let state = State::Asking(Moment::now().checked_add(PATIENCE));
                self.visitors.insert(self.next, Visitor { socket, state });
                self.next += 1;
            }
        }
    }

    /// What a visitor asks for. One that has gone, or speaks out of turn, is let go.
    pub(super) fn hear(&mut self, token: u64) -> Option<Ask> {
        let visitor = self.visitors.get(&token)?;
        let said = visitor.socket.try_receive_up_to(LONGEST_REQUEST);
        match (&visitor.state, said) {
            (_, Ok(None)) => None,
            (State::Asking(_), Ok(Some(message))) => match Ask::decode(&message.bytes) {
                Ok(ask) => Some(ask),
                Err(why) => {
                    self.answer(token, &Answer::Refused(why), &[], None);
                    None
                }
            },
            _ => {
                self.let_go(token);
                None
            }
        }
    }

    /// Answers, and keeps the visitor for what is to follow, or lets it go.
    pub(super) fn answer(
        &mut self,
        token: u64,
        answer: &Answer,
        descriptors: &[BorrowedFd<'_>],
        kept: Option<Kept>,
    ) {
        let Some(visitor) = self.visitors.get_mut(&token) else { return };
        let sent = visitor.socket.try_send(&answer.encode(), descriptors);
        match kept {
            Some(kept) if matches!(sent, Ok(Attempt::Sent)) => visitor.state = State::Kept(kept),
            _ => self.let_go(token),
        }
    }

    /// Sends an answer to all visitors that are kept for it.
    pub(super) fn tell(&mut self, whom: Kept, answer: &Answer) {
        let of_kind = |visitor: &Visitor| matches!(visitor.state, State::Kept(kept) if kept == whom);
        let tokens = self.visitors.iter().filter(|(_, visitor)| of_kind(visitor)).map(|(token, _)| *token);
        for token in tokens.collect::<Vec<_>>() {
            self.answer(token, answer, &[], Some(whom));
        }
    }

    /// A copy of a visitor's socket.
    pub(super) fn copy(&self, token: u64) -> std::io::Result<Socket> {
        let visitor = self.visitors.get(&token).ok_or(std::io::ErrorKind::NotConnected)?;
        Ok(Socket::from_descriptor(visitor.socket.as_fd().try_clone_to_owned()?))
    }

    /// When the next visitor that has not asked is let go; `None`: all have asked.
    pub(super) fn next(&self) -> Option<Moment> {
        self.visitors.values().filter_map(deadline).min()
    }

    /// Lets the visitors go that have not asked in time.
    pub(super) fn lose_patience(&mut self) {
        let now = Moment::now();
        let late = |visitor: &Visitor| deadline(visitor).is_some_and(|until| until <= now);
        let tokens = self.visitors.iter().filter(|(_, visitor)| late(visitor)).map(|(token, _)| *token);
        for token in tokens.collect::<Vec<_>>() {
            self.let_go(token);
        }
    }

    /// Ends the connection of a visitor.
    fn let_go(&mut self, token: u64) {
        if let Some(visitor) = self.visitors.remove(&token) {
            // Closing it would not be enough where the pump has a copy.
            let _ = self.epoll.remove(visitor.socket.as_fd());
        }
    }
}

/// Until when a visitor has to ask, if it has not.
fn deadline(visitor: &Visitor) -> Option<Moment> {
    match visitor.state {
        State::Asking(until) => until,
        State::Kept(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::epoll::wait_readable;

    fn job(name: &str) -> (JobSocket, String) {
        let (epoll, job) = (Rc::new(Epoll::new().unwrap()), format!("test-{name}-{}", std::process::id()));
        (JobSocket::open(&job, epoll).unwrap(), socket_name(abstract_socket::user(), &job))
    }

    fn turn(socket: &mut JobSocket) -> Vec<(u64, Ask)> {
        let mut asked = Vec::new();
        for token in socket.epoll.ready().unwrap() {
            match token {
                LISTENER => socket.admit(),
                token => asked.extend(socket.hear(token).map(|ask| (token, ask))),
            }
        }
        asked
    }

    fn is_closed(visitor: &Socket) -> bool {
        wait_readable(visitor.as_fd(), None).unwrap();
        visitor.try_receive_up_to(9).is_err()
    }

    #[test]
    fn visitor_asks_and_is_answered_and_kept_only_for_what_follows() {
        let (mut job, name) = job("answer");
        let (visitor, _) = abstract_socket::connect(&name).unwrap();
        visitor.send(&Ask::Stop { kill: false }.encode(), &[], None).unwrap();
        assert!(turn(&mut job).is_empty());
        let asked = turn(&mut job);
        let [(token, Ask::Stop { kill: false })] = asked[..] else { panic!("{asked:?}") };
        job.answer(token, &Answer::Stopping, &[], Some(Kept::UntilTheEnd));
        assert_eq!(job.next(), None, "it need not say anything more");
        job.tell(Kept::Following, &Answer::Stopping);
        job.tell(Kept::UntilTheEnd, &Answer::Refused("end".into()));
        let heard = || Answer::decode(&visitor.try_receive_up_to(99).unwrap().unwrap().bytes).unwrap();
        assert_eq!([heard(), heard()], [Answer::Stopping, Answer::Refused("end".into())]);
        // Whatever it says now, it is let go.
        visitor.send(b"more", &[], None).unwrap();
        assert!(turn(&mut job).is_empty() && is_closed(&visitor) && job.visitors.is_empty());
    }

    #[test]
    fn visitors_that_say_nothing_or_too_much_or_are_too_many_are_let_go() {
        let (mut job, name) = job("hostile");
        let connect = || abstract_socket::connect(&name).unwrap().0;
        let (silent, loud, gone) = (connect(), connect(), connect());
        loud.send(&[b'{'; LONGEST_REQUEST + 1], &[], None).unwrap();
        drop(gone);
        turn(&mut job);
        assert!(turn(&mut job).is_empty() && is_closed(&loud));
        assert_eq!(job.visitors.len(), 1);
        assert!(job.next().is_some());
        job.visitors.values_mut().for_each(|visitor| visitor.state = State::Asking(Some(Moment::now())));
        job.lose_patience();
        assert!(is_closed(&silent) && job.next().is_none());
        let many: Vec<_> = (0..MOST_VISITORS + 3).map(|_| connect()).collect();
        turn(&mut job);
        assert_eq!(job.visitors.len(), MOST_VISITORS);
        assert!(many[MOST_VISITORS..].iter().all(is_closed));
    }
}
