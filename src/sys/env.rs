//! environ(7), umask(2): the few changes of what a worker has inherited.

use std::ffi::OsStr;

/// Removes a variable.
///
/// Call it only in a worker before user code has run, while the process has one thread.
#[expect(clippy::disallowed_methods, reason = "this file is the one place for it")]
pub(crate) fn remove(key: impl AsRef<OsStr>) {
    // SAFETY: called while this process has a single thread (see above), so nobody reads environ meanwhile.
    unsafe { std::env::remove_var(key) }
}

/// Sets a variable, under the same condition as [`remove`].
#[expect(clippy::disallowed_methods, reason = "this file is the one place for it")]
pub(crate) fn set(key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) {
    // SAFETY: called while this process has a single thread (see `remove`).
    unsafe { std::env::set_var(key, value) }
}

/// umask(2).
pub(crate) fn set_umask(mask: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
}
