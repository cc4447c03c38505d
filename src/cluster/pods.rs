//! Pure: what variables mean that people or Kubernetes' operators set.
//!
//! Sources: the task page "Indexed Job for Parallel Processing" of kubernetes.io (`JOB_COMPLETION_INDEX`); the torch plugin of Kubeflow's
//! Trainer v2 (`PET_*`); PyTorchJob of Kubeflow's training operator v1 (`RANK` and `WORLD_SIZE`, which count pods).

use super::error::{ClusterError, Result};
use super::place::{Cluster, Engine};
use super::variables::Variables;

/// By these variables, in this order, the nodes' number is told.
pub(super) const NNODES: [&str; 2] = ["PHALANX_NNODES", "PET_NNODES"];
/// By this one an Indexed Job is recognized.
pub(super) const INDEX: &str = "JOB_COMPLETION_INDEX";
const NODE_RANK: [&str; 2] = ["PHALANX_NODE_RANK", "PET_NODE_RANK"];
const MASTER: [&str; 2] = ["PHALANX_MASTER_ADDR", "PET_MASTER_ADDR"];

const SET_NNODES: &str =
    "set PHALANX_NNODES to the number of nodes, which does not change while the job runs";
const SET_NODE_RANK: &str = "set PHALANX_NODE_RANK to this node's index, from 0 on";

/// The place that `NNODES` and `NODE_RANK` tell, the latter also by an Indexed Job's index.
pub(super) fn place(variables: Variables<'_>) -> Result<Cluster> {
    let engine = if variables.first(&[INDEX]).is_some() { Engine::IndexedJob } else { Engine::Variables };
    let nodes = match variables.first(&NNODES) {
        Some((name, range)) if range.contains(':') => fixed(name, range)?,
        _ => variables.count(&NNODES, SET_NNODES)?,
    };
    let node = match (nodes, variables.number(&NODE_RANK, (0, nodes), SET_NODE_RANK)?) {
        (_, Some(node)) => agree(variables, node)?,
        (1, None) if engine == Engine::Variables => 0,
        _ if engine == Engine::IndexedJob => variables.index(&[INDEX], nodes, SET_NNODES)?,
        _ => variables.index(&NODE_RANK, nodes, SET_NODE_RANK)?,
    };
    Ok(Cluster { master: master(variables, &MASTER), ..Cluster::new(engine, (node, nodes)) })
}

/// The number in `MIN:MAX` where both are the same.
fn fixed(name: &str, range: &str) -> Result<usize> {
    let nodes = range.split_once(':').filter(|(least, most)| least == most);
    nodes.and_then(|(nodes, _)| nodes.parse().ok().filter(|&nodes| nodes > 0)).ok_or_else(|| {
        ClusterError::Invalid {
            variable: name.to_owned(),
            value: range.to_owned(),
            expected: "fixed number of nodes".to_owned(),
            hint: SET_NNODES,
        }
    })
}

/// Refuses a node rank of which the Indexed Job says something else.
fn agree(variables: Variables<'_>, node: usize) -> Result<usize> {
    match (variables.first(&[INDEX]), variables.first(&NODE_RANK)) {
        (Some((_, index)), Some((name, _))) if index.parse() != Ok(node) => {
            let what = format!("{name} is {node} and {INDEX} {index}");
            Err(ClusterError::Contradictory {
                what,
                hint: "unset the first one: the pod's index is its node rank",
            })
        }
        _ => Ok(node),
    }
}

fn master(variables: Variables<'_>, names: &[&str]) -> Option<String> {
    variables.text(names).map(str::to_owned)
}

/// Whether `RANK` and `WORLD_SIZE` count pods: in a pod, and in no worker of a launcher, which would have `LOCAL_RANK` too. Anywhere
/// else they are left over, or a worker's own.
pub(super) fn counts_pods(variables: Variables<'_>) -> bool {
    let is_set = |name: &str| variables.first(&[name]).is_some();
    let is_worker = ["LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"].into_iter().any(is_set);
    !is_worker && ["KUBERNETES_SERVICE_HOST", "RANK", "WORLD_SIZE", "MASTER_ADDR"].into_iter().all(is_set)
}

/// The place of a pod whose `RANK` and `WORLD_SIZE` count pods.
pub(super) fn place_of_pod(variables: Variables<'_>) -> Result<Cluster> {
    let hint = "the operator sets RANK and WORLD_SIZE for each pod: unset both to start on this pod alone";
    let nodes = variables.count(&["WORLD_SIZE"], hint)?;
    let node = variables.index(&["RANK"], nodes, hint)?;
    let master = master(variables, &["MASTER_ADDR"]);
    Ok(Cluster { master, ..Cluster::new(Engine::PyTorchJob, (node, nodes)) })
}
