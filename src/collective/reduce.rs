//! Pure: how the ranks' elements become one, a block of them at a time.

use std::fmt;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::dtype::DType;

/// How the elements of all ranks become one: in the order of the ranks, whoever computes it.
///
/// - `f16` and `bf16` are reduced as `f32`, and rounded once, at the end; a mean is divided before that. `f32` and `f64` are reduced as
///   themselves.
/// - A sum of integers wraps around. Their mean is that sum, divided and rounded toward zero.
/// - The least and the greatest of floats are NaN where any rank has NaN, as torch has it. Of zeros of both signs it is that of the
///   lowest rank.
///
/// ```
/// use phalanx::collective::Reduce;
/// assert_eq!(Reduce::Mean.to_string(), "mean");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reduce {
    /// All added up: torch's `ReduceOp.SUM`.
    Sum,
    /// Their sum, divided by the number of ranks: `ReduceOp.AVG`.
    Mean,
    /// The least: `ReduceOp.MIN`.
    Min,
    /// The greatest: `ReduceOp.MAX`.
    Max,
}

impl Reduce {
    /// By their numbers in an announcement.
    pub(super) const ALL: [Self; 4] = [Self::Sum, Self::Mean, Self::Min, Self::Max];
}

impl fmt::Display for Reduce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Min => "min",
            Self::Max => "max",
        })
    }
}

/// Bytes of a block: what three of them take stays in the first cache.
//
// Blocks are private memory. Over shared memory the elements would be atomics, and of a loop over atomics the compiler makes no
// vector code; a copy into the cache costs little beside the memory that it comes from.
pub(super) const BLOCK: usize = 8 << 10;

/// A block as bytes, aligned for every element.
pub(super) type Block = [u64; BLOCK / 8];

/// Reduces one block: `read` brings the bytes of the rank that it is given; the result is in `block`, whose first `len` bytes count.
/// Elements are of `dtype`.
pub(super) fn block(
    (dtype, reduce): (DType, Reduce),
    ranks: usize,
    len: usize,
    block: &mut Block,
    read: impl FnMut(usize, &mut Block),
) {
    let run = match dtype {
        // (No `Number` is a bool.)
        DType::Bool | DType::U8 => fold::<u8>,
        DType::U16 => fold::<u16>,
        DType::U32 => fold::<u32>,
        DType::U64 => fold::<u64>,
        DType::I8 => fold::<i8>,
        DType::I16 => fold::<i16>,
        DType::I32 => fold::<i32>,
        DType::I64 => fold::<i64>,
        DType::F16 => fold::<f16>,
        DType::BF16 => fold::<bf16>,
        DType::F32 => fold::<f32>,
        DType::F64 => fold::<f64>,
    };
    run(reduce, ranks, len, block, read);
}

/// As [`block`], of elements of one type. Rank after rank, whoever runs it: the order of additions is part of what is promised, since it
/// decides how floats are rounded.
fn fold<T: Lane>(
    reduce: Reduce,
    ranks: usize,
    len: usize,
    block: &mut Block,
    mut read: impl FnMut(usize, &mut Block),
) {
    let (mut sum, mut next) = ([0_u64; BLOCK / 4], [0_u64; BLOCK / 4]);
    let count = len / size_of::<T>();
    let (sum, next) = (wide::<T>(&mut sum, count), wide::<T>(&mut next, count));
    for rank in 0..ranks {
        read(rank, block);
        let elements = &bytemuck::cast_slice(block)[..count];
        if rank == 0 {
            T::widen(elements, sum);
        } else {
            T::combine(reduce, sum, elements, next);
        }
    }
    if reduce == Reduce::Mean {
        sum.iter_mut().for_each(|sum| *sum = T::divide(*sum, ranks));
    }
    T::narrow(sum, &mut bytemuck::cast_slice_mut(block)[..count]);
}

/// Room for as many elements as a block has, as they are reduced: twice as wide at the most.
fn wide<T: Lane>(room: &mut [u64; BLOCK / 4], count: usize) -> &mut [T::Wide] {
    &mut bytemuck::cast_slice_mut(room)[..count]
}

/// An element as it is reduced. The methods take slices, of which the compiler makes vector code.
trait Lane: bytemuck::Pod {
    /// What it is reduced as.
    type Wide: bytemuck::Pod;

    /// The elements of the first rank, as they are reduced. Both slices have the same length, here and below.
    fn widen(elements: &[Self], wide: &mut [Self::Wide]);
    /// The result, as elements: halves are rounded here, and nowhere else.
    fn narrow(wide: &[Self::Wide], elements: &mut [Self]);
    /// Reduces what there is and the elements of the next rank; `room` has as many, for those that have to be widened.
    fn combine(reduce: Reduce, sum: &mut [Self::Wide], elements: &[Self], room: &mut [Self::Wide]);
    /// The mean, of the ranks' sum and their number.
    fn divide(sum: Self::Wide, ranks: usize) -> Self::Wide;
}

/// One loop for each kind of reduction, so that none of them asks in its middle which it is.
macro_rules! combine {
    ($reduce:expr, $sum:expr, $elements:expr, $add:expr) => {{
        let each = $sum.iter_mut().zip($elements);
        match $reduce {
            Reduce::Sum | Reduce::Mean => each.for_each(|(sum, &next)| *sum = $add(*sum, next)),
            // What is not equal to itself is NaN, and stays. A NaN that comes is neither less nor greater, and takes its place.
            #[allow(clippy::eq_op, clippy::allow_attributes, reason = "of integers it is always equal")]
            Reduce::Min => {
                each.for_each(|(sum, &next)| *sum = if *sum <= next || *sum != *sum { *sum } else { next })
            }
            #[allow(clippy::eq_op, clippy::allow_attributes, reason = "as for the least")]
            Reduce::Max => {
                each.for_each(|(sum, &next)| *sum = if *sum >= next || *sum != *sum { *sum } else { next })
            }
        }
    }};
}

/// Reduced as itself.
macro_rules! plain {
    ($($type:ty: $add:expr, $divide:expr;)*) => {$(
        impl Lane for $type {
            type Wide = Self;

            fn widen(elements: &[Self], wide: &mut [Self]) {
                wide.copy_from_slice(elements);
            }

            fn narrow(wide: &[Self], elements: &mut [Self]) {
                elements.copy_from_slice(wide);
            }

            fn combine(reduce: Reduce, sum: &mut [Self], elements: &[Self], _room: &mut [Self]) {
                combine!(reduce, sum, elements, $add);
            }

            fn divide(sum: Self, ranks: usize) -> Self {
                $divide(sum, ranks)
            }
        }
    )*};
}

/// Reduced as `f32`.
macro_rules! halves {
    ($($type:ty),*) => {$(
        impl Lane for $type {
            type Wide = f32;

            fn widen(elements: &[Self], wide: &mut [f32]) {
                elements.convert_to_f32_slice(wide);
            }

            fn narrow(wide: &[f32], elements: &mut [Self]) {
                elements.convert_from_f32_slice(wide);
            }

            fn combine(reduce: Reduce, sum: &mut [f32], elements: &[Self], room: &mut [f32]) {
                elements.convert_to_f32_slice(room);
                combine!(reduce, sum, &*room, |sum: f32, next: f32| sum + next);
            }

            fn divide(sum: f32, ranks: usize) -> f32 {
                sum / ranks as f32
            }
        }
    )*};
}

/// The sum of integers of any width, divided as the widest integer: the number of ranks may be none of this type.
macro_rules! integers {
    ($widest:ty: $($type:ty),*) => {
        plain! { $($type: <$type>::wrapping_add, |sum, ranks: usize| (sum as $widest / ranks as $widest) as $type;)* }
    };
}

integers!(u64: u8, u16, u32, u64);
integers!(i64: i8, i16, i32, i64);
plain! {
    f32: |sum: f32, next: f32| sum + next, |sum, ranks: usize| sum / ranks as f32;
    f64: |sum: f64, next: f64| sum + next, |sum, ranks: usize| sum / ranks as f64;
}
halves!(f16, bf16);

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of one element of each rank.
    fn reduced<T: Lane>(dtype: DType, reduce: Reduce, of: &[T]) -> T {
        let mut room: Block = [0; BLOCK / 8];
        block((dtype, reduce), of.len(), size_of::<T>(), &mut room, |rank, room| {
            bytemuck::cast_slice_mut(room)[0] = of[rank];
        });
        bytemuck::cast_slice(&room)[0]
    }

    #[test]
    fn every_type_is_reduced_as_documented() {
        fn check<T: Lane + PartialEq + fmt::Debug>(dtype: DType, of: [T; 3], expected: [T; 4]) {
            let found = Reduce::ALL.map(|reduce| reduced(dtype, reduce, &of));
            assert_eq!(found, expected, "{dtype}");
        }
        check(DType::U8, [250_u8, 10, 1], [5, 1, 1, 250]);
        check(DType::U16, [9_u16, 10, 2], [21, 7, 2, 10]);
        check(DType::U32, [9_u32, 10, 2], [21, 7, 2, 10]);
        check(DType::U64, [u64::MAX, 3, 6], [8, 2, 3, u64::MAX]);
        check(DType::I8, [-7_i8, 1, -1], [-7, -2, -7, 1]);
        check(DType::I16, [-7_i16, 1, -1], [-7, -2, -7, 1]);
        check(DType::I32, [i32::MAX, 1, 1], [i32::MIN + 1, (i32::MIN + 1) / 3, 1, i32::MAX]);
        check(DType::I64, [-7_i64, 1, -1], [-7, -2, -7, 1]);
        check(DType::F32, [0.5_f32, -1.0, 5.0], [4.5, 1.5, -1.0, 5.0]);
        check(DType::F64, [0.5_f64, -1.0, 5.0], [4.5, 1.5, -1.0, 5.0]);
        check(DType::F16, [0.5, -1.0, 5.0].map(f16::from_f32), [4.5, 1.5, -1.0, 5.0].map(f16::from_f32));
        check(DType::BF16, [0.5, -1.0, 5.0].map(bf16::from_f32), [4.5, 1.5, -1.0, 5.0].map(bf16::from_f32));
    }

    #[test]
    fn halves_are_rounded_once_and_not_after_each_rank() {
        // 256 + 1 is no bf16: rounded after each rank the sum would stay at 256.
        let of: Vec<_> = [256.0].into_iter().chain([1.0; 8]).map(bf16::from_f32).collect();
        assert_eq!(reduced(DType::BF16, Reduce::Sum, &of).to_f32(), 264.0);
    }

    #[test]
    fn floats_are_added_in_the_order_of_the_ranks() {
        // Any other order gives another sum.
        let of = [1e30_f32, -1e30, 1.0];
        assert_eq!(reduced(DType::F32, Reduce::Sum, &of), 1.0);
        assert_eq!(reduced(DType::F32, Reduce::Sum, &[of[2], of[0], of[1]]), 0.0);
    }

    #[test]
    fn not_a_number_of_any_rank_is_seen_and_the_first_of_equal_zeros_stays() {
        for reduce in [Reduce::Min, Reduce::Max] {
            for at in 0..3 {
                let mut of = [1.0_f64, 2.0, 3.0];
                of[at] = f64::NAN;
                assert!(reduced(DType::F64, reduce, &of).is_nan(), "{reduce} of {of:?}");
            }
            assert!(reduced(DType::F32, reduce, &[-0.0_f32, 0.0]).is_sign_negative());
        }
    }
}
