//! proc_pid_status(5), namespaces(7), PR_GET_SECUREBITS, get_robust_list(2): what a thread is and may do, which a process
//! that another one starts for it does not have from it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use super::namespace;

/// The lines of /proc/thread-self/status that belong to it, and what they are.
const STATUS: [(&str, &str); 11] = [
    ("Uid", "user ids (real, effective, saved, of files)"),
    ("Gid", "group ids (real, effective, saved, of files)"),
    ("Groups", "supplementary groups"),
    ("CapInh", "inheritable capabilities"),
    ("CapPrm", "permitted capabilities"),
    ("CapEff", "effective capabilities"),
    ("CapBnd", "bounding set of capabilities"),
    ("CapAmb", "ambient capabilities"),
    ("NoNewPrivs", "no_new_privs"),
    ("Seccomp", "mode of seccomp"),
    ("Seccomp_filters", "number of seccomp filters"),
];
/// The thread's namespaces, but that of its PID, which neither it nor the server can leave. Where its children's are others
/// (`namespace::of_children_only`), nothing is started.
const NAMESPACES: [(&CStr, &str); 7] = [
    (c"ns/cgroup", "cgroup namespace"),
    (c"ns/ipc", "IPC namespace"),
    (c"ns/mnt", "mount namespace"),
    (c"ns/net", "network namespace"),
    (c"ns/time", "time namespace"),
    (c"ns/user", "user namespace"),
    (c"ns/uts", "UTS namespace"),
];
/// The place of the time namespace in the table.
const TIME: usize = 4;
const OTHERS: [&str; 2] = ["securebits", "root directory (device:inode)"];

/// Credentials, capabilities, filters of system calls, namespaces and root directory of a thread, by their places in the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing(Vec<String>);

/// What the calling thread's files in /proc tell besides its [`Standing`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside {
    /// The file mode creation mask.
    pub(crate) umask: u32,
    /// The kind of a namespace that the thread's children enter, and it does not: see [`namespace::of_children_only`].
    pub(crate) entered_by_children: Option<&'static str>,
}

/// One thing in which two threads differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Difference {
    pub(crate) what: String,
    pub(crate) here: String,
    pub(crate) there: String,
}

impl Standing {
    /// That of the calling thread, and what stands in the same places of /proc.
    pub(crate) fn of_caller() -> io::Result<(Self, Beside)> {
        let thread = namespace::thread_dir()?;
        let status = read_whole(thread.as_fd(), "status")?;
        let (mut values, umask) = parse(&String::from_utf8_lossy(&status));
        for (path, _) in NAMESPACES {
            values.push(namespace::link(thread.as_fd(), path)?);
        }
        let time = values[STATUS.len() + TIME].clone();
        let entered_by_children = namespace::entered_by_children(thread.as_fd(), Ok(time));
        values.push(secure_bits().to_string());
        let root = std::fs::metadata("/")?;
        values.push(format!("{}:{}", root.dev(), root.ino()));
        Ok((Self(values), Beside { umask, entered_by_children }))
    }

    /// The first thing that is not the same `there`.
    pub(crate) fn difference(&self, there: &Self) -> Option<Difference> {
        let names = STATUS.iter().map(|(_, what)| *what);
        let names = names.chain(NAMESPACES.iter().map(|(_, what)| *what)).chain(OTHERS);
        let mut pairs = names.zip(self.0.iter().zip(&there.0));
        pairs.find(|(_, (here, there))| here != there).map(|(what, (here, there))| Difference {
            what: what.to_owned(),
            here: here.clone(),
            there: there.clone(),
        })
    }
}

/// The values of the lines of [`STATUS`], and the umask. A kernel that does not have a line has the same for all.
fn parse(status: &str) -> (Vec<String>, u32) {
    let (mut values, mut umask) = (vec![String::new(); STATUS.len()], 0o022);
    for (name, value) in status.lines().filter_map(|line| line.split_once(':')) {
        if name == "Umask" {
            umask = u32::from_str_radix(value.trim(), 8).unwrap_or(umask);
        } else if let Some(place) = STATUS.iter().position(|(line, _)| *line == name) {
            values[place] = value.trim().replace('\t', " ");
        }
    }
    (values, umask)
}

/// A file that the kernel writes in one piece: a short read is its end.
fn read_whole(dir: BorrowedFd<'_>, path: &str) -> io::Result<Vec<u8>> {
    const FIRST: usize = 8192;
    let file = openat(dir, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let (mut text, mut length) = (vec![0; FIRST], 0);
    while length < text.len() {
        let room = text.len() - length;
        match nix::unistd::read(&file, &mut text[length..]) {
            Ok(more) if more < room => {
                length += more;
                break;
            }
            // A list of many groups.
            Ok(more) => {
                length += more;
                text.resize(2 * length, 0);
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    text.truncate(length);
    Ok(text)
}

fn secure_bits() -> i32 {
    // SAFETY: takes integers. An error is the same for all.
    unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) }
}

/// Whether the kernel lets the calling thread inspect another one, of whatever process. A thread under Landlock rules may
/// inspect only threads under the same rules or more; nothing else tells of such rules (landlock(7)).
pub(crate) fn may_inspect(thread: u32) -> bool {
    let (mut head, mut length) = (std::ptr::null_mut::<libc::c_void>(), 0_usize);
    // The cheapest of the calls that ask for this permission (PTRACE_MODE_READ); what it reads is not used.
    // SAFETY: both pointers are to places of ours that outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_get_robust_list, thread, &raw mut head, &raw mut length) };
    done == 0 || Errno::last() != Errno::EPERM
}

/// Whether others of the same user may inspect this process at all: PR_GET_DUMPABLE.
pub(crate) fn is_inspectable() -> bool {
    // SAFETY: takes integers.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_status_are_found_and_the_first_difference_is_named() {
        let (values, umask) =
            parse("Name:\tx: y\nUmask:\t0027\nUid:\t1\t2\t3\t4\nCapEff:\t00ff\nSeccomp:\t2\n");
        assert_eq!((umask, &values[0][..], &values[5][..], &values[9][..]), (0o027, "1 2 3 4", "00ff", "2"));
        let (other, umask) = parse("Uid:\t1\t2\t3\t4\nCapEff:\t0000\nSeccomp:\t0\n");
        assert_eq!(umask, 0o022);
        let difference = Standing(values.clone()).difference(&Standing(other)).unwrap();
        assert_eq!(difference.what, "effective capabilities");
        assert_eq!((&difference.here[..], &difference.there[..]), ("00ff", "0000"));
        assert_eq!(Standing(values.clone()).difference(&Standing(values)), None);
    }

    #[test]
    fn thread_has_its_own_standing_whatever_its_name_is() {
        // Of which the kernel keeps 15 bytes, which are no whole characters.
        let named = std::thread::Builder::new().name("ääääääääääää".into());
        let (standing, beside) = named.spawn(Standing::of_caller).unwrap().join().unwrap().unwrap();
        assert_eq!(standing.0.len(), STATUS.len() + NAMESPACES.len() + OTHERS.len());
        assert!(standing.0[0].split(' ').count() == 4 && beside.umask <= 0o777);
        assert!(standing.0[STATUS.len() + 2].starts_with("mnt:["), "{standing:?}");
        assert!(
            standing.0[STATUS.len() + TIME].starts_with("time:[")
                || standing.0[STATUS.len() + TIME] == "none"
        );
        assert_eq!(standing.difference(&Standing::of_caller().unwrap().0), None);
        assert!(may_inspect(std::process::id()));
    }
}
