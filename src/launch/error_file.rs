//! A worker's error file, as torch's `@record` writes it: JSON at `TORCHELASTIC_ERROR_FILE`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a worker has written of its failure, before it ended: its error file.
///
/// The launcher names the file in `TORCHELASTIC_ERROR_FILE`. torch's `@record` writes it for a Python program, and
/// [`record`](super::record) for a Rust program. A program in any other language writes JSON of one of two forms:
///
/// ```json
/// {"message": "the disk is full", "errorCode": 28}
/// {"message": {"message": "ValueError: no", "extraInfo": {"py_callstack": "Traceback …"}}}
/// ```
///
/// The file is to appear in one step (write another one, and rename it): the moment when it does is that of the failure.
///
/// ```
/// use phalanx::launch::{Command, Launch};
///
/// let script = r#"
///     echo '{"message": "the disk is full", "errorCode": 28}' > $TORCHELASTIC_ERROR_FILE.new
///     mv $TORCHELASTIC_ERROR_FILE.new $TORCHELASTIC_ERROR_FILE
///     exit 1
/// "#;
/// let summary = Launch::new(Command::new("sh").args(["-c", script])).run()?;
/// let error = summary.attempts[0].workers[0].error.as_ref().unwrap();
/// assert_eq!((&*error.message, error.error_code), ("the disk is full", Some(28)));
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ErrorReport {
    /// The error in a line or a few, as `ValueError: no such file`.
    pub message: String,
    /// The stack where it happened, as the worker's language writes it; `None`: it has written none.
    pub traceback: Option<String>,
    /// The exit code that the worker asks for; it counts if the launcher had to end the worker.
    pub error_code: Option<i32>,
}

/// More bytes than any traceback has; what is longer is no error file.
const LONGEST: u64 = 16 * 1024 * 1024;

/// Reads a worker's error file; `None`: it has written none.
///
/// # Errors
/// With what is wrong, for people, when it cannot be read, is no JSON, or is of another form.
pub(super) fn read(path: &Path) -> Result<Option<ErrorReport>, String> {
    let text = match fs::metadata(path) {
        Ok(file) if file.len() == 0 => return Ok(None),
        Ok(file) if file.len() > LONGEST => return Err(format!("the error file has {} bytes", file.len())),
        Ok(_) => {
            fs::read_to_string(path).map_err(|error| format!("the error file cannot be read: {error}"))?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("the error file cannot be read: {error}")),
    };
    let value: Value =
        serde_json::from_str(&text).map_err(|error| format!("the error file is no whole JSON: {error}"))?;
    of_json(&value).map(Some).ok_or_else(|| "the error file has no \"message\"".to_owned())
}

/// Both forms: `{"message": {"message": …, "extraInfo": {"py_callstack": …}}}` and `{"message": "…"}`.
fn of_json(value: &Value) -> Option<ErrorReport> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let error_code = |value: &Value| value.get("errorCode")?.as_i64()?.try_into().ok();
    match value.get("message")? {
        Value::String(message) => {
            Some(ErrorReport { message: message.clone(), traceback: None, error_code: error_code(value) })
        }
        inner => Some(ErrorReport {
            message: inner.get("message").and_then(text)?,
            traceback: inner.pointer("/extraInfo/py_callstack").and_then(text),
            error_code: error_code(inner).or_else(|| error_code(value)),
        }),
    }
}

/// The file that the launcher of this process has named for its error, if it has named one.
pub(super) fn own() -> Option<PathBuf> {
    std::env::var_os("TORCHELASTIC_ERROR_FILE").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Writes the error file of this process; says on stderr when it cannot: the process fails already, and nobody else is there to be
/// told.
pub(super) fn write_or_say(path: &Path, message: &str, traceback: Option<&str>) {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if let Err(error) = write(path, message, traceback, seconds) {
        let _ =
            writeln!(io::stderr(), "phalanx: the error file {} cannot be written: {error}", path.display());
    }
}

/// Writes an error file that torch reads too, in one step, so that its reader sees the whole.
fn write(path: &Path, message: &str, traceback: Option<&str>, unix_seconds: u64) -> io::Result<()> {
    let mut extra = json!({ "timestamp": unix_seconds.to_string() });
    if let Some(traceback) = traceback {
        extra["py_callstack"] = traceback.into();
    }
    let text = json!({ "message": { "message": message, "extraInfo": extra } }).to_string();
    crate::sys::replace::write(path, |mut file| file.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Option<ErrorReport>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn both_forms_of_torch_are_read() {
        let nested = r#"{"message": {"message": "RuntimeError: no", "errorCode": 3, "extraInfo": {"py_callstack": "Traceback…",
            "timestamp": "1700000000"}}}"#;
        let report = read_text(nested).unwrap().unwrap();
        assert_eq!(
            (&*report.message, report.traceback.as_deref(), report.error_code),
            ("RuntimeError: no", Some("Traceback…"), Some(3))
        );
        let flat = read_text(r#"{"message": "flat", "timestamp": 1}"#).unwrap().unwrap();
        assert_eq!((&*flat.message, flat.traceback), ("flat", None));
    }

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("error.json");
        assert_eq!(read(&path), Ok(None));
        write(&path, "a \"message\"", None, 5).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().traceback, None);
        write(&path, "a \"message\"", Some("1\n2"), 5).unwrap();
        let report = read(&path).unwrap().unwrap();
        assert_eq!((&*report.message, report.traceback.as_deref()), ("a \"message\"", Some("1\n2")));
        assert!(read_text("{\"message\": {\"mess").unwrap_err().contains("no whole JSON"));
        assert!(read_text("[1]").unwrap_err().contains("no \"message\""));
        assert_eq!(read_text(""), Ok(None));
    }
}
