//! fflush(3), and what compilers' runtimes write when a process ends: what exit(3) does and _exit(2) does not.

use std::ptr;

/// Writes out what is buffered in C's streams.
pub(crate) fn flush() {
    // SAFETY: null means all streams that are open for output. A stream that cannot be written has lost it anyway, as at
    // any exit.
    unsafe { libc::fflush(ptr::null_mut()) };
}

/// `__llvm_profile_write_file` and `__gcov_dump`, where their runtimes are linked.
type Writer = Option<unsafe extern "C" fn()>;

// Weak references: null where nothing defines them. dlsym(3) does not find them, since an executable exports nothing.
std::arch::global_asm!(
    ".weak __llvm_profile_write_file",
    ".weak __gcov_dump",
    ".pushsection .data.rel.ro, \"aw\", @progbits",
    ".balign 8",
    ".weak phalanx_profile_writers",
    ".hidden phalanx_profile_writers",
    "phalanx_profile_writers:",
    ".quad __llvm_profile_write_file",
    ".quad __gcov_dump",
    ".popsection",
);

unsafe extern "C" {
    static phalanx_profile_writers: [Writer; 2];
}

/// Writes the profile or coverage that this process has collected, if it was built to do so.
pub(crate) fn write_profiles() {
    // SAFETY: the assembly above defines it as two words that the loader has set before main.
    let writers = unsafe { phalanx_profile_writers };
    for write in writers.into_iter().flatten() {
        // SAFETY: both take nothing, and may be called at any time before exit. What the first returns is not used.
        unsafe { write() };
    }
}
