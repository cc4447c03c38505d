//! Traceback: the calls that led to a failure, with function, file and line.

use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::frames::{self, Callee, Captured, Frame};

/// The calls that led to a failure, innermost first, trimmed to what the user wrote.
///
/// Frames carry file and line where the executable has debug information: in release builds by `debug = "limited"`
/// in the Cargo profile. (With `"line-tables-only"` functions come without their paths.) Naming the frames takes
/// some milliseconds, the first time in a process up to some hundred, and is done when they are first asked for.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Error, spawn};
///
/// fn divide(_rank: usize, by: u32) -> anyhow::Result<u32> {
///     Ok(1 / by)
/// }
///
/// # fn main() {
/// let Err(Error::ProcessRaised(exception)) = spawn(divide, 0, 1) else { panic!("it panics") };
/// let innermost = &exception.traceback().frames()[0];
/// assert!(innermost.function.ends_with("divide"), "{innermost}");
/// # }
/// ```
///
/// A traceback that is sent or written as JSON is the list of its frames. Two are equal when their frames are.
#[derive(Clone, Debug)]
pub struct Traceback {
    captured: Captured,
    callee: Callee,
    frames: OnceLock<Vec<Frame>>,
}

impl Traceback {
    /// The traceback of a failure somewhere in the user's function `callee`, whose frames are named when they are asked for.
    pub(crate) fn new(captured: Captured, callee: Callee) -> Self {
        Self { captured, callee, frames: OnceLock::new() }
    }

    /// The frames, innermost first. There is at least one: where nothing is known of the calls, it is the worker's function.
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
