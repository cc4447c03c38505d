//! syscall(2) without the C library: errors are returned, and errno, which belongs to a thread, is not touched.

use std::arch::asm;
use std::ffi::c_long;

/// Calls the system with up to four arguments.
///
/// # Errors
/// The error's number (errno(3)).
///
/// # Safety
/// What the call asks for: pointers among the arguments are valid for what it reads and writes.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn call(number: c_long, arguments: [usize; 4]) -> Result<usize, i32> {
    let [one, two, three, four] = arguments;
    let result: isize;
    // SAFETY: the registers are those of the system's convention, and the two that it clobbers are named; the caller vouches for
    // the call itself.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") one, in("rsi") two, in("rdx") three, in("r10") four,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    outcome(result)
}

/// As on x86-64.
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn call(number: c_long, arguments: [usize; 4]) -> Result<usize, i32> {
    let [one, two, three, four] = arguments;
    let result: isize;
    // SAFETY: as on x86-64; no register is clobbered but the result's.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") one as isize => result,
            in("x1") two, in("x2") three, in("x3") four,
            options(nostack)
        );
    }
    outcome(result)
}

/// The kernel returns errors as the negative numbers down to -4095.
fn outcome(result: isize) -> Result<usize, i32> {
    if (-4095..0).contains(&result) { Err(-result as i32) } else { Ok(result as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_errors_are_told_and_errno_stays() {
        // SAFETY: takes nothing.
        assert_eq!(unsafe { call(libc::SYS_getpid, [0; 4]) }, Ok(std::process::id() as usize));
        let before = std::io::Error::last_os_error().raw_os_error();
        // SAFETY: takes an integer.
        assert_eq!(unsafe { call(libc::SYS_close, [1_000_000, 0, 0, 0]) }, Err(libc::EBADF));
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), before);
    }
}
