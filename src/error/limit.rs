//! Which limit an error of the system has met, in words.

use std::{fmt, io};

use crate::sys::limits::{self, Shortage};
use crate::sys::memory;

/// The limit that an error of the system means, with its numbers: `RLIMIT_NOFILE is 1024 of at most 4096`. `None` if it means none, or
/// the numbers cannot be read.
pub(crate) fn limit_met(error: &io::Error) -> Option<String> {
    match Shortage::of(error)? {
        Shortage::Descriptors => limits::descriptors_text(),
        Shortage::DescriptorsOfMachine => limits::machine_descriptors_text(),
        Shortage::Processes => limits::processes_text(),
        Shortage::FileSize => Some(format!("RLIMIT_FSIZE is {} bytes", limits::file_size().ok()?)),
        // mmap(2) says the same when there are too many mappings.
        Shortage::Memory => match memory::mappings()? {
            (count, most) if count + MAPPINGS_OF_KERNEL >= most => {
                Some(format!("vm.max_map_count is {most}, and there are {count} mappings"))
            }
            _ => Some(memory::available()?.to_string()),
        },
        // The error does not say which file system is full; its caller does.
        Shortage::Space => None,
    }
}

/// How many mappings below the limit there may be none left: the kernel counts some that it does not list.
const MAPPINGS_OF_KERNEL: usize = 8;

/// The text of an error of the system, and in brackets the limit that it means.
pub(crate) fn with_limit(error: &io::Error) -> String {
    format!("{error}{}", InBrackets(limit_met(error).as_deref()))
}

/// A text in brackets behind an error, if there is one.
pub(super) struct InBrackets<'a>(pub(super) Option<&'a str>);

impl fmt::Display for InBrackets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |text| write!(f, " ({text})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_met_names_what_there_is_not_enough_of() {
        let told = |errno| limit_met(&io::Error::from_raw_os_error(errno));
        // EMFILE, EAGAIN, ENOMEM, ENFILE, and one that means no limit (errno(3)).
        assert!(told(24).unwrap().starts_with("RLIMIT_NOFILE is "));
        assert!(told(11).unwrap().starts_with("RLIMIT_NPROC is "));
        assert!(told(12).unwrap().contains(" of memory are available"));
        assert!(told(23).unwrap().contains("fs.file-max"));
        assert_eq!(told(2), None);
    }
}
