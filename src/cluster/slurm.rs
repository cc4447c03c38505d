//! Pure: what the variables of Slurm mean, of a step (`srun`) and of a job of one node outside of one (seen in Slurm 22.05.8).
//!
//! A step may use fewer nodes than its job, so its variables come first. Ranks are not read: where Slurm places tasks cyclically those of
//! a node do not follow one another.

use std::time::{Duration, SystemTime};

use super::error::{ClusterError, Result};
use super::hosts::expand_hosts;
use super::place::{Cluster, Engine};
use super::variables::Variables;

/// By this variable Slurm is recognized.
pub(super) const JOB: &str = "SLURM_JOB_ID";

const STEP: &str = "SLURM_STEP_ID";
const TASKS: &str = "SLURM_STEP_TASKS_PER_NODE";
/// The names that newer Slurms give each variable, then the older ones.
const JOB_NODES: [&str; 2] = ["SLURM_JOB_NUM_NODES", "SLURM_NNODES"];
const JOB_HOSTS: [&str; 2] = ["SLURM_JOB_NODELIST", "SLURM_NODELIST"];
/// The steps of batch scripts and interactive shells have numbers from this one on (`SLURM_INTERACTIVE_STEP` of slurm.h).
const FIRST_RESERVED_STEP: u32 = 0xffff_fffa;

const SET_BY_SRUN: &str =
    "srun sets it: start this program by srun, or unset all variables that begin with SLURM_";
const BY_SRUN: &str = "start one launcher on each node: srun --ntasks-per-node=1";

/// The place of a process that Slurm has started.
pub(super) fn place(variables: Variables<'_>) -> Result<Cluster> {
    let job = variables.text(&[JOB]).unwrap_or_default();
    let step = variables.text(&[STEP]).filter(|step| is_of_srun(step));
    let place = match step {
        Some(step) => Cluster { job: Some(format!("{job}.{step}")), ..in_step(variables)? },
        None => Cluster { job: Some(job.to_owned()), ..outside(variables)? },
    };
    let attempt = variables.number(&["SLURM_RESTART_COUNT"], (0, 1 << 20), SET_BY_SRUN)?.unwrap_or(0);
    Ok(Cluster {
        attempt: Some(attempt),
        ends: ends(variables)?,
        master: place.hosts.first().cloned(),
        ..place
    })
}

fn is_of_srun(step: &str) -> bool {
    step.parse().is_ok_and(|number: u32| number < FIRST_RESERVED_STEP)
}

/// A task of `srun`.
fn in_step(variables: Variables<'_>) -> Result<Cluster> {
    let [job_nodes, old_nodes] = JOB_NODES;
    let nodes = variables.count(&["SLURM_STEP_NUM_NODES", job_nodes, old_nodes], SET_BY_SRUN)?;
    let node = variables.index(&["SLURM_NODEID"], nodes, SET_BY_SRUN)?;
    let [job_hosts, old_hosts] = JOB_HOSTS;
    let hosts = hosts(variables, &["SLURM_STEP_NODELIST", job_hosts, old_hosts], nodes)?;
    let local_processes = local_processes(variables, node)?;
    Ok(Cluster { hosts, local_processes, ..Cluster::new(Engine::Slurm, (node, nodes)) })
}

/// A batch script, or the shell of `salloc`: one process for the whole job.
fn outside(variables: Variables<'_>) -> Result<Cluster> {
    let nodes = variables.count(&JOB_NODES, SET_BY_SRUN)?;
    // Outside of a step the number of nodes is that of the first group.
    let groups = variables.number(&["SLURM_HET_SIZE"], (0, 1 << 20), SET_BY_SRUN)?.unwrap_or(1);
    if nodes > 1 || groups > 1 {
        let what = format!(
            "the job has {nodes} node(s) in {groups} group(s), and no {STEP} of srun is set: this process was started once, not once a node"
        );
        return Err(ClusterError::Contradictory { what, hint: BY_SRUN });
    }
    let hosts = hosts(variables, &JOB_HOSTS, nodes)?;
    Ok(Cluster { hosts, local_processes: Some(1), ..Cluster::new(Engine::Slurm, (0, 1)) })
}

/// The names of the nodes; none if there is no list.
fn hosts(variables: Variables<'_>, names: &[&str], nodes: usize) -> Result<Vec<String>> {
    let Some((name, list)) = variables.first(names) else { return Ok(Vec::new()) };
    let hosts = expand_hosts(list)?;
    if hosts.len() != nodes {
        let what = format!("{name} has {} host(s), and the number of nodes is {nodes}", hosts.len());
        return Err(ClusterError::Contradictory { what, hint: SET_BY_SRUN });
    }
    Ok(hosts)
}

/// How many tasks of the step this node has, by the list of their ranks and by that of all nodes.
fn local_processes(variables: Variables<'_>, node: usize) -> Result<Option<usize>> {
    let by_ranks = variables.text(&["SLURM_GTIDS"]).map(|ranks| ranks.split(',').count());
    let by_nodes = variables.text(&[TASKS]).map(|list| tasks_of(list, node)).transpose()?;
    match (by_ranks, by_nodes) {
        (Some(ranks), Some(tasks)) if ranks != tasks => {
            let what = format!("SLURM_GTIDS has {ranks} task(s) of this node, and {TASKS} {tasks}");
            Err(ClusterError::Contradictory { what, hint: SET_BY_SRUN })
        }
        _ => Ok(by_nodes.or(by_ranks)),
    }
}

/// The number of a node in a list such as `2(x3),1`.
fn tasks_of(list: &str, node: usize) -> Result<usize> {
    let mut before = 0_usize;
    for item in list.split(',') {
        let Some((tasks, nodes)) = times(item) else { break };
        before = before.saturating_add(nodes);
        if node < before {
            return Ok(tasks);
        }
    }
    Err(ClusterError::Invalid {
        variable: TASKS.to_owned(),
        value: list.to_owned(),
        expected: format!("list such as 2(x3),1 with a number for node {node}"),
        hint: SET_BY_SRUN,
    })
}

/// `2(x3)` is 2, three times; `1` is 1, once.
fn times(item: &str) -> Option<(usize, usize)> {
    match item.split_once("(x") {
        Some((tasks, nodes)) => Some((tasks.parse().ok()?, nodes.strip_suffix(')')?.parse().ok()?)),
        None => Some((item.parse().ok()?, 1)),
    }
}

/// The end of the time limit, which Slurm newer than 22.05 tells in seconds since 1970.
fn ends(variables: Variables<'_>) -> Result<Option<SystemTime>> {
    let Some((name, value)) = variables.first(&["SLURM_JOB_END_TIME"]) else { return Ok(None) };
    let seconds = value.parse().ok().map(Duration::from_secs);
    let ends = seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(seconds));
    ends.map(Some).ok_or_else(|| ClusterError::Invalid {
        variable: name.to_owned(),
        value: value.to_owned(),
        expected: "time in seconds since 1970".to_owned(),
        hint: SET_BY_SRUN,
    })
}
