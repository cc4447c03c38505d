//! SharingStrategy: memfds or named files; and which of them this process uses.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::MemoryError;

/// How the memory of new storages is made: as a memfd or as a named file. It does not change for a storage that exists.
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
    /// A memfd: memory without a name, which the kernel frees with its last holder, however that ends. Each storage of more
    /// than 256 KiB keeps a descriptor open in every process that has it; smaller ones share a few.
    #[default]
    FileDescriptor,
    /// A file below `/dev/shm`, or the directory of [`set_sharing_directory`](super::named::set_sharing_directory): such a storage keeps no
    /// descriptor open. Names are removed with their holders; those of a launcher that ended without its exit handlers (a
    /// signal, abort) stay, with their memory, until a process of the same user next begins to use this strategy there.
    FileSystem,
}

impl SharingStrategy {
    const ALL: [Self; 2] = [Self::FileDescriptor, Self::FileSystem];

    /// Its name, the one that torch uses.
    ///
    /// ```
    /// assert_eq!(phalanx::SharingStrategy::FileDescriptor.name(), "file_descriptor");
    /// ```
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

/// This process's strategy, as a number.
static CHOSEN: AtomicU8 = AtomicU8::new(SharingStrategy::FileDescriptor as u8);
/// This process's directory for named memory; `None`: `/dev/shm`.
static DIRECTORY: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Chooses the strategy of this process's new storages. Storages that exist keep theirs, and workers start with their launcher's.
/// torch's name: `torch.multiprocessing.set_sharing_strategy`.
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

/// The strategy of this process's new storages: [`SharingStrategy::FileDescriptor`] until another one is chosen. torch's name:
/// `torch.multiprocessing.get_sharing_strategy`.
///
/// ```
/// assert_eq!(phalanx::get_sharing_strategy(), phalanx::SharingStrategy::FileDescriptor);
/// ```
#[must_use]
pub fn get_sharing_strategy() -> SharingStrategy {
    let chosen = CHOSEN.load(Relaxed);
    SharingStrategy::ALL.into_iter().find(|&strategy| strategy as u8 == chosen).unwrap_or_default()
}

/// All strategies, the default first. torch's name: `torch.multiprocessing.get_all_sharing_strategies`.
///
/// ```
/// assert_eq!(phalanx::get_all_sharing_strategies()[0], phalanx::SharingStrategy::default());
/// ```
#[must_use]
pub fn get_all_sharing_strategies() -> &'static [SharingStrategy] {
    &SharingStrategy::ALL
}

/// The directory in which [`SharingStrategy::FileSystem`] makes its files.
///
/// ```
/// assert_eq!(phalanx::shm::get_sharing_directory().to_str(), Some("/dev/shm"));
/// ```
#[must_use]
pub fn get_sharing_directory() -> PathBuf {
    let chosen = DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner);
    chosen.clone().unwrap_or_else(|| PathBuf::from("/dev/shm"))
}

/// Notes the directory for named memory. It is not checked here.
pub(super) fn choose_directory(path: PathBuf) {
    *DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
}

/// The launcher's strategy and directory, for its workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Choice {
    strategy: SharingStrategy,
    /// The path, which need not be UTF-8.
    directory: Vec<u8>,
}

impl Choice {
    /// What this process has chosen, to be sent to a worker.
    pub(crate) fn of_this_process() -> Self {
        Self {
            strategy: get_sharing_strategy(),
            directory: get_sharing_directory().into_os_string().into_vec(),
        }
    }

    /// In a worker: chooses the same.
    pub(crate) fn apply(self) {
        set_sharing_strategy(self.strategy);
        choose_directory(OsString::from_vec(self.directory).into());
    }
}
