//! prctl(2), through the crate of that name, whose errors are bare errno values.

use std::io;

use super::signal::Signal;

/// PR_SET_PDEATHSIG: the signal that the kernel sends us when the thread that started us ends.
pub(crate) fn set_death_signal(signal: Option<Signal>) -> io::Result<()> {
    let number = signal.map_or(0, Signal::number);
    prctl::set_death_signal(number as isize).map_err(io::Error::from_raw_os_error)
}

/// PR_SET_NAME: the thread's comm name, of which the kernel keeps 15 bytes.
pub(crate) fn set_name(name: &str) -> io::Result<()> {
    prctl::set_name(name).map_err(io::Error::from_raw_os_error)
}

/// PR_SET_CHILD_SUBREAPER: whether orphans among our descendants become our children, not those of the first process.
pub(crate) fn set_subreaper(is_subreaper: bool) -> io::Result<()> {
    prctl::set_child_subreaper(is_subreaper).map_err(io::Error::from_raw_os_error)
}
