//! `Value` and `Array`: numbers that processes share.

use std::fmt;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::atomic::fence;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::MemoryError;
use crate::tensor::element::{Element, Number};
use crate::tensor::typed::Tensor;

/// One number, or a `bool`, that processes share: Python's `multiprocessing.Value`, without a lock.
///
/// Every access is atomic, and orders memory: what a process did before it changed the value is seen by another that
/// reads what it put there (release and acquire). Several changes that belong together need a [`Lock`](super::Lock). It
/// is a [`Tensor`] of one element, and travels as it. Clones, and what arrives in another process, are the same value.
/// It is `Send` and `Sync`. Python's `v.value += 1` is two steps; [`fetch_add`](Self::fetch_add) is one.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::sync::Value;
///
/// fn work(rank: usize, (sum, highest): (Value<u64>, Value<f32>)) -> anyhow::Result<()> {
///     sum.fetch_add(rank as u64);
///     let own = rank as f32 / 2.0;
///     let _ = highest.fetch_update(|seen| (seen < own).then_some(own));
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let (sum, highest) = (Value::new(0)?, Value::new(-1.0)?);
/// phalanx::spawn(work, (sum.clone(), highest.clone()), 4)?;
/// assert_eq!((sum.get(), highest.get()), (6, 1.5));
/// # Ok(())
/// # }
/// ```
///
/// # When a process dies
///
/// Each access is one instruction of the processor, or a loop around one, and no process owns the value meanwhile. So
/// none waits for another, and a process that is killed leaves the value as it was before its change or after it.
#[derive(Clone, Serialize)]
#[serde(transparent, bound = "")]
pub struct Value<T: Element> {
    /// Of one element, which can be written.
    tensor: Tensor<T>,
}

impl<T: Element> Value<T> {
    /// Makes a shared value that is `value` at first.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no shared memory for it.
    pub fn new(value: T) -> Result<Self, MemoryError> {
        // A tensor, not a record of atomics: an element of any type is changed in one step by what tensors have for
        // that.
        Ok(Self { tensor: Tensor::from_slice(&[value], &[1])? })
    }

    /// What it is now. The caller sees what another process had written before it put that value there.
    #[must_use]
    #[inline]
    pub fn get(&self) -> T {
        // The access is relaxed, as all of a tensor's; the fence after it orders what this thread reads next.
        let value = one(self.tensor.get(0));
        fence(Acquire);
        value
    }

    /// Sets it. A change of another process between a [`get`](Self::get) and this is overwritten: see
    /// [`fetch_update`](Self::fetch_update).
    #[inline]
    pub fn set(&self, value: T) {
        // Before the store: what this thread wrote earlier is seen by whoever reads the value and has a fence after
        // that.
        fence(Release);
        one(self.tensor.set(0, value));
    }

    /// Sets it in one step, and returns what it was.
    ///
    /// ```
    /// let value = phalanx::sync::Value::new(1_u8)?;
    /// assert_eq!((value.swap(2), value.get()), (1, 2));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    #[inline]
    pub fn swap(&self, value: T) -> T {
        ordered(|| one(self.tensor.swap(0, value)))
    }

    /// Sets it to `new` in one step if it is `current`, and returns what it was. Floats are compared bit by bit: `0.0`
    /// is not `-0.0`.
    ///
    /// ```
    /// let value = phalanx::sync::Value::new(1.5_f64)?;
    /// assert_eq!(value.compare_exchange(1.5, 2.0), Ok(1.5));
    /// assert_eq!(value.compare_exchange(1.5, 3.0), Err(2.0));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// What it is, when that is not `current`; it is then unchanged.
    #[inline]
    pub fn compare_exchange(&self, current: T, new: T) -> Result<T, T> {
        // By bits: with `==` a NaN would never be its own `current`, and `fetch_update` would try for ever. An exchange
        // that fails has read, and the fence behind it orders that read too.
        ordered(|| one(self.tensor.compare_exchange(0, current, new)))
    }

    /// Sets it to what `update` makes of it, and returns what it was. `update` runs again with the new value each time
    /// that another process has changed it meanwhile.
    ///
    /// ```
    /// let value = phalanx::sync::Value::new(9_u8)?;
    /// let next = |seen: u8| (seen < 10).then_some(seen + 1);
    /// assert_eq!((value.fetch_update(next), value.fetch_update(next)), (Ok(9), Err(10)));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// What it is, when `update` returned `None`; it is then unchanged.
    pub fn fetch_update(&self, mut update: impl FnMut(T) -> Option<T>) -> Result<T, T> {
        // Not a step of its own: between a look and the exchange others may come, and a value that has come back is as
        // good as before.
        let mut seen = self.get();
        while let Some(new) = update(seen) {
            match self.compare_exchange(seen, new) {
                Ok(was) => return Ok(was),
                Err(now) => seen = now,
            }
        }
        Err(seen)
    }
}

impl<T: Number> Value<T> {
    /// Adds to it, so that no addition of another process is lost; returns what it was. Integers wrap around.
    #[inline]
    pub fn fetch_add(&self, value: T) -> T {
        ordered(|| one(self.tensor.fetch_add(0, value)))
    }
}

/// What became of an access to the one element, which is there and can be written, as was checked when the value was
/// made or arrived.
#[inline]
fn one<R>(accessed: Result<R, MemoryError>) -> R {
    // An error here would be a bug of this file, and every access would have to return it to a caller that can do
    // nothing about it.
    accessed.expect("a value has one element, which can be written")
}

/// Around a relaxed access that reads and writes.
#[inline]
fn ordered<R>(access: impl FnOnce() -> R) -> R {
    // The access is a tensor's, and relaxed. Fences around it order as its own Release and Acquire would, together with
    // those around another process's access to the same element.
    fence(Release);
    let result = access();
    fence(Acquire);
    result
}

impl<T: Element> fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Value").field(&self.get()).finish()
    }
}

impl<'de, T: Element> Deserialize<'de> for Value<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // It travels as a tensor, with no mark of its own: what somebody sends as a tensor of one element is a value as
        // well.
        let tensor = Tensor::<T>::deserialize(deserializer)?;
        // Checked here, once: each access relies on it (`one`).
        if tensor.len() != 1 || !tensor.storage().is_writable() {
            return Err(D::Error::custom(format!("{tensor:?} arrived where a value was expected")));
        }
        Ok(Self { tensor })
    }
}

/// A fixed number of numbers, or of `bool`, that processes share: Python's `multiprocessing.Array`, without a lock.
///
/// Every access to an element is atomic but says nothing of the order of several, as with the [`Tensor`] of one
/// dimension that it is: a [`Lock`](super::Lock), an [`Event`](super::Event), a [`Barrier`](super::Barrier), a
/// [`Value`] and the like order what is done before and after. Clones, and what arrives in another process, are the
/// same array.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::sync::Array;
///
/// fn work(rank: usize, counts: Array<i32>) -> anyhow::Result<()> {
///     counts.fetch_add(rank % 2, 1)?;
///     Ok(())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let counts = Array::zeros(2)?;
/// phalanx::spawn(work, counts.clone(), 5)?;
/// assert_eq!(counts.to_vec(), [3, 2]);
/// # Ok(())
/// # }
/// ```
///
/// A process that dies leaves each element as it was before its change or after it; of several elements it may have
/// changed only some.
#[derive(Clone, Serialize)]
#[serde(transparent, bound = "")]
pub struct Array<T: Element> {
    /// Of one dimension.
    tensor: Tensor<T>,
}

impl<T: Element> Array<T> {
    /// An array of `len` zeros.
    ///
    /// # Errors
    /// [`MemoryError`] when there is no shared memory for it.
    pub fn zeros(len: usize) -> Result<Self, MemoryError> {
        Ok(Self { tensor: Tensor::zeros(&[len])? })
    }

    /// An array with a copy of `elements`.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn from_slice(elements: &[T]) -> Result<Self, MemoryError> {
        Ok(Self { tensor: Tensor::from_slice(elements, &[elements.len()])? })
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensor.len()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensor.is_empty()
    }

    /// The element at `index`: Python's `a[index]`, from 0 on.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when there is no such element.
    #[inline]
    pub fn get(&self, index: usize) -> Result<T, MemoryError> {
        self.tensor.get(index)
    }

    /// Sets the element at `index`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when there is no such element, [`MemoryError::ReadOnly`] when the memory has been
    /// frozen.
    #[inline]
    pub fn set(&self, index: usize, value: T) -> Result<(), MemoryError> {
        self.tensor.set(index, value)
    }

    /// A copy of all elements: Python's `a[:]`. Elements that others change meanwhile are old or new, each for itself.
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        self.tensor.to_vec()
    }

    /// Copies `elements` over all elements.
    ///
    /// ```
    /// let array = phalanx::sync::Array::zeros(3)?;
    /// array.write(&[1, 2, 3])?;
    /// assert_eq!(array.to_vec(), [1, 2, 3]);
    /// assert!(array.write(&[1, 2]).is_err());
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`] when `elements` are not as many as the array has, [`MemoryError::ReadOnly`] when
    /// the memory has been frozen.
    pub fn write(&self, elements: &[T]) -> Result<(), MemoryError> {
        self.tensor.write_from(elements)
    }

    /// The same memory as a tensor of one dimension.
    ///
    /// ```
    /// let array = phalanx::sync::Array::from_slice(&[1.0_f32, 2.0])?;
    /// array.as_tensor().set(0, 5.0)?;
    /// assert_eq!(array.get(0)?, 5.0);
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    #[must_use]
    pub fn as_tensor(&self) -> &Tensor<T> {
        &self.tensor
    }
}

impl<T: Number> Array<T> {
    /// Adds to the element at `index` in one step, so that no addition of another process is lost, and returns what was
    /// there. Integers wrap around.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    #[inline]
    pub fn fetch_add(&self, index: usize, value: T) -> Result<T, MemoryError> {
        self.tensor.fetch_add(index, value)
    }
}

impl<T: Element> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Array").field(&self.tensor).finish()
    }
}

impl<'de, T: Element> Deserialize<'de> for Array<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tensor = Tensor::<T>::deserialize(deserializer)?;
        // Frozen memory is fine: an array refuses a write by an error, unlike a value.
        if tensor.shape().len() != 1 {
            return Err(D::Error::custom(format!("{tensor:?} arrived where an array was expected")));
        }
        Ok(Self { tensor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding;
    use crate::transfer::context;

    #[test]
    fn value_is_changed_in_one_step() {
        let value = Value::new(1_i16).unwrap();
        assert_eq!((value.fetch_add(-3), value.swap(7)), (1, -2));
        assert_eq!((value.compare_exchange(6, 8), value.compare_exchange(7, 8)), (Err(7), Ok(7)));
        assert_eq!(value.fetch_update(|seen| (seen < 8).then_some(0)), Err(8));
        let other = value.clone();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| _ = value.fetch_update(|seen| Some(seen + 1))));
            }
        });
        assert_eq!(other.get(), 2008);
        let flag = Value::new(false).unwrap();
        assert_eq!((flag.compare_exchange(true, false), flag.swap(true)), (Err(false), false));
        assert_eq!((flag.compare_exchange(true, false), flag.get()), (Ok(true), false));
        let float = Value::new(-0.0_f64).unwrap();
        assert!(float.compare_exchange(0.0, 1.0).is_err() && float.compare_exchange(-0.0, 1.0).is_ok());
    }

    #[test]
    fn what_is_no_value_is_refused() {
        let pass = |tensor: &Tensor<u8>| {
            let (bytes, attachments) = context::collect(|| encoding::write(tensor).unwrap());
            let receive = || encoding::read::<Value<u8>>(&bytes).is_ok();
            let value = context::provide(context::arrive(&attachments), receive).0;
            let receive = || encoding::read::<Array<u8>>(&bytes).is_ok();
            (value, context::provide(context::arrive(&attachments), receive).0)
        };
        assert_eq!(pass(&Tensor::zeros(&[1]).unwrap()), (true, true));
        assert_eq!(pass(&Tensor::zeros(&[2]).unwrap()), (false, true));
        assert_eq!(pass(&Tensor::zeros(&[1, 1]).unwrap()), (true, false));
        let frozen = Tensor::<u8>::zeros(&[1]).unwrap().freeze().unwrap();
        assert_eq!(pass(&frozen.to_tensor()), (false, true));
    }

    #[test]
    fn array_has_a_fixed_length() {
        let array = Array::from_slice(&[1.5_f32, 2.5]).unwrap();
        assert_eq!(array.fetch_add(1, 1.0).unwrap(), 2.5);
        assert!(array.get(2).is_err() && array.set(2, 0.0).is_err() && array.write(&[1.0]).is_err());
        array.as_tensor().set(0, 0.0).unwrap();
        assert_eq!((array.to_vec(), array.len(), array.is_empty()), (vec![0.0, 3.5], 2, false));
        array.write(&[1.0, 2.0]).unwrap();
        assert_eq!(array.to_vec(), [1.0, 2.0]);
    }
}
