//! seccomp(2): a thread that can open no file.

use std::io;

/// Makes every open(2) and openat(2) of the calling thread fail with ENOENT, for as long as it lives. Threads that are
/// there already open files as ever; those that this one starts cannot.
///
/// # Errors
/// Where the kernel has no seccomp filters, or an outer filter refuses ours.
pub(super) fn refuse_open() -> io::Result<()> {
    let filter = [
        // The number of the call is what a `seccomp_data` begins with.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        #[cfg(target_arch = "x86_64")]
        equal(libc::SYS_open, 2),
        equal(libc::SYS_openat, 1),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOENT as u32, 0, 0),
    ];
    // The kernel takes a filter from a thread without privileges only when the thread can gain none. This setting, too,
    // holds for this thread alone (PR_SET_NO_NEW_PRIVS(2const)).
    prctl::set_no_new_privileges(true).map_err(io::Error::from_raw_os_error)?;
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program points to as many instructions as it says, which outlive the call; the kernel copies them and
    // writes nothing.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Skips `over` instructions where the loaded word is this number.
const fn equal(number: libc::c_long, over: u8) -> libc::sock_filter {
    step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32, over, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_opens_nothing() {
        let open = || std::fs::File::open("/proc/self/exe").map(drop).map_err(|error| error.kind());
        let refused = std::thread::spawn(move || refuse_open().map(|()| open())).join().unwrap();
        match refused {
            Ok(opened) => assert_eq!(opened, Err(io::ErrorKind::NotFound)),
            // A kernel or a sandbox without filters: then backtraces are read more slowly.
            Err(error) => assert!(error.raw_os_error().is_some()),
        }
        assert_eq!(open(), Ok(()));
    }
}
