//! What is known of a job before anything of it is started.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::command::{Program, quoted};
use super::devices::{self, Environment, VISIBLE};
use super::environment::{self, Attempt, Own};
use super::error::{LaunchError, Result};
use super::numa::{self, Bound};
use super::options::Launch;
use super::stdio::Stdin;
use super::work::{Staged, Work};
use crate::sys::affinity::Affinity;
use crate::tensor::dyn_tensor::DynTensor;
use crate::wire::names::FUNCTION;

/// All that does not change from attempt to attempt.
#[derive(Debug)]
pub(super) struct Plan {
    /// The number of workers.
    pub(super) nproc: usize,
    pub(super) program: Program,
    /// Where the workers begin; `None`: in this process's directory.
    pub(super) directory: Option<PathBuf>,
    pub(super) run_id: String,
    /// Random text in the environment of all of the job's processes, by which they are found.
    pub(super) token: String,
    pub(super) role: String,
    pub(super) max_restarts: usize,
    pub(super) master_addr: String,
    /// The rank that reads this process's stdin; `None`: no worker does.
    pub(super) stdin_rank: Option<usize>,
    /// By rank; empty: no worker is bound.
    pub(super) bound: Vec<Bound>,
    /// The variables that all workers have.
    pub(super) base: Environment,
    /// By rank, the variable and the GPU that it names; empty: each worker sees all GPUs.
    devices: Vec<(&'static str, String)>,
    /// OpenMP threads of each worker; `None`: the environment says it, or there is one worker only.
    pub(super) omp_threads: Option<usize>,
    /// What workers inherit beside the files of tensors.
    function: Option<Staged>,
    /// The files of tensors, which workers inherit.
    files: Vec<OwnedFd>,
}

impl Plan {
    /// Decides all that can be decided, on the machine whose `/proc`, `/sys` and `/dev` are below `root`.
    ///
    /// # Errors
    /// When an option means nothing here, the program cannot be run, or the system tells too little of itself.
    pub(super) fn of(launch: &Launch, root: &Path) -> Result<Self> {
        launch.check()?;
        let mut base = launch.base_environment();
        let nproc = launch.nproc.resolve(root, &base)?;
        if let Some(faults) = &launch.faults {
            faults.check_for_programs(nproc).map_err(|error| {
                LaunchError::invalid(
                    format!("the plan of faults: {error}"),
                    "docs/faults.md has all that there is",
                )
            })?;
        }
        let allowed: BTreeSet<_> = Affinity::of_caller()
            .map_err(LaunchError::system("asking for this process's processors"))?
            .processors()
            .collect();
        let gpus = numa::gpu_nodes(root);
        let bound = launch.numa.map(|binding| numa::bind(root, binding, nproc, (&allowed, &gpus)));
        let files =
            launch.tensors.iter().map(|(name, tensor)| file_of(name, tensor)).collect::<Result<Vec<_>>>()?;
        if !files.is_empty() {
            base.insert("PHALANX_TENSORS".into(), described(&launch.tensors, &files).into());
        }
        let (program, function) = match &launch.work {
            Work::Program(command) => (command.find(&base, launch.directory.as_deref())?, None),
            Work::Function(function) => {
                let staged = Staged::new(function, nproc)?;
                base.insert(FUNCTION.into(), staged.marker().into());
                (function.program(), Some(staged))
            }
        };
        let random =
            crate::sys::dir::unguessable().map_err(LaunchError::system("asking for random bytes"))?;
        Ok(Self {
            nproc,
            program,
            function,
            directory: launch.directory.clone(),
            run_id: launch
                .run_id
                .clone()
                .or_else(|| launch.job_name.clone())
                .unwrap_or_else(|| letters(&random)),
            token: random,
            role: launch.role.clone(),
            max_restarts: launch.max_restarts,
            master_addr: launch.master_addr.clone(),
            stdin_rank: stdin_rank(launch.stdin, nproc)?,
            bound: bound.transpose()?.unwrap_or_default(),
            devices: if launch.virtual_local_rank {
                one_device_each(root, &base, nproc)?
            } else {
                Vec::new()
            },
            omp_threads: environment::omp_threads(&base, nproc, allowed.len()),
            files,
            base,
        })
    }

    /// The descriptors that workers inherit, under these numbers.
    pub(super) fn inherited(&self) -> Vec<BorrowedFd<'_>> {
        let of_function = self.function.iter().flat_map(Staged::inherited);
        self.files.iter().map(AsFd::as_fd).chain(of_function).collect()
    }

    /// Whether a worker has begun: one that runs a function has come to `init`. Of a program nothing is known.
    pub(super) fn has_begun(&self, rank: usize, pid: u32) -> bool {
        self.function.as_ref().is_none_or(|function| function.has_begun(rank, pid))
    }

    /// The variables of a worker, and the words of its command line. `attempt` is a number from 0 on.
    pub(super) fn worker(
        &self,
        rank: usize,
        (attempt, port): (usize, u16),
        error_file: &Path,
    ) -> (Environment, Vec<OsString>) {
        let common = Attempt {
            nproc: self.nproc,
            role: &self.role,
            run_id: &self.run_id,
            token: &self.token,
            master: (&self.master_addr, port),
            number: attempt,
            max_restarts: self.max_restarts,
        };
        let device = self.devices.get(rank).map(|(name, device)| (*name, &**device));
        let local_rank = if device.is_some() { 0 } else { rank };
        let own = Own { rank, error_file, device, omp_threads: self.omp_threads };
        (environment::of_worker(&self.base, &common, &own), self.program.words(rank, local_rank))
    }

    /// For people: each worker's own variables, and its command line. The port and the error file, which each attempt has anew, stand in
    /// brackets; the job's token is left out.
    pub(super) fn describe(&self) -> Result<String> {
        let mut text =
            format!("job {}: {} worker(s) of {}\n", self.run_id, self.nproc, self.program.file.display());
        for rank in 0..self.nproc {
            let (variables, words) = self.worker(rank, (0, 0), Path::new("(a new file)"));
            let own = variables.iter().filter(|(key, value)| std::env::var_os(key).as_ref() != Some(value));
            let own: Vec<_> = own
                .filter(|(key, _)| *key != environment::TOKEN && *key != FUNCTION)
                .map(|(key, value)| match key.to_str() {
                    Some("MASTER_PORT") => "MASTER_PORT=(a free port)".to_owned(),
                    _ => format!("{}={}", key.display(), quoted(&value.to_string_lossy())),
                })
                .collect();
            let words: Vec<_> = words.iter().map(|word| quoted(&word.to_string_lossy())).collect();
            let bound = self.bound.get(rank).map(|bound| format!("\n  processors {:?}", bound.processors));
            write!(
                text,
                "rank {rank}: {}\n  {}{}\n",
                words.join(" "),
                own.join(" "),
                bound.unwrap_or_default()
            )
            .expect("a string takes all that is written to it");
        }
        Ok(text)
    }
}

/// The rank that reads stdin; `None`: no worker does.
///
/// # Errors
/// [`LaunchError::Invalid`] for a rank that the job does not have.
fn stdin_rank(stdin: Stdin, nproc: usize) -> Result<Option<usize>> {
    match stdin {
        Stdin::Null => Ok(None),
        Stdin::OnlyWorker => Ok((nproc == 1).then_some(0)),
        Stdin::Rank(rank) if rank < nproc => Ok(Some(rank)),
        Stdin::Rank(rank) => {
            let what = format!("stdin cannot go to rank {rank}: there are {nproc} worker(s)");
            Err(LaunchError::invalid(what, "ranks begin at 0"))
        }
    }
}

/// A run id: four letters out of a random text.
pub(super) fn letters(random: &str) -> String {
    random.bytes().map(|byte| char::from(b'a' + byte % 26)).take(4).collect()
}

/// A GPU for each rank, and the variable by which the worker is told.
///
/// # Errors
/// [`LaunchError::Invalid`] when there are more workers than GPUs.
fn one_device_each(root: &Path, base: &Environment, nproc: usize) -> Result<Vec<(&'static str, String)>> {
    let visible = devices::visible(root, base);
    if visible.len() < nproc {
        let what = format!("{nproc} workers are to see one GPU each, and there are {}", visible.len());
        return Err(LaunchError::invalid(what, "start fewer workers, or make more GPUs visible"));
    }
    let name =
        VISIBLE.into_iter().find(|name| base.contains_key(&OsString::from(name))).unwrap_or(VISIBLE[0]);
    Ok(visible.into_iter().take(nproc).map(|device| (name, device)).collect())
}

/// The memfd or file in which a tensor's elements lie.
///
/// # Errors
/// When the tensor has no elements, or its memory cannot be opened.
fn file_of(name: &str, tensor: &DynTensor) -> Result<OwnedFd> {
    let Some(segment) = tensor.storage().segment() else {
        let what = format!("the tensor {name:?} has no elements, so there is no memory to hand to workers");
        return Err(LaunchError::invalid(what, "leave it out"));
    };
    segment.open().map_err(LaunchError::system(format!("opening the memory of the tensor {name:?}")))
}

/// The value of `PHALANX_TENSORS`: JSON, as [`Launch::tensor`] says it.
fn described(tensors: &[(String, DynTensor)], files: &[OwnedFd]) -> String {
    let one = |((name, tensor), file): (&(String, DynTensor), &OwnedFd)| {
        json!({
            "name": name,
            "fd": file.as_raw_fd(),
            "offset": tensor.storage().offset() + tensor.offset() * tensor.dtype().size(),
            "dtype": tensor.dtype().to_string(),
            "shape": tensor.shape(),
            "strides": tensor.strides(),
        })
    };
    tensors.iter().zip(files).map(one).collect::<serde_json::Value>().to_string()
}

#[cfg(test)]
mod tests {
    use super::super::command::Command;
    use super::super::devices::Nproc;
    use super::*;

    fn plan(launch: &Launch) -> Result<Plan> {
        Plan::of(launch, Path::new("/nowhere"))
    }

    #[test]
    fn stdin_goes_to_the_only_worker_or_to_the_chosen_one() {
        let with = |nproc, stdin| {
            let launch = Launch::new(Command::new("/bin/sh")).nproc(Nproc::Count(nproc)).stdin(stdin);
            plan(&launch).map(|plan| plan.stdin_rank)
        };
        assert_eq!(with(1, Stdin::OnlyWorker).unwrap(), Some(0));
        assert_eq!(with(2, Stdin::OnlyWorker).unwrap(), None);
        assert_eq!(with(2, Stdin::Rank(1)).unwrap(), Some(1));
        assert_eq!(with(1, Stdin::Null).unwrap(), None);
        let error = with(2, Stdin::Rank(2)).unwrap_err().to_string();
        assert_eq!(error, "stdin cannot go to rank 2: there are 2 worker(s); ranks begin at 0");
    }

    #[test]
    fn each_worker_sees_one_of_the_visible_devices() {
        let devices = |nproc| {
            let launch = Launch::new(Command::new("/bin/sh")).virtual_local_rank(true);
            let launch = launch.env("CUDA_VISIBLE_DEVICES", "4,GPU-x").nproc(Nproc::Count(nproc));
            plan(&launch).map(|plan| {
                let (variables, _) = plan.worker(nproc - 1, (0, 1), Path::new("e"));
                let of = |name: &str| variables[&OsString::from(name)].to_str().unwrap().to_owned();
                [of("LOCAL_RANK"), of("RANK"), of("CUDA_VISIBLE_DEVICES")]
            })
        };
        assert_eq!(devices(2).unwrap(), ["0", "1", "GPU-x"]);
        assert!(devices(3).unwrap_err().to_string().contains("see one GPU each, and there are 2"));
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let launch = || Launch::new(Command::new("/bin/sh"));
        let error = |launch: Launch| plan(&launch).unwrap_err().to_string();
        assert!(error(launch().role("a\nb")).contains("role"));
        assert!(error(launch().run_id("")).contains("run id"));
        assert!(error(launch().env("a=b", "c")).contains("no name of a variable"));
        assert!(error(launch().stop_signals([crate::Signal::KILL])).contains("SIGKILL cannot be handled"));
    }
}
