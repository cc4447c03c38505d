//! Copying between private memory and memory that other processes may write at the same time.
//!
//! A plain `memcpy` there would be a data race. On x86-64 the copy is the C library's memcpy called from assembly, which
//! the compiler cannot look into: to it this is some code that accesses each byte atomically, and the processor does no
//! less. Elsewhere it is a loop of relaxed atomics of the elements' own size, the same that single accesses use.
//!
//! `copy_in` goes to shared memory and `copy_out` comes from it; both take source, target, the length in bytes and the
//! size of an element (1, 2, 4 or 8, a divisor of the length). `copy_between` is for a source that others may write too.
//!
//! # Safety
//! The source must be readable and the target writable for the length, and they must not overlap. One of them is
//! private. The other is mapped shared memory, aligned to the element, that is accessed only by atomics of that size
//! and by these copies. For `copy_between` both are such memory.

#[cfg(not(target_arch = "x86_64"))]
pub(super) use by_atomics::{copy_between, copy_in, copy_out};
#[cfg(target_arch = "x86_64")]
pub(super) use by_bytes::{copy as copy_between, copy as copy_in, copy as copy_out};

#[cfg(target_arch = "x86_64")]
mod by_bytes {
    /// memcpy(3): the same in both directions, and for elements of any size.
    ///
    /// # Safety
    /// As the head of this file says.
    #[inline]
    pub(in crate::sys) unsafe fn copy(source: *const u8, target: *mut u8, len: usize, _unit: usize) {
        // SAFETY: the caller vouches for both ranges; the call is one by the C calling convention, whose registers are
        // declared as overwritten, and the stack is aligned for it since `nostack` is absent.
        unsafe {
            core::arch::asm!(
                "call qword ptr [rip + {memcpy}@GOTPCREL]",
                memcpy = sym libc::memcpy,
                in("rdi") target,
                in("rsi") source,
                in("rdx") len,
                clobber_abi("sysv64"),
            );
        }
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
mod by_atomics {
    use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

    macro_rules! copies_of {
        ($copy_in:ident, $copy_out:ident, $copy_between:ident, $atomic:ty, $word:ty) => {
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

            unsafe fn $copy_between(source: *const u8, target: *mut u8, len: usize) {
                for at in (0..len).step_by(size_of::<$word>()) {
                    // SAFETY: within the source's range and aligned, as the caller promises.
                    let from = unsafe { <$atomic>::from_ptr(source.cast_mut().wrapping_add(at).cast()) };
                    // SAFETY: within the target's range and aligned, as the caller promises.
                    let to = unsafe { <$atomic>::from_ptr(target.wrapping_add(at).cast()) };
                    to.store(from.load(Relaxed), Relaxed);
                }
            }
        };
    }

    copies_of!(in_1, out_1, between_1, AtomicU8, u8);
    copies_of!(in_2, out_2, between_2, AtomicU16, u16);
    copies_of!(in_4, out_4, between_4, AtomicU32, u32);
    copies_of!(in_8, out_8, between_8, AtomicU64, u64);

    /// To shared memory.
    ///
    /// # Safety
    /// As the head of this file says.
    pub(in crate::sys) unsafe fn copy_in(source: *const u8, target: *mut u8, len: usize, unit: usize) {
        let copy = match unit {
            8 => in_8,
            4 => in_4,
            2 => in_2,
            _ => in_1,
        };
        // SAFETY: the caller keeps the same promise.
        unsafe { copy(source, target, len) }
    }

    /// From shared memory.
    ///
    /// # Safety
    /// As the head of this file says.
    pub(in crate::sys) unsafe fn copy_out(source: *const u8, target: *mut u8, len: usize, unit: usize) {
        let copy = match unit {
            8 => out_8,
            4 => out_4,
            2 => out_2,
            _ => out_1,
        };
        // SAFETY: the caller keeps the same promise.
        unsafe { copy(source, target, len) }
    }

    /// From shared memory to shared memory.
    ///
    /// # Safety
    /// As the head of this file says.
    pub(in crate::sys) unsafe fn copy_between(source: *const u8, target: *mut u8, len: usize, unit: usize) {
        let copy = match unit {
            8 => between_8,
            4 => between_4,
            2 => between_2,
            _ => between_1,
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
        let ways: [Copy; 5] =
            [copy_in, copy_out, by_atomics::copy_in, by_atomics::copy_out, by_atomics::copy_between];
        for (len, unit) in [(64, 8), (56, 4), (14, 2), (13, 1), (0, 8), (4, 4)] {
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
