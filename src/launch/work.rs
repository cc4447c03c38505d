//! Work: what the workers of a job run, a program or a function of this one.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;

use super::command::{Command, Program};
use super::error::{LaunchError, Result};
use crate::error::Error;
use crate::start;
use crate::sys::image::Image;
use crate::sys::spawn::OWN_EXECUTABLE;
use crate::wire::codec;
use crate::wire::job::JobFile;
use crate::wire::manifest::Manifest;
use crate::wire::message::Job;
use crate::wire::names::PROTOCOL;
use crate::wire::roster::Roster;
use crate::wire::setup::Setup;
use crate::worker::entry::Entry;

/// What the workers of a job run.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// A program, as its command line says it.
    Program(Command),
    /// A function of this program.
    Function(Rc<Function>),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(command) => command.fmt(f),
            Self::Function(function) => f.write_str(function.name),
        }
    }
}

/// A function as the workers of one job are given it.
#[derive(Debug)]
pub(super) struct Staged {
    function: Rc<Function>,
    /// In it each worker enters itself when it comes to `init`; errors of locks and the like name ranks by it.
    roster: Arc<Roster>,
}

impl Staged {
    /// Makes what the workers of one job share.
    ///
    /// # Errors
    /// When there is no memory or no descriptor for the roster.
    pub(super) fn new(function: &Rc<Function>, nproc: usize) -> Result<Self> {
        let roster = Roster::new(nproc)
            .map_err(LaunchError::system("making the list of the workers' processes (memfd_create)"))?;
        Ok(Self { function: Rc::clone(function), roster })
    }

    /// By this value of the variable [`FUNCTION`](crate::wire::names::FUNCTION) a worker knows what it is.
    pub(super) fn marker(&self) -> String {
        let job = self.function.job.as_fd().as_raw_fd();
        format!("{PROTOCOL} {job} {}", self.roster.number())
    }

    /// What a worker inherits.
    pub(super) fn inherited(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.function.job.descriptors().chain([self.roster.descriptor().as_fd()])
    }

    /// Whether a worker has come to `init`.
    pub(super) fn has_begun(&self, rank: usize, pid: u32) -> bool {
        self.roster.has_entered(rank, pid)
    }
}

/// A function of this program, with its arguments, which all workers of all attempts inherit.
#[derive(Debug)]
pub(super) struct Function {
    /// The function's path, for the report.
    name: &'static str,
    /// The memfd with the function's place in this executable and the encoded arguments.
    /// It lends what the workers may write to, as long as there is a job.
    job: JobFile,
}

impl Function {
    /// Checks whether this program can be run again, and writes the arguments.
    ///
    /// # Errors
    /// When main has not called `init`, this executable cannot be run again, the function is one of a shared object, or the arguments
    /// cannot be written or hold what only one process can have.
    pub(super) fn new<A: Serialize>(entry: &'static Entry, args: &A) -> std::result::Result<Self, Error> {
        start::check_init(true)?;
        start::check_executable()?;
        let image = Image::main().map_err(Error::system("identify this executable"))?;
        let job = Job {
            image: image.id().to_vec(),
            entry: entry.offset(image)?,
            function: entry.name().to_owned(),
            name: String::new(),
            setup: Setup::default(),
            shared: None,
            manifest: Manifest::default(),
        };
        let refused = |reason| Error::Arguments { rank: 0, reason };
        let encoded = codec::encode(args).map_err(refused)?;
        let job = JobFile::new(&job, encoded).map_err(Error::system("write the job (memfd_create)"))?;
        if let Some(noun) = job.exclusive() {
            let reason = format!(
                "a {noun} can go to one process once, but these are for all workers, and for those of a restart"
            );
            return Err(refused(reason));
        }
        Ok(Self { name: entry.name(), job })
    }

    /// This executable, called as it was.
    pub(super) fn program(&self) -> Program {
        let words = start::own_arguments().into_iter().map(|word| OsString::from_vec(word.into_bytes()));
        Program::as_it_is(OWN_EXECUTABLE, words.collect())
    }
}
