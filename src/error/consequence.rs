//! The errors of waits that another process was to end, kept in a worker until its report: what its function returns, or panics
//! with, may be one of them, and then says for which processes it waited.
//!
//! They are found by their text, not by their type: a panic has nothing else, and types hide behind those of the user.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

/// An error of a wait that was made in this worker.
struct Note {
    /// Its text, as `to_string` has it.
    text: String,
    /// As a panic of `unwrap` shows it.
    debug: String,
    /// The processes for which the wait was.
    pids: Vec<u32>,
}

/// The process, if it is a worker: others report nothing, such as one that a worker has forked, in which the lock below may be
/// held by a thread that is not there.
static REPORTS: AtomicU32 = AtomicU32::new(0);
/// The last few: one that is returned has just been made.
static NOTES: Mutex<VecDeque<Note>> = Mutex::new(VecDeque::new());
/// How many errors are kept.
const KEPT: usize = 16;

/// Begins to keep them.
pub(crate) fn begin() {
    REPORTS.store(std::process::id(), Relaxed);
}

/// Keeps an error that was just made, and the processes for which the wait was, as far as they are known.
pub(crate) fn note(error: &impl Error, pids: &[u32]) {
    if REPORTS.load(Relaxed) == std::process::id() {
        keep(Note { text: error.to_string(), debug: format!("{error:?}"), pids: pids.to_vec() });
    }
}

/// Puts the newest first, and drops the oldest.
fn keep(note: Note) {
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    notes.truncate(KEPT - 1);
    notes.push_front(note);
}

/// The processes that a wait was for, if one of these texts quotes the error of that wait.
pub(crate) fn recall(texts: &[String]) -> Option<Vec<u32>> {
    let notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    let quoted = notes.iter().find(|note| texts.iter().any(|text| note.is_quoted_in(text)));
    quoted.map(|note| note.pids.clone())
}

impl Note {
    /// The debug form may be a single word, so that only its place at the end tells it from a word of the user's.
    fn is_quoted_in(&self, text: &str) -> bool {
        let before = text.strip_suffix(&self.debug);
        text.contains(&self.text) || before.is_some_and(|before| before.ends_with(": "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep_one(text: &str, debug: &str, pid: u32) {
        keep(Note { text: text.into(), debug: debug.into(), pids: vec![pid] });
    }

    fn recalled(text: &str) -> Option<u32> {
        recall(&["the outermost".to_owned(), text.to_owned()]).map(|pids| pids[0])
    }

    #[test]
    fn error_is_known_by_its_text_wherever_that_is_quoted_and_by_the_panic_of_unwrap() {
        keep_one("the other end of the pipe is closed", "Disconnected", 1);
        keep_one("timed out after 3s: the lock is held", "TimedOut { waited: 3s }", 2);
        assert_eq!(recalled("timed out after 3s: the lock is held"), Some(2));
        assert_eq!(recalled("step 7 failed (the other end of the pipe is closed)"), Some(1));
        assert_eq!(recalled("called `Result::unwrap()` on an `Err` value: Disconnected"), Some(1));
        assert_eq!(recalled("called `Result::expect()`: TimedOut { waited: 3s }"), Some(2));
        assert_eq!(recalled("Disconnected"), None);
        assert_eq!(recalled("Disconnected: from the data base"), None);
        assert_eq!(recalled("timed out after 4s"), None);
        (0..KEPT).for_each(|_| keep_one("another", "Another", 3));
        assert_eq!(recalled("timed out after 3s: the lock is held"), None, "it is too long ago");
    }
}
