//! RunningJob: a job of another process of this user, seen from outside.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::error::{LaunchError, Result};
use super::protocol::{Answer, Ask, JobStatus, LONGEST_ANSWER, Stopped, socket_name};
use crate::sys::abstract_socket::{self, Peer};
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::process;
use crate::sys::socket::{Message, Socket};

/// How long a launcher may take to answer: it does so at once, unless it is stopped, or ends the last descendants of its workers.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it may take to answer where many are asked one after the other, as by `phalanx ps`.
const STATUS: Duration = Duration::from_secs(2);

/// A running job of this user, which another process has [launched](super::Launch::reachable): what `phalanx ps`, `phalanx stop` and
/// `phalanx logs` do.
///
/// A value of this type is a name, not a connection: the job may end at any time, and each method connects anew. Jobs of other network
/// namespaces, as of containers, are not seen, nor are those of other users. torchrun has no counterpart.
///
/// ```
/// use std::sync::mpsc::channel;
/// use phalanx::launch::{Command, Event, Launch, RunningJob};
///
/// let name = format!("doc-{}", std::process::id());
/// let (tell, started) = channel();
/// let job = Launch::new(Command::new("sleep").args(["600"])).job_name(&name);
/// let job = job.on_event(move |event| {
///     if let Event::Started { .. } = event {
///         tell.send(()).unwrap();
///     }
/// });
/// # // The launch is no type that can be sent, so the visitor is the other thread.
/// let visitor = std::thread::spawn(move || {
///     started.recv().unwrap();
///     let job = RunningJob::find(&name)?;
///     assert_eq!(job.status()?.running, 1);
///     job.stop(false)
/// });
/// let summary = job.run()?;
/// assert_eq!(visitor.join().unwrap()?.exit_code, summary.exit_code());
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningJob {
    name: String,
    launcher: u32,
}

impl RunningJob {
    /// All jobs of this user that run and are reachable, by name.
    ///
    /// Some may have ended when this returns, and others have begun.
    ///
    /// ```
    /// use phalanx::launch::RunningJob;
    ///
    /// for job in RunningJob::all()? {
    ///     println!("{} (pid {})", job.name(), job.launcher());
    /// }
    /// # Ok::<(), phalanx::launch::LaunchError>(())
    /// ```
    ///
    /// # Errors
    /// [`LaunchError::System`] when the kernel does not tell which sockets there are.
    pub fn all() -> Result<Vec<Self>> {
        let start = socket_name(abstract_socket::user(), "");
        let failed = LaunchError::system("looking for jobs in /proc/net/unix");
        let names = abstract_socket::listening(&start).map_err(failed)?;
        // One that cannot be connected to has just ended, or belongs to another user that has taken our name.
        Ok(names
            .iter()
            .filter_map(|name| Self::connect(&name[start.len()..]).ok())
            .map(|(job, _)| job)
            .collect())
    }

    /// The job of that name: its [`job_name`](super::Launch::job_name), or the name that was found for it.
    ///
    /// ```
    /// use phalanx::launch::RunningJob;
    ///
    /// let error = RunningJob::find("no-such-job").unwrap_err().to_string();
    /// assert!(error.starts_with("no job named \"no-such-job\" runs; "), "{error}");
    /// ```
    ///
    /// # Errors
    /// - [`LaunchError::Invalid`] when there is none; the text lists those that run
    /// - [`LaunchError::System`] when it cannot be connected to, or another user has taken the name
    pub fn find(name: &str) -> Result<Self> {
        match Self::connect(name) {
            Ok((job, _)) => Ok(job),
            Err(error) if is_absence(&error) => Err(unknown(name)),
            Err(error) => Err(LaunchError::system(format!("connecting to the job {name}"))(error)),
        }
    }

    /// The job's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pid of the process that has launched the job; 0 if that runs in a PID namespace that this process does not see.
    #[must_use]
    pub fn launcher(&self) -> u32 {
        self.launcher
    }

    /// Asks how the job does: `phalanx ps` shows it.
    ///
    /// The launcher answers between two events of its job, so the answer is that of one moment.
    ///
    /// # Errors
    /// [`LaunchError::System`] when the launcher does not answer within 2 s, or has ended; the text says which.
    pub fn status(&self) -> Result<JobStatus> {
        let mut connection = self.ask(&Ask::Status)?;
        match connection.next(Moment::now().checked_add(STATUS))?.0 {
            Answer::Status(status) => Ok(status),
            other => Err(connection.unexpected(other)),
        }
    }

    /// Ends the job as SIGTERM to its launcher does, and waits until no process and no temporary file of it is left: `phalanx stop`.
    ///
    /// With `kill` its workers are killed at once, as by a second signal. Without it, a job that is being stopped already is only waited
    /// for. The wait has no limit of its own: the job's [`shutdown_timeout`](super::Launch::shutdown_timeout) bounds it.
    ///
    /// # Errors
    /// [`LaunchError::System`] when the launcher does not answer, or was killed before the job had ended.
    pub fn stop(&self, kill: bool) -> Result<Stopped> {
        let mut connection = self.ask(&Ask::Stop { kill })?;
        match connection.next(Moment::now().checked_add(ANSWER))?.0 {
            Answer::Stopping => {}
            other => return Err(connection.unexpected(other)),
        }
        match connection.next(None)?.0 {
            Answer::Ended(stopped) => {
                // The launcher closes it last of all.
                while !matches!(connection.receive(None), Err(error) if error.kind() != io::ErrorKind::TimedOut)
                {
                }
                Ok(stopped)
            }
            other => Err(connection.unexpected(other)),
        }
    }

    /// Connects to a job of this user, and so learns the pid of its launcher from the kernel (SO_PEERCRED).
    ///
    /// # Errors
    /// The kernel's; one that [`is_absence`] means that no such job runs.
    fn connect(name: &str) -> io::Result<(Self, Socket)> {
        let user = abstract_socket::user();
        let (socket, Peer { pid, user: owner }) = abstract_socket::connect(&socket_name(user, name))?;
        if owner != user {
            // Any user may take any name.
            return Err(io::Error::other(format!("it belongs to the user {owner}, and not to {user}")));
        }
        Ok((Self { name: name.to_owned(), launcher: pid }, socket))
    }

    /// Connects and sends a question.
    ///
    /// # Errors
    /// [`LaunchError::Invalid`] when the job has ended meanwhile; [`LaunchError::System`] when the system refuses.
    pub(super) fn ask(&self, ask: &Ask) -> Result<Connection> {
        let (job, socket) = match Self::connect(&self.name) {
            Err(error) if is_absence(&error) => return Err(unknown(&self.name)),
            other => other.map_err(LaunchError::system(format!("connecting to the job {}", self.name)))?,
        };
        let connection = Connection { job, socket };
        // A fresh socket takes it at once.
        let sent = connection.socket.send(&ask.encode(), &[], Some(Moment::now()));
        sent.map_err(|error| connection.failed(error))?;
        Ok(connection)
    }
}

/// Whether the error of a connect means that no socket has the name, or that it cannot be one.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidInput)
}

/// The error of a name that no job has, with the names that there are.
fn unknown(name: &str) -> LaunchError {
    let running = RunningJob::all().unwrap_or_default();
    let names: Vec<_> = running.iter().map(RunningJob::name).collect();
    let hint = match names[..] {
        [] => "no job of this user does".to_owned(),
        [one] => format!("this one does: {one}"),
        _ => format!("these do: {}", names.join(", ")),
    };
    LaunchError::invalid(format!("no job named {name:?} runs"), hint)
}

/// A question that was asked, and the socket on which its answers come.
pub(super) struct Connection {
    /// For the texts of errors.
    job: RunningJob,
    socket: Socket,
}

impl Connection {
    /// Readable when an answer has come, or the launcher has closed the connection.
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The next message.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, `UnexpectedEof` when the launcher has closed it.
    pub(super) fn receive(&mut self, deadline: Option<Moment>) -> io::Result<Message<Vec<u8>>> {
        loop {
            if let Some(message) = self.socket.try_receive_up_to(LONGEST_ANSWER)? {
                return Ok(message);
            }
            if !wait_readable(self.socket.as_fd(), deadline)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// The next answer, and what came beside it.
    pub(super) fn next(&mut self, deadline: Option<Moment>) -> Result<(Answer, Message<Vec<u8>>)> {
        let message = self.receive(deadline).map_err(|error| self.failed(error))?;
        match Answer::decode(&message.bytes) {
            Some(answer) => Ok((answer, message)),
            None => {
                let what = "the answer is not one that this version understands";
                Err(self.failed(io::Error::new(io::ErrorKind::InvalidData, what)))
            }
        }
    }

    /// The error of a question that was not answered: the launcher is stopped, does not answer, or has ended.
    pub(super) fn failed(&self, error: io::Error) -> LaunchError {
        let RunningJob { name, launcher } = &self.job;
        let what = format!("asking the launcher of the job {name} (pid {launcher})");
        let os = match error.kind() {
            io::ErrorKind::TimedOut if process::is_stopped(*launcher) => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it is stopped, as by Ctrl-Z; continue it by `fg` or `kill -CONT {launcher}`"),
            ),
            io::ErrorKind::TimedOut => io::Error::new(io::ErrorKind::TimedOut, "it does not answer"),
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended without an answer")
            }
            _ => error,
        };
        LaunchError::System { what, os }
    }

    /// The error of an answer that is a refusal, or belongs to another question.
    pub(super) fn unexpected(&self, answer: Answer) -> LaunchError {
        let why = match answer {
            Answer::Refused(why) => why,
            other => format!("the answer {other:?} is to another question"),
        };
        self.failed(io::Error::other(why))
    }
}
