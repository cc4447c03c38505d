//! What the system alone takes: children by bare fork and by bare posix_spawn.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::ROLE;
use crate::figures::timed;

/// Forks a child that ends at once.
#[expect(unsafe_code, reason = "a bare fork is what is measured")]
fn bare_fork() -> Pid {
    // SAFETY: the child does nothing but end.
    match unsafe { libc::fork() } {
        // SAFETY: takes an integer and does not return.
        0 => unsafe { libc::_exit(0) },
        child => Pid::from_raw(child),
    }
}

pub(crate) fn reap_all(children: Vec<Pid>) -> anyhow::Result<()> {
    for child in children {
        waitpid(child, None)?;
    }
    Ok(())
}

pub(crate) fn fork_here(nprocs: usize) -> anyhow::Result<()> {
    let children: Vec<_> = (0..nprocs).map(|_| bare_fork()).collect();
    anyhow::ensure!(
        children.iter().all(|child| child.as_raw() > 0),
        "fork: {}",
        std::io::Error::last_os_error()
    );
    reap_all(children)
}

/// The small process: reads how many to fork, writes how many seconds it took.
pub(crate) fn fork_when_asked() -> anyhow::Result<()> {
    for line in std::io::stdin().lines() {
        let nprocs = line?.parse()?;
        let (seconds, done) = timed(|| fork_here(nprocs));
        done?;
        println!("{seconds}");
    }
    Ok(())
}

/// A small process that forks, whatever the bench has in its memory by now.
pub(crate) struct Forker {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Forker {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.env(ROLE, "fork").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(requests), Some(answers)) => {
                Ok(Self { process, requests, answers: BufReader::new(answers) })
            }
            _ => anyhow::bail!("the pipes are there"),
        }
    }

    pub(crate) fn fork(&mut self, nprocs: usize) -> anyhow::Result<f64> {
        writeln!(self.requests, "{nprocs}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(answer.trim().parse()?)
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs this executable again, so many times, as bare children.
pub(crate) fn bare_spawn(role: &str, nprocs: usize) -> anyhow::Result<Vec<Pid>> {
    let (actions, attributes) = (PosixSpawnFileActions::init()?, PosixSpawnAttr::init()?);
    let pairs = std::env::vars().chain([(ROLE.to_owned(), role.to_owned())]);
    let environment = pairs.map(|(key, value)| std::ffi::CString::new(format!("{key}={value}")));
    let environment = environment.collect::<Result<Vec<_>, _>>()?;
    let one = || posix_spawn(c"/proc/self/exe", &actions, &attributes, &[c"raw"], &environment);
    Ok((0..nprocs).map(|_| one()).collect::<Result<_, _>>()?)
}
