//! The types that a tensor's elements can have.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use crate::sys::map::SharedMap;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DType {
    /// `f32`
    F32,
    /// `f64`
    F64,
    /// `i32`
    I32,
    /// `i64`
    I64,
    /// `u8`
    U8,
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
        })
    }
}

/// A type that a [`Tensor`](crate::Tensor) can hold: `f32`, `f64`, `i32`, `i64`, `u8`.
///
/// Sealed: an element must be readable and writable in one relaxed atomic access.
pub trait Element: bytemuck::Pod + Default + PartialEq + fmt::Debug + Send + Sync + sealed::Atomic {
    /// The type's name as data.
    const DTYPE: DType;
}

pub(super) mod sealed {
    use super::SharedMap;

    /// One relaxed atomic access to the element at byte `at`, whose bounds the map checks.
    #[expect(unnameable_types, reason = "this is what seals Element")]
    pub trait Atomic: Sized {
        #[expect(private_interfaces, reason = "the trait is sealed: nobody outside can call it")]
        fn load(map: &SharedMap, at: usize) -> Self;
        #[expect(private_interfaces, reason = "as load")]
        fn store(self, map: &SharedMap, at: usize);
        /// Adds and returns what was there before.
        #[expect(private_interfaces, reason = "as load")]
        fn fetch_add(self, map: &SharedMap, at: usize) -> Self;
    }
}

/// Integers: the atomic of their size wraps around like they do.
macro_rules! integer_element {
    ($type:ty, $dtype:ident, $atomic:ident, $bits:ty) => {
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }

        #[expect(private_interfaces, reason = "the trait is sealed")]
        impl sealed::Atomic for $type {
            fn load(map: &SharedMap, at: usize) -> Self {
                map.$atomic(at).load(Relaxed) as Self
            }

            fn store(self, map: &SharedMap, at: usize) {
                map.$atomic(at).store(self as $bits, Relaxed);
            }

            fn fetch_add(self, map: &SharedMap, at: usize) -> Self {
                map.$atomic(at).fetch_add(self as $bits, Relaxed) as Self
            }
        }
    };
}

/// Floats: their bits in the atomic of their size; an addition is tried until nobody came between.
macro_rules! float_element {
    ($type:ty, $dtype:ident, $atomic:ident) => {
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }

        #[expect(private_interfaces, reason = "the trait is sealed")]
        impl sealed::Atomic for $type {
            fn load(map: &SharedMap, at: usize) -> Self {
                Self::from_bits(map.$atomic(at).load(Relaxed))
            }

            fn store(self, map: &SharedMap, at: usize) {
                map.$atomic(at).store(self.to_bits(), Relaxed);
            }

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

float_element!(f32, F32, u32);
float_element!(f64, F64, u64);
integer_element!(i32, I32, u32, u32);
integer_element!(i64, I64, u64, u64);
integer_element!(u8, U8, u8, u8);
