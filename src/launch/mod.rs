//! The launcher: one program or function started many times, with the environment that training programs know from torchrun.
//!
//! [`Launch`] is the program `phalanx run` as a library: it starts N processes of a program in any language, carries what they
//! print, watches them, ends all when one has failed, starts them anew if that is allowed, and says in a [`Summary`] whose failure
//! came first. [`Launch::function`] does the same with a function of this program. [`spawn`](crate::spawn) and its kin have no logs
//! and restarts, and return what the functions return.
//!
//! | to | there is |
//! |---|---|
//! | say what a job is | [`Launch`], of a [`Command`] or a [function](Launch::function), and an [`Nproc`] |
//! | say where its output goes | [`RankStreams`], [`Streams`], [`RankList`], [`Prefix`], [`Stdin`] |
//! | say after which failures it begins anew | [`RestartOn`] |
//! | bind workers to processors | [`NumaBinding`] |
//! | know in a worker that it is to end | [`stopping`](crate::stopping); `PHALANX_STOP_FD` in other languages |
//! | hear what happens | [`Event`], by [`Launch::on_event`] |
//! | have workers end on purpose | [`Launch::faults`], a plan of which [`PlannedFault`] tells what has come |
//! | know what became of it | [`Summary`], of [`Attempt`]s of [`WorkerSummary`]s; [`LaunchError`] if it could not be run |
//! | tell the launcher why a Rust program fails | [`record`] |
//! | end like the job that a signal has stopped | [`die_of`] |
//!
//! ```
//! use phalanx::launch::{Command, Ending, Launch, Nproc};
//!
//! // Rank 1 fails. The others would sleep on, and are stopped.
//! let script = "if [ $RANK = 1 ]; then exit 7; fi; exec sleep 600";
//! let summary = Launch::new(Command::new("sh").args(["-c", script])).nproc(Nproc::Count(3)).run()?;
//! assert_eq!(summary.exit_code(), 7);
//! let root = summary.attempts[0].root_cause().unwrap();
//! assert_eq!((root.rank, root.ending), (1, Ending::Exited { code: 7 }));
//! # Ok::<(), phalanx::launch::LaunchError>(())
//! ```
//!
//! A test of a job has a worker end on purpose, and reads in the summary whether that has happened:
//!
//! ```
//! use phalanx::launch::{Command, Launch, Nproc};
//!
//! let script = "echo step 1; exec sleep 600";
//! let job = Launch::new(Command::new("sh").args(["-c", script])).nproc(Nproc::Count(2));
//! let summary = job.faults("segv@line=step_1:rank=1".parse()?).run()?;
//! assert_eq!(summary.attempts[0].root_cause().unwrap().rank, 1);
//! assert_eq!((summary.exit_code(), summary.faults[0].happened.len()), (139, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What a user of torchrun finds different is in the guide [`launcher`](crate::guide::launcher).

// From a job's options to its end:
//
// - `options`: Launch: what a job is to be
// - `failure_options`: what is done about failures and stops
// - `stdio`, `stdio_options`: the standard streams of workers
// - `reach`: how people see and reach the job
// - `command`, `ranks`, `devices`, `numa`, `restart`: what options are made of
// - `plan`: all that is known before anything is started
// - `environment`: pure: the variables of a worker
// - `run`: from the first attempt to the last
// - `job`: what lives as long as the job
// - `stopping`: this process's signals and terminal
// - `guardian`: ends the job's descendants when this process is killed
// - `attempt`: workers are started, watched, and ended together
// - `faults`: pure: the plan of faults, and what has come of it
// - `workers`: one worker, from descriptors to a running program
// - `timers`: torch's file timer
// - `people`: what people see of the job and ask of it
// - `board`, `status`: what runs now, for the terminal
// - `typed`: Enter, typed there
// - `job_socket`, `protocol`: who visits the job, and what is said
// - `judge`: pure: whose failure came first
// - `descendants`: processes that have left their worker's group
// - `work`: what the workers run: a program or a function of this one
// - `function`: Launch::function, and what its workers do
// - `files`, `error_file`: where logs lie; what a worker says of its failure
// - `summary`, `report`, `event`: what is told
// - `record`: error files of Rust programs
// - `running`, `running_logs`: jobs of other processes, seen from outside

mod attempt;
mod board;
mod command;
mod descendants;
mod devices;
mod environment;
mod error;
mod error_file;
mod event;
mod failure_options;
mod faults;
mod files;
mod function;
mod guardian;
mod job;
mod job_socket;
mod judge;
mod numa;
mod options;
mod people;
mod plan;
mod protocol;
mod ranks;
mod reach;
mod record;
mod report;
mod restart;
mod run;
mod running;
mod running_logs;
mod status;
mod stdio;
mod stdio_options;
mod stopping;
mod summary;
mod timers;
mod typed;
mod work;
mod workers;

pub use command::{Command, Interpreter};
pub use devices::Nproc;
pub use error::LaunchError;
pub use error_file::ErrorReport;
pub use event::Event;
pub use faults::{HappenedFault, PlannedFault};
pub(crate) use function::run as run_function;
pub use numa::NumaBinding;
pub use options::Launch;
pub use protocol::{JobStatus, Stopped};
pub use ranks::{RankList, RankStreams, Streams};
pub use record::record;
pub use restart::RestartOn;
pub use running::RunningJob;
pub use running_logs::LogPiece;
pub use stdio::Stdin;
pub use stopping::die_of;
pub use summary::{Attempt, Ending, Role, Summary, WorkerSummary};

pub use crate::supervise::prefix::Prefix;
