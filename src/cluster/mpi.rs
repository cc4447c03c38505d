//! Pure: what the variables of Open MPI's `mpirun` mean (`OMPI_COMM_WORLD_*` and `OMPI_MCA_*` of Open MPI 4.1).
//!
//! It tells a process its rank and the number of nodes, and not which of the nodes it is on. (`OMPI_COMM_WORLD_NODE_RANK` is the
//! process's number on its node.) So the node is known only where each has one process, or where there is one node.

use super::error::{ClusterError, Result};
use super::place::{Cluster, Engine};
use super::variables::Variables;

/// By this variable Open MPI is recognized.
pub(super) const SIZE: &str = "OMPI_COMM_WORLD_SIZE";

const SET_BY_MPIRUN: &str =
    "mpirun sets it: start this program by it, or unset all variables that begin with OMPI_";
const ONE_EACH: &str = "start one launcher on each node: mpirun --map-by ppr:1:node";

/// The place of a process that `mpirun` has started.
pub(super) fn place(variables: Variables<'_>) -> Result<Cluster> {
    let size = variables.count(&[SIZE], SET_BY_MPIRUN)?;
    let rank = variables.index(&["OMPI_COMM_WORLD_RANK"], size, SET_BY_MPIRUN)?;
    let local = variables.count(&["OMPI_COMM_WORLD_LOCAL_SIZE"], SET_BY_MPIRUN)?;
    let (node, nodes) = match local {
        _ if local == size => (0, 1),
        1 => (rank, nodes_of_one_each(variables, size)?),
        _ => {
            let what = format!(
                "OMPI_COMM_WORLD_LOCAL_SIZE is {local} and {SIZE} {size}: which node this is cannot be known"
            );
            return Err(ClusterError::Contradictory { what, hint: ONE_EACH });
        }
    };
    let job = variables.text(&["PMIX_NAMESPACE"]).map(str::to_owned);
    Ok(Cluster { local_processes: Some(local), job, ..Cluster::new(Engine::OpenMpi, (node, nodes)) })
}

/// The number of nodes where this one has one process. Others can have more; then the ranks are not the nodes' indices.
fn nodes_of_one_each(variables: Variables<'_>, size: usize) -> Result<usize> {
    const NODES: &str = "OMPI_MCA_orte_num_nodes";
    let nodes = variables.count(&[NODES], SET_BY_MPIRUN)?;
    if nodes != size {
        let what = format!("{NODES} is {nodes} and {SIZE} {size}: the nodes do not have one process each");
        return Err(ClusterError::Contradictory { what, hint: ONE_EACH });
    }
    Ok(nodes)
}
