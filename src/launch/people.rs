//! What people see of a job while it runs, and what they ask of it.
//!
//! It has an epoll of its own, which the epoll of the attempt (and the pause between two attempts) watches as one descriptor. A
//! question is answered between two events of the job, never in the middle of one, and no visitor is waited for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::board::Board;
use super::error::{LaunchError, Result};
use super::event::Event;
use super::job_socket::{JobSocket, Kept, LISTENER};
use super::options::Launch;
use super::plan::{self, Plan};
use super::protocol::{Answer, Ask, Chunk, JobStatus, LONGEST_ANSWER, Places, Stopped, is_name};
use super::status;
use super::summary::{Ending, Summary};
use super::typed::Typed;
use super::workers;
use crate::supervise::pump::{Pump, Stream};
use crate::sys::clock::Moment;
use crate::sys::epoll::Epoll;
use crate::sys::pipe::{is_pipe, is_terminal};
use crate::sys::signal::Signal;
use crate::sys::{fd, memfd};

/// The most characters of a command line that are told.
const PROGRAM: usize = 1000;
/// How many names of four letters are tried: there are 456,976.
const TRIES: usize = 100;

/// How often the line at the bottom of the terminal is looked after.
const TICK: Duration = Duration::from_secs(1);
/// The token of the terminal in the epoll.
const TYPED: u64 = 0;

/// What a visitor wants of the job itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// To end, as by SIGTERM.
    Stop,
    /// To end without waiting for workers to end by themselves.
    Kill,
}

/// The terminal, where there is one.
#[derive(Debug)]
struct Screen {
    /// When the line at its bottom is due.
    next: Option<Moment>,
    /// `None`: Enter is not for this process.
    typed: Option<Typed>,
}

impl Screen {
    fn open(launch: &Launch, plan: &Plan, epoll: &Epoll) -> Result<Option<Self>> {
        if !launch.has_status_line {
            return Ok(None);
        }
        let [stdout, stderr] = [1, 2].map(|number| fd::copy_of_stdio(number).ok());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let has_screen = !is_dumb
            && stderr.is_some_and(|stderr| is_terminal(&stderr))
            && stdout.is_some_and(|stdout| !is_pipe(&stdout))
            && !workers::has_terminal(plan);
        if !has_screen {
            return Ok(None);
        }
        let typed = if plan.stdin_rank.is_none() { Typed::open() } else { None };
        if let Some(typed) = &typed {
            // Told once for each time that something is typed: in the background that is not for us, and stays there.
            let watched = epoll.add_edge(typed.as_fd(), TYPED);
            watched.map_err(LaunchError::system("watching the terminal for Enter"))?;
        }
        Ok(Some(Self { next: None, typed }))
    }
}

/// The side of a job that visitors see: its socket, and what it answers.
#[derive(Debug)]
pub(super) struct People {
    /// Watches the socket and its visitors.
    epoll: Rc<Epoll>,
    /// `None`: the job is not reachable.
    socket: Option<JobSocket>,
    board: Board,
    name: String,
    /// The begin of the workers' command line.
    program: String,
    workers: usize,
    max_restarts: usize,
    /// Where the output of the attempt that runs can be read.
    places: Places,
    screen: Option<Screen>,
    /// The only worker writes what goes to no file to the terminal itself.
    is_at_terminal: bool,
}

impl People {
    /// Opens the job's socket if it is to be reached. A job that has no name of its own is given one, which is its run id too if it has
    /// none.
    pub(super) fn open(launch: &Launch, plan: &mut Plan) -> Result<Self> {
        let epoll = Epoll::new().map_err(LaunchError::system("making an epoll for the job's socket"))?;
        let epoll = Rc::new(epoll);
        let socket = if launch.is_reachable { Some(open(launch, plan, &epoll)?) } else { None };
        let (name, socket) = socket.map_or_else(|| (plan.run_id.clone(), None), |(n, s)| (n, Some(s)));
        let file = |rank| {
            let (redirects, tee) = (launch.logs.redirects.of(rank), launch.logs.tee.of(rank));
            u8::from(redirects.stdout || tee.stdout) + 2 * u8::from(redirects.stderr || tee.stderr)
        };
        Ok(Self {
            socket,
            board: Board::new(),
            name,
            program: launch.work.to_string().chars().take(PROGRAM).collect(),
            workers: plan.nproc,
            max_restarts: plan.max_restarts,
            places: Places {
                dir: None,
                files: (0..plan.nproc).map(file).collect(),
                prefix: launch.logs.prefix.template().to_owned(),
                role: plan.role.clone(),
            },
            screen: Screen::open(launch, plan, &epoll)?,
            epoll,
            is_at_terminal: workers::has_terminal(plan),
        })
    }

    /// The name by which the job is reached, if it is.
    pub(super) fn name(&self) -> Option<&str> {
        self.socket.as_ref().map(|_| &*self.name)
    }

    /// Takes in an event of the job, and tells followers where the files of a new attempt are.
    pub(super) fn hear(&mut self, event: &Event) {
        self.board.hear(event);
        // Before the first workers there is nothing to be shown.
        if let Some(screen) = self.screen.as_mut().filter(|_| !self.board.workers.is_empty()) {
            screen.next = Some(Moment::now());
        }
        if let Event::Started { log_dir, .. } = event {
            // Visitors have other working directories.
            let absolute = |dir: &PathBuf| std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
            self.places.dir = log_dir.as_ref().map(absolute);
            let news = Answer::Logs(self.places.clone());
            if self.places.files.iter().any(|&files| files > 0)
                && let Some(socket) = &mut self.socket
            {
                socket.tell(Kept::Following, &news);
            }
        }
    }

    /// When [`turn`](Self::turn) is to be called if no visitor comes before; `None`: never.
    pub(super) fn next(&self) -> Option<Moment> {
        let visitor = self.socket.as_ref().and_then(JobSocket::next);
        let screen = self.screen.as_ref().and_then(|screen| screen.next);
        [visitor, screen].into_iter().flatten().min()
    }

    /// Answers the visitors that have come, and lets those go that are too slow; returns what they want of the job.
    ///
    /// # Errors
    /// When the epoll cannot be asked.
    pub(super) fn turn(&mut self, pump: &Pump) -> Result<Vec<Wish>> {
        let mut wishes = Vec::new();
        let failed = || LaunchError::system("looking for visitors of the job's socket");
        let now = Moment::now();
        for token in self.epoll.ready().map_err(failed())? {
            if token == TYPED {
                self.show_table(pump, now);
                continue;
            }
            let Some(socket) = &mut self.socket else { continue };
            if token == LISTENER {
                socket.admit();
            } else if let Some(ask) = socket.hear(token) {
                wishes.extend(self.answer(token, ask, pump));
            }
        }
        if let Some(socket) = &mut self.socket {
            socket.lose_patience();
        }
        if let Some(screen) =
            self.screen.as_mut().filter(|screen| screen.next.is_some_and(|next| next <= now))
        {
            screen.next = now.checked_add(TICK);
            self.board.look();
            pump.status(Some(status::line(&self.name, &self.board, now)));
        }
        Ok(wishes)
    }

    /// Prints what runs if Enter was typed.
    fn show_table(&mut self, pump: &Pump, now: Moment) {
        let typed = self.screen.as_ref().and_then(|screen| screen.typed.as_ref());
        if typed.is_some_and(Typed::take) {
            self.board.look();
            pump.say(status::table(&self.name, &self.board, now));
        }
    }

    /// Answers one question.
    fn answer(&mut self, visitor: u64, ask: Ask, pump: &Pump) -> Option<Wish> {
        match ask {
            Ask::Status => {
                let status = Answer::Status(self.status());
                self.reply(visitor, &status, None, None);
                None
            }
            Ask::Stop { kill } => {
                self.reply(visitor, &Answer::Stopping, None, Some(Kept::UntilTheEnd));
                Some(if kill { Wish::Kill } else { Wish::Stop })
            }
            Ask::Logs { ranks, follow } => {
                if let Err(why) = self.show_logs(visitor, &ranks, follow, pump) {
                    self.reply(visitor, &Answer::Refused(why), None, None);
                }
                None
            }
        }
    }

    /// Sends an answer with a descriptor beside it, and keeps the visitor for what is to follow.
    fn reply(&mut self, visitor: u64, answer: &Answer, beside: Option<OwnedFd>, kept: Option<Kept>) {
        if let Some(socket) = &mut self.socket {
            let beside: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
            socket.answer(visitor, answer, &beside, kept);
        }
    }

    /// How the job does now.
    fn status(&self) -> JobStatus {
        JobStatus {
            job: self.name.clone(),
            launcher: std::process::id(),
            program: self.program.clone(),
            running: self.board.running(),
            workers: self.workers,
            attempt: self.board.attempt,
            max_restarts: self.max_restarts,
            age: Moment::now().since(self.board.began),
        }
    }

    /// Answers with what is kept of these ranks, and has the pump send what they will print.
    fn show_logs(
        &mut self,
        visitor: u64,
        ranks: &[(usize, usize)],
        follow: bool,
        pump: &Pump,
    ) -> std::result::Result<(), String> {
        if self.is_at_terminal && self.places.files == [0] {
            return Err(
                "the only worker writes to the terminal itself, and its output is not kept".to_owned()
            );
        }
        let answer = Answer::Logs(self.places.clone());
        if answer.encode().len() > LONGEST_ANSWER {
            return Err(format!("an answer for {} workers is too long", self.workers));
        }
        let kept: Vec<_> = self.channels(ranks).map(|channel| (channel, pump.channel(channel))).collect();
        let beside = chunks(kept.iter().map(|(channel, (bytes, _))| Chunk { channel: *channel, bytes }));
        let beside = beside.map_err(|error| format!("the launcher has no memory for an answer: {error}"))?;
        if follow && let Some(socket) = &self.socket {
            let copy = socket.copy(visitor);
            let copy = copy.map_err(|error| format!("the launcher has no descriptor left: {error}"))?;
            self.reply(visitor, &answer, Some(beside), Some(Kept::Following));
            pump.follow(copy, kept.into_iter().map(|(channel, (_, end))| (channel, end)).collect());
        } else {
            self.reply(visitor, &answer, Some(beside), None);
        }
        Ok(())
    }

    /// The pump's numbers of the streams of these ranks that go to no file.
    fn channels(&self, ranks: &[(usize, usize)]) -> impl Iterator<Item = u64> {
        let is_meant =
            |rank| ranks.is_empty() || ranks.iter().any(|&(first, last)| (first..=last).contains(&rank));
        let streams = self.places.files.iter().enumerate().filter(move |(rank, _)| is_meant(*rank));
        streams.flat_map(|(rank, &files)| {
            let in_memory = [Stream::Stdout, Stream::Stderr]
                .into_iter()
                .zip([1, 2])
                .filter(move |(_, bit)| files & bit == 0);
            in_memory.map(move |(stream, _)| workers::channel(rank, stream))
        })
    }

    /// Tells the visitors that wait for the job's end how it has ended.
    pub(super) fn end(&mut self, summary: &Summary) {
        let killed = Ending::Signaled { signal: Signal::KILL, core_dumped: false };
        let last = summary.attempts.last().into_iter().flat_map(|attempt| &attempt.workers);
        let ranks = last.filter(|worker| worker.ended_by_launcher && worker.ending == killed);
        let stopped =
            Stopped { exit_code: summary.exit_code(), killed: ranks.map(|worker| worker.rank).collect() };
        if let Some(socket) = &mut self.socket {
            socket.tell(Kept::UntilTheEnd, &Answer::Ended(stopped));
        }
    }
}

impl AsFd for People {
    /// Readable when a visitor has come or has asked.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Takes the job's name, or finds one that is free: the run id if it can be one, else four letters.
///
/// # Errors
/// [`LaunchError::Invalid`] when another job has the name that was chosen; [`LaunchError::System`] when the system refuses the socket.
fn open(launch: &Launch, plan: &mut Plan, epoll: &Rc<Epoll>) -> Result<(String, JobSocket)> {
    let failed = |name: &str| LaunchError::system(format!("listening as the job {name}"));
    if let Some(name) = &launch.job_name {
        return match JobSocket::open(name, Rc::clone(epoll)) {
            Ok(socket) => Ok((name.clone(), socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let hint = format!("choose another name, or end that one by `phalanx stop {name}`");
                Err(LaunchError::invalid(format!("a job named {name} runs already"), hint))
            }
            Err(error) => Err(failed(name)(error)),
        };
    }
    let mut name = plan.run_id.clone();
    for _ in 0..TRIES {
        if is_name(&name) {
            match JobSocket::open(&name, Rc::clone(epoll)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                opened => return opened.map(|socket| (name.clone(), socket)).map_err(failed(&name)),
            }
        }
        let random =
            crate::sys::dir::unguessable().map_err(LaunchError::system("asking for random bytes"))?;
        name = plan::letters(&random);
        if launch.run_id.is_none() {
            plan.run_id.clone_from(&name);
        }
    }
    Err(failed("")(io::ErrorKind::AddrInUse.into()))
}

/// The chunks one after the other, in memory that can be read only.
fn chunks<'a>(chunks: impl Iterator<Item = Chunk<'a>>) -> io::Result<OwnedFd> {
    let parts: Vec<_> = chunks.map(|chunk| (chunk.header(), chunk.bytes)).collect();
    let parts: Vec<_> = parts.iter().flat_map(|(header, bytes)| [&header[..], bytes]).collect();
    memfd::sealed_with("phalanx-logs", &parts)
}
