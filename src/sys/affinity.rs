//! sched_getaffinity(2), sched_setaffinity(2): on which processors a thread may run.

use std::io;

use serde::{Deserialize, Serialize};

/// The processors that a thread may run on, as the kernel writes them: a bit each, without the zeros at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Affinity(Vec<u64>);

impl Affinity {
    /// Far more processors than any kernel can be built for (CONFIG_NR_CPUS).
    pub(crate) const MOST: usize = 1 << 20;

    /// These, by number.
    pub(crate) fn of_processors(numbers: &[usize]) -> Self {
        let words = numbers.iter().max().map_or(0, |last| last / 64 + 1);
        let mut mask = vec![0; words];
        numbers.iter().for_each(|number| mask[number / 64] |= 1 << (number % 64));
        Self(mask)
    }

    /// That of the calling thread.
    pub(crate) fn of_caller() -> io::Result<Self> {
        let mut mask = mask_that_fits(|words| {
            // SAFETY: the mask is as long as is said, and outlives the call.
            let done = unsafe { libc::sched_getaffinity(0, size_of_val(words), words.as_mut_ptr().cast()) };
            if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        })?;
        let used = mask.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1);
        mask.truncate(used);
        Ok(Self(mask))
    }

    /// Their numbers.
    pub(crate) fn processors(&self) -> impl Iterator<Item = usize> {
        (0..64 * self.0.len()).filter(|number| self.0[number / 64] & 1 << (number % 64) != 0)
    }

    /// A bit for each.
    pub(crate) fn words(&self) -> &[u64] {
        &self.0
    }

    /// Gives it to the calling thread.
    pub(crate) fn apply(&self) -> io::Result<()> {
        // SAFETY: the mask is as long as is said, and outlives the call. The kernel takes one of any length.
        let done = unsafe { libc::sched_setaffinity(0, size_of_val(&self.0[..]), self.0.as_ptr().cast()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Asks with masks of 1,024 bits and more, until one is as long as the kernel's own: a shorter one is refused with EINVAL,
/// and nothing tells how long it must be.
pub(super) fn mask_that_fits(mut ask: impl FnMut(&mut [u64]) -> io::Result<()>) -> io::Result<Vec<u64>> {
    const FIRST: usize = 1024 / 64;
    /// Far more than any kernel can be built for (CONFIG_NR_CPUS, MAX_NUMNODES).
    const LAST: usize = 1 << 14;
    let mut mask = vec![0; FIRST];
    loop {
        match ask(&mut mask) {
            Ok(()) => return Ok(mask),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && mask.len() < LAST => {
                mask = vec![0; 2 * mask.len()];
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kernel answers whose own masks have this many words.
    fn kernel(own: usize) -> impl FnMut(&mut [u64]) -> io::Result<()> {
        move |mask| {
            if mask.len() < own {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            mask[own - 1] = 1 << 63;
            Ok(())
        }
    }

    #[test]
    fn mask_grows_to_the_kernels_and_not_for_ever() {
        for own in [1, 16, 17, 128, 1 << 14] {
            let mask = mask_that_fits(kernel(own)).unwrap();
            assert_eq!(mask.iter().rposition(|&word| word != 0), Some(own - 1));
        }
        assert_eq!(mask_that_fits(kernel(1 << 20)).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let refused = mask_that_fits(|_| Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn affinity_of_numbers_has_a_bit_for_each() {
        assert_eq!(Affinity::of_processors(&[65, 0, 3]), Affinity(vec![0b1001, 0b10]));
        assert_eq!(Affinity::of_processors(&[]), Affinity(vec![]));
        assert!(Affinity::of_processors(&[65, 0, 3]).processors().eq([0, 3, 65]));
    }

    #[test]
    fn affinity_is_read_and_taken_on_again() {
        let own = Affinity::of_caller().unwrap();
        assert!(own.0.last().is_some_and(|&word| word != 0));
        own.apply().unwrap();
        assert_eq!(Affinity::of_caller().unwrap(), own);
    }
}
