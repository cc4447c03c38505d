//! Records of atomics, as which shared memory can be looked at.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// What is made of atomics only, so that any bytes are a value of it and several processes may have references to it.
///
/// # Safety
/// Only atomics without padding that means something, laid out as in C.
pub(crate) unsafe trait AtomicRecord {}

// SAFETY: an atomic.
unsafe impl AtomicRecord for AtomicU8 {}
// SAFETY: an atomic.
unsafe impl AtomicRecord for AtomicU16 {}
// SAFETY: an atomic.
unsafe impl AtomicRecord for AtomicU32 {}
// SAFETY: an atomic.
unsafe impl AtomicRecord for AtomicU64 {}
// SAFETY: one after the other, as in C.
unsafe impl<T: AtomicRecord, const N: usize> AtomicRecord for [T; N] {}

/// Defines a record of atomics, which begins at a cache line of its own.
macro_rules! atomic_record {
    ($(#[$about:meta])* $visible:vis struct $name:ident { $($(#[$what:meta])* $see:vis $field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Debug)]
        #[repr(C, align(64))]
        $visible struct $name { $($(#[$what])* $see $field: $type,)* }

        #[expect(unsafe_code, reason = "every field is asked whether it is made of atomics")]
        const _: () = {
            const fn is_made_of_atomics<T: $crate::sys::atomic_record::AtomicRecord>() {}
            $(is_made_of_atomics::<$type>();)*
            // SAFETY: laid out as in C, of fields that are all made of atomics, as was just asked.
            unsafe impl $crate::sys::atomic_record::AtomicRecord for $name {}
        };
    };
}

pub(crate) use atomic_record;
