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

/// As the x86-64 version.
///
/// # Safety
/// As the x86-64 version.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn copy_racy(source: *const u8, target: *mut u8, len: usize) {
    // SAFETY: the caller keeps the same promise.
    unsafe { copy_by_atomics(source, target, len) }
}

/// Copies by the largest atomics that fit the alignment of both ranges, so that no element is torn.
///
/// # Safety
/// As [`copy_racy`].
#[cfg(any(test, not(target_arch = "x86_64")))]
unsafe fn copy_by_atomics(source: *const u8, target: *mut u8, len: usize) {
    use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
    macro_rules! copy_as {
        ($atomic:ty, $range:expr) => {
            for at in $range.step_by(size_of::<$atomic>()) {
                // SAFETY: inside of the source, by the caller's promise; aligned, as checked below.
                let from = unsafe { <$atomic>::from_ptr(source.cast_mut().wrapping_add(at).cast()) };
                // SAFETY: likewise of the target.
                let to = unsafe { <$atomic>::from_ptr(target.wrapping_add(at).cast()) };
                to.store(from.load(Relaxed), Relaxed);
            }
        };
    }
    let misaligned = source.addr() | target.addr();
    let whole = if misaligned.is_multiple_of(8) {
        copy_as!(AtomicU64, 0..len - len % 8);
        len - len % 8
    } else if misaligned.is_multiple_of(4) {
        copy_as!(AtomicU32, 0..len - len % 4);
        len - len % 4
    } else {
        0
    };
    copy_as!(AtomicU8, whole..len);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_copying_agree_at_every_alignment() {
        let source: Vec<u8> = (0..64).collect();
        for (from, to, len) in
            [(0, 0, 64), (0, 4, 50), (4, 8, 33), (1, 0, 17), (3, 5, 40), (8, 0, 0), (2, 2, 7)]
        {
            for copy in [copy_racy, copy_by_atomics] {
                let mut target = [0xff_u8; 72];
                // SAFETY: both ranges lie inside of their vectors.
                unsafe { copy(source[from..].as_ptr(), target[to..].as_mut_ptr(), len) };
                assert_eq!(target[to..to + len], source[from..from + len]);
                assert!(target[..to].iter().chain(&target[to + len..]).all(|&byte| byte == 0xff));
            }
        }
    }
}
