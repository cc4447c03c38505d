//! Filters that refuse system calls, as the sandboxes of containers and older kernels do (seccomp(2)).
//!
//! A filter stays with the thread that installs it, and with all that this thread starts afterwards: install it in a
//! process of the test's own, before that starts anything.

#![allow(dead_code, clippy::allow_attributes, reason = "every test binary uses its own part of this")]

use std::io;

/// Which of an argument's values are refused.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Where {
    /// The argument of this number is exactly this; the upper 32 bits are not looked at.
    Is(u32, u32),
    /// The argument of this number has one of these bits.
    Has(u32, u32),
}

/// From now on `call` fails with `errno`, whatever its arguments are.
pub(crate) fn refuse(call: libc::c_long, errno: i32) {
    install(&mut [load(CALL), skip_unless(libc::BPF_JEQ, call as u32, 1), refusal(errno), permission()]);
}

/// From now on `call` fails with `errno` when one of its arguments is as said.
pub(crate) fn refuse_where(call: libc::c_long, place: Where, errno: i32) {
    let (argument, test, value) = match place {
        Where::Is(argument, value) => (argument, libc::BPF_JEQ, value),
        Where::Has(argument, bits) => (argument, libc::BPF_JSET, bits),
    };
    install(&mut [
        load(CALL),
        skip_unless(libc::BPF_JEQ, call as u32, 3),
        load(ARGUMENTS + 8 * argument),
        skip_unless(test, value, 1),
        refusal(errno),
        permission(),
    ]);
}

// Where the fields of `struct seccomp_data` lie; of an argument the lower half comes first on the machines that phalanx
// runs on.
const CALL: u32 = 0;
const ARGUMENTS: u32 = 16;

fn load(offset: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Skips so many instructions unless the loaded word passes the test.
fn skip_unless(test: u32, value: u32, skipped: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt: 0, jf: skipped, k: value }
}

fn refusal(errno: i32) -> libc::sock_filter {
    end_with(libc::SECCOMP_RET_ERRNO | errno as u32)
}

fn permission() -> libc::sock_filter {
    end_with(libc::SECCOMP_RET_ALLOW)
}

fn end_with(action: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

#[expect(unsafe_code, reason = "nix has no seccomp")]
fn install(program: &mut [libc::sock_filter]) {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // Without privileges a filter needs this.
    // SAFETY: takes integers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program and its instructions outlive the call, which copies them.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) };
    assert_eq!(done, 0, "installing a filter: {}", io::Error::last_os_error());
}
