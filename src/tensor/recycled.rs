//! TensorPool: tensors whose memory is used again.

use std::fmt;

use super::element::Element;
use super::layout::Layout;
use super::typed::Tensor;
use crate::error::MemoryError;
use crate::memory::recycler::Recycler;

/// Makes tensors of memory that it has made before, once no process has it any more.
///
/// New shared memory costs a descriptor, a map and a page fault for each 4 KiB, in which the kernel clears the page: a quarter of the
/// time of a fast data pipeline. A loader that makes its batches by a pool pays for the first few only. Such a tensor is sent, received,
/// divided and dropped like any other, and the receivers need to know nothing of the pool. ([Freezing](Tensor::freeze) it copies it.)
///
/// The memory of a tensor can be used again when all that had it have dropped it or have ended, in this process and in all others,
/// and no message has it. The kernel knows that, so nothing is lost, and nothing is waited for, when a process is killed: where no memory
/// is free, new memory is made.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Options, Queue, Tensor, TensorPool, start_processes};
///
/// fn load(_rank: usize, batches: Queue<Tensor<f32>>) -> anyhow::Result<u64> {
///     let pool = TensorPool::new(8);
///     for number in 0..100 {
///         let batch = pool.tensor(&[64, 128])?;
///         batch.fill(number as f32)?; // here a real loader reads and decodes
///         batches.put(batch)?;
///     }
///     Ok(pool.made())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// let batches = Queue::bounded(4)?;
/// let loader = start_processes(load, batches.clone(), Options::new(1))?;
/// for number in 0..100 {
///     let batch = batches.get()?;
///     assert_eq!(batch.get(5)?, number as f32);
/// } // the batch is dropped, and the loader can use its memory again
/// let made = loader.join()?[0];
/// assert!(made <= 8, "memory was made {made} times for 100 batches");
/// # Ok(())
/// # }
/// ```
///
/// It belongs to the process that has made it: each loader makes its own. Its memory is made by the process's [sharing
/// strategy](crate::set_sharing_strategy), and goes when pool and tensors are dropped. In a process that forks workers
/// ([`StartMethod::Fork`](crate::StartMethod::Fork)) memory from before a fork is not used again, since the worker has it mapped too.
pub struct TensorPool(Recycler);

impl TensorPool {
    /// A pool that keeps the memory of at most `most` tensors: of those that are on their way or in use at a time. Each costs a
    /// descriptor. What is beyond that is memory like any other.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self(Recycler::new(most))
    }

    /// A tensor whose elements are whatever its memory had before: of an earlier tensor of the pool, or zeros.
    ///
    /// Memory is used again for tensors that need at least half of it.
    ///
    /// ```
    /// use phalanx::TensorPool;
    ///
    /// let pool = TensorPool::new(2);
    /// let first = pool.tensor::<i64>(&[3])?.storage_id();
    /// assert_eq!(pool.tensor::<u64>(&[3])?.storage_id(), first);
    /// assert_eq!((pool.made(), pool.kept()), (1, 1));
    /// # Ok::<(), phalanx::MemoryError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    pub fn tensor<T: Element>(&self, shape: &[usize]) -> Result<Tensor<T>, MemoryError> {
        let too_large = || MemoryError::TooLarge { shape: shape.to_vec(), element: size_of::<T>() };
        let elements = Layout::row_major(shape).ok_or_else(too_large)?.len();
        let bytes = elements.checked_mul(size_of::<T>()).ok_or_else(too_large)?;
        let storage = self.0.storage(bytes).map_err(|error| error.of_tensor(T::DTYPE, shape))?;
        Tensor::from_storage(&storage, shape)
    }

    /// How often memory was made.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.0.made()
    }

    /// How many pieces of memory it keeps, in use or not.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.0.kept()
    }
}

impl fmt::Debug for TensorPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorPool").field("kept", &self.kept()).field("made", &self.made()).finish()
    }
}
