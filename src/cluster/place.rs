//! Cluster, Engine: what is known of a process's place.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::hosts::compress_hosts;

/// What has started this process, and with it those on the other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// Slurm: a task of `srun`, or the batch script of a job of one node.
    Slurm,
    /// Open MPI's `mpirun`, one process a node.
    OpenMpi,
    /// A pod of a Kubernetes Indexed Job, which the jobs of a JobSet and of Kubeflow's Trainer v2 are too.
    IndexedJob,
    /// A pod of Kubeflow's PyTorchJob v1, or of another operator that gives each pod `RANK` and `WORLD_SIZE`.
    PyTorchJob,
    /// A person or a script that has set `PHALANX_NNODES` and `PHALANX_NODE_RANK`, or torchrun's `PET_` for `PHALANX_`.
    Variables,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slurm => "Slurm",
            Self::OpenMpi => "Open MPI",
            Self::IndexedJob => "Kubernetes Indexed Job",
            Self::PyTorchJob => "PyTorchJob",
            Self::Variables => "variables",
        })
    }
}

/// This process's place among the nodes of its job, as [`detect`](super::detect) has read it.
///
/// `Display` is one line for people:
///
/// ```
/// let variables = [("PET_NNODES", "2"), ("PET_NODE_RANK", "1"), ("PET_MASTER_ADDR", "10.0.0.1")];
/// let variables = variables.map(|(name, value)| (name.into(), value.into())).into();
/// let cluster = phalanx::cluster::detect(&variables)?.unwrap();
/// assert_eq!(cluster.to_string(), "node 1 of 2 by variables, master 10.0.0.1");
/// # Ok::<(), phalanx::cluster::ClusterError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cluster {
    /// What has started this process.
    pub engine: Engine,
    /// The index of this node, from 0 on.
    pub node: usize,
    /// The number of nodes, at least 1.
    pub nodes: usize,
    /// The names of the nodes, by index. Empty: the engine tells none.
    pub hosts: Vec<String>,
    /// The address of node 0: what the environment says, else the first of `hosts`. `None`: neither is there.
    pub master: Option<String>,
    /// How many processes the engine has started on this node; 1 for a launcher a node. `None`: it does not say.
    pub local_processes: Option<usize>,
    /// How often the engine has started the whole job before, as Slurm does after a requeue. `None`: it does not say.
    pub attempt: Option<usize>,
    /// The engine's own id of the job; of a step of Slurm, as `17.0`. `None`: it does not say.
    pub job: Option<String>,
    /// When the job's time limit ends it, by the wall clock. `None`: the engine does not say.
    pub ends: Option<SystemTime>,
}

impl Cluster {
    /// A place of which nothing more is known.
    pub(super) fn new(engine: Engine, (node, nodes): (usize, usize)) -> Self {
        Self {
            engine,
            node,
            nodes,
            hosts: Vec::new(),
            master: None,
            local_processes: None,
            attempt: None,
            job: None,
            ends: None,
        }
    }

    /// How much of the time limit is left at a moment; zero if it has passed. `None`: no limit is known.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    ///
    /// let job = [("SLURM_JOB_ID", "17"), ("SLURM_JOB_NUM_NODES", "1"), ("SLURM_JOB_END_TIME", "1000060")];
    /// let job = job.map(|(name, value)| (name.into(), value.into())).into();
    /// let cluster = phalanx::cluster::detect(&job)?.unwrap();
    /// let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    /// assert_eq!(cluster.time_left(now), Some(Duration::from_secs(60)));
    /// # Ok::<(), phalanx::cluster::ClusterError>(())
    /// ```
    pub fn time_left(&self, now: SystemTime) -> Option<Duration> {
        self.ends.map(|ends| ends.duration_since(now).unwrap_or_default())
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of {} by {}", self.node, self.nodes, self.engine)?;
        if let Some(job) = &self.job {
            write!(f, ", job {job}")?;
        }
        if let Some(attempt) = self.attempt {
            write!(f, ", attempt {attempt}")?;
        }
        if let Some(master) = &self.master {
            write!(f, ", master {master}")?;
        }
        match &*self.hosts {
            [] => Ok(()),
            hosts => write!(f, ", hosts {}", compress_hosts(hosts)),
        }
    }
}
