//! Applies the `RankOptions` of a worker's rank: output files, working directory, processors, environment.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys::affinity::Affinity;
use crate::sys::{env, fd};
use crate::wire::setup::{OutputPath, RankSetup};

/// Applies a rank's options. The output files come first: a relative path is one in the launcher's working directory, which the next
/// step leaves.
///
/// # Errors
/// What could not be done, with rank and path; the worker does not run its function then.
pub(super) fn apply(setup: &RankSetup, rank: usize) -> io::Result<()> {
    let RankSetup { environment, directory, processors, stdout, stderr } = setup;
    for (number, name, output) in [(1, "stdout", stdout), (2, "stderr", stderr)] {
        if let Some(output) = output {
            redirect(number, output).map_err(failed(rank, &format!("opening its {name}"), &output.path))?;
        }
    }
    if let Some(directory) = directory {
        let entered = std::env::set_current_dir(path(directory));
        entered.map_err(failed(rank, "entering its working directory", directory))?;
    }
    if let Some(processors) = processors {
        let numbers = format!("{:?}", processors.processors().collect::<Vec<_>>());
        let applied = apply_processors(processors);
        applied.map_err(failed(rank, "taking on its processors (sched_setaffinity)", numbers.as_bytes()))?;
    }
    for (key, value) in environment {
        // setenv(3) is not safe while another thread reads the environment. By exec the variable came with the rest of the environment,
        // so that nothing is set in a process that may have threads already.
        if std::env::var_os(key).as_deref() != Some(OsStr::new(value)) {
            env::set(key, value);
        }
    }
    Ok(())
}

/// Sets the processors and compares them with those that the thread then has: the kernel leaves out, without an error, the ones that
/// do not exist or that the cpuset forbids, unless none would be left (sched_setaffinity(2)).
fn apply_processors(processors: &Affinity) -> io::Result<()> {
    processors.apply()?;
    let taken = Affinity::of_caller()?;
    if taken == *processors {
        return Ok(());
    }
    let numbers: Vec<_> = taken.processors().collect();
    Err(io::Error::other(format!("of these it may only run on {numbers:?}")))
}

fn redirect(number: RawFd, output: &OutputPath) -> io::Result<()> {
    let file = fd::open_to_append(path(&output.path), !output.append)?;
    fd::put_at(file.as_fd(), number)
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn failed(rank: usize, doing: &str, what: &[u8]) -> impl FnOnce(io::Error) -> io::Error {
    let what = String::from_utf8_lossy(what).into_owned();
    move |error| io::Error::other(format!("rank {rank}: {doing}: {what}: {error}"))
}
