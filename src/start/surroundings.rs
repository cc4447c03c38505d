//! What workers of the fork server have from the thread that asks for them, not from the server: environment, working
//! directory, umask, stdout and stderr, limits, and what Linux keeps for each thread. What cannot be taken on is compared.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;

use crate::error::Error;
use crate::sys::limits::Limits;
use crate::sys::standing::{self, Beside, Difference, Standing};
use crate::sys::thread_state::ThreadState;
use crate::sys::{dir, env, fd, process};
use crate::wire::names::{SERVER, WORKER};
use crate::wire::service::{Peer, Surroundings, Trouble};
use crate::worker::Changes;

/// The environment of workers: this process's own, with changes.
pub(super) fn environment(changes: &[(String, String)]) -> impl Iterator<Item = (OsString, OsString)> {
    let changed = |key: &OsString| {
        changes.iter().any(|(name, _)| key == name.as_str()) || key == WORKER || key == SERVER
    };
    let inherited = std::env::vars_os().filter(move |(key, _)| !changed(key));
    inherited.chain(changes.iter().map(|(key, value)| (OsString::from(key), OsString::from(value))))
}

/// Those of the calling thread, but for what goes as a descriptor.
///
/// # Errors
/// [`Error::ForeignNamespace`] where its children would not be in its namespaces.
pub(super) fn of_caller(changes: &[(String, String)]) -> Result<Surroundings, Error> {
    let asked = Standing::of_caller();
    let (standing, Beside { umask, entered_by_children }) = asked
        .map_err(Error::system("read the calling thread's credentials and namespaces (/proc/thread-self)"))?;
    if let Some(kind) = entered_by_children {
        return Err(Error::ForeignNamespace { kind });
    }
    Ok(Surroundings {
        environment: environment(changes).map(|(key, value)| (key.into_vec(), value.into_vec())).collect(),
        umask,
        limits: Limits::of_process(),
        thread: ThreadState::of_caller(),
        standing,
        peer: None,
    })
}

/// How the calling thread and this server see each other. It tells nothing of one that nobody may inspect.
pub(super) fn peer(server: u32) -> Option<Peer> {
    let peer = || Peer { thread: process::thread_id(), sees_server: standing::may_inspect(server) };
    standing::is_inspectable().then(peer)
}

/// Refuses a caller whose workers would have something from the server that is another than its own.
pub(super) fn compare(surroundings: &Surroundings, own: &Standing) -> Result<(), Trouble> {
    let landlock = |here: &str, there: &str| Difference {
        what: "Landlock rules, or those of another security module".to_owned(),
        here: here.to_owned(),
        there: there.to_owned(),
    };
    let rules = match surroundings.peer.filter(|_| standing::is_inspectable()) {
        Some(Peer { sees_server: false, .. }) => Some(landlock("some", "others or none")),
        Some(Peer { thread, .. }) if !standing::may_inspect(thread) => {
            Some(landlock("others or none", "some"))
        }
        _ => None,
    };
    let difference = surroundings.standing.difference(own).or(rules);
    difference.map_or(Ok(()), |difference| Err(Trouble::Unlike(difference)))
}

/// What each worker has to take on by itself: what the server does not have.
pub(super) fn changes(surroundings: &Surroundings) -> Changes {
    let limits = surroundings.limits.unlike(&Limits::of_process());
    Changes { limits, thread: surroundings.thread.unlike(&ThreadState::of_caller()) }
}

/// Has the fork server look like its launcher in what it can change back at any time, as do then all whom it forks.
pub(super) fn take_on(
    surroundings: &Surroundings,
    dir: BorrowedFd<'_>,
    output: [BorrowedFd<'_>; 2],
) -> io::Result<()> {
    set_environment(&surroundings.environment);
    process::set_umask(surroundings.umask);
    dir::enter(dir)?;
    for (number, stream) in [1, 2].into_iter().zip(output) {
        fd::put_at(stream, number)?;
    }
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
