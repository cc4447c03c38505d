//! Where a failure happened: function, file and line of every frame.

use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sys::image::{self, Module};
use crate::sys::trace;

/// One call in a [`Traceback`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Frame {
    /// The function's path, or the address as text where it has no name.
    pub function: String,
    /// The source file, as the compiler was given it.
    pub file: Option<String>,
    /// The line in that file, from 1.
    pub line: Option<u32>,
    /// The column in that line, from 1.
    pub column: Option<u32>,
}

impl Frame {
    /// One of which nothing is known but its name.
    fn of(function: &str) -> Self {
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

/// An address as it can be sent to another process of the same executable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RawFrame {
    /// The object it lies in; empty for the executable, `None` when it lies in none.
    module: Option<String>,
    /// From the object's load address; the address itself without an object.
    offset: u64,
}

impl RawFrame {
    pub(crate) fn new(address: u64, modules: &[Module]) -> Self {
        match modules.iter().find(|module| module.contains(address)) {
            Some(module) => Self { module: Some(module.name.clone()), offset: address - module.bias },
            None => Self { module: None, offset: address },
        }
    }

    fn resolve(&self, modules: &[Module]) -> Vec<Frame> {
        let home = self.module.as_ref().and_then(|name| modules.iter().find(|module| module.name == *name));
        let symbols =
            home.map(|home| trace::symbols_at(home.bias.wrapping_add(self.offset))).unwrap_or_default();
        let frames: Vec<_> = symbols.into_iter().filter_map(named).collect();
        if frames.is_empty() { vec![self.unnamed()] } else { frames }
    }

    fn unnamed(&self) -> Frame {
        let module = self.module.as_deref().map(|name| if name.is_empty() { "executable" } else { name });
        let function = match module {
            Some(module) => format!("{module}+{:#x}", self.offset),
            None => format!("{:#x}", self.offset),
        };
        Frame::of(&function)
    }
}

fn named(symbol: trace::Symbol) -> Option<Frame> {
    let trace::Symbol { function, file, line, column } = symbol;
    Some(Frame { function: function?, file, line, column })
}

/// A traceback as a worker hands it in: addresses, which the launcher names when somebody looks at them,
/// so that a worker that failed is gone at once; or frames that an error had named already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Captured {
    Addresses(Vec<RawFrame>),
    Named(Vec<Frame>),
}

/// The calls that led to a failure, innermost first, trimmed to what the user wrote.
///
/// Frames carry file and line where the executable has debug information: in release builds by `debug = "limited"`
/// in the Cargo profile. (With `"line-tables-only"` functions come without their paths.) Naming the frames takes
/// some milliseconds, the first time in a process up to some hundred, and is done when they are first asked for.
#[derive(Clone, Debug)]
pub struct Traceback {
    captured: Captured,
    /// The user's function, for when nothing else is known.
    function: String,
    frames: OnceLock<Vec<Frame>>,
}

impl Traceback {
    /// Of a failure somewhere in the user's function of this name.
    pub(crate) fn new(captured: Captured, function: &str) -> Self {
        Self { captured, function: function.to_owned(), frames: OnceLock::new() }
    }

    /// The frames, innermost first.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        self.frames.get_or_init(|| {
            let frames = trim(resolve(&self.captured));
            if frames.is_empty() { vec![Frame::of(&self.function)] } else { frames }
        })
    }
}

impl PartialEq for Traceback {
    fn eq(&self, other: &Self) -> bool {
        self.frames() == other.frames()
    }
}

impl Eq for Traceback {}

impl Serialize for Traceback {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.frames().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Traceback {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let frames = Vec::<Frame>::deserialize(deserializer)?;
        let captured = Captured::Named(Vec::new());
        Ok(Self { captured, function: String::new(), frames: OnceLock::from(frames) })
    }
}

impl fmt::Display for Traceback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Traceback (innermost call first):")?;
        let mut number = 0;
        for same in self.frames().chunk_by(PartialEq::eq) {
            write!(f, "\n  {number:>3}: {}", same[0])?;
            number += same.len();
            if same.len() > 1 {
                write!(f, "\n       ... and the same {} times more", same.len() - 1)?;
            }
        }
        Ok(())
    }
}

fn resolve(captured: &Captured) -> Vec<Frame> {
    match captured {
        Captured::Named(frames) => frames.clone(),
        Captured::Addresses(raw) => {
            let modules = image::modules();
            raw.iter().flat_map(|frame| frame.resolve(&modules)).collect()
        }
    }
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

/// The same by whole names, of libc and of builds with bare names.
const MACHINERY_NAMES: [&str; 8] = [
    "rust_begin_unwind",
    "__rust_try",
    "__pthread_kill_implementation",
    "pthread_kill",
    "raise",
    "gsignal",
    "__GI_raise",
    "__GI_abort",
];

/// The same by source files, since names are bare where the profile has line tables only.
const MACHINERY_SOURCES: [&str; 4] =
    ["/library/core/src/", "/library/alloc/src/", "/library/std/src/", "/anyhow-1."];

/// Where libc begins a thread.
const THREAD_STARTS: [&str; 4] = ["start_thread", "__clone3", "clone3", "clone"];

/// Drops what raised the failure at the inner end and what called the user's function at the outer one.
fn trim(mut frames: Vec<Frame>) -> Vec<Frame> {
    if let Some(outer) = frames.iter().position(is_trampoline) {
        frames.truncate(outer);
    }
    let panic = frames.iter().rposition(is_raising).map_or(0, |at| at + 1);
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

/// Where the library calls the user's function: `worker::entry::call`, by its name or by its source file, which
/// lies beside this one.
fn is_trampoline(frame: &Frame) -> bool {
    let of_entry = file!().strip_suffix("error/traceback.rs").map(|src| format!("{src}worker/entry.rs"));
    bare(&frame.function).starts_with("phalanx::worker::entry::")
        || frame.function.starts_with("call") && of_entry.is_some_and(|file| in_source(frame, &file))
}

fn is_raising(frame: &Frame) -> bool {
    frame.function.contains("rust_begin_unwind")
        || in_source(frame, "/library/core/src/panicking.rs")
        || frame.function.contains("begin_panic") && in_source(frame, "/library/std/src/panicking.rs")
}

fn is_machinery(frame: &Frame) -> bool {
    MACHINERY_SOURCES.iter().any(|sources| in_source(frame, sources))
        || MACHINERY.iter().any(|prefix| bare(&frame.function).starts_with(prefix))
        || MACHINERY_NAMES.contains(&frame.function.as_str())
        || frame.function.contains("anyhow::")
}

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
        let entry = file!().replace("error/traceback.rs", "worker/entry.rs");
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
    fn traceback_of_nothing_names_the_function() {
        let traceback = Traceback::new(Captured::Addresses(Vec::new()), "app::work");
        assert_eq!(traceback.to_string(), "Traceback (innermost call first):\n    0: app::work");
    }

    #[test]
    fn traceback_travels_with_names() {
        let here = trace::here().into_iter().map(|address| RawFrame::new(address, &image::modules()));
        let traceback = Traceback::new(Captured::Addresses(here.collect()), "f");
        let back: Traceback = serde_json::from_str(&serde_json::to_string(&traceback).unwrap()).unwrap();
        assert_eq!(back, traceback);
        assert!(back.frames().iter().any(|frame| frame.function.contains("traceback_travels_with_names")));
    }

    #[test]
    fn unknown_address_is_shown_as_number() {
        let frame = RawFrame::new(0x10, &[]);
        assert_eq!(frame.resolve(&[])[0].function, "0x10");
        let lib = RawFrame { module: Some("libgone.so".into()), offset: 0x20 };
        assert_eq!(lib.resolve(&[])[0].function, "libgone.so+0x20");
    }
}
