//! pthread_mutex_t as it has to be for several processes of which any may die: PTHREAD_PROCESS_SHARED and
//! PTHREAD_MUTEX_ROBUST.

#![expect(unsafe_code, reason = "the C library's mutex is what is measured")]

use std::mem::MaybeUninit;
use std::sync::atomic::Ordering::Relaxed;

use crate::bare::Words;

/// In front of a number that it guards, which is the word after it.
pub(crate) struct RobustMutex {
    words: Words,
}

fn check(told: i32) -> anyhow::Result<()> {
    if told == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(told).into()) }
}

impl RobustMutex {
    /// Makes it at the beginning of the memory.
    pub(crate) fn make(words: Words) -> anyhow::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        let made = Self { words };
        // SAFETY: a record of ours, which is initialised here.
        check(unsafe { libc::pthread_mutexattr_init(attributes.as_mut_ptr()) })?;
        let attributes = attributes.as_mut_ptr();
        // SAFETY: it was initialised.
        check(unsafe { libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) })?;
        // SAFETY: it was initialised.
        check(unsafe { libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) })?;
        // SAFETY: memory that nobody else has yet, with room for a mutex (40 bytes of 128), and the attributes from above.
        check(unsafe { libc::pthread_mutex_init(made.mutex(), attributes) })?;
        Ok(made)
    }

    /// One that was made.
    pub(crate) fn open(words: Words) -> Self {
        Self { words }
    }

    fn mutex(&self) -> *mut libc::pthread_mutex_t {
        const { assert!(size_of::<libc::pthread_mutex_t>() <= 128) };
        self.words.address(0).cast()
    }

    /// Takes it, counts, and gives it back.
    pub(crate) fn count(&self) -> anyhow::Result<()> {
        let number = self.words.word(1);
        // SAFETY: it was made in shared memory, which is mapped as long as this lives.
        check(unsafe { libc::pthread_mutex_lock(self.mutex()) })?;
        number.store(number.load(Relaxed).wrapping_add(1), Relaxed);
        // SAFETY: this thread has just taken it.
        check(unsafe { libc::pthread_mutex_unlock(self.mutex()) })
    }

    pub(crate) fn counted(&self) -> u32 {
        self.words.word(1).load(Relaxed)
    }
}
