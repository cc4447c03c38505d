//! Run our own executable again.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::attributes;
use super::plan::{Failure, Plan, Prepared};
use crate::error::Error;
use crate::sys::executable::Executable;
use crate::sys::limits;
use crate::sys::spawn::{Blocked, OWN_EXECUTABLE, Program};
use crate::wire::names::{FUNCTION, SERVER, WORKER};

/// Whether `init` has run here: a program in which it does not would start programs that start programs.
static ALLOWED: AtomicBool = AtomicBool::new(false);

/// Notes that `init` has run, so that this program, run again, would find out that it is a worker.
pub(crate) fn allow() {
    // Relaxed: nothing is published with the flag, and a thread that sees it late is refused, no worse.
    ALLOWED.store(true, Ordering::Relaxed);
}

/// Refuses to start anything in a process that should have become a worker, and to run a program again that
/// would not notice that it is one.
pub(crate) fn check_init(reruns_program: bool) -> Result<(), Error> {
    let pid = std::process::id();
    if ALLOWED.load(Ordering::Relaxed) {
        Ok(())
    // The marker is in the environment, but `init` did not find it, for it does not return in a worker: this is a worker whose
    // main has come here before `init`. It would start N more, each of which starts N more.
    } else if [WORKER, SERVER, FUNCTION].iter().any(|key| std::env::var_os(key).is_some()) {
        Err(Error::InitSkipped { pid })
    } else if reruns_program {
        Err(Error::InitNotCalled { pid })
    } else {
        Ok(())
    }
}

/// Refuses to run what is not known to be this program again.
pub(crate) fn check_executable() -> Result<(), Error> {
    // /proc/self/exe is the file itself, not its path, so a rebuild that has replaced it does no harm. But under an emulator it
    // is the emulator, which would run with our arguments and never come to `init`. (Of the loader, `ld.so program`, the
    // arguments are known.)
    let found = Executable::of_this_process();
    match found.map_err(Error::system("find out which file this process runs (/proc/self/auxv)"))? {
        Executable::Own | Executable::Loader(_) => Ok(()),
        Executable::Other => Err(Error::OtherExecutable { exe: std::fs::read_link("/proc/self/exe").ok() }),
    }
}

/// The arguments with which `/proc/self/exe` becomes this program again: this process's, behind those of the loader if one was run.
pub(crate) fn own_arguments() -> Vec<CString> {
    let ours = std::env::args_os().filter_map(c_string);
    match Executable::of_this_process() {
        // `ld.so program`: the kernel runs the loader again, which finds the program as its first argument.
        Ok(Executable::Loader(before)) => before.iter().cloned().chain(ours.skip(1)).collect(),
        // `check_executable` has refused the other cases.
        Ok(Executable::Own | Executable::Other) | Err(_) => ours.collect(),
    }
}

/// What all workers of a plan have in common: this process's arguments, behind those of the loader if one was run, and its
/// environment with changes.
pub(super) struct Template {
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Template {
    pub(super) fn new(changes: &[(String, String)]) -> Self {
        let pairs = attributes::environment(changes).filter_map(|(mut key, value)| {
            key.push("=");
            key.push(value);
            c_string(key)
        });
        Self { environment: pairs.collect(), arguments: own_arguments() }
    }

    /// Runs this executable as a worker.
    pub(super) fn start(&self, plan: &Plan, worker: &Prepared) -> Result<u32, Failure> {
        let marker = format!("{WORKER}={}", plan.marker(worker));
        const CALL: &str = "running /proc/self/exe again (posix_spawn)";
        let own = plan.rank_environments.get(worker.rank).map(Vec::as_slice).unwrap_or_default();
        // Nothing blocked: the worker's mask is to be the usual one, whatever the calling thread has blocked (exec keeps the
        // mask, execve(2)).
        // At the numbers that they have here, by which the marker and the job name them. posix_spawn(3) duplicates each onto
        // itself, which clears close-on-exec in the child alone: with fcntl(2) here, a program that another thread starts in this
        // moment would inherit it.
        let inherited = plan.inherited(worker).map(|fd| (fd, fd.as_raw_fd()));
        // From its first instruction on: what the loader says of a program that it cannot run is the worker's output too.
        let output =
            worker.writers.iter().zip(1..).filter_map(|(fd, place)| Some((fd.as_ref()?.as_fd(), place)));
        let pid = self.run(&marker, own, inherited.chain(output), Blocked::Nothing);
        pid.map_err(|os| match self.limit_met(&os, own) {
            Some(limit) => Failure::Limited { call: CALL, limit, os },
            None => Failure::of(CALL)(os),
        })
    }

    /// The limit of what a program can be given, if that is what the system says.
    fn limit_met(&self, os: &io::Error, own: &[(String, String)]) -> Option<String> {
        // E2BIG does not say whether one string is too long (128 KiB) or all together are (execve(2)): so they are counted. The
        // marker, of some 60 bytes, does not matter.
        let own: Vec<_> = own.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let all = self.environment.iter().chain(&self.arguments).map(|text| text.as_bytes());
        limits::of_program(os, &all.chain(own.iter().map(String::as_bytes)).collect::<Vec<_>>())
    }

    /// Runs this executable with a marker, by which it knows what it is, further changes of the environment, and descriptors with the
    /// numbers that they have there.
    pub(super) fn run<'a>(
        &self,
        marker: &str,
        changes: &[(String, String)],
        descriptors: impl Iterator<Item = (BorrowedFd<'a>, RawFd)>,
        blocked: Blocked,
    ) -> io::Result<u32> {
        let added = added(marker, changes);
        let descriptors: Vec<_> = descriptors.collect();
        let program = Program {
            program: OWN_EXECUTABLE,
            arguments: &self.arguments,
            environment: &self.environment_with(changes, &added),
            directory: None,
            descriptors: &descriptors,
            // A group of its own, from before exec (POSIX_SPAWN_SETPGROUP): Ctrl-C at the terminal goes to the launcher alone,
            // which then ends its workers in order, and whatever a worker has started can be ended with it by one kill(2).
            group: None,
            blocked,
        };
        program.start()
    }

    /// The whole environment, with `added` for what `changes` replaces.
    fn environment_with<'a>(&'a self, changes: &[(String, String)], added: &'a [CString]) -> Vec<&'a CStr> {
        let changed = |pair: &CString| {
            let key = pair.as_bytes().split(|&byte| byte == b'=').next();
            changes.iter().any(|(changed, _)| Some(changed.as_bytes()) == key)
        };
        // Left out rather than followed by the new one: getenv(3) finds the first of two.
        let kept = self.environment.iter().filter(|pair| !changed(pair));
        kept.chain(added).map(CString::as_c_str).collect()
    }
}

fn added(marker: &str, changes: &[(String, String)]) -> Vec<CString> {
    let changes = changes.iter().map(|(key, value)| format!("{key}={value}"));
    changes.chain([marker.to_owned()]).filter_map(|text| c_string(text.into())).collect()
}

/// `None` for a string with a NUL byte, which neither the system's strings nor the checked options have.
fn c_string(text: OsString) -> Option<CString> {
    CString::new(text.into_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn changes_of_a_rank_replace_those_of_all_and_the_marker_comes_beside() {
        let template = Template::new(&[pair("SPAWN_TEST", "all"), pair("SPAWN_TEST_2", "all")]);
        let own = [pair("SPAWN_TEST", "own"), pair("SPAWN_TEST_3", "")];
        let added = added("MARKER=1", &own);
        let environment = template.environment_with(&own, &added);
        let with = |start: &str| -> Vec<_> {
            let all = environment.iter().map(|pair| pair.to_str().unwrap());
            all.filter(|pair| pair.starts_with(start)).collect()
        };
        assert_eq!(with("SPAWN_TEST"), ["SPAWN_TEST_2=all", "SPAWN_TEST=own", "SPAWN_TEST_3="]);
        assert_eq!(with("MARKER"), ["MARKER=1"]);
    }

    #[test]
    fn program_that_is_given_too_much_is_told_its_limit() {
        let template = Template::new(&[pair("SPAWN_TEST", &"x".repeat(200 * 1024))]);
        // E2BIG.
        let limit = template.limit_met(&io::Error::from_raw_os_error(7), &[]).unwrap();
        assert!(limit.starts_with("SPAWN_TEST has 204812 bytes"), "{limit}");
        assert_eq!(template.limit_met(&io::Error::from_raw_os_error(limits::NO_DESCRIPTORS), &[]), None);
    }
}
