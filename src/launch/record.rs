//! record: a Rust program's error for the launcher that has started it.

use std::fmt::Display;
use std::panic::resume_unwind;
use std::path::Path;

use super::error_file;
use crate::error::{Callee, Raised, RaisedError};
use crate::worker::report;

/// Runs the main of a program that `phalanx run` or torchrun has started, and writes its failure, an `Err` or a panic, to the file that
/// the launcher names in `TORCHELASTIC_ERROR_FILE`. So the launcher's report has it, whatever else goes to stderr.
///
/// The file has the text of an `Err` with its causes (`{:#}`); of a panic the text, the place and the traceback. Without the variable `main` is only run. torch's name of it is
/// `torch.distributed.elastic.multiprocessing.errors.record`. The launcher shows what it has read as an
/// [`ErrorReport`](super::ErrorReport).
///
/// ```
/// fn train() -> Result<(), std::io::Error> {
///     Ok(())
/// }
///
/// fn main() -> Result<(), std::io::Error> {
///     phalanx::launch::record(train)
/// }
/// ```
///
/// # Errors
/// Those of `main`. A file that cannot be written is no error of the program; stderr says so.
///
/// # Panics
/// When `main` panics, with the same payload.
pub fn record<T, E: Display>(main: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let Some(path) = error_file::own() else { return main() };
    let at_abort = {
        let path = path.clone();
        move |raised| write_panic(&path, raised)
    };
    match report::call_main(at_abort, main) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            // `{:#}`: with its causes, where the type shows them. Where it came from only the error itself may know.
            error_file::write_or_say(&path, &format!("{error:#}"), None);
            Err(error)
        }
        Err((raised, payload)) => {
            write_panic(&path, raised);
            resume_unwind(payload)
        }
    }
}

fn write_panic(path: &Path, raised: Raised) {
    let raised = RaisedError::new(raised, Callee::default());
    // torchrun shows the traceback alone, where there is one: so it begins with the message.
    error_file::write_or_say(path, &raised.text(), Some(&raised.to_string()));
}
