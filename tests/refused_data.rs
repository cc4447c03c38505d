//! What a type refuses to write or to read is told with its words.

mod common;

use std::path::PathBuf;

use common::watched;
use phalanx::{Error, Options, Queue, QueueError, pipe, spawn, start_processes};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

phalanx::auto_init!();

fn echo<T>(_rank: usize, value: T) -> anyhow::Result<T> {
    Ok(value)
}

/// Refuses to be written, or to be read, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stubborn {
    Willing,
    Unwritable,
    Unreadable,
}

impl Serialize for Stubborn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unwritable => Err(S::Error::custom("a socket of another process cannot be sent")),
            _ => serializer.serialize_bool(*self == Self::Willing),
        }
    }
}

impl<'de> Deserialize<'de> for Stubborn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if bool::deserialize(deserializer)? {
            return Ok(Self::Willing);
        }
        Err(D::Error::custom("its license is for one machine only"))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Job {
    name: String,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Step {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    weight: Option<f32>,
    state: Stubborn,
}

fn job(state: Stubborn) -> Job {
    let step = |state| Step { weight: None, state };
    Job { name: "fit".into(), steps: vec![step(Stubborn::Willing), step(state)] }
}

/// A value that serde tries to read as one variant after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Loose {
    Stubborn(Stubborn),
    Text(String),
}

const FIELD: &str = "`steps[1].state` of refused_data::Job: ";

#[test]
fn what_cannot_be_written_is_refused_before_anything_starts() {
    watched(|| {
        let words = format!("{FIELD}a socket of another process cannot be sent");
        let refused = job(Stubborn::Unwritable);
        let error = start_processes(echo::<Job>, refused.clone(), Options::new(3)).unwrap_err();
        assert!(matches!(&error, Error::Arguments { rank: 0, reason } if *reason == words), "{error}");
        let queue = Queue::<Job>::bounded(2).unwrap();
        let error = queue.put(&refused).unwrap_err();
        assert!(matches!(&error, QueueError::Encode { reason } if *reason == words), "{error}");
        assert!(queue.is_empty());
        let (one, other) = pipe::<Job, Job>().unwrap();
        let error = one.send(&refused).unwrap_err();
        assert!(matches!(&error, QueueError::Encode { reason } if *reason == words), "{error}");
        assert!(matches!(other.try_recv(), Err(QueueError::Empty)));
        // In the worker it is the rank's failure.
        let work = |_, ()| anyhow::Ok(job(Stubborn::Unwritable));
        let error = spawn(work, (), 1).unwrap_err().to_string();
        assert!(error.contains("cannot serialise the result") && error.contains(&words), "{error}");
    });
}

#[test]
fn what_a_type_does_not_read_is_told_with_type_field_and_its_words() {
    watched(|| {
        let words = format!("{FIELD}its license is for one machine only");
        let refused = job(Stubborn::Unreadable);
        let error = spawn(echo::<Job>, refused.clone(), 1).unwrap_err().to_string();
        assert!(error.contains("cannot read the arguments") && error.contains(&words), "{error}");
        let work = |_, ()| anyhow::Ok(job(Stubborn::Unreadable));
        let error = spawn(work, (), 1).unwrap_err().to_string();
        assert!(error.contains(&words), "{error}");
        let queue = Queue::<Job>::bounded(2).unwrap();
        queue.put(&refused).unwrap();
        let error = queue.get().unwrap_err();
        assert!(matches!(&error, QueueError::Decode { reason } if *reason == words), "{error}");
        let (one, other) = pipe::<Job, Job>().unwrap();
        one.send(&refused).unwrap();
        let error = other.recv().unwrap_err();
        assert!(matches!(&error, QueueError::Decode { reason } if *reason == words), "{error}");
        // An error that a type has caught is not the one that is told later.
        let queue = Queue::<(Loose, Job)>::bounded(2).unwrap();
        queue.put((Loose::Text("x".into()), refused)).unwrap();
        let error = queue.get().unwrap_err().to_string();
        assert!(error.contains("`[1].steps[1].state` of ") && error.contains("its license"), "{error}");
    });
}

#[test]
fn path_that_is_no_text_is_refused_with_its_field() {
    use std::os::unix::ffi::OsStrExt;
    #[derive(Clone, Serialize, Deserialize)]
    struct Files {
        log: PathBuf,
    }
    let work = |_, _: Files| anyhow::Ok(());
    watched(move || {
        let log = PathBuf::from(std::ffi::OsStr::from_bytes(b"/tmp/d\xff"));
        let error = spawn(work, Files { log }, 2).unwrap_err().to_string();
        assert!(
            error.contains("`log` of ") && error.contains("Files: path contains invalid UTF-8"),
            "{error}"
        );
    });
}
