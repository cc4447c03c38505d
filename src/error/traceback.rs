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
        Frame { function, file: None, line: None, column: None }
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
/// Frames carry file and line where the executable has debug information (`debug = "line-tables-only"` in the
/// Cargo profile is enough). Naming them takes some milliseconds, the first time in a process up to some
/// hundred, and is done when they are first asked for.
#[derive(Clone, Debug)]
pub struct Traceback {
    captured: Captured,
    frames: OnceLock<Vec<Frame>>,
}

impl Traceback {
    pub(crate) fn new(captured: Captured) -> Self {
        Self { captured, frames: OnceLock::new() }
    }

    /// The frames, innermost first.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        self.frames.get_or_init(|| trim(resolve(&self.captured)))
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
        Ok(Self { captured: Captured::Named(Vec::new()), frames: OnceLock::from(frames) })
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

/// Crates whose frames raise a failure, rather than being what went wrong.
const MACHINERY: [&str; 9] = [
    "std::",
    "core::",
    "alloc::",
    "backtrace::",
    "rust_begin_unwind",
    "__rustc::",
    "anyhow::",
    "phalanx::worker::report::",
    "phalanx::sys::trace::",
];

/// Where rustc's own build puts the sources of std, which is how its generic functions are known.
const STD_SOURCES: [&str; 3] = ["/library/core/src/", "/library/alloc/src/", "/library/std/src/"];

/// Where the library calls the user's function.
const TRAMPOLINE: &str = "phalanx::worker::entry::";

/// Drops what raised the failure at the inner end and what called the user's function at the outer one.
fn trim(mut frames: Vec<Frame>) -> Vec<Frame> {
    if let Some(outer) = frames.iter().position(|frame| bare(&frame.function).starts_with(TRAMPOLINE)) {
        frames.truncate(outer);
    }
    let panic = frames.iter().rposition(|frame| is_raising(&frame.function)).map_or(0, |at| at + 1);
    let inner = panic + frames[panic..].iter().take_while(|frame| is_machinery(frame)).count();
    // What is machinery from end to end is all there is to show.
    if inner == frames.len() {
        return frames;
    }
    frames.drain(..inner);
    while frames.last().is_some_and(|frame| frame.function.contains("core::ops::function::Fn")) {
        frames.pop();
    }
    frames
}

fn is_raising(function: &str) -> bool {
    function.contains("rust_begin_unwind") || bare(function).starts_with("core::panicking::")
}

fn is_machinery(frame: &Frame) -> bool {
    let of_std = |file: &String| STD_SOURCES.iter().any(|sources| file.contains(sources));
    frame.file.as_ref().is_some_and(of_std)
        || frame.function.contains("anyhow::")
        || MACHINERY.iter().any(|prefix| bare(&frame.function).starts_with(prefix))
}

/// `<path::Type as Trait>::method` without its opening brackets.
fn bare(function: &str) -> &str {
    function.trim_start_matches(['<', '&'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(functions: &[&str]) -> Vec<String> {
        let frames = functions.iter().map(|name| Frame {
            function: (*name).into(),
            file: None,
            line: None,
            column: None,
        });
        trim(frames.collect()).into_iter().map(|frame| frame.function).collect()
    }

    #[test]
    fn trim_panic_keeps_only_user_frames() {
        let seen = names(&[
            "phalanx::sys::trace::here",
            "phalanx::worker::report::hook",
            "std::panicking::panic_with_hook",
            "__rustc::rust_begin_unwind",
            "core::panicking::panic_fmt",
            "core::option::unwrap_failed",
            "app::inner",
            "core::iter::Iterator::map",
            "app::work",
            "core::ops::function::Fn::call",
            "phalanx::worker::entry::call",
            "std::panicking::catch_unwind",
            "app::main",
        ]);
        assert_eq!(seen, ["app::inner", "core::iter::Iterator::map", "app::work"]);
    }

    #[test]
    fn trim_error_drops_its_capture() {
        let seen = names(&[
            "<std::backtrace::Backtrace>::create",
            "anyhow::error::<impl anyhow::Error>::msg",
            "app::work",
            "phalanx::worker::entry::call",
        ]);
        assert_eq!(seen, ["app::work"]);
    }

    #[test]
    fn trim_keeps_everything_that_it_does_not_know() {
        assert_eq!(names(&["a", "b"]), ["a", "b"]);
        assert!(names(&[]).is_empty());
    }

    #[test]
    fn traceback_travels_with_names() {
        let here = trace::here().into_iter().map(|address| RawFrame::new(address, &image::modules()));
        let traceback = Traceback::new(Captured::Addresses(here.collect()));
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
