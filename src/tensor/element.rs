//! What an element of a tensor can be.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use half::{bf16, f16};

use crate::dtype::DType;
use crate::sys::atomic_record::AtomicRecord;
use crate::sys::map::SharedMap;

/// A type that a [`Tensor`](crate::Tensor) can hold: `bool`, `u8` to `u64`, `i8` to `i64`, [`f16`](half::f16),
/// [`bf16`](half::bf16), `f32`, `f64`.
///
/// Sealed: an element must be readable and writable in one relaxed atomic access.
///
/// ```
/// use phalanx::shm::{DType, Element};
///
/// assert_eq!((f32::DTYPE, bool::DTYPE), (DType::F32, DType::Bool));
/// ```
pub trait Element: Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static + sealed::Atomic {
    /// The type's name as data.
    const DTYPE: DType;
}

/// An [`Element`] to which one can add, and of which every pattern of bits is a value, so that it can be in a slice of
/// shared memory: all but `bool`.
pub trait Number: Element + bytemuck::Pod + sealed::Add {}

pub(super) mod sealed {
    use super::{AtomicRecord, SharedMap};

    /// Relaxed atomic access to an element, and copies of many, whose bounds the map checks.
    #[expect(unnameable_types, reason = "this is what seals Element")]
    #[expect(private_bounds, reason = "the trait is sealed: nobody outside names what it is made of")]
    pub trait Atomic: Sized {
        /// The atomic that is as large as an element, and aligned to its size.
        type Word: AtomicRecord + Send + Sync;

        /// The word at the byte `at`. In a map that can only be read it may only be loaded.
        #[expect(private_interfaces, reason = "the trait is sealed: nobody outside can call it")]
        fn word(map: &SharedMap, at: usize) -> &Self::Word;
        /// Reads the element.
        fn load(word: &Self::Word) -> Self;
        /// Writes the element.
        fn store(self, word: &Self::Word);
        /// Writes the element, and returns what was there before.
        fn swap(self, word: &Self::Word) -> Self;
        /// Puts `new` in the place of this value, if the element has the same bits; otherwise returns the element.
        fn replace(self, new: Self, word: &Self::Word) -> Result<(), Self>;
        /// Reads as many elements as `target` has, which lie one after the other from the byte `at` on.
        #[expect(private_interfaces, reason = "as word")]
        fn load_all(map: &SharedMap, at: usize, target: &mut [Self]);
        /// The bytes of the elements, in the machine's byte order.
        fn bytes_of(elements: &[Self]) -> &[u8];
    }

    /// Atomic addition to an element of shared memory.
    #[expect(unnameable_types, reason = "this is what seals Number")]
    pub trait Add: Atomic {
        /// Adds this value to the element, and returns what was there before. Integers wrap around.
        fn fetch_add(self, word: &Self::Word) -> Self;
    }
}

/// What all numbers have in common: they are copied as bytes.
macro_rules! number {
    ($type:ty, $dtype:ident, $atomic:ident, $word:ty, $to_bits:expr, $from_bits:expr) => {
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }

        impl Number for $type {}

        #[expect(private_interfaces, reason = "the trait is sealed")]
        impl sealed::Atomic for $type {
            type Word = $word;

            #[inline]
            fn word(map: &SharedMap, at: usize) -> &$word {
                map.$atomic(at)
            }

            #[inline]
            fn load(word: &$word) -> Self {
                $from_bits(word.load(Relaxed))
            }

            #[inline]
            fn store(self, word: &$word) {
                word.store($to_bits(self), Relaxed);
            }

            #[inline]
            fn swap(self, word: &$word) -> Self {
                $from_bits(word.swap($to_bits(self), Relaxed))
            }

            #[inline]
            fn replace(self, new: Self, word: &$word) -> Result<(), Self> {
                let (old, new) = ($to_bits(self), $to_bits(new));
                word.compare_exchange(old, new, Relaxed, Relaxed).map(drop).map_err($from_bits)
            }

            #[inline]
            fn load_all(map: &SharedMap, at: usize, target: &mut [Self]) {
                map.read(at, bytemuck::cast_slice_mut(target), size_of::<Self>());
            }

            #[inline]
            fn bytes_of(elements: &[Self]) -> &[u8] {
                bytemuck::cast_slice(elements)
            }
        }
    };
}

/// Integers: the atomic of their size wraps around like they do.
macro_rules! integer {
    ($type:ty, $dtype:ident, $atomic:ident, $word:ty, $bits:ty) => {
        number!($type, $dtype, $atomic, $word, |value| value as $bits, |bits| bits as $type);

        impl sealed::Add for $type {
            #[inline]
            fn fetch_add(self, word: &$word) -> Self {
                word.fetch_add(self as $bits, Relaxed) as Self
            }
        }
    };
}

/// Floats: their bits in the atomic of their size; an addition is repeated until no other write came between (compare-exchange).
macro_rules! float {
    ($type:ty, $dtype:ident, $atomic:ident, $word:ty) => {
        number!($type, $dtype, $atomic, $word, |value: $type| value.to_bits(), <$type>::from_bits);

        impl sealed::Add for $type {
            #[inline]
            fn fetch_add(self, word: &$word) -> Self {
                let mut old = word.load(Relaxed);
                loop {
                    let sum = (Self::from_bits(old) + self).to_bits();
                    match word.compare_exchange_weak(old, sum, Relaxed, Relaxed) {
                        Ok(_) => return Self::from_bits(old),
                        Err(now) => old = now,
                    }
                }
            }
        }
    };
}

integer!(u8, U8, u8, AtomicU8, u8);
integer!(u16, U16, u16, AtomicU16, u16);
integer!(u32, U32, u32, AtomicU32, u32);
integer!(u64, U64, u64, AtomicU64, u64);
integer!(i8, I8, u8, AtomicU8, u8);
integer!(i16, I16, u16, AtomicU16, u16);
integer!(i32, I32, u32, AtomicU32, u32);
integer!(i64, I64, u64, AtomicU64, u64);
float!(f16, F16, u16, AtomicU16);
float!(bf16, BF16, u16, AtomicU16);
float!(f32, F32, u32, AtomicU32);
float!(f64, F64, u64, AtomicU64);

impl Element for bool {
    const DTYPE: DType = DType::Bool;
}

/// Another process may write any byte, of which only 0 and 1 are a `bool`: what is read is asked whether it is zero.
#[expect(private_interfaces, reason = "the trait is sealed")]
impl sealed::Atomic for bool {
    type Word = AtomicU8;

    #[inline]
    fn word(map: &SharedMap, at: usize) -> &AtomicU8 {
        map.u8(at)
    }

    #[inline]
    fn load(word: &AtomicU8) -> Self {
        word.load(Relaxed) != 0
    }

    #[inline]
    fn store(self, word: &AtomicU8) {
        word.store(u8::from(self), Relaxed);
    }

    #[inline]
    fn swap(self, word: &AtomicU8) -> Self {
        word.swap(u8::from(self), Relaxed) != 0
    }

    fn replace(self, new: Self, word: &AtomicU8) -> Result<(), Self> {
        let new = |byte| ((byte != 0) == self).then_some(u8::from(new));
        word.fetch_update(Relaxed, Relaxed, new).map(drop).map_err(|byte| byte != 0)
    }

    fn load_all(map: &SharedMap, at: usize, target: &mut [Self]) {
        target.iter_mut().zip(at..).for_each(|(value, at)| *value = Self::load(Self::word(map, at)));
    }

    fn bytes_of(elements: &[Self]) -> &[u8] {
        bytemuck::cast_slice(elements)
    }
}
