//! Gives a worker what its rank has of its own.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys::affinity::Affinity;
use crate::sys::{env, fd};
use crate::wire::setup::{OutputPath, RankSetup};

/// Takes it on, with the output first: a relative path is one in the launcher's working directory.
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
        let taken = take_on_all(processors);
        taken.map_err(failed(rank, "taking on its processors (sched_setaffinity)", numbers.as_bytes()))?;
    }
    for (key, value) in environment {
        // By exec it came with the rest, and other threads may be there already.
        if std::env::var_os(key).as_deref() != Some(OsStr::new(value)) {
            env::set(key, value);
        }
    }
    Ok(())
}

/// The kernel leaves out in silence those that are not there or that a cpuset forbids, unless these are all.
fn take_on_all(processors: &Affinity) -> io::Result<()> {
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
