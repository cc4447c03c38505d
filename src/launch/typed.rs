//! Enter, typed at the terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::pipe::{Read, is_terminal, read_typed, terminal_to_read};

/// The terminal of stdin. Its settings are left alone, so that nothing is to be restored: whole lines come from it.
#[derive(Debug)]
pub(super) struct Typed(OwnedFd);

impl Typed {
    /// `None`: stdin is no terminal, or cannot be opened.
    pub(super) fn open() -> Option<Self> {
        let terminal = terminal_to_read().ok().filter(is_terminal)?;
        Some(Self(terminal))
    }

    /// Takes all that was typed; whether Enter was.
    pub(super) fn take(&self) -> bool {
        let (mut buffer, mut was_typed) = ([0; 256], false);
        // An error: this process is in the background, or the terminal is gone.
        while let Ok(Read::Bytes(count)) = read_typed(self.0.as_fd(), &mut buffer) {
            was_typed |= buffer[..count].contains(&b'\n');
        }
        was_typed
    }
}

impl AsFd for Typed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
