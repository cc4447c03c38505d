//! Copying between private memory and memory that other processes may write at the same time.
//!
//! A plain `memcpy` there would be a data race. On x86-64 the copy is one `rep movsb`, which the compiler cannot look
//! into; elsewhere it is a loop of relaxed atomics of the elements' own size, the same that single accesses use.

/// Copies `len` bytes to shared memory, in elements of `unit` bytes.
///
/// # Safety
/// `source` must be readable for `len` bytes, private, and not overlap the target. `target` must be mapped and
/// writable for `len` bytes, aligned to `unit` (1, 4 or 8, a divisor of `len`), and shared memory that is accessed
/// only by atomics of that size and by these copies.
pub(super) unsafe fn copy_in(source: *const u8, target: *mut u8, len: usize, unit: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller vouches for both ranges; bytes need no unit.
    unsafe {
        let _ = unit;
        move_bytes(source, target, len);
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller keeps the same promise.
    unsafe {
        by_atomics::copy_in(source, target, len, unit);
    }
}

/// Copies `len` bytes from shared memory, in elements of `unit` bytes.
///
/// # Safety
/// As [`copy_in`], with the parts of source and target exchanged.
pub(super) unsafe fn copy_out(source: *const u8, target: *mut u8, len: usize, unit: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller vouches for both ranges; bytes need no unit.
    unsafe {
        let _ = unit;
        move_bytes(source, target, len);
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller keeps the same promise.
    unsafe {
        by_atomics::copy_out(source, target, len, unit);
    }
}

/// `rep movsb`.
///
/// # Safety
/// `source` must be readable and `target` writable for `len` bytes, and they must not overlap.
#[cfg(target_arch = "x86_64")]
unsafe fn move_bytes(source: *const u8, target: *mut u8, len: usize) {
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

#[cfg(any(test, not(target_arch = "x86_64")))]
mod by_atomics {
    use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

    macro_rules! copies_of {
        ($copy_in:ident, $copy_out:ident, $atomic:ty, $word:ty) => {
            unsafe fn $copy_in(source: *const u8, target: *mut u8, len: usize) {
                for at in (0..len).step_by(size_of::<$word>()) {
                    // SAFETY: within the private range, as the caller promises.
                    let word = unsafe { source.wrapping_add(at).cast::<$word>().read_unaligned() };
                    // SAFETY: within the shared range and aligned, as the caller promises.
                    let cell = unsafe { <$atomic>::from_ptr(target.wrapping_add(at).cast()) };
                    cell.store(word, Relaxed);
                }
            }

            unsafe fn $copy_out(source: *const u8, target: *mut u8, len: usize) {
                for at in (0..len).step_by(size_of::<$word>()) {
                    // SAFETY: within the shared range and aligned, as the caller promises.
                    let cell = unsafe { <$atomic>::from_ptr(source.cast_mut().wrapping_add(at).cast()) };
                    let word = cell.load(Relaxed);
                    // SAFETY: within the private range, as the caller promises.
                    unsafe { target.wrapping_add(at).cast::<$word>().write_unaligned(word) };
                }
            }
        };
    }

    copies_of!(in_1, out_1, AtomicU8, u8);
    copies_of!(in_4, out_4, AtomicU32, u32);
    copies_of!(in_8, out_8, AtomicU64, u64);

    /// As [`super::copy_in`].
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn copy_in(source: *const u8, target: *mut u8, len: usize, unit: usize) {
        let copy = match unit {
            8 => in_8,
            4 => in_4,
            _ => in_1,
        };
        // SAFETY: the caller keeps the same promise.
        unsafe { copy(source, target, len) }
    }

    /// As [`super::copy_out`].
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn copy_out(source: *const u8, target: *mut u8, len: usize, unit: usize) {
        let copy = match unit {
            8 => out_8,
            4 => out_4,
            _ => out_1,
        };
        // SAFETY: the caller keeps the same promise.
        unsafe { copy(source, target, len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Copy = unsafe fn(*const u8, *mut u8, usize, usize);

    #[test]
    fn every_way_of_copying_agrees() {
        let source: Vec<u64> = (0..8).map(|n| 0x0101_0101_0101_0101 * n + 7).collect();
        let source: &[u8] = bytemuck::cast_slice(&source);
        let ways: [Copy; 4] = [copy_in, copy_out, by_atomics::copy_in, by_atomics::copy_out];
        for (len, unit) in [(64, 8), (56, 4), (13, 1), (0, 8), (4, 4)] {
            for copy in ways {
                let mut words = [u64::MAX; 9];
                let target: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
                // SAFETY: both are aligned to 8 and longer than `len`; nobody else has them.
                unsafe { copy(source.as_ptr(), target.as_mut_ptr(), len, unit) };
                assert_eq!(target[..len], source[..len]);
                assert!(target[len..].iter().all(|&byte| byte == 0xff));
            }
        }
    }
}
