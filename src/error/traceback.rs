//! Where a failure happened: function, file and line of every frame.

use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::frames;
use crate::sys::image::{self, Module};

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

/// A traceback as a worker hands it in: addresses, which the launcher names when somebody looks at them, so that a
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
    /// The same of what runs before it: its name, and where its caller begins.
    pub(crate) hook: Option<(&'static str, usize)>,
}

/// The calls that led to a failure, innermost first, trimmed to what the user wrote.
///
/// Frames carry file and line where the executable has debug information: in release builds by `debug = "limited"`
/// in the Cargo profile. (With `"line-tables-only"` functions come without their paths.) Naming the frames takes
/// some milliseconds, the first time in a process up to some hundred, and is done when they are first asked for.
#[derive(Clone, Debug)]
pub struct Traceback {
    captured: Captured,
    callee: Callee,
    frames: OnceLock<Vec<Frame>>,
}

impl Traceback {
    /// Of a failure somewhere in the user's function.
    pub(crate) fn new(captured: Captured, callee: Callee) -> Self {
        Self { captured, callee, frames: OnceLock::new() }
    }

    /// The frames, innermost first.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        self.frames.get_or_init(|| {
            let frames = frames::of(&self.captured, self.callee);
            if frames.is_empty() { vec![Frame::of(self.callee.name)] } else { frames }
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
        let (captured, callee) = Default::default();
        Ok(Self { captured, callee, frames: OnceLock::from(frames) })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::trace;

    #[test]
    fn traceback_of_nothing_names_the_function() {
        let callee = Callee { name: "app::work", ..Callee::default() };
        let traceback = Traceback::new(Captured::default(), callee);
        assert_eq!(traceback.to_string(), "Traceback (innermost call first):\n    0: app::work");
    }

    #[test]
    fn traceback_travels_with_names() {
        let traceback = Traceback::new(Captured::here(trace::here()), Callee::default());
        let back: Traceback = serde_json::from_str(&serde_json::to_string(&traceback).unwrap()).unwrap();
        assert_eq!(back, traceback);
        assert!(back.frames().iter().any(|frame| frame.function.contains("traceback_travels_with_names")));
    }
}
