//! What the variables of engines mean: environments as real runs and the engines' sources give them, and what is wrong in others.

use std::collections::BTreeMap;

use phalanx::cluster::{Cluster, ClusterError, Engine, detect};
use proptest::prelude::*;

fn environment(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split_whitespace().map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn place(text: &str) -> Cluster {
    detect(&environment(text)).unwrap().unwrap()
}

fn refused(text: &str) -> ClusterError {
    detect(&environment(text)).unwrap_err()
}

/// Node, nodes, processes on this node.
fn numbers(text: &str) -> (usize, usize, Option<usize>) {
    let place = place(text);
    (place.node, place.nodes, place.local_processes)
}

/// `srun -N2 -n3` of Slurm 22.05.8, task 2.
const UNEVEN: &str = "SLURM_GTIDS=2 SLURM_JOB_ID=1 SLURM_JOB_NODELIST=node[1-2] SLURM_JOB_NUM_NODES=2 SLURM_NNODES=2 \
    SLURM_NODEID=1 SLURM_NODELIST=node[1-2] SLURM_NTASKS=3 SLURM_PROCID=2 SLURM_STEP_ID=0 SLURM_STEP_NODELIST=node[1-2] \
    SLURM_STEP_NUM_NODES=2 SLURM_STEP_NUM_TASKS=3 SLURM_STEP_TASKS_PER_NODE=2,1 SLURM_TASKS_PER_NODE=2,1";

/// `srun -N2 -n4 --ntasks-per-node=2 --distribution=cyclic` of Slurm 22.05.8, task 1.
const CYCLIC: &str = "SLURM_GTIDS=1,3 SLURM_JOB_ID=2 SLURM_JOB_NODELIST=node[1-2] SLURM_JOB_NUM_NODES=2 SLURM_NNODES=2 \
    SLURM_NODEID=1 SLURM_NTASKS=4 SLURM_NTASKS_PER_NODE=2 SLURM_PROCID=1 SLURM_STEP_ID=0 SLURM_STEP_NODELIST=node[1-2] \
    SLURM_STEP_NUM_NODES=2 SLURM_STEP_NUM_TASKS=4 SLURM_STEP_TASKS_PER_NODE=2(x2) SLURM_TASKS_PER_NODE=2(x2)";

/// `srun -N1 -n1 X : -N2 -n2 X` of Slurm 22.05.8, task 2.
const HETEROGENEOUS: &str = "SLURM_GTIDS=2 SLURM_HET_SIZE=2 SLURM_JOB_ID=4 SLURM_JOB_ID_PACK_GROUP_0=4 \
    SLURM_JOB_ID_PACK_GROUP_1=5 SLURM_JOB_NODELIST=node[1-3] SLURM_JOB_NODELIST_PACK_GROUP_0=node1 \
    SLURM_JOB_NODELIST_PACK_GROUP_1=node[2-3] SLURM_JOB_NUM_NODES=3 SLURM_NODEID=2 SLURM_NTASKS=3 SLURM_PROCID=2 \
    SLURM_STEP_ID=0 SLURM_STEP_NODELIST=node[1-3] SLURM_STEP_NUM_NODES=3 SLURM_STEP_TASKS_PER_NODE=1(x3)";

/// `sbatch -N2` of Slurm 22.05.8, the script itself.
const BATCH: &str = "SLURM_GTIDS=0 SLURM_JOB_ID=6 SLURM_JOB_NODELIST=node[1-2] SLURM_JOB_NUM_NODES=2 SLURM_NNODES=2 \
    SLURM_NODEID=0 SLURM_NODELIST=node[1-2] SLURM_PROCID=0 SLURM_TASKS_PER_NODE=1(x2)";

/// The variables that the torch plugin of Kubeflow's Trainer v2 sets, and those of the Indexed Job that it makes.
const TRAINER: &str = "JOB_COMPLETION_INDEX=1 PET_NNODES=2 PET_NPROC_PER_NODE=auto PET_NODE_RANK=1 \
    PET_MASTER_ADDR=job-node-0-0.job PET_MASTER_PORT=29500 KUBERNETES_SERVICE_HOST=10.0.0.1";

/// The variables that Kubeflow's training operator v1 sets in the pods of a PyTorchJob.
const PYTORCHJOB: &str = "KUBERNETES_SERVICE_HOST=10.0.0.1 MASTER_ADDR=job-master-0 MASTER_PORT=23456 WORLD_SIZE=3 RANK=2 \
    PYTHONUNBUFFERED=1";

#[test]
fn tasks_of_srun_have_the_place_of_their_node() {
    assert_eq!(numbers(UNEVEN), (1, 2, Some(1)));
    assert_eq!(numbers(&format!("{UNEVEN} SLURM_NODEID=0 SLURM_GTIDS=0,1")), (0, 2, Some(2)));
    assert_eq!(numbers(CYCLIC), (1, 2, Some(2)));
    assert_eq!(numbers(HETEROGENEOUS), (2, 3, Some(1)));
    let place = place(HETEROGENEOUS);
    assert_eq!(place.to_string(), "node 2 of 3 by Slurm, job 4.0, attempt 0, master node1, hosts node[1-3]");
}

#[test]
fn step_comes_before_its_job_and_a_requeued_job_counts_its_attempts() {
    let step = format!("{UNEVEN} SLURM_JOB_NUM_NODES=5 SLURM_JOB_NODELIST=node[1-5] SLURM_RESTART_COUNT=2");
    let place = place(&step);
    assert_eq!((place.nodes, place.hosts.len(), place.attempt), (2, 2, Some(2)));
}

#[test]
fn batch_script_is_one_process_and_so_has_a_place_in_a_job_of_one_node_only() {
    let error = refused(BATCH).to_string();
    assert!(error.contains("no SLURM_STEP_ID") && error.contains("srun --ntasks-per-node=1"), "{error}");
    let one = BATCH.replace("node[1-2]", "node2").replace("NODES=2", "NODES=1");
    assert_eq!(place(&one).hosts, ["node2"]);
    assert!(refused(&format!("{one} SLURM_HET_SIZE=2")).to_string().contains("2 group(s)"));
    // The shell of `salloc` is a step with a reserved number.
    assert_eq!(place(&format!("{one} SLURM_STEP_ID=4294967290")).job.unwrap(), "6");
    assert!(matches!(
        refused(&format!("{BATCH} SLURM_STEP_ID=4294967290")),
        ClusterError::Contradictory { .. }
    ));
}

#[test]
fn slurms_variables_that_contradict_each_other_are_refused_by_name() {
    for (change, name) in [
        ("SLURM_NODEID=2", "SLURM_NODEID"),
        ("SLURM_NODEID=-1", "SLURM_NODEID"),
        ("SLURM_NODEID=", "SLURM_NODEID"),
        ("SLURM_STEP_NUM_NODES=0", "SLURM_STEP_NUM_NODES"),
        ("SLURM_STEP_NUM_NODES=3", "SLURM_STEP_NODELIST"),
        ("SLURM_STEP_NODELIST=node[1-", "node[1-"),
        ("SLURM_GTIDS=1,2", "SLURM_GTIDS"),
        ("SLURM_STEP_TASKS_PER_NODE=2", "SLURM_STEP_TASKS_PER_NODE"),
        ("SLURM_STEP_TASKS_PER_NODE=2(x", "SLURM_STEP_TASKS_PER_NODE"),
        ("SLURM_RESTART_COUNT=x", "SLURM_RESTART_COUNT"),
        ("SLURM_JOB_END_TIME=soon", "SLURM_JOB_END_TIME"),
    ] {
        let error = refused(&format!("{UNEVEN} {change}")).to_string();
        assert!(error.contains(name), "{change}: {error}");
    }
}

#[test]
fn ranks_of_an_outer_shell_or_of_a_worker_are_not_believed() {
    let stale = "RANK=7 WORLD_SIZE=9 LOCAL_RANK=3 MASTER_ADDR=old GROUP_RANK=4";
    assert_eq!(place(&format!("{UNEVEN} {stale}")), place(UNEVEN));
    assert_eq!(detect(&environment(stale)), Ok(None));
    assert_eq!(detect(&environment("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a")), Ok(None));
    assert_eq!(detect(&environment(&format!("{PYTORCHJOB} LOCAL_RANK=0"))), Ok(None));
    assert_eq!(detect(&BTreeMap::new()), Ok(None));
}

#[test]
fn mpirun_tells_the_node_where_each_has_one_process() {
    // The variables are those of `mpirun --map-by ppr:1:node` and `mpirun -np 6` on three hosts and of `mpirun -np 2` on one, of Open
    // MPI 4.1.4; the counts of the one host are of four processes.
    let of = |rank: usize, local: usize, size: usize, nodes: usize| {
        format!(
            "OMPI_COMM_WORLD_RANK={rank} OMPI_COMM_WORLD_SIZE={size} OMPI_COMM_WORLD_LOCAL_SIZE={local} \
             OMPI_COMM_WORLD_NODE_RANK=0 OMPI_MCA_orte_num_nodes={nodes} PMIX_NAMESPACE=17"
        )
    };
    assert_eq!(numbers(&of(2, 1, 3, 3)), (2, 3, Some(1)));
    assert_eq!(numbers(&of(2, 4, 4, 1)), (0, 1, Some(4)));
    for (rank, local, size, nodes, what) in [
        (2, 2, 6, 3, "cannot be known"),
        (2, 1, 3, 2, "OMPI_MCA_orte_num_nodes is 2"),
        (3, 1, 3, 3, "OMPI_COMM_WORLD_RANK"),
    ] {
        let error = refused(&of(rank, local, size, nodes)).to_string();
        assert!(error.contains(what), "{error}");
    }
    // Slurm is there too where mpirun runs in its job.
    assert_eq!(place(&format!("{UNEVEN} {}", of(0, 1, 2, 2))).engine, Engine::OpenMpi);
}

#[test]
fn pods_have_the_place_that_kubernetes_gives_them() {
    let trainer = place(TRAINER);
    assert_eq!((trainer.engine, trainer.node, trainer.nodes), (Engine::IndexedJob, 1, 2));
    assert_eq!(trainer.master.as_deref(), Some("job-node-0-0.job"));
    let indexed = place("JOB_COMPLETION_INDEX=2 PHALANX_NNODES=3");
    assert_eq!((indexed.engine, indexed.node, indexed.nodes), (Engine::IndexedJob, 2, 3));
    let pod = place(PYTORCHJOB);
    assert_eq!((pod.engine, pod.node, pod.nodes), (Engine::PyTorchJob, 2, 3));
    assert_eq!(pod.master.as_deref(), Some("job-master-0"));
}

#[test]
fn variables_of_people_are_complete_or_refused_by_name() {
    assert_eq!(numbers("PET_NNODES=1"), (0, 1, None));
    assert_eq!(numbers("PET_NNODES=4:4 PET_NODE_RANK=3"), (3, 4, None));
    assert_eq!(numbers("PET_NNODES=4 PHALANX_NNODES=2 PHALANX_NODE_RANK=1 PET_NODE_RANK=3"), (1, 2, None));
    for (text, what) in [
        ("JOB_COMPLETION_INDEX=0", "PHALANX_NNODES or PET_NNODES is not set, though JOB_COMPLETION_INDEX is"),
        (
            "JOB_COMPLETION_INDEX=2 PET_NNODES=2",
            "JOB_COMPLETION_INDEX is \"2\", which is no number from 0 to 1",
        ),
        (
            "JOB_COMPLETION_INDEX=0 PET_NNODES=2 PET_NODE_RANK=1",
            "PET_NODE_RANK is 1 and JOB_COMPLETION_INDEX 0",
        ),
        ("PET_NNODES=2", "PHALANX_NODE_RANK or PET_NODE_RANK is not set, though PET_NNODES is"),
        ("PET_NNODES=1:4 PET_NODE_RANK=0", "PET_NNODES is \"1:4\", which is no fixed number of nodes"),
        ("PET_NNODES=0", "PET_NNODES is \"0\", which is no number from 1"),
        (
            "PHALANX_NNODES=2 PHALANX_NODE_RANK=2",
            "PHALANX_NODE_RANK is \"2\", which is no number from 0 to 1",
        ),
    ] {
        let error = refused(text).to_string();
        assert!(error.contains(what), "{text}: {error}");
    }
}

proptest! {
    #[test]
    fn no_environment_panics_and_each_place_is_one(
        base in prop::sample::select(vec![UNEVEN, CYCLIC, HETEROGENEOUS, BATCH, TRAINER, PYTORCHJOB]),
        at in 0_usize..20,
        value in "[0-9a(x)\\[\\],:-]{0,12}|18446744073709551615",
    ) {
        let mut variables = environment(base);
        let name = variables.keys().nth(at % variables.len()).unwrap().clone();
        variables.insert(name, value);
        if let Ok(Some(place)) = detect(&variables) {
            prop_assert!(place.node < place.nodes);
            prop_assert!(place.hosts.is_empty() || place.hosts.len() == place.nodes);
        }
    }
}
