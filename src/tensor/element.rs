//! What an element of a tensor can be.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use half::{bf16, f16};

use crate::dtype::DType;
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
    use super::SharedMap;

    /// Relaxed atomic access to the element at byte `at`, and copies of many, whose bounds the map checks.
    #[expect(unnameable_types, reason = "this is what seals Element")]
    pub trait Atomic: Sized {
        #[expect(private_interfaces, reason = "the trait is sealed: nobody outside can call it")]
        fn load(map: &SharedMap, at: usize) -> Self;
        /// Writes the element.
        #[expect(private_interfaces, reason = "as load")]
        fn store(self, map: &SharedMap, at: usize);
        /// Writes the element, and returns what was there before.
        #[expect(private_interfaces, reason = "as load")]
        fn swap(self, map: &SharedMap, at: usize) -> Self;
        /// Puts `new` in the place of this value, if the element has the same bits; otherwise returns the element.
        #[expect(private_interfaces, reason = "as load")]
        fn replace(self, new: Self, map: &SharedMap, at: usize) -> Result<(), Self>;
        /// Reads as many elements as `target` has, which lie one after the other from the byte `at` on.
        #[expect(private_interfaces, reason = "as load")]
        fn load_all(map: &SharedMap, at: usize, target: &mut [Self]);
        /// The bytes of the elements, in the machine's byte order.
        fn bytes_of(elements: &[Self]) -> &[u8];
    }

    /// Atomic addition to an element of shared memory.
    #[expect(unnameable_types, reason = "this is what seals Number")]
    pub trait Add: Sized {
        /// Adds this value to the element at the byte `at`, and returns what was there before. Integers wrap around.
        #[expect(private_interfaces, reason = "as load")]
        fn fetch_add(self, map: &SharedMap, at: usize) -> Self;
    }
}

/// What all numbers have in common: they are copied as bytes.
macro_rules! number {
    ($type:ty, $dtype:ident, $atomic:ident, $to_bits:expr, $from_bits:expr) => {
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }

        impl Number for $type {}

        #[expect(private_interfaces, reason = "the trait is sealed")]
        impl sealed::Atomic for $type {
            #[inline]
            fn load(map: &SharedMap, at: usize) -> Self {
                $from_bits(map.$atomic(at).load(Relaxed))
            }

            #[inline]
            fn store(self, map: &SharedMap, at: usize) {
                map.$atomic(at).store($to_bits(self), Relaxed);
            }

            #[inline]
            fn swap(self, map: &SharedMap, at: usize) -> Self {
                $from_bits(map.$atomic(at).swap($to_bits(self), Relaxed))
            }

            #[inline]
            fn replace(self, new: Self, map: &SharedMap, at: usize) -> Result<(), Self> {
                let (old, new) = ($to_bits(self), $to_bits(new));
                map.$atomic(at).compare_exchange(old, new, Relaxed, Relaxed).map(drop).map_err($from_bits)
            }

            fn load_all(map: &SharedMap, at: usize, target: &mut [Self]) {
                map.read(at, bytemuck::cast_slice_mut(target), size_of::<Self>());
            }

            fn bytes_of(elements: &[Self]) -> &[u8] {
                bytemuck::cast_slice(elements)
            }
        }
    };
}

/// Integers: the atomic of their size wraps around like they do.
macro_rules! integer {
    ($type:ty, $dtype:ident, $atomic:ident, $bits:ty) => {
        number!($type, $dtype, $atomic, |value| value as $bits, |bits| bits as $type);

        #[expect(private_interfaces, reason = "the trait is sealed")]
        impl sealed::Add for $type {
            #[inline]
            fn fetch_add(self, map: &SharedMap, at: usize) -> Self {
                map.$atomic(at).fetch_add(self as $bits, Relaxed) as Self
            }
        }
    };
}

/// Floats: their bits in the atomic of their size; an addition is repeated until no other write came between (compare-exchange).
macro_rules! float {
    ($type:ty, $dtype:ident, $atomic:ident) => {
        number!($type, $dtype, $atomic, |value: $type| value.to_bits(), <$type>::from_bits);

        #[expect(private_interfaces, reason = "the trait is sealed")]
        impl sealed::Add for $type {
            #[inline]
            fn fetch_add(self, map: &SharedMap, at: usize) -> Self {
                let cell = map.$atomic(at);
                let mut old = cell.load(Relaxed);
                loop {
                    let sum = (Self::from_bits(old) + self).to_bits();
                    match cell.compare_exchange_weak(old, sum, Relaxed, Relaxed) {
                        Ok(_) => return Self::from_bits(old),
                        Err(now) => old = now,
                    }
                }
            }
        }
    };
}

integer!(u8, U8, u8, u8);
integer!(u16, U16, u16, u16);
integer!(u32, U32, u32, u32);
integer!(u64, U64, u64, u64);
integer!(i8, I8, u8, u8);
integer!(i16, I16, u16, u16);
integer!(i32, I32, u32, u32);
integer!(i64, I64, u64, u64);
float!(f16, F16, u16);
float!(bf16, BF16, u16);
float!(f32, F32, u32);
float!(f64, F64, u64);

impl Element for bool {
    const DTYPE: DType = DType::Bool;
}

/// Another process may write any byte, of which only 0 and 1 are a `bool`: what is read is asked whether it is zero.
#[expect(private_interfaces, reason = "the trait is sealed")]
impl sealed::Atomic for bool {
    #[inline]
    fn load(map: &SharedMap, at: usize) -> Self {
        map.u8(at).load(Relaxed) != 0
    }

    #[inline]
    fn store(self, map: &SharedMap, at: usize) {
        map.u8(at).store(u8::from(self), Relaxed);
    }

    #[inline]
    fn swap(self, map: &SharedMap, at: usize) -> Self {
        map.u8(at).swap(u8::from(self), Relaxed) != 0
    }

    fn replace(self, new: Self, map: &SharedMap, at: usize) -> Result<(), Self> {
        let new = |byte| ((byte != 0) == self).then_some(u8::from(new));
        map.u8(at).fetch_update(Relaxed, Relaxed, new).map(drop).map_err(|byte| byte != 0)
    }

    fn load_all(map: &SharedMap, at: usize, target: &mut [Self]) {
        target.iter_mut().zip(at..).for_each(|(value, at)| *value = Self::load(map, at));
    }

    fn bytes_of(elements: &[Self]) -> &[u8] {
        bytemuck::cast_slice(elements)
    }
}
