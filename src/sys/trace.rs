//! Walking the stack, through the crate `backtrace` and std; and where the function of an address begins.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::c_void;
use std::thread;

use super::{seccomp, signal};

unsafe extern "C" {
    /// Of the unwinder that std is linked with: the start of the function in which the instruction before `address`
    /// lies, from the unwind tables, which are there also when a binary was stripped; null outside of them.
    fn _Unwind_FindEnclosingFunction(address: *mut c_void) -> *mut c_void;
}

/// The return addresses of the calling thread, innermost first.
pub(crate) fn here() -> Vec<u64> {
    let mut addresses = Vec::new();
    backtrace::trace(|frame| {
        // At the outermost frame the unwinder may say zero.
        let here = !frame.ip().is_null();
        addresses.extend(here.then_some(frame.ip() as u64));
        here
    });
    addresses
}

/// Shows `visit` the addresses of the calling thread, innermost first, until it returns false.
///
/// Takes no lock and no memory, so that a signal handler may call it: glibc 2.35 and newer finds unwind
/// tables without a lock (`_dl_find_object`).
pub(crate) fn walk_in_signal_handler(mut visit: impl FnMut(u64) -> bool) {
    // SAFETY: "unsynchronized" matters to Windows and to symbol lookup; a walk on Linux shares no state.
    unsafe { backtrace::trace_unsynchronized(|frame| visit(frame.ip() as u64)) }
}

/// Whether the instruction before `address`, in this process, is one of the function that begins at `start`.
pub(crate) fn is_in_function(address: usize, start: usize) -> bool {
    // SAFETY: any address may be asked for: it is only looked up in the tables of the loaded objects.
    let found = unsafe { _Unwind_FindEnclosingFunction(address as *mut c_void) };
    !found.is_null() && found.addr() == start
}

/// The return addresses that std's backtrace holds, innermost first; none if it was not captured.
///
/// std shows them only in a text, for which it first names every one: it reads all debug information of the executable,
/// which takes 60 ms and more. In a thread that can open no file it has nothing to read, and takes 0.1 ms. Where
/// such a thread cannot be made, the addresses are the same and the wait is long.
pub(crate) fn addresses_of(backtrace: &Backtrace) -> Vec<u64> {
    if backtrace.status() != BacktraceStatus::Captured {
        return Vec::new();
    }
    let show = || format!("{backtrace:#}");
    let text = thread::scope(|scope| {
        let blind = thread::Builder::new().spawn_scoped(scope, || {
            // The program's signal handlers are to open what they like: they run on its own threads.
            let _ = signal::block_all_in_thread();
            let _ = seccomp::refuse_open();
            show()
        });
        blind.map_or_else(|_| show(), |blind| blind.join().unwrap_or_default())
    });
    addresses_in(&text)
}

/// The addresses in std's text of a backtrace with addresses, one for each frame.
fn addresses_in(text: &str) -> Vec<u64> {
    let mut addresses = Vec::new();
    let mut first = None;
    for (address, name) in text.lines().filter_map(frame_in) {
        // What std has named already has a line for each function that was inlined. The same name once more is a
        // recursion: a frame of its own.
        let inlined = first.is_some_and(|(same, other)| same == address && other != name);
        if !inlined {
            first = Some((address, name));
            addresses.push(address);
        }
    }
    // At the outermost frame the unwinder may say zero.
    addresses.retain(|&address| address != 0);
    addresses
}

/// The address and name in a line that begins a frame: `  12:     0x55d0c2a1b2c3 - name`.
fn frame_in(line: &str) -> Option<(u64, &str)> {
    let (number, rest) = line.split_once(": ")?;
    number.trim_start().parse::<u32>().ok()?;
    let (address, name) = rest.trim_start().strip_prefix("0x")?.split_once(" - ")?;
    Some((u64::from_str_radix(address, 16).ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn captured() -> (Backtrace, Vec<u64>) {
        (Backtrace::force_capture(), here())
    }

    fn start() -> usize {
        (captured as *const ()).addr()
    }

    #[test]
    fn addresses_of_a_backtrace_of_std_are_those_of_a_walk() {
        let (backtrace, walked) = captured();
        let addresses = addresses_of(&backtrace);
        // They differ in what walks the stack, and within `captured`, which walks twice.
        let same = addresses.iter().rev().zip(walked.iter().rev()).take_while(|(a, b)| a == b).count();
        assert!(same >= walked.len() - 4, "{addresses:x?} {walked:x?}");
        assert!(addresses.iter().any(|&address| is_in_function(address as usize, start())));
        assert!(addresses_of(&Backtrace::disabled()).is_empty());
    }

    #[test]
    fn only_lines_that_begin_a_frame_have_an_address() {
        assert_eq!(frame_in("   0:     0x5583d4a0367b - <unknown>"), Some((0x5583_d4a0_367b, "<unknown>")));
        assert_eq!(frame_in("1234: 0x7fb5162ed24a - f::h01"), Some((0x7fb5_162e_d24a, "f::h01")));
        assert_eq!(frame_in("                               at /src/main.rs:7:5"), None);
        assert_eq!(frame_in("                                  app::inlined"), None);
        assert_eq!(frame_in(""), None);
    }

    #[test]
    fn inlined_functions_are_one_frame_and_recursions_are_many() {
        let named = "0: 0x10 - inlined\n1: 0x10 - outer\n2: 0x20 - f\n3: 0x20 - f\n4: 0x10 - outer\n5: 0x0 - <unknown>";
        assert_eq!(addresses_in(named), [0x10, 0x20, 0x20, 0x10]);
        let inlined_recursion = "0: 0x10 - a\n1: 0x10 - b\n2: 0x10 - a\n3: 0x10 - b";
        assert_eq!(addresses_in(inlined_recursion), [0x10, 0x10]);
        let unnamed = "0: 0x10 - <unknown>\n1: 0x10 - <unknown>\n2: 0x20 - <unknown>";
        assert_eq!(addresses_in(unnamed), [0x10, 0x10, 0x20]);
    }

    #[test]
    fn function_of_an_address_is_found_from_its_start() {
        let within = start() + 2;
        assert!(is_in_function(within, start()));
        assert!(!is_in_function(within, within));
        assert!(!is_in_function(0x10, start()));
        assert!(!is_in_function(0x10, 0), "what lies nowhere lies in no function");
    }
}
