//! posix_spawnp(3): run a program in a new process.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use nix::unistd::Pid;

/// The file that this process runs, also when it was replaced or deleted since.
pub(crate) const OWN_EXECUTABLE: &CStr = c"/proc/self/exe";

/// With which signals a new process begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    Nothing,
    /// A signal that comes before the process has set up its handlers waits until then, instead of ending it.
    Everything,
}

/// A program and what its process begins with. All dispositions of signals are the default ones.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// A path, or a name without a slash, which is looked up in this process's `PATH`. A relative path begins in
    /// `directory`.
    pub(crate) program: &'a CStr,
    /// All of them: the first is the name by which the program is called.
    pub(crate) arguments: &'a [CString],
    /// `KEY=value`, all of them.
    pub(crate) environment: &'a [&'a CStr],
    /// `None`: the working directory of this process.
    pub(crate) directory: Option<&'a CStr>,
    /// Descriptors with the numbers that they get in the new process, in this order; so a number above 2 must not be that of
    /// a descriptor which comes later. A descriptor may keep its number. Stdin is `/dev/null` unless one gets the number 0;
    /// stdout and stderr are inherited.
    pub(crate) descriptors: &'a [(BorrowedFd<'a>, RawFd)],
    /// The process group to join; `None`: the process leads a new one, which has its pid as its number.
    pub(crate) group: Option<u32>,
    pub(crate) blocked: Blocked,
}

impl Program<'_> {
    /// Starts the program, and returns the pid of its process, a child of this one.
    ///
    /// glibc does this with CLONE_VFORK | CLONE_VM, so the cost does not grow with this process's memory.
    ///
    /// # Errors
    /// Those of clone(2), of execve(2), and of what is done between them: chdir(2), dup2(2) and setpgid(2).
    pub(crate) fn start(&self) -> io::Result<u32> {
        let (actions, attributes) = (self.actions()?, self.attributes()?);
        loop {
            match posix_spawnp(self.program, &actions, &attributes, self.arguments, self.environment) {
                Err(Errno::EINTR) => {}
                other => return Ok(other?.as_raw().unsigned_abs()),
            }
        }
    }

    fn actions(&self) -> io::Result<PosixSpawnFileActions> {
        let mut actions = PosixSpawnFileActions::init()?;
        if !self.descriptors.iter().any(|&(_, number)| number == libc::STDIN_FILENO) {
            actions.add_open(libc::STDIN_FILENO, c"/dev/null", OFlag::O_RDONLY, Mode::empty())?;
        }
        for (fd, number) in self.descriptors {
            // A dup2 onto itself clears the close-on-exec flag in the child alone (glibc 2.29): in this process the flag
            // stays set, so the descriptor never leaks into what other threads start meanwhile.
            actions.add_dup2(fd.as_raw_fd(), *number)?;
        }
        if let Some(directory) = self.directory {
            add_chdir(&mut actions, directory)?;
        }
        Ok(actions)
    }

    fn attributes(&self) -> nix::Result<PosixSpawnAttr> {
        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_flags(
            PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK,
        )?;
        attributes.set_pgroup(Pid::from_raw(self.group.unwrap_or(0) as i32))?;
        // exec resets handlers, but what is ignored here would stay ignored there (execve(2)).
        attributes.set_sigdefault(&SigSet::all())?;
        attributes.set_sigmask(&match self.blocked {
            Blocked::Nothing => SigSet::empty(),
            Blocked::Everything => SigSet::all(),
        })?;
        Ok(attributes)
    }
}

/// posix_spawn_file_actions_addchdir_np(3), which nix does not have.
fn add_chdir(actions: &mut PosixSpawnFileActions, directory: &CStr) -> io::Result<()> {
    let actions: *mut PosixSpawnFileActions = actions;
    // SAFETY: nix's type is a transparent wrapper of the C record, which its `init` has initialised; the path is copied.
    match unsafe { libc::posix_spawn_file_actions_addchdir_np(actions.cast(), directory.as_ptr()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::sys::pidfd;
    use crate::sys::wait::{self, ExitStatus, Reaped};

    fn shell<'a>(arguments: &'a [CString], environment: &'a [&'a CStr]) -> Program<'a> {
        Program {
            program: c"/bin/sh",
            arguments,
            environment,
            directory: None,
            descriptors: &[],
            group: None,
            blocked: Blocked::Nothing,
        }
    }

    fn script(text: &str) -> [CString; 4] {
        ["sh", "-c", text, "zero"].map(|argument| CString::new(argument).unwrap())
    }

    /// Waits for it, and says how it ended.
    fn end_of(pid: u32) -> ExitStatus {
        let pidfd = pidfd::open(pid).unwrap();
        crate::sys::epoll::wait_readable(pidfd.as_fd(), None).unwrap();
        match wait::reap(pidfd.as_fd(), |_| ()).unwrap() {
            Reaped::Exit(exit) => exit.status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn program_has_the_arguments_environment_directory_and_streams_that_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = CString::new(dir.path().as_os_str().as_bytes()).unwrap();
        fs::write(dir.path().join("in"), "typed\n").unwrap();
        let input = fs::File::open(dir.path().join("in")).unwrap();
        let output = fs::File::create(dir.path().join("out")).unwrap();
        let arguments = script("read line; echo \"$0 $KEY $line $(ls)\"; echo wrong >&2; exit 7");
        let program = Program {
            directory: Some(&path),
            descriptors: &[(input.as_fd(), 0), (output.as_fd(), 1), (output.as_fd(), 2)],
            ..shell(&arguments, &[c"KEY=value", c"PATH=/usr/bin:/bin"])
        };
        assert_eq!(end_of(program.start().unwrap()), ExitStatus::Code(7));
        let text = fs::read_to_string(dir.path().join("out")).unwrap();
        assert_eq!(text, "zero value typed in\nout\nwrong\n");
    }

    #[test]
    fn name_is_looked_up_stdin_is_empty_and_no_other_descriptor_is_inherited() {
        let arguments = script("read line && exit 1; [ -e /proc/self/fd/$1 ] && exit 2; exit 0");
        let file = fs::File::open("/dev/null").unwrap();
        let number = CString::new(file.as_raw_fd().to_string()).unwrap();
        let arguments = [&arguments[..], &[number]].concat();
        let program = Program { program: c"sh", ..shell(&arguments, &[]) };
        assert_eq!(end_of(program.start().unwrap()), ExitStatus::Code(0));
        let kept = [(file.as_fd(), file.as_raw_fd())];
        let program = Program { descriptors: &kept, ..program };
        assert_eq!(end_of(program.start().unwrap()), ExitStatus::Code(2));
    }

    #[test]
    fn process_leads_a_group_of_its_own_or_joins_another() {
        let group_is = |group: u32| script(&format!("[ $(cut -d' ' -f5 /proc/$$/stat) = {group} ]"));
        let arguments = script("[ $(cut -d' ' -f5 /proc/$$/stat) = $$ ]");
        let environment = [c"PATH=/usr/bin:/bin"];
        assert_eq!(end_of(shell(&arguments, &environment).start().unwrap()), ExitStatus::Code(0));
        let ours = nix::unistd::getpgrp().as_raw().unsigned_abs();
        let arguments = group_is(ours);
        let program = Program { group: Some(ours), ..shell(&arguments, &environment) };
        assert_eq!(end_of(program.start().unwrap()), ExitStatus::Code(0));
    }

    #[test]
    fn what_cannot_be_run_is_an_error_of_the_start() {
        let start = |program, directory| {
            Program { program, directory, ..shell(&script(""), &[]) }.start().unwrap_err().raw_os_error()
        };
        assert_eq!(start(c"/nowhere/program", None), Some(libc::ENOENT));
        assert_eq!(start(c"no-program-has-this-name", None), Some(libc::ENOENT));
        assert_eq!(start(c"/dev/null", None), Some(libc::EACCES));
        assert_eq!(start(c"/bin/sh", Some(c"/nowhere")), Some(libc::ENOENT));
    }
}
