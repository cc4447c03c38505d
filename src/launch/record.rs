//! record: a Rust program's error for the launcher that has started it.

use std::any::Any;
use std::backtrace::Backtrace;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::error_file;

/// Runs the main of a program that `phalanx run` or torchrun has started, and writes its failure, an `Err` or a panic, to the file that
/// the launcher names in `TORCHELASTIC_ERROR_FILE`. So the launcher's report has it, whatever else goes to stderr.
///
/// The file has the error with its causes (`{:#}`) and a backtrace. Without the variable `main` is only run. torch's name of it is
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
    match catch_unwind(AssertUnwindSafe(main)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            // `{:#}`: with its causes, where the type shows them.
            error_file::write_or_say(&path, &format!("{error:#}"), Some(&backtrace()));
            Err(error)
        }
        Err(panic) => {
            let message = format!("panicked: {}", payload(&*panic));
            error_file::write_or_say(&path, &message, Some(&backtrace()));
            resume_unwind(panic)
        }
    }
}

/// The text of a panic.
fn payload(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(its payload is no text)")
}

fn backtrace() -> String {
    Backtrace::force_capture().to_string()
}
