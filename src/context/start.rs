//! Check, build the jobs, start them.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::group::{GroupConfig, WorkerGroup};
use super::join::ProcessContext;
use super::options::{Hook, Options};
use super::output::{Output, StderrFile};
use super::rank;
use crate::error::{Callee, Error, WorkerError, limit_met};
use crate::injection::Faults;
use crate::memory::named::{self, ProcessDir};
use crate::memory::strategy::Choice;
use crate::memory::strategy::{SharingStrategy, get_sharing_strategy};
use crate::start::{self, Jobs, Plan, StartMethod};
use crate::sys::image::Image;
use crate::sys::limits::with_room;
use crate::sys::namespace;
use crate::sys::signal::{self, Signal};
use crate::wire::codec;
use crate::wire::job::JobFile;
use crate::wire::manifest::Manifest;
use crate::wire::message::{Job, Shared};
use crate::wire::result_channel::ResultChannel;
use crate::wire::roster::Roster;
use crate::wire::setup::Setup;
use crate::wire::stop_word::StopWord;
use crate::worker::entry::{self, Entry};

/// Runs `f(rank, args)` in `nprocs` worker processes, waits for all of them and returns their results by rank.
///
/// `f` is a plain function or a closure that captures nothing: another process does not have the variables of
/// this one, so what `f` needs goes into `args`. These, and results, are any type that serde can write and read again.
/// They are copied, but for tensors, locks, queues and descriptors, which are shared.
///
/// ```
/// # phalanx::auto_init!();
/// fn work(rank: usize, scale: f64) -> anyhow::Result<f64> {
///     Ok(rank as f64 * scale)
/// }
///
/// # fn run() -> Result<(), phalanx::Error> {
/// let results = phalanx::spawn(work, 0.5, 4)?;
/// assert_eq!(results, [0.0, 0.5, 1.0, 1.5]);
/// # Ok(())
/// # }
/// # fn main() { run().unwrap() }
/// ```
///
/// A worker makes `f` anew: a closure may use a type without bytes that stands for something that this process has done,
/// as a token of an initialised library does, but in the worker nothing has been done yet. Give such a type no `Copy`.
///
/// A closure that captures is refused when it is compiled:
///
/// ```compile_fail
/// let scale = 0.5;
/// phalanx::spawn(move |rank, _: ()| anyhow::Ok(rank as f64 * scale), (), 4);
/// ```
///
/// Nor does an `Arc` travel, since what arrived in another process would share nothing with what was sent. (Where some crate
/// turns on serde's feature `rc` it does, as a copy for each worker.) Share a
/// [`Lock`](crate::sync::Lock), a [`Value`](crate::sync::Value), a [`Tensor`](crate::Tensor) or a [`Queue`](crate::Queue) instead:
///
/// ```compile_fail,E0277
/// use std::sync::{Arc, Mutex};
/// fn count(_: usize, total: Arc<Mutex<u64>>) -> anyhow::Result<()> {
///     *total.lock().unwrap() += 1;
///     Ok(())
/// }
/// phalanx::spawn(count, Arc::new(Mutex::new(0)), 4);
/// ```
///
/// # Errors
/// The failure that happened first in time, as [`Error::ProcessRaised`] or [`Error::ProcessExited`], after all
/// other workers were ended; or why they could not be started, when none is left either.
pub fn spawn<F, A, R, E>(f: F, args: A, nprocs: usize) -> Result<Vec<R>, Error>
where
    F: Fn(usize, A) -> Result<R, E> + Copy + Send + 'static,
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
    E: WorkerError,
{
    const { entry::assert_plain::<F>() }
    start_processes(f, args, Options::new(nprocs))?.join()
}

/// Starts workers that run `f(rank, args)`, and returns the handle to watch and join them by.
///
/// Either all of them start or none is left.
///
/// ```
/// # phalanx::auto_init!();
/// use std::time::Duration;
/// use phalanx::{Options, start_processes};
///
/// fn work(rank: usize, name: String) -> anyhow::Result<String> {
///     Ok(format!("{name} {rank}"))
/// }
///
/// # fn run() -> Result<(), phalanx::Error> {
/// let mut context = start_processes(work, "rank".to_owned(), Options::new(2))?;
/// while !context.join_timeout(Duration::from_millis(100))? {
///     println!("still running: {:?}", context.pids());
/// }
/// assert_eq!(context.into_results()?, ["rank 0", "rank 1"]);
/// # Ok(())
/// # }
/// # fn main() { run().unwrap() }
/// ```
///
/// # Errors
/// When the workers cannot be started: see [`Error`].
pub fn start_processes<F, A, R, E>(f: F, args: A, options: Options) -> Result<ProcessContext<R>, Error>
where
    F: Fn(usize, A) -> Result<R, E> + Copy + Send + 'static,
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
    E: WorkerError,
{
    const { entry::assert_plain::<F>() }
    let _ = f;
    let builder = JobBuilder::new(entry::of::<F, A, R, E>(), &options)?;
    // One job for all: the arguments are serialised once.
    let jobs = if options.nprocs == 0 { Vec::new() } else { vec![builder.build_for_all(&args)?] };
    launch(builder, jobs, options)
}

/// As [`start_processes`], with arguments of its own for each rank.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Options, start_processes_with};
///
/// fn work(_rank: usize, part: Vec<u64>) -> anyhow::Result<u64> {
///     Ok(part.iter().sum())
/// }
///
/// # fn run() -> Result<(), phalanx::Error> {
/// let part = |rank: usize| (0..4).map(|i| (4 * rank + i) as u64).collect();
/// let sums = start_processes_with(work, part, Options::new(2))?.join()?;
/// assert_eq!(sums, [6, 22]);
/// # Ok(())
/// # }
/// # fn main() { run().unwrap() }
/// ```
///
/// # Errors
/// As [`start_processes`].
pub fn start_processes_with<F, A, R, E>(
    f: F,
    args: impl FnMut(usize) -> A,
    options: Options,
) -> Result<ProcessContext<R>, Error>
where
    F: Fn(usize, A) -> Result<R, E> + Copy + Send + 'static,
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
    E: WorkerError,
{
    const { entry::assert_plain::<F>() }
    let _ = f;
    let builder = JobBuilder::new(entry::of::<F, A, R, E>(), &options)?;
    let jobs = (0..options.nprocs).map(args).enumerate().map(|(rank, args)| builder.build_for(rank, &args));
    let jobs = jobs.collect::<Result<_, _>>()?;
    launch(builder, jobs, options)
}

/// Makes the jobs of one function.
struct JobBuilder {
    nprocs: usize,
    callee: Callee,
    job: Job,
    result_channel: ResultChannel,
    guards: Option<Arc<OwnedFd>>,
    process_dir: Option<Arc<ProcessDir>>,
    stop: StopWord,
    roster: Arc<Roster>,
    faults: Option<Faults>,
}

impl JobBuilder {
    /// Checks all that can be checked before anything is started.
    fn new(entry: &'static Entry, options: &Options) -> Result<Self, Error> {
        options.check()?;
        let reruns_program = options.method != StartMethod::Fork || options.guardian;
        start::check_init(reruns_program)?;
        if reruns_program {
            start::check_executable()?;
        }
        // ForkServer sees it where it looks at this thread anyway.
        let starts_children = options.method != StartMethod::ForkServer;
        if let Some(kind) = starts_children.then(namespace::of_children_only).flatten() {
            return Err(Error::ForeignNamespace { kind });
        }
        if signal::children_are_reaped_by_kernel()
            .map_err(Error::system("ask for the disposition of SIGCHLD"))?
        {
            return Err(Error::SigchldIgnored);
        }
        rank::make_outputs(&options.ranks)?;
        start::make_room(options.nprocs, options.output.descriptors());
        let image = Image::main().map_err(Error::system("identify this executable"))?;
        let nprocs = options.nprocs;
        let result_channel =
            ResultChannel::new().map_err(Error::system("make a way for results (socketpair)"))?;
        let process_dir =
            if options.death_signal == Some(Signal::KILL) { process_dir_for_workers()? } else { None };
        // Workers of the fork server are its children anyway.
        let guarded = options.guardian && options.method != StartMethod::ForkServer;
        let guards = guarded.then(start::forkserver::guards).transpose()?;
        let roster = with_room(|| Roster::new(nprocs));
        let roster =
            roster.map_err(Error::system("make the list of the workers' processes (memfd_create)"))?;
        let stop = with_room(|| StopWord::new(roster.clone()));
        let stop = stop.map_err(Error::system("make what workers are told of their end by (eventfd)"))?;
        let job = Job {
            image: image.id().to_vec(),
            entry: entry.offset(image)?,
            function: entry.name().to_owned(),
            name: options.job_name(),
            setup: setup_of(options, image)?,
            shared: Some(Shared {
                sharing: Choice::of_this_process(),
                process_dir: process_dir
                    .as_ref()
                    .map(|process_dir| (process_dir.as_fd().as_raw_fd(), process_dir.own().to_owned())),
                result_channel: result_channel.number(),
                guards: guards.as_ref().map(|guards| guards.as_raw_fd()),
                stop: stop.number(),
                aborts: options.abort,
                roster: roster.number(),
                faults: options.faults.as_ref().map(Faults::orders),
            }),
            manifest: Manifest::default(),
        };
        let callee = entry.callee(options.hook.map(|Hook(hook)| hook));
        let faults = options.faults.clone();
        Ok(Self { nprocs, callee, job, result_channel, guards, process_dir, stop, roster, faults })
    }

    /// One job for all ranks.
    fn build_for_all<A: Serialize>(&self, args: &A) -> Result<JobFile, Error> {
        let job = self.build(&self.job, 0, args)?;
        match job.exclusive() {
            Some(noun) if self.nprocs > 1 => {
                let reason = format!(
                    "a {noun} can go to one rank only, but these are for all {}: use start_processes_with",
                    self.nprocs
                );
                Err(Error::Arguments { rank: 0, reason })
            }
            _ => Ok(job),
        }
    }

    /// The job of one rank, without what the others have of their own.
    fn build_for<A: Serialize>(&self, rank: usize, args: &A) -> Result<JobFile, Error> {
        let mut job = self.job.clone();
        job.setup.ranks = job.setup.of_rank(rank).cloned().into_iter().collect();
        self.build(&job, rank, args)
    }

    fn build<A: Serialize>(&self, job: &Job, rank: usize, args: &A) -> Result<JobFile, Error> {
        let encoded = codec::encode(args).map_err(|reason| Error::Arguments { rank, reason })?;
        let faults = self.faults.as_ref().map(Faults::descriptor);
        let file = JobFile::new(job, encoded).map(|file| file.with_group(&self.roster, &self.stop, faults));
        file.map_err(|os| Error::Start {
            rank,
            nprocs: self.nprocs,
            call: "writing the job (memfd_create)",
            limit: limit_met(&os),
            os,
        })
    }
}

/// What the workers know of themselves, have of their own and do before their function.
fn setup_of(options: &Options, image: &Image) -> Result<Setup, Error> {
    let hook =
        options.hook.map(|Hook(entry)| Ok::<_, Error>((entry.offset(image)?, entry.name().to_owned())));
    Ok(Setup {
        nprocs: options.nprocs,
        launcher: std::process::id(),
        hook: hook.transpose()?,
        ranks: options.ranks.iter().map(|rank| rank.record(options.output.tail > 0)).collect(),
    })
}

/// This process's directory of named memory, when it has named memory or is to have it.
fn process_dir_for_workers() -> Result<Option<Arc<ProcessDir>>, Error> {
    match get_sharing_strategy() {
        SharingStrategy::FileSystem => Ok(Some(named::process_dir()?)),
        SharingStrategy::FileDescriptor => Ok(named::process_dir_in_use()),
    }
}

/// Starts the workers of jobs that are complete, all or none, and makes their context.
fn launch<R>(builder: JobBuilder, jobs: Vec<JobFile>, options: Options) -> Result<ProcessContext<R>, Error> {
    let stderr_files = stderr_files(&options)?;
    let (plan, config) = plan(builder, jobs, &options);
    let mut started = start::start_all(plan)?;
    let readers = std::mem::take(&mut started.readers);
    // After the last fork: a process with this thread could not fork. Until then what the workers print waits in the pipes.
    let mut output = start_output(&options)?;
    for (rank, (readers, file)) in readers.into_iter().zip(stderr_files).enumerate() {
        if let Some(output) = &mut output {
            output.carry((rank, rank), readers, file);
        }
    }
    Ok(ProcessContext::new(WorkerGroup::new(started, output, config)?))
}

/// The files of all ranks to which this process is to carry their stderr.
fn stderr_files(options: &Options) -> Result<Vec<StderrFile>, Error> {
    let open = |(rank, of): (usize, &rank::RankOptions)| {
        if options.output.tail > 0 { of.open_stderr(rank) } else { Ok(None) }
    };
    let mut files = options.ranks.iter().enumerate().map(open).collect::<Result<Vec<_>, _>>()?;
    files.resize_with(options.nprocs, || None);
    Ok(files)
}

fn start_output(options: &Options) -> Result<Option<Output>, Error> {
    Output::start(options.output.clone(), options.job_name(), options.nprocs)
}

/// Workers that all run the same function with the same arguments, for a caller that starts them one by one, and again when they have
/// ended.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    pub(crate) config: GroupConfig,
    /// What they print, if this process carries it.
    pub(crate) output: Option<Output>,
    /// By rank.
    pub(crate) stderr_files: Vec<StderrFile>,
}

pub(crate) fn plan_for_all<A: Serialize>(
    entry: &'static Entry,
    args: &A,
    options: &Options,
) -> Result<Planned, Error> {
    let builder = JobBuilder::new(entry, options)?;
    let jobs = vec![builder.build_for_all(args)?];
    let (plan, config) = plan(builder, jobs, options);
    Ok(Planned { plan, config, output: start_output(options)?, stderr_files: stderr_files(options)? })
}

fn plan(builder: JobBuilder, jobs: Vec<JobFile>, options: &Options) -> (Plan, GroupConfig) {
    let JobBuilder { callee, result_channel, guards, process_dir, stop, .. } = builder;
    let &Options { nprocs, method, daemon, grace, death_signal, .. } = options;
    let plan = Plan {
        method,
        nprocs,
        jobs: Jobs::new(jobs),
        result_channel,
        guards,
        process_dir,
        environment: options.environment.clone(),
        rank_environments: options.ranks.iter().map(|rank| rank.environment.clone()).collect(),
        death_signal,
        piped: options.output.pipes(),
    };
    (plan, GroupConfig { daemon, grace, callee, stop })
}
