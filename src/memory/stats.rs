//! What shared memory this process has mapped.

use serde::{Deserialize, Serialize};

use super::{named, segment};

/// What shared memory this process has mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Pieces of shared memory. Storages of up to 256 KiB share segments, each larger one has its own.
    pub segments: usize,
    /// Mappings. The kernel allows a process vm.max_map_count of them (65530 by default).
    pub mappings: usize,
    /// Descriptors that stay open for it, including the one of this process's directory of named memory.
    pub descriptors: usize,
    /// Bytes of address space. (A segment of small storages takes 8 MiB of it, and memory only for the part in use.)
    pub bytes: usize,
}

/// Counts the shared memory that this process has mapped. A piece counts once, however many tensors lie in it, and no more once
/// its last tensor is dropped.
///
/// ```
/// let large = phalanx::Tensor::<f32>::zeros(&[1 << 20])?;
/// let stats = phalanx::shm::stats();
/// assert!(stats.segments >= 1 && stats.bytes >= 4 << 20);
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
#[must_use]
pub fn stats() -> Stats {
    let process_dir = usize::from(named::process_dir_in_use().is_some());
    let none = Stats { descriptors: process_dir, ..Stats::default() };
    segment::registry().mapped().fold(none, |stats, (bytes, has_descriptor)| Stats {
        segments: stats.segments + 1,
        mappings: stats.mappings + usize::from(bytes > 0),
        descriptors: stats.descriptors + usize::from(has_descriptor),
        bytes: stats.bytes + bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_count_what_is_mapped_and_are_no_holders() {
        let before = stats();
        let tensor = crate::Tensor::<u8>::zeros(&[1 << 20]).unwrap();
        let during = stats();
        assert!(
            during.bytes >= 1 << 20 && during.segments >= 1 && during.mappings >= 1,
            "{during:?} after {before:?}"
        );
        std::thread::scope(|scope| {
            let counting = scope.spawn(|| (0..1000).map(|_| stats().segments).max());
            assert!(tensor.freeze().is_ok());
            counting.join().unwrap();
        });
    }
}
