//! Launch::function, and what its workers do: this executable again, which finds the function in `init`.

use std::io::{self, Write};
use std::os::fd::RawFd;
use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{LaunchError, Result};
use super::error_file;
use super::options::Launch;
use super::work::{Function, Work};
use crate::error::{RaisedError, WorkerError, with_limit};
use crate::sys::fork;
use crate::sys::signal::{self, Signal};
use crate::wire::names::{EXIT_PANICKED, EXIT_RAISED, EXIT_REFUSED, PROTOCOL};
use crate::worker::entry;
use crate::worker::{WorkerInfo, function};

impl Launch {
    /// A job whose workers run `f(rank, args)`: a function of this program instead of a program. All else is the same:
    /// torchrun's variables, logs, restarts, the summary. Each worker is this executable, run again with this process's arguments,
    /// and comes to the function in [`init`](crate::init), which main must call first.
    ///
    /// `f` and `args` are what [`spawn`](crate::spawn) takes: a plain function or a closure that captures nothing, and any type that
    /// serde can write and read again. Tensors, locks, queues and descriptors in `args` are shared, with this process, among the
    /// workers and from attempt to attempt; a restarted worker finds in a tensor what the last attempt has left there. What only one
    /// process can have, as a [`Shard`](crate::Shard), is refused. A worker that is killed may leave a value half written: what is more
    /// than one element belongs into a [`Lock`](crate::sync::Lock), which says so.
    ///
    /// The function returns no value: what becomes of a job is its [`Summary`](super::Summary). If it returns an `Err` or panics, the
    /// worker writes an error file as torch's, so that the report has its text and its traceback, and exits with 1 or 101, as
    /// a Rust program does; another code is that of [`std::process::exit`]. [`worker_info`](crate::worker_info) and
    /// [`stopping`](crate::stopping) work in it.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::Tensor;
    /// use phalanx::launch::{Launch, Nproc};
    ///
    /// fn train(rank: usize, steps: Tensor<i64>) -> anyhow::Result<()> {
    ///     // The second attempt goes on where the first one has failed.
    ///     while steps.fetch_add(rank, 1)? < 4 {
    ///         anyhow::ensure!(rank != 1 || steps.get(rank)? != 2, "out of luck");
    ///     }
    ///     Ok(())
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let steps = Tensor::zeros(&[2])?;
    /// let summary = Launch::function(train, steps.clone())?.nproc(Nproc::Count(2)).max_restarts(1).run()?;
    /// assert!(summary.succeeded(), "{summary}");
    /// let root = summary.attempts[0].root_cause().expect("the first attempt fails");
    /// assert_eq!((root.rank, &*root.error.as_ref().unwrap().message), (1, "out of luck"));
    /// assert!(steps.get(1)? > 4);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`LaunchError::Function`] when main has not called `init`, this executable cannot be run again, the function is one of a shared
    /// object, or the arguments cannot be written.
    pub fn function<F, A, E>(f: F, args: A) -> Result<Self>
    where
        F: Fn(usize, A) -> std::result::Result<(), E> + Copy + Send + 'static,
        A: Serialize + DeserializeOwned,
        E: WorkerError,
    {
        const { entry::assert_plain::<F>() }
        let _ = f;
        let entry = entry::of::<F, A, (), E>();
        let refused =
            |error| LaunchError::Function { function: entry.name().to_owned(), error: Box::new(error) };
        let function = Function::new(entry, &args).map_err(refused)?;
        Ok(Self::of(Work::Function(Rc::new(function))))
    }
}

/// Lives the life of a worker that runs a function; returns its exit code.
pub(crate) fn run(marker: &str) -> i32 {
    let called = own(marker).and_then(|(inherited, worker)| function::run(inherited, worker, tell));
    match called {
        Ok(Ok(())) => 0,
        Ok(Err(raised)) if raised.is_panic() => EXIT_PANICKED,
        Ok(Err(_)) => EXIT_RAISED,
        Err(error) => {
            let text = format!("cannot begin as a worker: {}", with_limit(&error));
            let _ = writeln!(io::stderr(), "phalanx: {text}");
            write(&text, None);
            EXIT_REFUSED
        }
    }
}

/// The numbers of job and roster, and what this worker is, by the variables that its launcher has set.
fn own(marker: &str) -> io::Result<([RawFd; 2], WorkerInfo)> {
    let bad = |name: &str, text: &str| io::Error::other(format!("{name} is {text:?}"));
    let numbers = marker.strip_prefix(&format!("{PROTOCOL} ")).and_then(|rest| rest.split_once(' '));
    let inherited = numbers.and_then(|(job, roster)| Some([job.parse().ok()?, roster.parse().ok()?]));
    let inherited = inherited.ok_or_else(|| bad("its marker", marker))?;
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let number = |name: &str| {
        let text = variable(name);
        text.parse().map_err(|_| bad(name, &text))
    };
    let worker = WorkerInfo {
        rank: number("RANK")?,
        nprocs: number("WORLD_SIZE")?,
        name: variable("ROLE_NAME"),
        launcher: fork::parent_id(),
    };
    Ok((inherited, worker))
}

/// Writes what the function failed with into the error file, and to stderr, where a panic has been told already.
fn tell(raised: &RaisedError) {
    let text = raised.text();
    // At once: the launcher takes this for the moment of the failure, and to name the frames takes a while.
    write(&text, None);
    if !raised.is_panic() {
        // A closed stderr is no reason to leave the file unfinished.
        let _ = writeln!(io::stderr(), "Error: {text}");
    }
    // The stop that may follow must not end this process in between. SIGKILL can.
    let _ = signal::ignore(Signal::TERM);
    write(&text, Some(&raised.traceback().to_string()));
    // The report alone is protected: an exit handler that hangs can be ended.
    let _ = signal::reset(Signal::TERM);
}

fn write(text: &str, traceback: Option<&str>) {
    if let Some(path) = error_file::own() {
        error_file::write_or_say(&path, text, traceback);
    }
}
