//! Pure: the variables that a worker is given, with the names and the meaning that training programs know from torchrun.

use std::ffi::OsString;
use std::path::Path;

use super::devices::Environment;
use crate::wire::names::{FUNCTION, STOP_FD, STOP_PIPE};

/// By this variable a worker and whatever it has started are found again: the job's token.
pub(super) const TOKEN: &str = "PHALANX_JOB_TOKEN";
/// What an outer launcher has set for its own workers, and would be wrong for ours.
const STALE: [&str; 8] = [
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_TIMER_FILE",
    "TORCHELASTIC_ERROR_FILE",
    "PHALANX_TENSORS",
    // The default of `--job-name`: a job that a worker launches would have the name of the one that it is in.
    "PHALANX_JOB_NAME",
    FUNCTION,
    STOP_FD,
    STOP_PIPE,
];

/// What is the same for all workers of an attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    /// The number of workers.
    pub(super) nproc: usize,
    pub(super) role: &'a str,
    pub(super) run_id: &'a str,
    /// The value of [`TOKEN`].
    pub(super) token: &'a str,
    /// The address and the port of rank 0.
    pub(super) master: (&'a str, u16),
    /// The attempt, from 0 on.
    pub(super) number: usize,
    pub(super) max_restarts: usize,
}

/// What one worker has of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own<'a> {
    pub(super) rank: usize,
    /// Empty: there is no place for it.
    pub(super) error_file: &'a Path,
    /// Of a worker that sees one device only: the variable that says so, and the device.
    pub(super) device: Option<(&'a str, &'a str)>,
    /// The number of its OpenMP threads; `None`: the launcher does not set it.
    pub(super) omp_threads: Option<usize>,
}

/// What workers have from the launcher's environment: all but what an outer launcher has meant for its own workers.
pub(super) fn inherited(variables: impl Iterator<Item = (OsString, OsString)>) -> Environment {
    variables.filter(|(key, _)| STALE.iter().all(|stale| key != stale)).collect()
}

/// The variables of a worker: what it has from the launcher, what the caller has added, and its own, which replace the others.
/// `OMP_NUM_THREADS` and `TORCH_NCCL_ASYNC_ERROR_HANDLING` are set only if they are not.
pub(super) fn of_worker(base: &Environment, attempt: &Attempt<'_>, own: &Own<'_>) -> Environment {
    let mut variables = base.clone();
    let rank = own.rank.to_string();
    let size = attempt.nproc.to_string();
    let local_rank = if own.device.is_some() { "0" } else { &rank };
    let set = [
        ("RANK", &*rank),
        ("LOCAL_RANK", local_rank),
        ("ROLE_RANK", &rank),
        ("ROLE_NAME", attempt.role),
        ("GROUP_RANK", "0"),
        ("WORLD_SIZE", &size),
        ("LOCAL_WORLD_SIZE", &size),
        ("ROLE_WORLD_SIZE", &size),
        ("GROUP_WORLD_SIZE", "1"),
        ("MASTER_ADDR", attempt.master.0),
        ("MASTER_PORT", &attempt.master.1.to_string()),
        ("TORCHELASTIC_RESTART_COUNT", &attempt.number.to_string()),
        ("TORCHELASTIC_MAX_RESTARTS", &attempt.max_restarts.to_string()),
        ("TORCHELASTIC_RUN_ID", attempt.run_id),
        (TOKEN, attempt.token),
    ];
    variables.extend(set.map(|(key, value)| (key.into(), value.into())));
    variables.insert("TORCHELASTIC_ERROR_FILE".into(), own.error_file.into());
    variables.extend(own.device.map(|(key, value)| (key.into(), value.into())));
    variables.entry("TORCH_NCCL_ASYNC_ERROR_HANDLING".into()).or_insert_with(|| "1".into());
    if let Some(threads) = own.omp_threads {
        variables.entry("OMP_NUM_THREADS".into()).or_insert_with(|| threads.to_string().into());
    }
    variables
}

/// How many OpenMP threads each of several workers gets if the environment does not say it: together as many as there are cores.
pub(super) fn omp_threads(base: &Environment, nproc: usize, cores: usize) -> Option<usize> {
    let is_open = nproc > 1 && !base.contains_key(&OsString::from("OMP_NUM_THREADS"));
    is_open.then(|| (cores / nproc).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(key, value)| (key.into(), value.into())).collect()
    }

    const ATTEMPT: Attempt<'_> = Attempt {
        nproc: 4,
        role: "default",
        run_id: "job",
        token: "t",
        master: ("127.0.0.1", 29_500),
        number: 1,
        max_restarts: 3,
    };

    fn own(rank: usize) -> Own<'static> {
        Own { rank, error_file: Path::new("/e/error.json"), device: None, omp_threads: None }
    }

    #[test]
    fn worker_has_all_variables_that_torchrun_sets_but_the_agents_store() {
        // Left over from an outer launcher.
        let stale = base(&[
            ("RANK", "9"),
            ("WORLD_SIZE", "99"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("HOME", "/h"),
        ]);
        let variables = of_worker(&inherited(stale.into_iter()), &ATTEMPT, &own(2));
        let text: Vec<_> =
            variables.iter().map(|(key, value)| format!("{}={}", key.display(), value.display())).collect();
        assert_eq!(
            text,
            [
                "GROUP_RANK=0",
                "GROUP_WORLD_SIZE=1",
                "HOME=/h",
                "LOCAL_RANK=2",
                "LOCAL_WORLD_SIZE=4",
                "MASTER_ADDR=127.0.0.1",
                "MASTER_PORT=29500",
                "PHALANX_JOB_TOKEN=t",
                "RANK=2",
                "ROLE_NAME=default",
                "ROLE_RANK=2",
                "ROLE_WORLD_SIZE=4",
                "TORCHELASTIC_ERROR_FILE=/e/error.json",
                "TORCHELASTIC_MAX_RESTARTS=3",
                "TORCHELASTIC_RESTART_COUNT=1",
                "TORCHELASTIC_RUN_ID=job",
                "TORCH_NCCL_ASYNC_ERROR_HANDLING=1",
                "WORLD_SIZE=4",
            ]
        );
    }

    #[test]
    fn virtual_local_rank_is_zero_and_sees_one_device() {
        let own = Own { device: Some(("CUDA_VISIBLE_DEVICES", "GPU-7")), ..own(3) };
        let variables = of_worker(&base(&[("CUDA_VISIBLE_DEVICES", "1,GPU-7")]), &ATTEMPT, &own);
        let of = |name: &str| variables[&OsString::from(name)].to_str().unwrap().to_owned();
        assert_eq!([of("LOCAL_RANK"), of("RANK"), of("CUDA_VISIBLE_DEVICES")], ["0", "3", "GPU-7"]);
    }

    #[test]
    fn what_the_user_has_set_stays() {
        let set = base(&[("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"), ("OMP_NUM_THREADS", "5")]);
        let variables = of_worker(&set, &ATTEMPT, &Own { omp_threads: Some(2), ..own(0) });
        assert_eq!(variables[&OsString::from("TORCH_NCCL_ASYNC_ERROR_HANDLING")], "0");
        assert_eq!(variables[&OsString::from("OMP_NUM_THREADS")], "5");
    }

    #[test]
    fn cores_are_shared_out_to_openmp() {
        assert_eq!(omp_threads(&base(&[]), 4, 16), Some(4));
        assert_eq!(omp_threads(&base(&[]), 4, 2), Some(1));
        assert_eq!(omp_threads(&base(&[]), 1, 16), None);
        assert_eq!(omp_threads(&base(&[("OMP_NUM_THREADS", "")]), 4, 16), None);
    }
}
