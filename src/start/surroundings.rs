//! What workers of the fork server have from their launcher, not from the server: environment, umask, processors, limit of
//! descriptors, working directory, stdout and stderr.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;

use crate::sys::affinity::Affinity;
use crate::sys::{dir, env, fd, limits, process};
use crate::wire::names::{SERVER, WORKER};
use crate::wire::service::Surroundings;

/// The environment of workers: this process's own, with changes.
pub(super) fn environment(changes: &[(String, String)]) -> impl Iterator<Item = (OsString, OsString)> {
    let changed = |key: &OsString| {
        changes.iter().any(|(name, _)| key == name.as_str()) || key == WORKER || key == SERVER
    };
    let inherited = std::env::vars_os().filter(move |(key, _)| !changed(key));
    inherited.chain(changes.iter().map(|(key, value)| (OsString::from(key), OsString::from(value))))
}

/// Those of the calling thread, but for what goes as a descriptor.
pub(super) fn of_caller(changes: &[(String, String)]) -> io::Result<Surroundings> {
    Ok(Surroundings {
        environment: environment(changes).map(|(key, value)| (key.into_vec(), value.into_vec())).collect(),
        umask: process::umask()?,
        affinity: Affinity::of_caller().ok(),
        descriptor_limit: limits::descriptors()?,
    })
}

/// Has the fork server look like its launcher, as do then all whom it forks. It keeps its own limit of descriptors.
pub(super) fn take_on(
    surroundings: &Surroundings,
    dir: BorrowedFd<'_>,
    output: [BorrowedFd<'_>; 2],
) -> io::Result<()> {
    let Surroundings { environment, umask, affinity, descriptor_limit: _ } = surroundings;
    set_environment(environment);
    process::set_umask(*umask);
    dir::enter(dir)?;
    for (number, stream) in [1, 2].into_iter().zip(output) {
        fd::put_at(stream, number)?;
    }
    // It was the launcher's a moment ago; if the system has taken it away since, the server's is as good.
    let _ = affinity.as_ref().map(Affinity::take_on);
    Ok(())
}

/// Mostly it is the server's own already.
fn set_environment(wanted: &[(Vec<u8>, Vec<u8>)]) {
    let is_wanted = |key: &OsString| wanted.iter().any(|(name, _)| name == key.as_encoded_bytes());
    let gone: Vec<_> = std::env::vars_os().map(|(key, _)| key).filter(|key| !is_wanted(key)).collect();
    gone.iter().for_each(env::remove);
    for (key, value) in wanted {
        let (key, value) = (OsString::from_vec(key.clone()), OsString::from_vec(value.clone()));
        if std::env::var_os(&key).as_ref() != Some(&value) {
            env::set(&key, &value);
        }
    }
}
