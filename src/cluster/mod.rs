//! The machines of a job: what the engine that started this process says of them.
//!
//! Slurm, Open MPI, Kubernetes and people start one process on each machine and tell it its place in environment variables, each in its
//! own way. [`detect`] turns them into one [`Cluster`]: which of how many nodes this is, and what else the engine says. It starts
//! nothing, asks no other process, and reads no variable but those that it is given.
//!
//! | to | there is |
//! |---|---|
//! | know this process's place | [`detect`], which gives a [`Cluster`] of an [`Engine`] |
//! | know why there is none | [`ClusterError`] |
//! | read and write Slurm's lists of hosts | [`expand_hosts`], [`compress_hosts`] |
//!
//! ```
//! use phalanx::cluster::{Engine, detect};
//!
//! let slurm = [
//!     ("SLURM_JOB_ID", "17"),
//!     ("SLURM_STEP_ID", "0"),
//!     ("SLURM_STEP_NUM_NODES", "3"),
//!     ("SLURM_STEP_NODELIST", "gpu[08-09,11]"),
//!     ("SLURM_NODEID", "2"),
//! ];
//! let cluster = detect(&slurm.map(|(name, value)| (name.into(), value.into())).into())?.unwrap();
//! assert_eq!((cluster.engine, cluster.node, cluster.nodes), (Engine::Slurm, 2, 3));
//! assert_eq!(cluster.hosts, ["gpu08", "gpu09", "gpu11"]);
//! # Ok::<(), phalanx::cluster::ClusterError>(())
//! ```

// - `hosts`: pure: Slurm's lists of hosts
// - `place`: Cluster, Engine: what is known
// - `error`: ClusterError
// - `variables`: values out of an environment
// - `slurm`, `mpi`, `pods`: pure: what the variables of each engine mean
// - `detect`: which engine it is

mod detect;
mod error;
mod hosts;
mod mpi;
mod place;
mod pods;
mod slurm;
mod variables;

pub use detect::detect;
pub use error::ClusterError;
pub use hosts::{compress_hosts, expand_hosts};
pub use place::{Cluster, Engine};
