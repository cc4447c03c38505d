//! RaisedError: the `Err` or the panic of a worker's function, as data.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::frames::{Callee, Captured};
use super::traceback::Traceback;

/// What the text of a panic says where its place is missing for this reason.
const HOOK_REPLACED: &str = " (the function has set a panic hook instead of the one that records place and traceback: take \
                             that by std::panic::take_hook, and let the new one call it)";

/// The same as a worker hands it in, with addresses instead of names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Raised {
    pub(crate) panicked: bool,
    pub(crate) chain: Vec<String>,
    pub(crate) location: Option<String>,
    /// Whether a panic has no place because the program has set a hook instead of the one that records it.
    pub(crate) hook_replaced: bool,
    pub(crate) trace: Captured,
}

/// An `Err` that a worker's function returned, or the panic that ended it.
///
/// It is data: the types of the worker's errors do not travel, their texts do. Its text is the error's, then its causes as anyhow
/// numbers them, then the traceback.
///
/// ```
/// # phalanx::auto_init!();
/// use anyhow::Context;
/// use phalanx::Error;
///
/// fn work(_rank: usize, _: ()) -> anyhow::Result<()> {
///     std::fs::read("/nowhere").context("loading the model")?;
///     Ok(())
/// }
///
/// # fn main() {
/// let Err(Error::ProcessRaised(exception)) = phalanx::spawn(work, (), 1) else { panic!("it fails") };
/// let error = exception.error();
/// assert_eq!(error.message(), "loading the model");
/// assert!(error.chain()[1].starts_with("No such file"));
/// assert!(!error.is_panic() && error.location().is_none());
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaisedError {
    panicked: bool,
    chain: Vec<String>,
    location: Option<String>,
    hook_replaced: bool,
    traceback: Traceback,
}

impl RaisedError {
    /// Whether it was a panic rather than an `Err`.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.panicked
    }

    /// The error's text and those of its causes, outermost first. A panic has one.
    #[must_use]
    pub fn chain(&self) -> &[String] {
        &self.chain
    }

    /// The outermost text: that of the error itself, without its causes. Empty if the error has no text.
    #[must_use]
    pub fn message(&self) -> &str {
        self.chain.first().map_or("", String::as_str)
    }

    /// `file:line:column` of a panic. `None` if it was resumed, or if the worker's function had set a panic hook that
    /// does not call the one that it replaced.
    #[must_use]
    pub fn location(&self) -> Option<&str> {
        self.location.as_deref()
    }

    /// The calls through which it came, innermost first. Of an `Err` they are those in which the error was made, if it is an
    /// [`anyhow::Error`] and backtraces are not turned off (`RUST_BACKTRACE=0`).
    #[must_use]
    pub fn traceback(&self) -> &Traceback {
        &self.traceback
    }

    /// The texts joined, as anyhow's `{:#}` does, after the place of a panic.
    pub(crate) fn text(&self) -> String {
        let joined = self.chain.join(": ");
        match &self.location {
            Some(at) => format!("panicked at {at}: {joined}"),
            None => joined,
        }
    }

    /// The first line of that.
    pub(crate) fn summary(&self) -> String {
        self.text().lines().next().unwrap_or_default().to_owned()
    }
}

impl RaisedError {
    /// Of the user's function.
    pub(crate) fn new(raised: Raised, callee: Callee) -> Self {
        let Raised { panicked, chain, location, hook_replaced, trace } = raised;
        Self { panicked, chain, location, hook_replaced, traceback: Traceback::new(trace, callee) }
    }
}

impl fmt::Display for RaisedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.panicked {
            let at = self.location.as_deref().unwrap_or("an unknown place");
            writeln!(f, "panicked at {at}{}:", if self.hook_replaced { HOOK_REPLACED } else { "" })?;
        }
        f.write_str(self.message())?;
        if self.chain.len() > 1 {
            f.write_str("\n\nCaused by:")?;
        }
        for (number, cause) in self.chain.iter().skip(1).enumerate() {
            // A cause of several lines (such as the report of a worker's own worker) is kept together by its indent.
            write!(f, "\n{number:>5}: {}", cause.replace('\n', "\n       "))?;
        }
        if !self.traceback.frames().is_empty() {
            write!(f, "\n\n{}", self.traceback)?;
        }
        Ok(())
    }
}
