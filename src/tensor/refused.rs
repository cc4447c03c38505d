//! What could not be done, with what it was to be done to.

use std::fmt;

use crate::error::MemoryError;

/// Why something was refused, and what was given for it, as it was.
///
/// ```
/// use phalanx::Tensor;
/// let tensor = Tensor::<f32>::zeros(&[4])?;
/// let view = tensor.narrow(0, 1, 2)?;
/// let refused = tensor.freeze().unwrap_err();
/// assert!(refused.reason().to_string().contains("a clone or a view of it in this process"));
/// refused.into_inner().set(0, 1.0)?;
/// # Ok::<(), phalanx::MemoryError>(())
/// ```
pub struct Refused<T>(Box<(T, MemoryError)>);

impl<T> Refused<T> {
    pub(super) fn new(given: T, reason: MemoryError) -> Self {
        Self(Box::new((given, reason)))
    }

    /// Why it was refused.
    #[must_use]
    pub fn reason(&self) -> &MemoryError {
        &self.0.1
    }

    /// What was given to the method, as it was: it can be used on, or given to the method again.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0.0
    }
}

impl<T> fmt::Display for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason().fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for Refused<T> {
    /// As its text, and what was given: `unwrap` shows it so.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}: {:?}", self.0.0)
    }
}

impl<T: fmt::Debug> std::error::Error for Refused<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.reason().source()
    }
}

impl<T> From<Refused<T>> for MemoryError {
    /// The reason; what was given is dropped.
    fn from(refused: Refused<T>) -> Self {
        refused.0.1
    }
}
