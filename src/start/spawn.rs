//! Run our own executable again.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::plan::{Failure, Group};
use super::surroundings;
use crate::error::Error;
use crate::sys::executable::Executable;
use crate::sys::limits;
use crate::sys::spawn::{Blocked, OWN_EXECUTABLE, Program};
use crate::wire::lifeline::WorkersEnd;
use crate::wire::names::{SERVER, WORKER};
use crate::wire::slot::Slot;

/// Whether `init` has run here: a program in which it does not would start programs that start programs.
static ALLOWED: AtomicBool = AtomicBool::new(false);

/// Says that a copy of this process would find out that it is a worker.
pub(crate) fn allow() {
    ALLOWED.store(true, Ordering::Relaxed);
}

/// Refuses to start anything in a process that should have become a worker, and to run a program again that
/// would not notice that it is one.
pub(crate) fn check_init(reruns_program: bool) -> Result<(), Error> {
    let pid = std::process::id();
    if ALLOWED.load(Ordering::Relaxed) {
        Ok(())
    } else if [WORKER, SERVER].iter().any(|key| std::env::var_os(key).is_some()) {
        Err(Error::InitSkipped { pid })
    } else if reruns_program {
        Err(Error::InitNotCalled { pid })
    } else {
        Ok(())
    }
}

/// Refuses to run what is not known to be this program again.
pub(crate) fn check_executable() -> Result<(), Error> {
    let found = Executable::of_this_process();
    match found.map_err(Error::system("find out which file this process runs (/proc/self/auxv)"))? {
        Executable::Own | Executable::Loader(_) => Ok(()),
        Executable::Other => Err(Error::OtherExecutable { exe: std::fs::read_link("/proc/self/exe").ok() }),
    }
}

/// What all workers of a group have in common: our own arguments, behind those of the loader if one was run, and our environment with its changes.
pub(super) struct Template {
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Template {
    pub(super) fn new(changes: &[(String, String)]) -> Self {
        let pairs = surroundings::environment(changes).filter_map(|(mut key, value)| {
            key.push("=");
            key.push(value);
            c_string(key)
        });
        let ours = std::env::args_os().filter_map(c_string);
        let arguments = match Executable::of_this_process() {
            Ok(Executable::Loader(before)) => before.iter().cloned().chain(ours.skip(1)).collect(),
            // That it is known was checked before.
            Ok(Executable::Own | Executable::Other) | Err(_) => ours.collect(),
        };
        Self { environment: pairs.collect(), arguments }
    }

    pub(super) fn start(
        &self,
        group: &Group,
        rank: usize,
        slot: &Slot,
        lifeline: Option<&WorkersEnd>,
    ) -> Result<u32, Failure> {
        let marker = format!("{WORKER}={}", group.marker(rank, slot, lifeline));
        const CALL: &str = "running /proc/self/exe again (posix_spawn)";
        let own = group.rank_environments.get(rank).map(Vec::as_slice).unwrap_or_default();
        let pid = self.run(&marker, own, group.inherited(rank, slot, lifeline), Blocked::Nothing);
        pid.map_err(|os| match self.limit_met(&os, own) {
            Some(limit) => Failure::Limited { call: CALL, limit, os },
            None => Failure::of(CALL)(os),
        })
    }

    /// The limit of what a program can be given, all but the marker, if that is what the system says.
    fn limit_met(&self, os: &io::Error, own: &[(String, String)]) -> Option<String> {
        let own: Vec<_> = own.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let all = self.environment.iter().chain(&self.arguments).map(|text| text.as_bytes());
        limits::of_program(os, &all.chain(own.iter().map(String::as_bytes)).collect::<Vec<_>>())
    }

    /// Runs our executable with a marker, by which it knows what it is, and further changes of the environment.
    pub(super) fn run<'a>(
        &self,
        marker: &str,
        changes: &[(String, String)],
        inherited: impl Iterator<Item = BorrowedFd<'a>>,
        blocked: Blocked,
    ) -> io::Result<u32> {
        let changed = |pair: &CString| {
            let key = pair.as_bytes().split(|&byte| byte == b'=').next();
            changes.iter().any(|(changed, _)| Some(changed.as_bytes()) == key)
        };
        let changes = changes.iter().map(|(key, value)| format!("{key}={value}"));
        let added: Vec<_> =
            changes.chain([marker.to_owned()]).filter_map(|text| c_string(text.into())).collect();
        let kept = self.environment.iter().filter(|pair| !changed(pair));
        let environment: Vec<&CStr> = kept.chain(&added).map(CString::as_c_str).collect();
        let descriptors: Vec<_> = inherited.map(|fd| (fd, fd.as_raw_fd())).collect();
        let program = Program {
            program: OWN_EXECUTABLE,
            arguments: &self.arguments,
            environment: &environment,
            directory: None,
            descriptors: &descriptors,
            group: None,
            blocked,
        };
        program.start()
    }
}

/// `None` for a string with a NUL byte, which neither the system's strings nor the checked options have.
fn c_string(text: OsString) -> Option<CString> {
    CString::new(text.into_vec()).ok()
}
