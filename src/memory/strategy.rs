//! How memory is made that other processes can map, and the process's choice of it.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::MemoryError;

/// How the memory of new storages is made. A storage keeps to the way in which it was made.
///
/// ```
/// use phalanx::SharingStrategy;
/// assert_eq!("file_system".parse::<SharingStrategy>()?, SharingStrategy::FileSystem);
/// let error = "files".parse::<SharingStrategy>().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "there is no sharing strategy \"files\": the valid ones are file_descriptor, file_system"
/// );
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SharingStrategy {
    /// A memfd: memory without a name, which is gone with its last holder, however that ends. Each storage of more
    /// than 256 KiB keeps a descriptor in every process that has it; smaller ones share a few.
    #[default]
    FileDescriptor,
    /// A file below `/dev/shm`, or the directory of [`set_sharing_directory`](super::named::set_sharing_directory): no storage made so keeps a descriptor.
    /// Names are gone with their holders; those of a launcher that ended without its exit handlers (a signal, abort)
    /// stay, with their memory, until a process of the same user next begins to use this strategy there.
    FileSystem,
}

impl SharingStrategy {
    const ALL: [Self; 2] = [Self::FileDescriptor, Self::FileSystem];

    /// Its name, as torch has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FileDescriptor => "file_descriptor",
            Self::FileSystem => "file_system",
        }
    }
}

impl fmt::Display for SharingStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SharingStrategy {
    type Err = MemoryError;

    fn from_str(name: &str) -> Result<Self, MemoryError> {
        Self::ALL.into_iter().find(|strategy| strategy.name() == name).ok_or_else(|| {
            MemoryError::UnknownStrategy { name: name.to_owned(), valid: Self::ALL.map(Self::name).to_vec() }
        })
    }
}

static CHOSEN: AtomicU8 = AtomicU8::new(SharingStrategy::FileDescriptor as u8);
static DIRECTORY: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Chooses how new storages of this process are made. Workers start with their launcher's choice.
///
/// ```
/// use phalanx::{SharingStrategy, Tensor, get_sharing_strategy, set_sharing_strategy};
/// set_sharing_strategy(SharingStrategy::FileSystem);
/// assert_eq!(get_sharing_strategy(), SharingStrategy::FileSystem);
/// let named = Tensor::<f32>::zeros(&[1000])?;
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
pub fn set_sharing_strategy(strategy: SharingStrategy) {
    CHOSEN.store(strategy as u8, Relaxed);
}

/// How new storages of this process are made.
#[must_use]
pub fn get_sharing_strategy() -> SharingStrategy {
    let chosen = CHOSEN.load(Relaxed);
    SharingStrategy::ALL.into_iter().find(|&strategy| strategy as u8 == chosen).unwrap_or_default()
}

/// All strategies, the default first.
#[must_use]
pub fn get_all_sharing_strategies() -> &'static [SharingStrategy] {
    &SharingStrategy::ALL
}

/// Where [`SharingStrategy::FileSystem`] makes its files.
#[must_use]
pub fn get_sharing_directory() -> PathBuf {
    let chosen = DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner);
    chosen.clone().unwrap_or_else(|| PathBuf::from("/dev/shm"))
}

pub(super) fn choose_directory(path: PathBuf) {
    *DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
}

/// What a worker takes over of its launcher's choices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Choice {
    strategy: SharingStrategy,
    /// The path, which need not be UTF-8.
    directory: Vec<u8>,
}

impl Choice {
    pub(crate) fn of_this_process() -> Self {
        Self {
            strategy: get_sharing_strategy(),
            directory: get_sharing_directory().into_os_string().into_vec(),
        }
    }

    pub(crate) fn take_on(self) {
        set_sharing_strategy(self.strategy);
        choose_directory(OsString::from_vec(self.directory).into());
    }
}
