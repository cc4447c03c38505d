//! NUMA binding: the processors of each worker's device, from /sys.
//!
//! The numbers are the kernel's own, as in `/sys/devices/system/{node,cpu}`. Files that a machine lacks (in a container, a virtual
//! machine) make it one node of all processors, each its own core and cache.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::read_to_string;
use std::path::Path;
use std::str::FromStr;

use super::error::{LaunchError, Result};
use super::ranks::RankList;
use crate::sys::affinity::Affinity;

/// Which processors each worker is bound to, by sched_setaffinity(2), before its program runs.
///
/// A worker's NUMA node is that of its GPU: the worker of rank N has the GPU of number N, in the order of their PCI addresses. Where
/// there are fewer GPUs than workers, the others are dealt out evenly over the nodes. Processors that this process may not use are left
/// out. The worker's memory comes from its node as long as there is some (MPOL_PREFERRED); a system that refuses this ends no worker.
///
/// [`Launch::numa_binding`](super::Launch::numa_binding) takes it. The texts are those of torchrun's `--numa-binding`: `node`, `socket`,
/// `exclusive` and `core-complex`. Parsing anything else fails with [`LaunchError::Invalid`].
///
/// ```
/// use phalanx::launch::{Command, Launch, NumaBinding};
///
/// assert_eq!("core-complex".parse::<NumaBinding>()?, NumaBinding::CoreComplex);
/// // What each worker would be bound to, without starting it.
/// let launch = Launch::new(Command::new("true")).numa_binding(NumaBinding::Node);
/// assert!(launch.describe()?.contains("processors ["));
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumaBinding {
    /// All processors of its node.
    Node,
    /// All processors of the package (socket) that its node belongs to: of several nodes, where a package has them.
    Socket,
    /// A share of its node's cores that no other worker has; the hardware threads of a core stay together.
    /// [`run`](super::Launch::run) refuses more workers than the node has cores.
    Exclusive,
    /// The processors that share one of its node's last-level caches; workers of one node take these caches in turn.
    CoreComplex,
}

impl FromStr for NumaBinding {
    type Err = LaunchError;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "node" => Self::Node,
            "socket" => Self::Socket,
            "exclusive" => Self::Exclusive,
            "core-complex" => Self::CoreComplex,
            _ => {
                let what = format!("{text:?} is no NUMA binding");
                return Err(LaunchError::invalid(what, "there are node, socket, exclusive and core-complex"));
            }
        })
    }
}

/// What a worker is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    /// By the kernel's numbers, in ascending order.
    pub(super) processors: Vec<usize>,
    /// The node whose memory it prefers.
    pub(super) node: usize,
}

impl Bound {
    /// The processors as sched_setaffinity(2) takes them.
    pub(super) fn affinity(&self) -> Affinity {
        Affinity::of_processors(&self.processors)
    }

    /// The node as set_mempolicy(2) takes it: a bit for each node.
    pub(super) fn nodes(&self) -> Vec<u64> {
        Affinity::of_processors(&[self.node]).words().to_vec()
    }
}

/// The node of each worker. Those of GPUs are told by their PCI devices; without GPUs the workers are dealt out evenly.
fn nodes(topology: &Topology<'_>, nproc: usize, gpus: &[usize]) -> Vec<usize> {
    let all: Vec<_> = topology.nodes.keys().copied().collect();
    (0..nproc)
        .map(|rank| match gpus.get(rank) {
            Some(node) if topology.nodes.contains_key(node) => *node,
            _ => all[rank * all.len() / nproc],
        })
        .collect()
}

/// The NUMA nodes of this machine, as far as they are of use here.
struct Topology<'a> {
    /// Below it are `/sys` and `/proc`.
    root: &'a Path,
    /// The processors of each node that this process may use.
    nodes: BTreeMap<usize, BTreeSet<usize>>,
}

impl<'a> Topology<'a> {
    /// Reads it; a machine that tells of no node has one, with all processors.
    fn read(root: &'a Path, allowed: &BTreeSet<usize>) -> Self {
        let dir = root.join("sys/devices/system/node");
        let numbers = list(&dir.join("online")).unwrap_or_default();
        let of_node = |node: &usize| list(&dir.join(format!("node{node}/cpulist"))).unwrap_or_default();
        let nodes = numbers.iter().map(|node| (*node, &of_node(node) & allowed));
        // A node may have memory only, or processors that this process may not use.
        let mut nodes: BTreeMap<_, _> = nodes.filter(|(_, processors)| !processors.is_empty()).collect();
        if nodes.is_empty() {
            nodes.insert(0, allowed.clone());
        }
        Self { root, nodes }
    }

    /// What a file of a processor says; `None`: there is no such file.
    fn of_processor(&self, processor: usize, file: &str) -> Option<String> {
        let dir = self.root.join(format!("sys/devices/system/cpu/cpu{processor}"));
        read_to_string(dir.join(file)).ok().map(|text| text.trim().to_owned())
    }

    /// The given processors in groups that agree in what a file of theirs says, in the order of their first members. A processor without
    /// that file is a group of its own.
    fn grouped(&self, processors: &BTreeSet<usize>, file: &str) -> Vec<BTreeSet<usize>> {
        let mut groups: Vec<(Option<String>, BTreeSet<usize>)> = Vec::new();
        for &processor in processors {
            let key = self.of_processor(processor, file);
            match groups.iter_mut().find(|(of, _)| *of == key && key.is_some()) {
                Some((_, group)) => _ = group.insert(processor),
                None => groups.push((key, BTreeSet::from([processor]))),
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }

    /// All nodes of the package that a node belongs to.
    fn package(&self, node: usize) -> BTreeSet<usize> {
        const PACKAGE: &str = "topology/physical_package_id";
        let own = &self.nodes[&node];
        let of = |processors: &BTreeSet<usize>| self.of_processor(*processors.first()?, PACKAGE);
        let same = self.nodes.values().filter(|other| of(other).is_some() && of(other) == of(own));
        same.flatten().chain(own).copied().collect()
    }
}

/// A file with a list such as `0-3,8`.
fn list(file: &Path) -> Option<BTreeSet<usize>> {
    let text = read_to_string(file).ok()?;
    let ranks: RankList = text.trim().parse().ok()?;
    Some(ranks.iter().collect())
}

/// What each of `nproc` workers is bound to, on the machine below `root`. `gpus` has the node of each worker's GPU.
///
/// # Errors
/// When a worker would have no processor.
pub(super) fn bind(
    root: &Path,
    binding: NumaBinding,
    nproc: usize,
    (allowed, gpus): (&BTreeSet<usize>, &[usize]),
) -> Result<Vec<Bound>> {
    let topology = Topology::read(root, allowed);
    let nodes = nodes(&topology, nproc, gpus);
    let bound = |rank: usize| {
        let node = nodes[rank];
        let own = &topology.nodes[&node];
        // Its place among the workers of the same node, and how many these are.
        let place = nodes[..rank].iter().filter(|&&other| other == node).count();
        let sharers = nodes.iter().filter(|&&other| other == node).count();
        let processors = match binding {
            NumaBinding::Node => own.clone(),
            NumaBinding::Socket => topology.package(node),
            NumaBinding::Exclusive => {
                // Threads of one core stay together.
                let cores = topology.grouped(own, "topology/thread_siblings_list");
                let (from, to) = (place * cores.len() / sharers, (place + 1) * cores.len() / sharers);
                cores[from..to].iter().flatten().copied().collect()
            }
            NumaBinding::CoreComplex => {
                let complexes = topology.grouped(own, "cache/index3/shared_cpu_list");
                complexes[place % complexes.len()].clone()
            }
        };
        if processors.is_empty() {
            let what =
                format!("rank {rank} would have no processor: {sharers} workers share NUMA node {node}");
            return Err(LaunchError::invalid(what, "start fewer workers, or bind them by node"));
        }
        Ok(Bound { processors: processors.into_iter().collect(), node })
    };
    (0..nproc).map(bound).collect()
}

/// The NUMA node of each GPU, in the order of the driver's numbers.
pub(super) fn gpu_nodes(root: &Path) -> Vec<usize> {
    let drivers = [root.join("proc/driver/nvidia/gpus"), root.join("sys/bus/pci/drivers/amdgpu")];
    let mut addresses: Vec<String> = drivers
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.matches(':').count() == 2)
        .collect();
    addresses.sort();
    let node = |address: &String| {
        let text = read_to_string(root.join("sys/bus/pci/devices").join(address).join("numa_node"));
        // -1: the machine does not tell.
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    addresses.iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Two packages of two nodes each; a node has two cores of two threads, and a cache for each core.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::Builder::new().prefix("numa-test").tempdir().unwrap();
        let write = |path: String, text: String| {
            let path = root.path().join("sys/devices/system").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text + "\n").unwrap();
        };
        write("node/online".into(), "0-3".into());
        for node in 0..4 {
            write(format!("node/node{node}/cpulist"), format!("{}-{}", 4 * node, 4 * node + 3));
            for cpu in 4 * node..4 * node + 4 {
                let core = cpu / 2 * 2;
                write(format!("cpu/cpu{cpu}/topology/thread_siblings_list"), format!("{core},{}", core + 1));
                write(format!("cpu/cpu{cpu}/cache/index3/shared_cpu_list"), format!("{core}-{}", core + 1));
                write(format!("cpu/cpu{cpu}/topology/physical_package_id"), (node / 2).to_string());
            }
        }
        root
    }

    fn bound(binding: NumaBinding, nproc: usize, gpus: &[usize]) -> Vec<Vec<usize>> {
        let (root, allowed) = (machine(), (0..16).collect());
        let bound = bind(root.path(), binding, nproc, (&allowed, gpus)).unwrap();
        bound.into_iter().map(|bound| bound.processors).collect()
    }

    #[test]
    fn workers_are_bound_to_the_node_of_their_gpu() {
        assert_eq!(bound(NumaBinding::Node, 2, &[3, 0]), [[12, 13, 14, 15], [0, 1, 2, 3]]);
        assert_eq!(bound(NumaBinding::Socket, 1, &[1]), [[0, 1, 2, 3, 4, 5, 6, 7]]);
        // Without GPUs they are dealt out.
        assert_eq!(bound(NumaBinding::Node, 4, &[]).concat(), (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn exclusive_shares_have_whole_cores_and_complexes_are_dealt_out() {
        assert_eq!(bound(NumaBinding::Exclusive, 2, &[1, 1]), [[4, 5], [6, 7]]);
        assert_eq!(bound(NumaBinding::CoreComplex, 3, &[2, 2, 2]), [[8, 9], [10, 11], [8, 9]]);
        let (root, allowed) = (machine(), (0..16).collect());
        let error =
            bind(root.path(), NumaBinding::Exclusive, 5, (&allowed, &[0; 5])).unwrap_err().to_string();
        assert!(error.contains("would have no processor: 5 workers share NUMA node 0"), "{error}");
    }

    #[test]
    fn only_processors_that_this_process_may_use_are_given() {
        let root = machine();
        let one = bind(root.path(), NumaBinding::Node, 1, (&BTreeSet::from([5, 6]), &[0])).unwrap();
        assert_eq!((one[0].processors.clone(), one[0].node), (vec![5, 6], 1));
        // A machine that tells nothing.
        let none = tempfile::tempdir().unwrap();
        let one = bind(none.path(), NumaBinding::Node, 1, (&BTreeSet::from([2]), &[])).unwrap();
        assert_eq!((one[0].processors.clone(), one[0].node), (vec![2], 0));
        assert_eq!(one[0].nodes(), [1]);
    }
}
