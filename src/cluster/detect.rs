//! Pure: which engine has started a process.

use std::collections::BTreeMap;

use super::error::Result;
use super::place::Cluster;
use super::variables::Variables;
use super::{mpi, pods, slurm};

/// This process's place among the nodes of its job, by the variables of its environment; `None` if no engine has set any.
///
/// The first of these that is there decides:
///
/// | engine | known by | node, nodes |
/// |---|---|---|
/// | Open MPI | `OMPI_COMM_WORLD_SIZE` | rank and size, where each node has one process |
/// | Slurm | `SLURM_JOB_ID` | `SLURM_NODEID`, `SLURM_STEP_NUM_NODES` |
/// | Indexed Job, JobSet, Trainer v2 | `JOB_COMPLETION_INDEX` | that; `PHALANX_NNODES`, `PET_NNODES` |
/// | variables | `PHALANX_NNODES`, `PET_NNODES` | `PHALANX_NODE_RANK`, `PET_NODE_RANK`; those |
/// | PyTorchJob v1 | `KUBERNETES_SERVICE_HOST` with `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, without `LOCAL_RANK` | `RANK`, `WORLD_SIZE` |
///
/// `RANK`, `WORLD_SIZE` and `MASTER_ADDR` count nowhere else: a worker's own, or those of the shell that called `srun`, say nothing
/// of nodes. A variable that is empty is as one that is not set.
///
/// ```
/// // In a program of the user's:
/// let environment = std::env::vars_os().filter_map(|(name, value)| {
///     Some((name.into_string().ok()?, value.into_string().ok()?))
/// });
/// match phalanx::cluster::detect(&environment.collect())? {
///     Some(cluster) => println!("{cluster}"),
///     None => println!("one node"),
/// }
/// # Ok::<(), phalanx::cluster::ClusterError>(())
/// ```
///
/// # Errors
/// [`ClusterError`](super::ClusterError) when an engine is recognized, and its variables are missing, out of range, or contradict each
/// other.
pub fn detect(variables: &BTreeMap<String, String>) -> Result<Option<Cluster>> {
    let known_by =
        |because| Some(Variables { all: variables, because }).filter(|v| v.first(&[because]).is_some());
    let place = if let Some(variables) = known_by(mpi::SIZE) {
        mpi::place(variables)?
    } else if let Some(variables) = known_by(slurm::JOB) {
        slurm::place(variables)?
    } else if let Some(variables) = [pods::INDEX].into_iter().chain(pods::NNODES).find_map(known_by) {
        pods::place(variables)?
    } else if let Some(variables) = known_by("WORLD_SIZE").filter(|&variables| pods::counts_pods(variables)) {
        pods::place_of_pod(variables)?
    } else {
        return Ok(None);
    };
    Ok(Some(place))
}
