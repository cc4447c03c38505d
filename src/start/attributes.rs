//! The attributes of a process that workers of the fork server have from the thread that asks for them, and not from the
//! server: environment, working directory, umask, stdout and stderr, limits, and what Linux keeps for each thread. Attributes
//! that a process cannot apply to itself are compared.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;

use crate::error::Error;
use crate::sys::limits::Limits;
use crate::sys::standing::{self, Beside, Difference, Standing};
use crate::sys::thread_state::ThreadState;
use crate::sys::{dir, env, fd, thread};
use crate::wire::names::{FUNCTION, SERVER, WORKER};
use crate::wire::service::{Attributes, LandlockProbe, Trouble};
use crate::worker::Changes;

/// The environment of workers: this process's own, with changes.
pub(super) fn environment(changes: &[(String, String)]) -> impl Iterator<Item = (OsString, OsString)> {
    // A worker that starts workers may still have its own marker in its environment. Theirs are others.
    let changed = |key: &OsString| {
        changes.iter().any(|(name, _)| key == name.as_str())
            || [WORKER, SERVER, FUNCTION].iter().any(|marker| key == marker)
    };
    let inherited = std::env::vars_os().filter(move |(key, _)| !changed(key));
    inherited.chain(changes.iter().map(|(key, value)| (OsString::from(key), OsString::from(value))))
}

/// The attributes of the calling thread, but for those that go as descriptors.
///
/// # Errors
/// [`Error::ForeignNamespace`] where its children would not be in its namespaces.
pub(super) fn of_caller(changes: &[(String, String)]) -> Result<Attributes, Error> {
    let asked = Standing::of_caller();
    let (standing, Beside { umask, entered_by_children }) = asked
        .map_err(Error::system("read the calling thread's credentials and namespaces (/proc/thread-self)"))?;
    // After unshare(CLONE_NEWPID) the thread stays where it is, and only its children go into the new namespace
    // (pid_namespaces(7)). The server forks from its own place, so its workers would not.
    if let Some(kind) = entered_by_children {
        return Err(Error::ForeignNamespace { kind });
    }
    Ok(Attributes {
        environment: environment(changes).map(|(key, value)| (key.into_vec(), value.into_vec())).collect(),
        umask,
        limits: Limits::of_process(),
        thread: ThreadState::of_caller(),
        standing,
        landlock: None,
    })
}

/// Whether the calling thread may inspect the server, to be compared with the reverse. `None` where that says nothing about rules.
pub(super) fn landlock_probe(server: u32) -> Option<LandlockProbe> {
    // Asked of the kernel by a call that needs ptrace access to the other and changes nothing. Where this process is not dumpable
    // (prctl(2)), every such call fails, whatever rules there are.
    let probe = || LandlockProbe { thread: thread::id(), sees_server: standing::may_inspect(server) };
    standing::is_inspectable().then(probe)
}

/// Refuses a caller that differs from the server in something that a worker cannot change.
pub(super) fn compare(attributes: &Attributes, own: &Standing) -> Result<(), Trouble> {
    let landlock = |here: &str, there: &str| Difference {
        what: "Landlock rules, or those of another security module".to_owned(),
        here: here.to_owned(),
        there: there.to_owned(),
    };
    // No process can read Landlock rules. But a process with rules may inspect only processes that have at least the same ones
    // (landlock(7), "Ptrace restrictions"). So where each may inspect the other, both have the same rules.
    let rules = match attributes.landlock.filter(|_| standing::is_inspectable()) {
        Some(LandlockProbe { sees_server: false, .. }) => Some(landlock("some", "others or none")),
        Some(LandlockProbe { thread, .. }) if !standing::may_inspect(thread) => {
            Some(landlock("others or none", "some"))
        }
        _ => None,
    };
    // A difference that can be named exactly is told first.
    let difference = attributes.standing.difference(own).or(rules);
    difference.map_or(Ok(()), |difference| Err(Trouble::Differs(difference)))
}

/// What each worker has to apply to itself: what the server does not have.
pub(super) fn changes(attributes: &Attributes) -> Changes {
    // Not applied in the server: a hard limit that was lowered cannot be raised again (setrlimit(2)), nor can nice values be
    // (setpriority(2)), and the next request may come from a thread that has more.
    let limits = attributes.limits.unlike(&Limits::of_process());
    Changes { limits, thread: attributes.thread.unlike(&ThreadState::of_caller()) }
}

/// Applies to the fork server what it can change back at any time. All workers that it forks have it then.
pub(super) fn apply(
    attributes: &Attributes,
    dir: BorrowedFd<'_>,
    output: [BorrowedFd<'_>; 2],
) -> io::Result<()> {
    // Not undone after the forks: the next request has all of it, too.
    set_environment(&attributes.environment);
    env::set_umask(attributes.umask);
    // By a descriptor (fchdir(2)), not by its path: since the launcher entered its directory, this may have been moved, or lie behind
    // another mount.
    dir::enter(dir)?;
    for (number, stream) in [1, 2].into_iter().zip(output) {
        // The launcher's present stdout and stderr: it may have redirected them (dup2) since the server began.
        fd::put_at(stream, number)?;
    }
    Ok(())
}

fn set_environment(wanted: &[(Vec<u8>, Vec<u8>)]) {
    // This process has one thread, so no getenv(3) runs meanwhile: that is why the server may change its environment, and a launcher
    // may not.
    let is_wanted = |key: &OsString| wanted.iter().any(|(name, _)| name == key.as_encoded_bytes());
    let gone: Vec<_> = std::env::vars_os().map(|(key, _)| key).filter(|key| !is_wanted(key)).collect();
    gone.iter().for_each(env::remove);
    for (key, value) in wanted {
        // Compared first: setenv(3) never frees the text that it replaces, since a pointer from getenv(3) may still be in use. A
        // server that sets some hundred variables for every batch would grow for ever.
        let (key, value) = (OsString::from_vec(key.clone()), OsString::from_vec(value.clone()));
        if std::env::var_os(&key).as_ref() != Some(&value) {
            env::set(&key, &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_this_thread() -> Attributes {
        let changes = [("ATTRIBUTES_TEST".to_owned(), "value".to_owned())];
        of_caller(&changes).unwrap()
    }

    #[test]
    fn environment_has_changes_for_what_they_replace_and_no_marker() {
        let path = ("PATH".to_owned(), "/nowhere".to_owned());
        let marker = (WORKER.to_owned(), "own".to_owned());
        let all: Vec<_> = environment(&[path, marker]).collect();
        let values = |name: &str| -> Vec<_> {
            all.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
        };
        assert_eq!(values("PATH"), ["/nowhere"]);
        assert_eq!(values(WORKER), ["own"]);
        assert!(values(SERVER).is_empty());
        let others = std::env::vars_os().filter(|(key, _)| key != "PATH" && key != WORKER && key != SERVER);
        assert!(others.into_iter().all(|pair| all.contains(&pair)));
    }

    #[test]
    fn thread_is_like_itself_and_has_nothing_to_change() {
        let own = of_this_thread();
        let environment = (b"ATTRIBUTES_TEST".to_vec(), b"value".to_vec());
        assert!(own.environment.contains(&environment));
        assert!(compare(&own, &own.standing).is_ok());
    }

    #[test]
    fn thread_that_cannot_see_the_server_is_refused() {
        if !standing::is_inspectable() {
            return;
        }
        let mut own = of_this_thread();
        let standing = own.standing.clone();
        own.landlock = Some(LandlockProbe { thread: thread::id(), sees_server: true });
        assert!(compare(&own, &standing).is_ok());
        own.landlock = Some(LandlockProbe { thread: thread::id(), sees_server: false });
        let refused = compare(&own, &standing).unwrap_err();
        assert!(matches!(refused, Trouble::Differs(difference) if difference.what.contains("Landlock")));
    }
}
