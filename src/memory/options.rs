//! How a storage is to be made.

#[cfg(doc)]
use super::storage::Storage;
use super::strategy::SharingStrategy;
#[cfg(doc)]
use crate::MemoryError;

/// Whether memory is in huge pages, which spare the processor page-table walks in large tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HugePages {
    /// In ordinary pages.
    #[default]
    No,
    /// In huge pages where there are enough free ones (and the strategy is
    /// [`FileDescriptor`](SharingStrategy::FileDescriptor)), else in ordinary ones.
    Preferred,
    /// In huge pages, or not at all: [`MemoryError::NoHugePages`]. Always in a memfd, whatever the strategy.
    Required,
}

/// How a storage is to be made.
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
    /// Ordinary pages, by the process's sharing strategy.
    pub fn new() -> Self {
        Self::default()
    }

    /// How this storage is shared, whatever the process's strategy.
    pub fn strategy(mut self, strategy: SharingStrategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// Whether it is in huge pages, whole ones: its memory is rounded up to them.
    pub fn huge_pages(mut self, huge: HugePages) -> Self {
        self.huge = huge;
        self
    }

    /// Whether the page tables are filled in at once, so that no later access of this process has to. A process that
    /// receives the storage can do the same by [`Storage::prefault`].
    pub fn prefault(mut self, prefault: bool) -> Self {
        self.prefault = prefault;
        self
    }
}
