//! setpgid(2), clone(2): a process group whose number cannot become another's.

use std::io;
use std::ptr;

/// A process group that keeps its number, whoever of it is reaped: a child of this process has joined it and has ended, and is
/// not reaped before this is dropped. Before Linux 6.9 nothing else means a group whose leader is gone.
#[derive(Debug)]
pub(crate) struct HeldGroup {
    leader: u32,
    child: i32,
}

/// What the child is told, and tells.
struct Joining {
    group: i32,
    error: Option<i32>,
}

impl HeldGroup {
    /// Holds the group that `leader` leads, a process that has not been reaped.
    ///
    /// # Errors
    /// When there is no such group in this process's session, or no child can be made.
    pub(crate) fn of(leader: u32) -> io::Result<Self> {
        const STACK_WORDS: usize = 1024;
        let mut joining = Joining { group: leader as i32, error: None };
        let mut stack = vec![0_u128; STACK_WORDS];
        // The child shares our memory, so that its cost does not grow with that, and we sleep until it has ended. With no
        // signal for its end it is no child that is waited for without __WCLONE: `wait::next_ended` does not find it.
        let flags = libc::CLONE_VM | libc::CLONE_VFORK;
        let top = stack.as_mut_ptr_range().end.cast();
        // SAFETY: the stack and `joining` are the child's alone until this returns, which is after its end.
        let child = unsafe { libc::clone(join, top, flags, (&raw mut joining).cast()) };
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        let held = Self { leader, child };
        joining.error.map_or(Ok(held), |error| Err(io::Error::from_raw_os_error(error)))
    }

    /// Kills all processes of the group.
    pub(crate) fn kill(&self) {
        super::pidfd::kill_group_of_child(self.leader);
    }
}

/// What the child does, on a stack of 16 KiB.
extern "C" fn join(joining: *mut libc::c_void) -> i32 {
    // SAFETY: it is the `Joining` of the parent, which sleeps.
    let joining = unsafe { &mut *joining.cast::<Joining>() };
    // SAFETY: takes integers.
    if unsafe { libc::setpgid(0, joining.group) } != 0 {
        joining.error = io::Error::last_os_error().raw_os_error();
    }
    0
}

impl Drop for HeldGroup {
    fn drop(&mut self) {
        // SAFETY: no status is asked for. The child has ended, and only we reap it.
        unsafe { libc::waitpid(self.child, ptr::null_mut(), libc::__WALL) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn is_there(group: u32) -> bool {
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group as i32), None).is_ok()
    }

    #[test]
    fn group_is_there_until_it_is_let_go() {
        let mut leader = Command::new("true").process_group(0).stdin(Stdio::null()).spawn().unwrap();
        let held = HeldGroup::of(leader.id()).unwrap();
        leader.wait().unwrap();
        assert!(is_there(leader.id()));
        held.kill();
        drop(held);
        assert!(!is_there(leader.id()));
        assert_eq!(HeldGroup::of(leader.id()).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
