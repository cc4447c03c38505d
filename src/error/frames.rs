//! From addresses to the frames that a traceback shows: named, and trimmed to what the user wrote.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sys::image::{self, Module};
use crate::sys::symbols::{self, Symbol};
use crate::sys::trace;

/// One call in a [`Traceback`](crate::Traceback). As text it is the function, and on a line of its own `at file:line:column` as far as
/// these are known.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::Error;
///
/// fn work(_rank: usize, _: ()) -> anyhow::Result<()> {
///     panic!("weights became NaN")
/// }
///
/// # fn main() {
/// let Err(Error::ProcessRaised(exception)) = phalanx::spawn(work, (), 1) else { panic!("it panics") };
/// let innermost = &exception.traceback().frames()[0];
/// assert!(innermost.function.ends_with("::work"), "{innermost}");
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Frame {
    /// The function's path; where it has no name, the object and the offset in it, as `libm.so.6+0x1b2f`.
    pub function: String,
    /// The source file, as the compiler was given it; `None` without debug information, as are the line and the column.
    pub file: Option<String>,
    /// The line in that file, from 1 on.
    pub line: Option<u32>,
    /// The column in that line, from 1 on.
    pub column: Option<u32>,
}

impl Frame {
    /// A frame of which nothing is known but its function's name.
    pub(super) fn of(function: &str) -> Self {
        Self { function: function.to_owned(), file: None, line: None, column: None }
    }
}

impl fmt::Display for Frame {
    /// `function`, then on a line of its own `at file:line:column` where these are known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { function, file, line, column } = self;
        f.write_str(function)?;
        let Some(file) = file else { return Ok(()) };
        write!(f, "\n             at {file}")?;
        for number in [line, column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        Ok(())
    }
}

/// A traceback as a worker hands it in: addresses, which the launcher names when they are looked at, so that a
/// worker that failed is gone at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Captured {
    /// The return addresses in the worker, innermost first.
    pub(crate) addresses: Vec<u64>,
    /// The objects in which they lie.
    pub(crate) modules: Vec<Module>,
}

impl Captured {
    /// Addresses of this process.
    pub(crate) fn here(addresses: Vec<u64>) -> Self {
        let mut modules = image::modules();
        modules.retain(|module| addresses.iter().any(|&address| module.contains(address)));
        Self { addresses, modules }
    }
}

/// The function that a worker calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Callee {
    /// Its name.
    pub(crate) name: &'static str,
    /// Where in this process the function begins which decodes the arguments and calls it. Frames below that one are the
    /// library's.
    pub(crate) trampoline: usize,
    /// The name and the trampoline of the function that runs before it, as `Options::on_start` says, if there is one.
    pub(crate) hook: Option<(&'static str, usize)>,
}

/// The frames of the user's code, innermost first; none if there are none.
pub(super) fn of(captured: &Captured, callee: Callee) -> Vec<Frame> {
    let raw: Vec<_> =
        captured.addresses.iter().map(|&address| RawFrame::new(address, &captured.modules)).collect();
    // By addresses first: these are right also where there are no names, in a stripped binary or in a libc without
    // debug information.
    let called = [(callee.name, callee.trampoline)].into_iter().chain(callee.hook);
    let mut calls = called.filter_map(|(name, trampoline)| {
        raw.iter().position(|frame| frame.is_in(trampoline)).map(|call| (name, call))
    });
    let Some((name, call)) = calls.next() else {
        let within = raw.iter().rposition(|frame| !frame.is_in_libc()).map_or(0, |last| last + 1);
        return trim(raw[..within].iter().flat_map(RawFrame::resolve).collect());
    };
    let mut frames: Vec<_> = raw[..call].iter().flat_map(RawFrame::resolve).collect();
    // The user's function may be inlined into the trampoline: then it is the same address, with several names.
    let inlined = raw[call].named();
    match inlined.iter().position(is_trampoline) {
        Some(end) => frames.extend_from_slice(&inlined[..end]),
        None => frames.push(Frame::of(name)),
    }
    trim(frames)
}

/// An address of a worker, which another process of the same executable can name.
struct RawFrame<'a> {
    /// The object it lies in.
    module: Option<&'a Module>,
    /// What the object's file calls it; the address itself without an object.
    offset: u64,
}

impl<'a> RawFrame<'a> {
    /// Finds the object of an address.
    fn new(address: u64, modules: &'a [Module]) -> Self {
        let module = modules.iter().find(|module| module.contains(address));
        Self { module, offset: module.map_or(address, |module| module.offset_of(address)) }
    }

    /// Whether it lies in the function that begins at an address of this process, in the executable.
    fn is_in(&self, function: usize) -> bool {
        let in_main = self.module.is_some_and(Module::is_main);
        let own = image::Image::main().ok().filter(|_| in_main);
        own.and_then(|own| own.address_of(self.offset, 1))
            .is_some_and(|at| trace::is_in_function(at, function))
    }

    /// Whether libc has it.
    fn is_in_libc(&self) -> bool {
        self.module.is_some_and(|module| image::is_libc(&module.name))
    }

    /// The frames of the address: several where functions were inlined, and at least one.
    fn resolve(&self) -> Vec<Frame> {
        let frames = self.named();
        if frames.is_empty() { vec![self.unnamed()] } else { frames }
    }

    /// The functions that symbols or debug information name there; none, where neither does.
    fn named(&self) -> Vec<Frame> {
        // It is a return address: the call is the instruction before.
        let at = |module| symbols::symbols_at(module, self.offset.wrapping_sub(1));
        self.module.map(at).unwrap_or_default().into_iter().filter_map(named).collect()
    }

    /// A frame that says where the address lies, and nothing else.
    fn unnamed(&self) -> Frame {
        let function = match self.module {
            Some(module) if module.is_main() => format!("executable+{:#x}", self.offset),
            Some(module) => format!("{}+{:#x}", module.name, self.offset),
            None => format!("{:#x}", self.offset),
        };
        Frame::of(&function)
    }
}

/// The frame of a symbol, if that has a name.
fn named(symbol: Symbol) -> Option<Frame> {
    let Symbol { function, file, line, column } = symbol;
    Some(Frame { function: function?, file, line, column })
}

/// What raises a failure, rather than being what went wrong, by the paths of functions.
const MACHINERY: [&str; 8] = [
    "std::",
    "core::",
    "alloc::",
    "anyhow::",
    "backtrace::",
    "__rustc::",
    "phalanx::worker::report::",
    "phalanx::sys::trace::",
];

/// Functions of that machinery by their whole names, in builds whose symbols have no paths.
const MACHINERY_NAMES: [&str; 2] = ["rust_begin_unwind", "__rust_try"];

/// The functions with which libc raises a signal.
const RAISING_OF_LIBC: [&str; 8] = [
    "__pthread_kill_implementation",
    "__pthread_kill_internal",
    "pthread_kill",
    "raise",
    "gsignal",
    "abort",
    "__GI_raise",
    "__GI_abort",
];

/// The source files of that machinery, since names have no paths where the profile has line tables only.
const MACHINERY_SOURCES: [&str; 4] =
    ["/library/core/src/", "/library/alloc/src/", "/library/std/src/", "/anyhow-1."];

/// The functions in which libc begins a thread.
const THREAD_STARTS: [&str; 4] = ["start_thread", "__clone3", "clone3", "clone"];

/// Drops what raised the failure at the inner end and what called the user's function at the outer one.
fn trim(mut frames: Vec<Frame>) -> Vec<Frame> {
    if let Some(outer) = frames.iter().position(is_trampoline) {
        frames.truncate(outer);
    }
    let raised = raised_by_libc(&frames);
    let panic = frames.iter().rposition(is_raising).map_or(raised, |at| at + 1);
    let inner = panic + frames[panic..].iter().take_while(|frame| is_machinery(frame)).count();
    frames.drain(..inner);
    while frames
        .last()
        .is_some_and(|frame| is_machinery(frame) || THREAD_STARTS.contains(&frame.function.as_str()))
    {
        frames.pop();
    }
    frames
}

/// How many frames at the inner end raised a signal: some have no name where libc has no debug information.
fn raised_by_libc(frames: &[Frame]) -> usize {
    let raises = |frame: &Frame| RAISING_OF_LIBC.contains(&frame.function.as_str());
    let in_libc = frames.iter().take_while(|frame| raises(frame) || is_unnamed_of_libc(frame)).count();
    frames[..in_libc].iter().rposition(raises).map_or(0, |last| last + 1)
}

/// Whether it lies in libc, where nothing names it: its debug information is not installed.
fn is_unnamed_of_libc(frame: &Frame) -> bool {
    frame.function.rsplit_once("+0x").is_some_and(|(module, _)| image::is_libc(module))
}

/// Where the library calls the user's function: `worker::entry::call`, by its name or by its source file, which
/// lies beside this one.
fn is_trampoline(frame: &Frame) -> bool {
    let of_entry = file!().strip_suffix("error/frames.rs").map(|src| format!("{src}worker/entry.rs"));
    bare(&frame.function).starts_with("phalanx::worker::entry::")
        || frame.function.starts_with("call") && of_entry.is_some_and(|file| in_source(frame, &file))
}

/// Whether it begins a panic.
fn is_raising(frame: &Frame) -> bool {
    frame.function.contains("rust_begin_unwind")
        || in_source(frame, "/library/core/src/panicking.rs")
        || frame.function.contains("begin_panic") && in_source(frame, "/library/std/src/panicking.rs")
}

/// Whether it belongs to what raises failures, and not to what went wrong.
fn is_machinery(frame: &Frame) -> bool {
    MACHINERY_SOURCES.iter().any(|sources| in_source(frame, sources))
        || MACHINERY.iter().any(|prefix| bare(&frame.function).starts_with(prefix))
        || MACHINERY_NAMES.contains(&frame.function.as_str())
        || frame.function.contains("anyhow::")
}

/// Whether the path of its source file, where that is known, contains a part.
fn in_source(frame: &Frame, part: &str) -> bool {
    frame.file.as_ref().is_some_and(|file| file.contains(part))
}

/// `<path::Type as Trait>::method` without its opening brackets.
fn bare(function: &str) -> &str {
    function.trim_start_matches(['<', '&'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(frames: &[(&str, &str)]) -> Vec<String> {
        let frame = |&(function, file): &(&str, &str)| Frame {
            function: function.into(),
            file: (!file.is_empty()).then(|| file.into()),
            line: None,
            column: None,
        };
        trim(frames.iter().map(frame).collect()).into_iter().map(|frame| frame.function).collect()
    }

    #[test]
    fn trim_panic_keeps_only_user_frames() {
        let seen = names(&[
            ("phalanx::sys::trace::here", ""),
            ("phalanx::worker::report::hook", ""),
            ("std::panicking::panic_with_hook", "/rustc/1/library/std/src/panicking.rs"),
            ("__rustc::rust_begin_unwind", "/rustc/1/library/std/src/panicking.rs"),
            ("core::panicking::panic_fmt", "/rustc/1/library/core/src/panicking.rs"),
            ("core::option::unwrap_failed", "/rustc/1/library/core/src/option.rs"),
            ("app::inner", "src/main.rs"),
            ("core::iter::Iterator::map", "/rustc/1/library/core/src/iter.rs"),
            ("app::work", "src/main.rs"),
            ("core::ops::function::Fn::call", "/rustc/1/library/core/src/ops/function.rs"),
            ("phalanx::worker::entry::call", ""),
            ("std::panicking::catch_unwind", "/rustc/1/library/std/src/panicking.rs"),
            ("app::main", "src/main.rs"),
        ]);
        assert_eq!(seen, ["app::inner", "core::iter::Iterator::map", "app::work"]);
    }

    #[test]
    fn trim_works_with_the_bare_names_of_line_tables() {
        let entry = file!().replace("error/frames.rs", "worker/entry.rs");
        let seen = names(&[
            ("panic_fmt", "/rustc/1/library/core/src/panicking.rs"),
            ("{closure#0}", "/home/me/app/src/main.rs"),
            ("call", "/home/me/app/src/main.rs"),
            ("call<fn(usize)>", "/rustc/1/library/core/src/ops/function.rs"),
            ("call<fn(usize)>", &format!("/somewhere/{entry}")),
            ("main", "/home/me/app/src/main.rs"),
        ]);
        assert_eq!(seen, ["{closure#0}", "call"]);
    }

    #[test]
    fn trim_error_drops_its_capture_and_can_leave_nothing() {
        let capture = ("<std::backtrace::Backtrace>::create", "/rustc/1/library/std/src/backtrace.rs");
        let anyhow = ("from", "/registry/anyhow-1.0.104/src/backtrace.rs");
        let call = ("phalanx::worker::entry::call", "");
        assert_eq!(names(&[capture, anyhow, ("app::work", ""), call]), ["app::work"]);
        assert!(names(&[capture, anyhow, call]).is_empty());
    }

    #[test]
    fn trim_keeps_everything_that_it_does_not_know() {
        assert_eq!(names(&[("a", ""), ("b", "")]), ["a", "b"]);
        assert!(names(&[]).is_empty());
    }

    #[test]
    fn trim_drops_the_machinery_of_panic_any() {
        let std = "/rustc/1/library/std/src/panicking.rs";
        let seen = names(&[
            ("phalanx::sys::trace::here", ""),
            ("std::panicking::panic_with_hook", std),
            ("begin_panic<u8>", std),
            ("std::panic::panic_any", "/rustc/1/library/std/src/panic.rs"),
            ("raise_alarm", "src/main.rs"),
        ]);
        assert_eq!(seen, ["raise_alarm"]);
    }

    #[test]
    fn trim_drops_what_raises_a_signal_also_where_libc_has_few_names() {
        let libc = "/lib/x86_64-linux-gnu/libc.so.6+0x8a";
        let seen = names(&[
            (libc, ""),
            ("raise", ""),
            ("abort", ""),
            ("std::process::abort", ""),
            ("app::work", ""),
        ]);
        assert_eq!(seen, ["app::work"]);
        // A fault within libc is no such thing.
        assert_eq!(names(&[(libc, ""), ("app::raise", "")]), [libc, "app::raise"]);
        assert_eq!(names(&[("libfoo.so+0x1", ""), ("raise", "")]), ["libfoo.so+0x1", "raise"]);
    }

    #[test]
    fn start_of_a_thread_is_dropped_though_libc_has_no_names() {
        let libc = Module {
            name: "/nowhere/libc.so.6".into(),
            build_id: vec![],
            bias: 0,
            start: 0x1000,
            end: 0x2000,
        };
        let mut captured = Captured::here(vec![trace::here()[2]]);
        captured.modules.push(libc);
        let own = of(&captured, Callee::default());
        assert!(own.len() <= 1, "{own:?}");
        captured.addresses.extend([0x1010, 0x1020]);
        assert_eq!(of(&captured, Callee::default()), own);
        captured.addresses.insert(0, 0x1030);
        assert_eq!(
            of(&captured, Callee::default())[0].function,
            "/nowhere/libc.so.6+0x1030",
            "a fault in libc"
        );
    }

    #[test]
    fn address_without_a_name_is_shown_as_number() {
        let modules = [Module {
            name: "libgone.so".into(),
            build_id: vec![],
            bias: 0x1000,
            start: 0x1000,
            end: 0x2000,
        }];
        let shown = |address| RawFrame::new(address, &modules).resolve()[0].function.clone();
        assert_eq!(shown(0x10), "0x10");
        assert_eq!(shown(0x1020), "libgone.so+0x20");
    }
}
