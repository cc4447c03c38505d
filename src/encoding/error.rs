//! Why a value could not be written or read, and where in it.

use std::fmt::{self, Display};

/// What serde or a type said, and the path to the field that it was said about. The path is built while the error is returned, a step
/// for each value that contains the last one, so that a reader without errors keeps no path. Boxed, so that every `Result` stays
/// small.
#[derive(Debug)]
pub(crate) struct Error(Box<Told>);

#[derive(Debug)]
struct Told {
    text: String,
    /// Innermost first.
    path: Vec<Step>,
}

#[derive(Debug)]
pub(super) enum Step {
    Field(String),
    Item(usize),
    Key(String),
}

impl Error {
    #[cold]
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(Box::new(Told { text: text.into(), path: Vec::new() }))
    }

    /// Adds the step that leads to what the path has so far.
    #[cold]
    pub(super) fn within(mut self, step: Step) -> Self {
        self.0.path.push(step);
        self
    }

    /// The text of the error, with the path and the name of the type whose value was written or read.
    pub(crate) fn of_type<T>(&self) -> String {
        let (name, path) = (std::any::type_name::<T>(), self.path());
        let text = &self.0.text;
        if path.is_empty() { format!("{name}: {text}") } else { format!("`{path}` of {name}: {text}") }
    }

    /// The path in Rust's spelling: `points[3].x`.
    fn path(&self) -> String {
        let path = self.0.path.iter().rev().map(Step::to_string).collect::<String>();
        path.strip_prefix('.').unwrap_or(&path).to_owned()
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Item(number) => write!(f, "[{number}]"),
            Self::Key(key) => write!(f, "[{key}]"),
        }
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path();
        if path.is_empty() { f.write_str(&self.0.text) } else { write!(f, "`{path}`: {}", self.0.text) }
    }
}

impl std::error::Error for Error {}

impl serde::ser::Error for Error {
    fn custom<T: Display>(text: T) -> Self {
        Self::new(text.to_string())
    }
}

impl serde::de::Error for Error {
    fn custom<T: Display>(text: T) -> Self {
        Self::new(text.to_string())
    }
}
