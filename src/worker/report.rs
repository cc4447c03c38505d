//! From an `Err` or a panic of the user's function to a report.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Captured, Raised, consequence, with_limit};
use crate::point::point;
use crate::sys::clock::Moment;
use crate::sys::global::Global;
use crate::sys::signal::Signal;
use crate::sys::{env, memory, signal, trace};
use crate::wire::codec;
use crate::wire::lifecycle::State;
use crate::wire::slot::SlotWriter;

/// Runs the preload function in the fork server, which sends a failure to the launcher in its reply.
///
/// # Errors
/// What the function returned, or its panic.
pub(crate) fn call_in_server(function: impl FnOnce() -> anyhow::Result<()>) -> Result<(), Raised> {
    let on_panic = |info: &PanicHookInfo<'_>, show: &Hook| {
        see_panic(None, info);
        // Where a panic aborts the process, no report follows, so the panic is written to stderr.
        if !IN_FUNCTION.get() || cfg!(panic = "abort") {
            show(info);
        }
    };
    call(on_panic, function)
}

/// Runs the function of a launched worker, whose panics are shown as those of any program. `at_abort` is given the panic that ends
/// the process, where panics abort.
///
/// # Errors
/// What the function returned, or its panic.
pub(super) fn call_launched(
    at_abort: impl Fn(Raised) + Send + Sync + 'static,
    function: impl FnOnce() -> anyhow::Result<()>,
) -> Result<(), Raised> {
    call(showing(at_abort), function)
}

/// Runs the main of a program, as [`call_launched`] does a function.
///
/// # Errors
/// Its panic, with the payload.
pub(crate) fn call_main<T>(
    at_abort: impl Fn(Raised) + Send + Sync + 'static,
    main: impl FnOnce() -> T,
) -> Result<T, (Raised, Box<dyn Any + Send>)> {
    let conclude =
        |outcome: std::thread::Result<T>| outcome.map_err(|payload| (panicked(&*payload).raised, payload));
    watch(showing(at_abort), main, conclude)
}

/// A panic hook.
type Hook = dyn Fn(&PanicHookInfo<'_>) + Send + Sync;

/// What to do at a panic that the usual hook is to show too.
fn showing(at_abort: impl Fn(Raised) + Send + Sync) -> impl Fn(&PanicHookInfo<'_>, &Hook) + Send + Sync {
    move |info, show| {
        let seen = seen(info, Moment::now());
        show(info);
        if cfg!(panic = "abort") {
            at_abort(raised_by(seen));
        } else {
            remember(seen);
        }
    }
}

/// Runs a user's function, and looks at its panics by `on_panic`.
fn call(
    on_panic: impl Fn(&PanicHookInfo<'_>, &Hook) + Send + Sync + 'static,
    function: impl FnOnce() -> anyhow::Result<()>,
) -> Result<(), Raised> {
    capture_backtraces_of_errors();
    watch(on_panic, function, |outcome| match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(returned_error(None, keep(error)).raised),
        Err(payload) => Err(panicked(&**keep(payload)).raised),
    })
}

/// Runs a function, and returns what `conclude` makes of its outcome; `on_panic` is the panic hook meanwhile, and is given the
/// usual one.
fn watch<T, R>(
    on_panic: impl Fn(&PanicHookInfo<'_>, &Hook) + Send + Sync + 'static,
    function: impl FnOnce() -> T,
    conclude: impl FnOnce(std::thread::Result<T>) -> R,
) -> R {
    let previous = Arc::new(panic::take_hook());
    let hook = previous.clone();
    set_hook(move |info| on_panic(info, &**hook));
    IN_FUNCTION.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(function));
    IN_FUNCTION.set(false);
    let concluded = conclude(outcome);
    panic::set_hook(Box::new(move |info| previous(info)));
    concluded
}

/// What the panic hook saw of a panic: text, place, stack and time. The payload that catch_unwind returns has the text only.
struct Seen {
    message: String,
    location: Option<String>,
    addresses: Vec<u64>,
    at: Moment,
}

/// The last panic of any thread. The user's function may join a thread that panicked and resume its panic (resume_unwind), which calls
/// no hook.
static LAST_PANIC: Mutex<Option<Seen>> = Mutex::new(None);

thread_local! {
    /// Whether this thread runs the user's function.
    static IN_FUNCTION: Cell<bool> = const { Cell::new(false) };
    /// The last panics of this thread in a line each, the newest last.
    static LAST_WORDS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A failure and when it happened.
struct Failure {
    raised: Raised,
    at: Moment,
}

/// Returns the most memory that the process has had resident, in KiB.
pub(super) type Peak = fn() -> u64;

/// Runs the user's function and writes its report. Returns whether the function succeeded.
///
/// # Errors
/// When the report cannot be written, as when there is no memory left for it (a memfd's bytes are memory).
pub(super) fn call_and_report(
    slot: &'static SlotWriter,
    peak: Peak,
    function: impl FnOnce() -> anyhow::Result<Vec<u8>>,
) -> std::io::Result<bool> {
    watch_panics(slot);
    capture_backtraces_of_errors();
    consequence::begin();
    IN_FUNCTION.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(function));
    IN_FUNCTION.set(false);
    point!("report.begin", deaths);
    slot.advance(State::Reporting);
    // A teardown must not cut the report short. SIGKILL can.
    signal::ignore(Signal::TERM)?;
    point!("report.protected", deaths);
    let written = write_report(slot, peak(), outcome);
    point!("report.written", deaths);
    // Only the report is protected, so that an exit handler that hangs can be ended. A handler of the user's is not restored: it was
    // there to end the function, which has ended.
    signal::reset(Signal::TERM)?;
    written
}

/// Writes the report. Returns whether the function succeeded.
fn write_report(
    slot: &SlotWriter,
    peak_kib: u64,
    outcome: std::thread::Result<anyhow::Result<Vec<u8>>>,
) -> std::io::Result<bool> {
    let failure = match outcome {
        Ok(Ok(result)) => return slot.finish(State::Returned, &result, peak_kib).map(|()| true),
        Ok(Err(error)) => returned_error(Some(slot), keep(error)),
        Err(payload) => panicked(&**keep(payload)),
    };
    slot.set_failed_at(failure.at);
    // A slot has room for one note, and this error's replaces that of the failure: so its text has both.
    write_failure(slot, &failure.raised, peak_kib).map_err(|error| {
        std::io::Error::other(format!("{}; before that {}", with_limit(&error), note_text(&failure.raised)))
    })?;
    Ok(false)
}

/// Calls a function of which the worker outlives the failure, as that of a pool's task, from the function of the worker.
///
/// # Errors
/// What it returned, or its panic; beside it what `look` finds in the error.
pub(crate) fn attempt<T, L>(
    function: impl FnOnce() -> anyhow::Result<T>,
    look: impl FnOnce(&anyhow::Error) -> Option<L>,
) -> Result<T, (Raised, Option<L>)> {
    let outcome = panic::catch_unwind(AssertUnwindSafe(function));
    let failed = match outcome {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => {
            let failed = (returned_error(None, &error).raised, look(&error));
            drop_left(error);
            failed
        }
        Err(payload) => {
            let raised = panicked(&*payload).raised;
            drop_left(payload);
            (raised, None)
        }
    };
    // What the hook has noted of the panic is told now. A note that stays would be shown with the worker's own end.
    LAST_WORDS.take();
    if let Some(slot) = SLOT.get() {
        slot.set_note("");
    }
    Err(failed)
}

/// Drops what a failed function has left. Its destructor is the user's code, and the worker goes on if that panics.
fn drop_left<T>(left: T) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| drop(left))) {
        keep(payload);
    }
}

/// The text of a failure for the note of a slot.
fn note_text(raised: &Raised) -> String {
    let text = raised.chain.join(": ");
    match &raised.location {
        Some(at) => format!("it panicked at {at}: {text}"),
        None if raised.panicked => format!("it panicked at an unknown place: {text}"),
        None => format!("its function returned an error: {text}"),
    }
}

fn write_failure(slot: &SlotWriter, raised: &Raised, peak_kib: u64) -> std::io::Result<()> {
    let waited_for = consequence::recall(&raised.chain);
    let body = codec::encode_plain(&(raised, waited_for)).map_err(std::io::Error::other)?;
    slot.finish(State::Raised, &body, peak_kib)
}

/// The addresses of what is never dropped: a leak detector (LeakSanitizer, valgrind) finds them here and reports no leak.
static KEPT: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Leaks a value that a function has left. A destructor that panics or hangs would cost the report, and the process ends anyway.
pub(super) fn keep<T>(left: T) -> &'static T {
    let left: &'static T = Box::leak(Box::new(left));
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push((&raw const *left).expose_provenance());
    left
}

/// Lets std capture a backtrace in every error of this process, as RUST_LIB_BACKTRACE=1 does, unless the user
/// has chosen. std looks at the variable once, so that it need not stay for the worker's own children.
fn capture_backtraces_of_errors() {
    const VARIABLE: &str = "RUST_LIB_BACKTRACE";
    if std::env::var_os(VARIABLE).is_some() || std::env::var_os("RUST_BACKTRACE").is_some() {
        return;
    }
    env::set(VARIABLE, "1");
    let _latched = std::backtrace::Backtrace::capture();
    env::remove(VARIABLE);
}

fn returned_error(slot: Option<&SlotWriter>, error: &anyhow::Error) -> Failure {
    let at = Moment::now();
    // The user's Display may panic.
    let texts = || error.chain().map(ToString::to_string).collect::<Vec<_>>();
    let chain = panic::catch_unwind(AssertUnwindSafe(texts)).unwrap_or_else(|payload| {
        let why = text_of(&**keep(payload));
        vec![format!(
            "its function returned an error that cannot be shown, since its Display panicked: {why}"
        )]
    });
    let mut raised =
        Raised { panicked: false, chain, location: None, hook_replaced: false, trace: Captured::default() };
    // The note comes first: naming the traceback takes long, and if the process is killed meanwhile, the note is all that is left.
    if let Some(slot) = slot {
        slot.set_failed_at(at);
        slot.set_note(&note_text(&raised));
    }
    raised.trace = Captured::here(trace::addresses_of(error.backtrace()));
    Failure { raised, at }
}

fn panicked(payload: &(dyn Any + Send)) -> Failure {
    let message = text_of(payload);
    // resume_unwind goes past the hook, and a panic that was caught meanwhile is not this one.
    let last = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    match last.filter(|seen| seen.message == message) {
        Some(seen) => Failure { at: seen.at, raised: raised_by(seen) },
        None => Failure { at: Moment::now(), raised: unseen(message) },
    }
}

/// A panic that the hook has not seen: one that was resumed, or one for which the program has set a hook of its own.
fn unseen(message: String) -> Raised {
    Raised {
        panicked: true,
        chain: vec![message],
        location: None,
        hook_replaced: hook_is_replaced(),
        trace: Captured::default(),
    }
}

fn raised_by(seen: Seen) -> Raised {
    Raised {
        panicked: true,
        chain: vec![seen.message],
        location: seen.location,
        hook_replaced: false,
        trace: Captured::here(seen.addresses),
    }
}

pub(super) fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "Box<dyn Any>".to_owned())
}

/// The address of the panic hook that this module has set, to find out later whether another one has replaced it.
static HOOK: AtomicUsize = AtomicUsize::new(0);

/// The slot of this worker, once its function is about to run.
static SLOT: Global<SlotWriter> = Global::new();

/// Sets a panic hook that keeps panics of the user's function for the report. Those of other threads are shown on stderr too.
fn watch_panics(slot: &'static SlotWriter) {
    SLOT.set(slot);
    let previous = panic::take_hook();
    set_hook(move |info| {
        see_panic(Some(slot), info);
        if !IN_FUNCTION.get() {
            previous(info);
        }
    });
}

fn set_hook(hook: impl Fn(&PanicHookInfo<'_>) + Send + Sync + 'static) {
    let hook = Box::new(hook);
    HOOK.store((&raw const *hook).addr(), Relaxed);
    panic::set_hook(hook);
}

/// Whether the program has set another hook instead of ours.
fn hook_is_replaced() -> bool {
    let hook = panic::take_hook();
    let replaced = (&raw const *hook).addr() != HOOK.load(Relaxed);
    panic::set_hook(hook);
    replaced
}

/// The lines of the last panics, with a new one at the end.
fn last_words(words: String) -> String {
    const KEPT: usize = 3;
    LAST_WORDS.with_borrow_mut(|known| {
        if known.len() == KEPT {
            known.remove(0);
        }
        known.push(words);
        known.join("; then ")
    })
}

/// What a panic hook sees of a panic that happened `at` this moment.
fn seen(info: &PanicHookInfo<'_>, at: Moment) -> Seen {
    let (message, location) = (text_of(info.payload()), place_of(info));
    Seen { message, location, addresses: trace::here(), at }
}

fn place_of(info: &PanicHookInfo<'_>) -> Option<String> {
    info.location().map(ToString::to_string)
}

/// Keeps a panic until it has unwound.
fn remember(seen: Seen) {
    *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
}

fn see_panic(slot: Option<&SlotWriter>, info: &PanicHookInfo<'_>) {
    let at = Moment::now();
    if let Some(slot) = slot.filter(|_| IN_FUNCTION.get()) {
        // The note is for a panic that catch_unwind does not see: a second one, in a destructor while the first unwinds, aborts the
        // process.
        let place = place_of(info).unwrap_or_else(|| "an unknown place".to_owned());
        slot.set_note(&last_words(format!("panicked at {place}: {}", text_of(info.payload()))));
    }
    let seen = seen(info, at);
    if let Some(slot) = slot.filter(|slot| cfg!(panic = "abort") && slot.is_own()) {
        // A panic that aborts does not unwind, so the report is written here. If that fails, the note is there.
        slot.set_failed_at(at);
        let _ = write_failure(slot, &raised_by(seen), memory::peak_resident_kib().unwrap_or(0));
    } else {
        remember(seen);
    }
}
