//! The only room with unsafe system calls: thin safe wrappers, one file a man-page family.

#![expect(unsafe_code, reason = "this room is the address of unsafe system calls")]

pub(crate) mod affinity;
pub(crate) mod cells;
pub(crate) mod clock;
pub(crate) mod copy;
pub(crate) mod dir;
pub(crate) mod env;
pub(crate) mod epoll;
mod estate;
pub(crate) mod event;
pub(crate) mod fd;
mod forks;
pub(crate) mod futex;
pub(crate) mod global;
pub(crate) mod image;
pub(crate) mod limits;
pub(crate) mod map;
pub(crate) mod memfd;
pub(crate) mod memory;
pub(crate) mod prctl;
pub(crate) mod process;
#[cfg(feature = "safetensors")]
pub(crate) mod replace;
pub(crate) mod robust;
mod roll;
mod seccomp;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod spawn;
pub(crate) mod symbols;
pub(crate) mod trace;
