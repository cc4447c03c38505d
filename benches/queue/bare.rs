//! Shared memory with nothing around it: words in a memfd, and futexes.

use std::hint::spin_loop;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use phalanx::Descriptor;

/// Bytes of the memory.
const LEN: usize = 4096;
/// Bytes from one word to the next, so that each has a cache line for itself.
const APART: usize = 128;
/// How often a spinning side looks before it yields: the other one may have no processor.
const PATIENCE: u32 = 1 << 14;

/// Words that several processes have.
pub(crate) struct Words {
    map: MmapRaw,
}

impl Words {
    /// Memory of zeros.
    pub(crate) fn make() -> anyhow::Result<Descriptor> {
        let memory = memfd_create(c"phalanx-bench", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&memory, LEN as i64)?;
        Ok(memory.into())
    }

    pub(crate) fn open(memory: &Descriptor) -> anyhow::Result<Self> {
        Ok(Self { map: MmapOptions::new().len(LEN).map_raw(memory.as_fd().as_raw_fd())? })
    }

    #[expect(unsafe_code, reason = "bare shared memory is what is measured")]
    pub(crate) fn word(&self, number: usize) -> &AtomicU32 {
        assert!(number < LEN / APART);
        // SAFETY: it lies in the map, which lives as long as this, at a multiple of 128, and is reached only as an atomic.
        unsafe { AtomicU32::from_ptr(self.address(number).cast()) }
    }

    /// Where a word lies.
    pub(crate) fn address(&self, number: usize) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(number * APART)
    }
}

/// One of two processes that tell each other numbers.
pub(crate) struct Side {
    words: Words,
    own: usize,
    other: usize,
    /// Whether it sleeps in the kernel at once, or only spins.
    sleeps: bool,
}

impl Side {
    pub(crate) fn new(words: Words, [own, other]: [usize; 2], sleeps: bool) -> Self {
        Self { words, own, other, sleeps }
    }

    pub(crate) fn tell(&self, number: u32) {
        let word = self.words.word(self.own);
        word.store(number, Release);
        if self.sleeps {
            futex(word, libc::FUTEX_WAKE, 1);
        }
    }

    /// Waits until the other side has told this number, which is the next one.
    pub(crate) fn await_other(&self, number: u32) {
        let word = self.words.word(self.other);
        let mut looks = 0_u32;
        while word.load(Acquire) != number {
            looks += 1;
            match self.sleeps {
                true => futex(word, libc::FUTEX_WAIT, number - 1),
                false if looks.is_multiple_of(PATIENCE) => std::thread::yield_now(),
                false => spin_loop(),
            }
        }
    }
}

/// futex(2), without a timeout. What it returns does not matter: who waits looks again.
#[expect(unsafe_code, reason = "a bare futex is what is measured")]
fn futex(word: &AtomicU32, operation: i32, value: u32) {
    let timeout = std::ptr::null::<libc::timespec>();
    // SAFETY: the kernel reads a word that lives during the call, and no timeout.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, timeout) };
}
