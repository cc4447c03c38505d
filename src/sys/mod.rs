//! The only room with unsafe system calls: thin safe wrappers, one file a man-page family.

#![expect(unsafe_code, reason = "this room is the address of unsafe system calls")]

#[cfg(not(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
compile_error!(
    "phalanx runs on Linux with glibc, on x86-64 and aarch64: it is built on pidfds, sealed memfds, futexes and glibc's robust lists, \
     which other systems do not have. Depend on it for this target only: [target.'cfg(all(target_os = \"linux\", target_env = \
     \"gnu\"))'.dependencies]"
);

pub(crate) mod abstract_socket;
pub(crate) mod affinity;
pub(crate) mod atomic_record;
pub(crate) mod bytes;
pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod copy;
pub(crate) mod dir;
mod elf;
pub(crate) mod env;
pub(crate) mod epoll;
pub(crate) mod errno;
pub(crate) mod event;
pub(crate) mod exec;
pub(crate) mod executable;
pub(crate) mod fatal;
pub(crate) mod fd;
pub(crate) mod fork;
pub(crate) mod forks;
pub(crate) mod futex;
pub(crate) mod global;
pub(crate) mod group;
pub(crate) mod held;
pub(crate) mod image;
pub(crate) mod inotify;
pub(crate) mod limits;
pub(crate) mod map;
pub(crate) mod memfd;
pub(crate) mod memory;
pub(crate) mod namespace;
pub(crate) mod opens;
pub(crate) mod pidfd;
pub(crate) mod pipe;
pub(crate) mod port;
pub(crate) mod prctl;
pub(crate) mod process;
mod raw;
pub(crate) mod replace;
pub(crate) mod robust;
mod seccomp;
pub(crate) mod signal;
pub(crate) mod signal_pipe;
pub(crate) mod socket;
pub(crate) mod spawn;
pub(crate) mod standing;
pub(crate) mod stdio;
pub(crate) mod symbols;
pub(crate) mod tcp;
pub(crate) mod thread;
pub(crate) mod thread_state;
pub(crate) mod trace;
pub(crate) mod wait;
#[cfg(test)]
mod watchdog;
