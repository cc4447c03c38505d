//! StorageOptions: the strategy, page size and prefault of a storage that is to be made.

use super::strategy::SharingStrategy;

/// Whether memory is in huge pages (of 2 MiB on most machines), with which the processor misses its TLB less often in large
/// tensors. The machine must have reserved some (/proc/sys/vm/nr_hugepages).
///
/// ```
/// use phalanx::shm::{HugePages, StorageOptions};
/// let storage = StorageOptions::new().huge_pages(HugePages::Preferred).zeros(4 << 20)?;
/// assert_eq!(storage.len(), 4 << 20);
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HugePages {
    /// In ordinary pages (4 KiB on x86-64). A storage of up to 256 KiB shares its segment with others only in this case.
    #[default]
    No,
    /// In huge pages where there are enough free ones (and the strategy is
    /// [`FileDescriptor`](SharingStrategy::FileDescriptor)), else in ordinary ones.
    Preferred,
    /// In huge pages, or not at all: [`MemoryError::NoHugePages`](crate::MemoryError::NoHugePages). Always in a memfd, whatever the strategy.
    Required,
}

/// The options with which a storage is made.
///
/// ```
/// use phalanx::shm::{HugePages, StorageOptions};
/// use phalanx::Tensor;
/// let storage = StorageOptions::new().huge_pages(HugePages::Preferred).prefault(true).zeros(4 << 20)?;
/// let tensor = Tensor::<f32>::from_storage(&storage, &[1024, 1024])?;
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct StorageOptions {
    pub(super) strategy: Option<SharingStrategy>,
    pub(super) huge: HugePages,
    pub(super) prefault: bool,
}

impl StorageOptions {
    /// Ordinary pages, not prefaulted, by the process's sharing strategy.
    pub fn new() -> Self {
        Self::default()
    }

    /// The strategy of this storage, instead of the process's.
    pub fn strategy(mut self, strategy: SharingStrategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// Whether it is in huge pages. Its memory is rounded up to whole pages.
    pub fn huge_pages(mut self, huge: HugePages) -> Self {
        self.huge = huge;
        self
    }

    /// Whether its pages are mapped in this process at once, so that later accesses cause no page faults. A process that
    /// receives the storage can do the same by [`Storage::prefault`](crate::Storage::prefault).
    pub fn prefault(mut self, prefault: bool) -> Self {
        self.prefault = prefault;
        self
    }
}
