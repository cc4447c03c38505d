//! Copying to and from memory that other processes may write at the same time.
//!
//! A plain `memcpy` there would be a data race. On x86-64 the copy is one `rep movsb`, whose bytes are
//! each read and written once, which is what relaxed atomic bytes would do; elsewhere it is
//! a loop of relaxed atomics.

/// Copies `len` bytes; a byte that somebody else writes meanwhile is copied old or new, never invented.
///
/// # Safety
/// Both ranges must be mapped and stay so, the source readable and the target writable, and they must not
/// overlap. Whichever side is shared must be accessed only by atomics or by this function.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn copy_racy(source: *const u8, target: *mut u8, len: usize) {
    // SAFETY: the caller vouches for both ranges; the direction flag is clear by the calling convention.
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") source => _,
            inout("rdi") target => _,
            options(nostack, preserves_flags)
        );
    }
}

/// As the x86-64 version, byte by byte.
///
/// # Safety
/// As the x86-64 version.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn copy_racy(source: *const u8, target: *mut u8, len: usize) {
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
    for i in 0..len {
        // SAFETY: i < len, so the caller vouches for this byte of the source.
        let from = unsafe { AtomicU8::from_ptr(source.cast_mut().wrapping_add(i)) };
        // SAFETY: i < len, so the caller vouches for this byte of the target.
        let to = unsafe { AtomicU8::from_ptr(target.wrapping_add(i)) };
        to.store(from.load(Relaxed), Relaxed);
    }
}
