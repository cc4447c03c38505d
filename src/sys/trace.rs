//! Walking the stack and naming what is found, through the crate `backtrace`.

use std::ffi::c_void;

/// A place in the source that an address belongs to. One address has several where functions were inlined.
#[derive(Clone, Debug)]
pub(crate) struct Symbol {
    pub(crate) function: Option<String>,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) column: Option<u32>,
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

/// The places of an address of this process. It is taken for a return address: the instruction before counts.
pub(crate) fn symbols_at(address: u64) -> Vec<Symbol> {
    let mut symbols = Vec::new();
    backtrace::resolve(address as *mut c_void, |symbol| {
        symbols.push(Symbol {
            function: symbol.name().map(|name| format!("{name:#}")),
            file: symbol.filename().map(|file| file.display().to_string()),
            line: symbol.lineno(),
            column: symbol.colno(),
        });
    });
    symbols
}
