//! From a fatal signal to a record of it, async-signal-safe (signal-safety(7)): no lock, no memory, no panic.

use std::alloc::{Layout, handle_alloc_error};
use std::io;
use std::sync::{Mutex, PoisonError};

use crate::sys::clock::Moment;
use crate::sys::global::Global;
use crate::sys::signal::{self, Fault, Signal};
use crate::sys::{image, thread, trace};
use crate::wire::slot::{ModuleList, SlotWriter};

static SLOT: Global<SlotWriter> = Global::new();

/// What to say where an allocation has failed, since this process has a limit for its memory.
static FAILED_ALLOCATION: Global<String> = Global::new();

/// The modules that the fork server has listed for its workers (dl_iterate_phdr(3)), which are the same in every fork.
static PREPARED: Mutex<Option<ModuleList>> = Mutex::new(None);

/// Installs the handler: from now on a fatal signal of this process leaves its traceback in `slot`.
pub(super) fn watch(slot: &'static SlotWriter) -> io::Result<()> {
    slot.set_modules(&ModuleList::of(&image::modules()));
    SLOT.set(slot);
    signal::on_fault(record)
}

/// Does once, in the fork server, what is the same for all its workers. As long as a process has no slot, the handler records
/// nothing.
pub(crate) fn prepare() -> io::Result<()> {
    *PREPARED.lock().unwrap_or_else(PoisonError::into_inner) = Some(ModuleList::of(&image::modules()));
    signal::on_fault(record)
}

/// As [`watch`], in a worker whose server has [prepared](prepare) it.
pub(super) fn watch_prepared(slot: &'static SlotWriter) {
    let prepared = PREPARED.lock().unwrap_or_else(PoisonError::into_inner);
    prepared.iter().for_each(|modules| slot.set_modules(modules));
    SLOT.set(slot);
}

/// Sets what this process leaves as its last words when it aborts because an allocation failed.
pub(crate) fn set_words_of_failed_allocation(words: String) {
    FAILED_ALLOCATION.set(Box::leak(Box::new(words)));
}

/// Whether an address is in the function of std by which a Rust program aborts where it gets no memory.
fn is_failed_allocation(address: u64) -> bool {
    let abort: fn(Layout) -> ! = handle_alloc_error;
    trace::is_in_function(address as usize, abort as usize)
}

/// The handler: writes signal, address and return addresses into the slot, while the thread is still on the stack that failed.
fn record(fault: &Fault) {
    let Some(slot) = SLOT.get().filter(|slot| slot.is_own()) else { return };
    let thread = thread::id();
    match slot.claim_fault(thread) {
        Ok(()) => {}
        // The unwinder below has called abort(3), which unblocks its signal: nothing more can be recorded.
        Err(holder) if holder == thread => return,
        // Another thread is recording, and its signal will end this one too. Returning here would let this thread's own signal
        // end the process before that record is complete.
        Err(_) => signal::await_death(),
    }
    slot.set_failed_at(Moment::now());
    slot.set_fault(fault);
    // Everything above the interrupted frame is this handler. The unwinder may itself fault on a broken stack;
    // the signal is blocked, so that ends the process, and what was recorded so far is there.
    let (mut interrupted, mut allocation) = (false, false);
    let words = FAILED_ALLOCATION.get().filter(|_| fault.signal == Signal::ABRT);
    trace::walk_in_signal_handler(|address| {
        let first = !interrupted && address == fault.instruction;
        interrupted |= first;
        // At the outermost frame the unwinder may give 0; at the innermost 0 means that the program has called a null pointer.
        if address == 0 && !first {
            return false;
        }
        allocation |= words.is_some() && !allocation && is_failed_allocation(address);
        // Readers take each address for a return address and look one byte before it. The first one is that of the interrupted
        // instruction itself, hence the 1.
        !interrupted || slot.add_frame(address.wrapping_add(u64::from(first)))
    });
    if !interrupted {
        slot.add_frame(fault.instruction.wrapping_add(1));
    }
    if let Some(words) = words.filter(|_| allocation) {
        slot.set_note(words);
    }
}
