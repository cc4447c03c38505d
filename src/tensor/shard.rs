//! The exclusive parts of a tensor.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

use super::dyn_tensor::DynTensor;
use super::element::Number;
use super::layout::Layout;
use super::refused::Refused;
use super::typed::Tensor;
use crate::error::MemoryError;
use crate::memory::create::ask_first;
use crate::memory::storage::Storage;
use crate::sys::memory;
use crate::transfer::context::{self, Claim};
use crate::transfer::grant::{Cut, MAX_ALIGN};

/// A part of a tensor that only one process at a time can reach: it is there as `&mut [T]`, without `unsafe`.
///
/// [`Tensor::into_shards`] divides a tensor along its first dimension. A shard that is sent is gone from the sender:
/// using or sending it again is an error. Workers return their shards, and [`Tensor::from_shards`] puts them together.
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
    storage: Storage,
    cut: Cut,
    /// Whether it was sent.
    sent: Arc<AtomicBool>,
    /// The process that has it: a fork of that has a copy of this, but must not use it.
    owner: u32,
    elements: PhantomData<T>,
}

/// A shard that was put into a message. When this is dropped without having been kept, it can be used again.
#[derive(Debug)]
struct Claimed(Arc<AtomicBool>);

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
    fn new(storage: Storage, cut: Cut) -> Self {
        let (sent, owner) = (Arc::new(AtomicBool::new(false)), std::process::id());
        Self { storage, cut, sent, owner, elements: PhantomData }
    }

    /// Its shape: the tensor's, but for the first dimension.
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

    /// Which shard it is, from zero.
    #[must_use]
    pub fn index(&self) -> usize {
        self.cut.index
    }

    /// Into how many the tensor was divided.
    #[must_use]
    pub fn count(&self) -> usize {
        self.cut.of
    }

    /// A copy of its elements.
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

    /// Its elements, which nobody else can reach. It takes `&mut self`, also to read: a shard is sent by `&self`, and another
    /// process must not write to what is a slice here.
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

    fn check_here(&self) -> Result<(), MemoryError> {
        if self.owner != std::process::id() {
            self.gone("it belongs to the process of which this one is a fork")
        } else if self.sent.load(Relaxed) {
            self.gone("it was sent to another process")
        } else {
            Ok(())
        }
    }

    fn gone(&self, reason: &'static str) -> Result<(), MemoryError> {
        Err(MemoryError::ShardGone { index: self.cut.index, of: self.cut.of, reason })
    }

    /// Marks it as sent, which only one caller can.
    fn claim(&self) -> Result<Claimed, MemoryError> {
        self.check_here()?;
        if self.sent.swap(true, Relaxed) {
            self.gone("it was sent to another process")?;
        }
        Ok(Claimed(self.sent.clone()))
    }
}

impl<T: Number> Tensor<T> {
    /// Divides it along its first dimension into `n` shards, each of which one process can have for itself. They have
    /// as many rows each, but for one more in the first ones; with fewer rows than shards some are empty.
    ///
    /// It is not copied when this is its only handle, it was never sent anywhere, it can be written to, and its elements
    /// lie one after the other; else its elements are copied into memory of the shards' own, so that whoever has the old memory cannot
    /// reach them.
    ///
    /// # Errors
    /// [`MemoryError::CannotDivide`] when `n` is zero or the tensor has no dimension; [`MemoryError::NotEnough`] when there
    /// is not the memory for so many shards, each of which needs some 400 bytes of this process's own; as [`Tensor::zeros`] when it has
    /// to be copied.
    pub fn into_shards(self, n: usize) -> Result<Vec<Shard<T>>, MemoryError> {
        let refuse = |reason| MemoryError::CannotDivide { shape: self.shape().to_vec(), parts: n, reason };
        let rows = *self.shape().first().ok_or_else(|| refuse("it has no dimension"))?;
        if n == 0 {
            return Err(refuse("there must be at least one shard"));
        }
        // Asked for before they are made: the number may be any.
        let mut shards = room_for(n, self.shape().len())?;
        let whole = self.into_dyn().into_exclusive()?;
        let row_len = whole.len().checked_div(rows).unwrap_or(0) * size_of::<T>();
        let mut at = whole.storage().offset() + whole.offset() * size_of::<T>();
        shards.extend((0..n).map(|index| {
            let shape = [&[rows / n + usize::from(index < rows % n)], &whole.shape()[1..]].concat();
            let (from, len) = (at, shape[0] * row_len);
            at += len;
            let storage = Storage::place(whole.storage().segment().cloned(), from, len, false);
            // It is new: there is no other size yet.
            let _ = storage.claim_unit(size_of::<T>());
            Shard::new(storage, cut_of(&whole, shape, index, n))
        }));
        Ok(shards)
    }

    /// Puts all shards of a tensor together again, in whichever order they are. Nothing is copied.
    ///
    /// # Errors
    /// [`Refused`], with the shards as they were: [`MemoryError::NotAllShards`] when they are not all shards of one
    /// tensor, [`MemoryError::ShardGone`] when one was sent.
    pub fn from_shards(mut shards: Vec<Shard<T>>) -> Result<Self, Refused<Vec<Shard<T>>>> {
        shards.sort_by_key(Shard::index);
        let whole = match whole_of(&shards) {
            Ok(whole) => whole,
            Err(reason) => return Err(Refused::new(shards, reason)),
        };
        // Claimed, so that none can be used beside the tensor. (They are ours alone: nobody claims one meanwhile.)
        match shards.iter().try_for_each(|shard| shard.claim().map(|claim| Box::new(claim).keep())) {
            Ok(()) => Ok(Self::over(whole)),
            Err(reason) => Err(Refused::new(shards, reason)),
        }
    }
}

/// Room for as many shards of a tensor, if there is the memory for them.
fn room_for<T: Number>(shards: usize, dimensions: usize) -> Result<Vec<Shard<T>>, MemoryError> {
    // Its storage, its flag, its own shape and that of the whole lie elsewhere.
    let each = size_of::<Shard<T>>() + 256 + 2 * dimensions * size_of::<usize>();
    let too_many =
        MemoryError::TooMany { what: "shards of a tensor", asked: shards, most: usize::MAX / each };
    let asked = shards.checked_mul(each).ok_or(too_many)? as u64;
    ask_first(asked)?;
    let mut room = Vec::new();
    room.try_reserve_exact(shards)
        .map_err(|_| MemoryError::not_enough(asked, memory::available().as_ref()))?;
    Ok(room)
}

/// The tensor that these shards, in their order, make up.
fn whole_of<T: Number>(shards: &[Shard<T>]) -> Result<DynTensor, MemoryError> {
    let given = shards.len();
    let refuse = |reason: String| MemoryError::NotAllShards { given, reason };
    let first = shards.first().ok_or_else(|| refuse("there are none".to_owned()))?;
    let (cut, segment) = (&first.cut, shards.iter().find_map(|shard| shard.storage.segment().cloned()));
    let mut at = cut.whole_at();
    for (index, shard) in shards.iter().enumerate() {
        shard.check_here()?;
        let own = shard.storage.segment().map(Arc::as_ptr);
        let same_memory = own.is_none() || own == segment.as_ref().map(Arc::as_ptr);
        if !(same_memory && shard.cut.is_of_same(cut)) {
            return Err(refuse("they are not of one tensor".to_owned()));
        }
        if shard.cut.index != index || shard.storage.offset() != at {
            return Err(refuse(format!("shard {index} of {} is missing", cut.of)));
        }
        at += shard.storage.len();
    }
    if given != cut.of {
        return Err(refuse(format!("there are {} in all", cut.of)));
    }
    let store = (cut.store_offset, cut.store_len);
    let whole = Storage::checked(segment, store, MAX_ALIGN, false)
        .and_then(|storage| {
            DynTensor::within(&storage, cut.start * size_of::<T>(), T::DTYPE, &cut.whole_shape)
        })
        // A part of the storage that the shards do not fill would be no whole.
        .filter(|whole| at == cut.whole_at() + whole.len() * size_of::<T>());
    whole.ok_or_else(|| refuse("they do not fit their memory".to_owned()))
}

/// The shard of that number of a tensor.
fn cut_of(whole: &DynTensor, shape: Vec<usize>, index: usize, of: usize) -> Cut {
    let (store_offset, store_len) = (whole.storage().offset(), whole.storage().len());
    let (dtype, start, whole_shape) = (whole.dtype(), whole.offset(), whole.shape().to_vec());
    Cut { dtype, shape, index, of, store_offset, store_len, start, whole_shape }
}

/// What crosses to another process in the place of a shard.
#[derive(Debug, Serialize, Deserialize)]
struct Handle {
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
    use super::*;
    use crate::dtype::DType;
    use crate::encoding;

    fn shards(elements: usize, n: usize) -> Vec<Shard<i32>> {
        let values: Vec<_> = (0..elements as i32).collect();
        Tensor::from_slice(&values, &[elements]).unwrap().into_shards(n).unwrap()
    }

    #[test]
    fn shards_are_nearly_equal_and_make_up_the_whole_in_any_order() {
        let mut parts = shards(10, 4);
        assert_eq!(parts.iter().map(Shard::len).collect::<Vec<_>>(), [3, 3, 2, 2]);
        parts[3].as_mut_slice().unwrap()[1] = 90;
        parts.reverse();
        let whole = Tensor::from_shards(parts).unwrap();
        assert_eq!(whole.to_vec(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 90]);
        let few = shards(2, 5);
        assert_eq!(few.iter().map(Shard::len).collect::<Vec<_>>(), [1, 1, 0, 0, 0]);
        assert_eq!(Tensor::from_shards(few).unwrap().to_vec(), [0, 1]);
        let none = Tensor::<f64>::zeros(&[0, 3]).unwrap().into_shards(2).unwrap();
        assert_eq!(Tensor::from_shards(none).unwrap().shape(), [0, 3]);
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
    fn tensor_with_other_handles_is_copied_so_that_they_do_not_reach_the_shards() {
        let tensor = Tensor::<u8>::from_slice(&[1, 2, 3], &[3]).unwrap();
        let id = tensor.storage_id();
        let clone = tensor.clone();
        let mut parts = tensor.into_shards(1).unwrap();
        parts[0].as_mut_slice().unwrap()[0] = 9;
        assert_eq!(clone.to_vec(), [1, 2, 3]);
        let whole = Tensor::from_shards(parts).unwrap();
        let own = whole.storage_id();
        assert_ne!(own, id);
        // Whole again it is the only handle: no copy the second time.
        assert_eq!(Tensor::from_shards(whole.into_shards(2).unwrap()).unwrap().storage_id(), own);
        let view = clone.narrow(0, 1, 2).unwrap();
        drop(clone);
        assert_eq!(Tensor::from_shards(view.into_shards(2).unwrap()).unwrap().to_vec(), [2, 3]);
    }

    #[test]
    fn what_is_no_whole_is_refused() {
        let refused = |parts: Vec<Shard<i32>>| Tensor::from_shards(parts).unwrap_err().to_string();
        assert!(refused(Vec::new()).contains("there are none"));
        let mut some = shards(8, 4);
        some.remove(1);
        assert!(refused(some).contains("shard 1 of 4 is missing"));
        let mut short = shards(8, 4);
        short.pop();
        assert!(refused(short).contains("there are 4 in all"));
        let (mut one, mut other) = (shards(8, 2), shards(8, 2));
        one[1] = other.remove(1);
        assert!(refused(one).contains("not of one tensor"));
        assert!(Tensor::<i32>::zeros(&[]).unwrap().into_shards(1).is_err());
        assert!(Tensor::<i32>::zeros(&[4]).unwrap().into_shards(0).is_err());
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
