//! How a storage is to be made.

use std::sync::Arc;

use super::arena;
use super::segment::{Plan, Segment};
use super::storage::Storage;
use super::strategy::{SharingStrategy, get_sharing_strategy};
use crate::error::MemoryError;
use crate::sys::memfd;

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
/// use phalanx::{HugePages, StorageOptions, Tensor};
/// let storage = StorageOptions::new().huge_pages(HugePages::Preferred).prefault(true).zeros(4 << 20)?;
/// let tensor = Tensor::<f32>::from_storage(&storage, &[1024, 1024])?;
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct StorageOptions {
    strategy: Option<SharingStrategy>,
    huge: HugePages,
    prefault: bool,
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

    /// Makes a storage of `bytes` zeros.
    ///
    /// # Errors
    /// As [`Storage::new`], and [`MemoryError::NoHugePages`].
    pub fn zeros(self, bytes: usize) -> Result<Storage, MemoryError> {
        let storage = self.make(bytes)?;
        if self.prefault {
            storage.prefault()?;
        }
        Ok(storage)
    }

    fn make(self, bytes: usize) -> Result<Storage, MemoryError> {
        let strategy = self.strategy.unwrap_or_else(get_sharing_strategy);
        if bytes == 0 {
            return Ok(Storage::place(None, 0, 0, false));
        }
        if self.huge == HugePages::No && bytes <= arena::SMALL {
            let (segment, offset) = arena::carve(strategy, bytes)?;
            return Ok(Storage::place(Some(segment), offset, bytes, false));
        }
        let ordinary = || Segment::create(Plan { strategy, bytes, reserved: bytes, huge: false });
        let segment = match (self.huge, strategy) {
            (HugePages::No, _) => ordinary(),
            (HugePages::Preferred, SharingStrategy::FileDescriptor) => {
                in_huge_pages(bytes).or_else(|_| ordinary())
            }
            (HugePages::Preferred, SharingStrategy::FileSystem) => ordinary(),
            (HugePages::Required, _) => in_huge_pages(bytes),
        };
        Ok(Storage::place(Some(segment?), 0, bytes, false))
    }
}

fn in_huge_pages(asked: usize) -> Result<Arc<Segment>, MemoryError> {
    let none = MemoryError::NoHugePages { asked: asked as u64, page: 0, free: 0 };
    let page = memfd::huge_pages().and_then(|(page, _)| usize::try_from(page).ok()).filter(|&page| page > 0);
    let bytes = page.and_then(|page| asked.checked_next_multiple_of(page)).ok_or(none)?;
    Segment::create(Plan { strategy: SharingStrategy::FileDescriptor, bytes, reserved: bytes, huge: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_an_error_with_numbers_or_fall_back() {
        let options = StorageOptions::new().prefault(true);
        // More than can be reserved on any machine that runs this.
        let error = options.huge_pages(HugePages::Required).zeros(1 << 50).unwrap_err();
        assert!(matches!(error, MemoryError::NoHugePages { asked, .. } if asked == 1 << 50), "{error}");
        let storage = options.huge_pages(HugePages::Preferred).zeros(3 << 20).unwrap();
        assert_eq!(storage.len(), 3 << 20);
        let named = options.strategy(SharingStrategy::FileSystem).huge_pages(HugePages::Preferred);
        assert!(named.zeros(1 << 20).is_ok());
    }
}
