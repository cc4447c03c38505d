//! Shard: an exclusive part of a tensor.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

use super::element::Number;
use super::layout::Layout;
use crate::error::MemoryError;
use crate::memory::storage::Storage;
use crate::sys::forks::Here;
use crate::transfer::attachments::Claim;
use crate::transfer::context;
use crate::transfer::grant::Cut;

/// A part of a tensor that only one process at a time can reach, so that it is a `&mut [T]` without `unsafe`.
///
/// [`Tensor::into_shards`](crate::Tensor::into_shards) divides a tensor along its first dimension. A shard that is sent is gone from the sender:
/// using or sending it again is an error. Workers return their shards, and [`Tensor::from_shards`](crate::Tensor::from_shards) puts them together.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Options, Shard, Tensor, start_processes_with};
///
/// fn fill(rank: usize, mut rows: Shard<f32>) -> anyhow::Result<Shard<f32>> {
///     rows.as_mut_slice()?.fill(rank as f32);
///     Ok(rows)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let mut shards = Tensor::<f32>::zeros(&[4, 2])?.into_shards(2)?.into_iter();
/// let context = start_processes_with(fill, |_| shards.next().expect("one a rank"), Options::new(2))?;
/// let tensor = Tensor::from_shards(context.join()?)?;
/// assert_eq!(tensor.to_vec(), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
/// # Ok(())
/// # }
/// ```
///
/// A shard whose worker fails is lost. To keep the others use
/// [`ProcessContext::join_timeout`](crate::ProcessContext::join_timeout) and
/// [`result`](crate::ProcessContext::result): [`join`](crate::ProcessContext::join) drops them with the context.
pub struct Shard<T: Number> {
    /// The shard's own bytes.
    pub(super) storage: Storage,
    /// Which part of which tensor it is.
    pub(super) cut: Cut,
    /// Whether the shard was sent. The message has it, too, and takes it back if it is dropped without being delivered.
    sent: Arc<AtomicBool>,
    /// The process that has the shard: a fork of that process has a copy of this record, but must not use it.
    owner: Here,
    /// The type of the elements.
    elements: PhantomData<T>,
}

/// A shard that was put into a message. When this is dropped without having been kept, it can be used again.
#[derive(Debug)]
pub(super) struct Claimed(Arc<AtomicBool>);

impl Claim for Claimed {
    fn noun(&self) -> &'static str {
        "shard"
    }

    fn keep(self: Box<Self>) {
        std::mem::forget(*self);
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

impl<T: Number> fmt::Debug for Shard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { storage, cut, sent, owner: _, elements: _ } = self;
        let mut shown = f.debug_struct("Shard");
        shown.field("index", &cut.index).field("count", &cut.of).field("shape", &cut.shape);
        shown.field("sent", &sent.load(Relaxed)).field("storage", storage).finish()
    }
}

impl<T: Number> Shard<T> {
    pub(super) fn new(storage: Storage, cut: Cut) -> Self {
        let (sent, owner) = (Arc::new(AtomicBool::new(false)), Here::now());
        Self { storage, cut, sent, owner, elements: PhantomData }
    }

    /// The number of elements along each dimension: as the tensor's, but for the first dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.cut.shape
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.storage.len() / size_of::<T>()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.storage.is_empty()
    }

    /// The number of this shard, from zero on: the first one has the tensor's first rows.
    #[must_use]
    pub fn index(&self) -> usize {
        self.cut.index
    }

    /// The number of shards that the tensor was divided into.
    #[must_use]
    pub fn count(&self) -> usize {
        self.cut.of
    }

    /// A copy of its elements, in row-major order.
    ///
    /// ```
    /// use phalanx::Tensor;
    /// let shards = Tensor::from_slice(&[1, 2, 3], &[3])?.into_shards(2)?;
    /// assert_eq!((shards[0].to_vec()?, shards[1].to_vec()?), (vec![1, 2], vec![3]));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`as_mut_slice`](Self::as_mut_slice).
    pub fn to_vec(&self) -> Result<Vec<T>, MemoryError> {
        self.check_here()?;
        let mut elements = vec![T::zeroed(); self.len()];
        if let Some((map, at)) = self.storage.bytes() {
            T::load_all(map, at, &mut elements);
        }
        Ok(elements)
    }

    /// Its elements in row-major order, which no other process can reach. The method takes `&mut self`, also to read: a shard is sent by
    /// `&self`, and another process must not write to what is a slice here.
    ///
    /// ```
    /// use phalanx::Tensor;
    ///
    /// let mut shards = Tensor::<i64>::zeros(&[4])?.into_shards(2)?;
    /// shards[1].as_mut_slice()?.copy_from_slice(&[5, 6]);
    /// assert_eq!(Tensor::from_shards(shards)?.to_vec(), [0, 0, 5, 6]);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`MemoryError::ShardGone`] when it was sent, or in a fork of the process that has it.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], MemoryError> {
        self.check_here()?;
        let Some((map, at)) = self.storage.bytes() else { return Ok(&mut []) };
        let start = map.at(at, self.storage.len(), align_of::<T>());
        let len = self.len();
        #[expect(unsafe_code, reason = "what is exclusive may be a slice; this file keeps it so")]
        // SAFETY: `at` checked bounds and alignment; every pattern of bits is a `Number`. Nobody else reaches these
        // bytes: they were divided from a tensor that had no other handle anywhere, each part is granted to one process
        // at a time (`transfer::context`), a sent shard and one in a fork are refused above, and `self` is borrowed.
        Ok(unsafe { std::slice::from_raw_parts_mut(start.cast::<T>(), len) })
    }

    /// Refuses a shard that this process does not have, by [`MemoryError::ShardGone`].
    pub(super) fn check_here(&self) -> Result<(), MemoryError> {
        if !self.owner.is_now() {
            self.gone("it belongs to the process of which this one is a fork")
        } else if self.sent.load(Relaxed) {
            self.gone("it was sent to another process")
        } else {
            Ok(())
        }
    }

    /// The error of a shard that is elsewhere.
    fn gone(&self, reason: &'static str) -> Result<(), MemoryError> {
        Err(MemoryError::ShardGone { index: self.cut.index, of: self.cut.of, reason })
    }

    /// Marks the shard as sent, which only one caller can until the claim is dropped.
    ///
    /// # Errors
    /// [`MemoryError::ShardGone`].
    pub(super) fn claim(&self) -> Result<Claimed, MemoryError> {
        self.check_here()?;
        if self.sent.swap(true, Relaxed) {
            self.gone("it was sent to another process")?;
        }
        Ok(Claimed(self.sent.clone()))
    }
}

/// What crosses to another process in the place of a shard.
#[derive(Debug, Serialize, Deserialize)]
struct Handle {
    /// The number of the message's grant, which gives the shard to its receiver.
    grant: u32,
}

impl<T: Number> Serialize for Shard<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let claim = self.claim().map_err(ser::Error::custom)?;
        let grant =
            context::send_shard(&self.storage, claim, self.cut.clone()).map_err(ser::Error::custom)?;
        Handle { grant }.serialize(serializer)
    }
}

impl<'de, T: Number> Deserialize<'de> for Shard<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        context::check_receiving().map_err(D::Error::custom)?;
        let Handle { grant } = Handle::deserialize(deserializer)?;
        let (cut, storage) = context::receive_shard(grant).map_err(D::Error::custom)?;
        let found = cut.dtype;
        if found != T::DTYPE {
            let expected = T::DTYPE;
            return Err(D::Error::custom(MemoryError::WrongType { found, expected }.to_string()));
        }
        let len = Layout::row_major(&cut.shape).and_then(|layout| layout.len().checked_mul(size_of::<T>()));
        if len != Some(storage.len()) || !storage.is_writable() {
            return Err(D::Error::custom(format!(
                "a shard of shape {:?} does not fit its memory",
                cut.shape
            )));
        }
        Ok(Self::new(storage, cut))
    }
}

#[cfg(test)]
mod tests {
    use super::super::typed::Tensor;
    use super::*;
    use crate::dtype::DType;
    use crate::encoding;

    fn shards(elements: usize, n: usize) -> Vec<Shard<i32>> {
        let values: Vec<_> = (0..elements as i32).collect();
        Tensor::from_slice(&values, &[elements]).unwrap().into_shards(n).unwrap()
    }

    #[test]
    fn shard_that_was_sent_cannot_be_read() {
        let parts = shards(4, 2);
        assert_eq!(parts[1].to_vec().unwrap(), [2, 3]);
        let claim = parts[1].claim().unwrap();
        assert!(matches!(parts[1].to_vec(), Err(MemoryError::ShardGone { .. })));
        drop(claim);
        assert_eq!(parts[1].to_vec().unwrap(), [2, 3]);
    }

    #[test]
    fn shard_is_sent_once_and_taken_once() {
        let mut parts = shards(8, 2);
        let encode = |part: &Shard<i32>| context::collect(|| encoding::write(part));
        let (bytes, mut attachments) = encode(&parts[0]);
        assert!(encode(&parts[0]).0.is_err());
        assert!(parts[0].as_mut_slice().unwrap_err().to_string().contains("was sent"));
        let bytes = bytes.unwrap();
        let read = || encoding::read::<Shard<i32>>(&bytes);
        let (taken, rest) = context::provide(context::arrive(&attachments), read);
        assert_eq!(taken.unwrap().as_mut_slice().unwrap(), [0, 1, 2, 3]);
        assert!(context::provide(rest, read).0.is_err());
        attachments.deliver();
        drop(attachments);
        assert!(parts[0].as_mut_slice().is_err());
        // What was not delivered comes back.
        drop(encode(&parts[1]));
        assert_eq!(parts[1].as_mut_slice().unwrap(), [4, 5, 6, 7]);
        assert!(serde_json::to_string(&parts[1]).unwrap_err().to_string().contains("beside the bytes"));
        assert!(parts[1].as_mut_slice().is_ok());
    }

    #[test]
    fn a_tensor_cannot_be_made_of_a_shards_grant_nor_a_shard_of_a_tensors() {
        let tensor = Tensor::<i32>::zeros(&[2]).unwrap();
        let part = shards(2, 1).remove(0);
        let (_, attachments) = context::collect(|| encoding::write(&(&tensor, &part)).unwrap());
        let bytes = (
            encoding::write(&(0_u32,)).unwrap(),
            encoding::write(&(1_u32, DType::I32, [2_usize], (), 0_usize)).unwrap(),
        );
        let read = || (encoding::read::<Shard<i32>>(&bytes.0), encoding::read::<Tensor<i32>>(&bytes.1));
        let (as_shard, as_tensor) = context::provide(context::arrive(&attachments), read).0;
        assert!(as_shard.unwrap_err().to_string().contains("grant 0 is no shard's"));
        assert!(as_tensor.unwrap_err().to_string().contains("grant 1 is a shard's"));
    }
}
