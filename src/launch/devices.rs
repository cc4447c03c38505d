//! How many workers a node takes: GPUs and CPUs, read below a root so that tests can make one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use super::error::{LaunchError, Result};
use crate::sys::affinity::Affinity;
use crate::sys::cgroup::Hierarchy;

/// How many workers are started on this node: a number, or what they are counted by.
///
/// [`Launch::nproc`](super::Launch::nproc) takes it. The text is that of torchrun's `--nproc-per-node`: a number of 1 or more, `auto`,
/// `cpu`, `gpu` or `xpu`. Parsing anything else fails with [`LaunchError::Invalid`].
///
/// GPUs are counted without a driver's library. `CUDA_VISIBLE_DEVICES`, `HIP_VISIBLE_DEVICES` or `ROCR_VISIBLE_DEVICES` in the workers'
/// environment says which there are for this job; an entry of it that is empty or -1 ends the list, as in CUDA.
///
/// ```
/// use phalanx::launch::{Command, Launch, Nproc};
///
/// assert_eq!("8".parse::<Nproc>()?, Nproc::Count(8));
/// assert_eq!("auto".parse::<Nproc>()?, Nproc::Auto);
///
/// let launch = Launch::new(Command::new("true")).env("CUDA_VISIBLE_DEVICES", "2,3").nproc(Nproc::Gpu);
/// assert_eq!(launch.run()?.attempts[0].workers.len(), 2);
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nproc {
    /// This number of workers. A job of none succeeds at once.
    Count(usize),
    /// One for each GPU as with [`Gpu`](Self::Gpu); where there is none, one for each CPU as with [`Cpu`](Self::Cpu).
    Auto,
    /// One for each CPU that this process may use: those of its affinity, but no more than the CPU quota of its control groups, as
    /// a container has it, pays for. torchrun counts the CPUs of the machine.
    Cpu,
    /// One for each GPU of NVIDIA (`/dev/nvidia0` …), or else of AMD (the compute nodes of its driver kfd). An error where there is
    /// none.
    Gpu,
    /// One for each GPU of Intel (a render node of that vendor). An error where there is none.
    Xpu,
}

impl FromStr for Nproc {
    type Err = LaunchError;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "gpu" => Self::Gpu,
            "xpu" => Self::Xpu,
            count => match count.parse() {
                Ok(count) if count > 0 => Self::Count(count),
                _ => {
                    let what = format!("{text:?} is no number of workers");
                    return Err(LaunchError::invalid(
                        what,
                        "give a number of 1 or more, or auto, cpu, gpu, xpu",
                    ));
                }
            },
        })
    }
}

/// The variables that choose the GPUs of a job: of CUDA, of HIP, and of ROCm's runtime. The first that is set counts.
pub(super) const VISIBLE: [&str; 3] = ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"];

/// Variables and their values.
pub(super) type Environment = BTreeMap<OsString, OsString>;

impl Nproc {
    /// The number of workers, on the machine whose `/proc`, `/sys` and `/dev` are below `root`.
    ///
    /// # Errors
    /// [`LaunchError::Invalid`] when there is nothing of the kind to count by.
    pub(super) fn resolve(self, root: &Path, environment: &Environment) -> Result<usize> {
        let found = match self {
            Self::Count(count) => return Ok(count),
            Self::Cpu => cpus(root),
            Self::Auto => Some(gpus(root, environment)).filter(|&gpus| gpus > 0).or_else(|| cpus(root)),
            Self::Gpu => Some(gpus(root, environment)),
            Self::Xpu => Some(xpus(root)),
        };
        found.filter(|&count| count > 0).ok_or_else(|| {
            let what = format!("there is no {self:?} on this node to count the workers by").to_lowercase();
            LaunchError::invalid(what, "give their number, or auto")
        })
    }
}

/// The CPUs that this process may use, at least one; `None` if the kernel does not tell.
fn cpus(root: &Path) -> Option<usize> {
    let own = Affinity::of_caller().ok()?.processors().count();
    let quota = Hierarchy::find(root, "cpu").and_then(|hierarchy| hierarchy.group_of("self")?.processors());
    Some(quota.map_or(own, |quota| own.min(quota)).max(1))
}

/// The GPUs that this process's environment lets its children see; `None`: no variable says anything.
fn chosen(environment: &Environment) -> Option<Vec<String>> {
    let chosen = VISIBLE.iter().find_map(|name| environment.get(&OsString::from(name)))?.to_string_lossy();
    // As CUDA reads it: what comes behind an invalid entry is not seen.
    let devices = chosen.split(',').map(str::trim).take_while(|device| !device.is_empty() && *device != "-1");
    Some(devices.map(str::to_owned).collect())
}

/// The devices that a worker may be given, as the variables name them.
pub(super) fn visible(root: &Path, environment: &Environment) -> Vec<String> {
    chosen(environment).unwrap_or_else(|| (0..present(root)).map(|number| number.to_string()).collect())
}

/// The number of GPUs that a worker may be given.
fn gpus(root: &Path, environment: &Environment) -> usize {
    visible(root, environment).len()
}

/// The number of GPUs that have a driver: of NVIDIA, or else of AMD.
fn present(root: &Path) -> usize {
    let nvidia = names(&root.join("dev")).filter(|name| is_numbered(name, "nvidia")).count();
    if nvidia > 0 {
        return nvidia;
    }
    // A node of the topology is a GPU if it has SIMD units; CPUs are nodes of it too.
    let nodes = root.join("sys/class/kfd/kfd/topology/nodes");
    let is_gpu = |name: &String| {
        let properties = fs::read_to_string(nodes.join(name).join("properties")).unwrap_or_default();
        let count = properties.lines().find_map(|line| line.strip_prefix("simd_count "));
        count.is_some_and(|count| count.trim() != "0")
    };
    names(&nodes).filter(is_gpu).count()
}

/// The number of GPUs of Intel: render nodes whose device has that vendor.
fn xpus(root: &Path) -> usize {
    let drm = root.join("sys/class/drm");
    let is_intel = |name: &String| {
        fs::read_to_string(drm.join(name).join("device/vendor")).is_ok_and(|vendor| vendor.trim() == "0x8086")
    };
    names(&drm).filter(|name| is_numbered(name, "renderD")).filter(is_intel).count()
}

/// The names in a directory; none if it is not there.
fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Whether a name is a prefix and a number.
fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::Builder::new().prefix("devices-test").tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(key, value)| (key.into(), value.into())).collect()
    }

    #[test]
    fn gpus_are_those_of_the_variables_or_those_that_are_there() {
        let nvidia =
            tree(&[("dev/nvidia0", ""), ("dev/nvidia1", ""), ("dev/nvidiactl", ""), ("dev/nvidia-uvm", "")]);
        let count = |root: &tempfile::TempDir, pairs: &[(&str, &str)]| {
            Nproc::Gpu.resolve(root.path(), &environment(pairs)).unwrap_or(0)
        };
        assert_eq!(count(&nvidia, &[]), 2);
        assert_eq!(count(&nvidia, &[("CUDA_VISIBLE_DEVICES", "3,GPU-8a,7")]), 3);
        assert_eq!(count(&nvidia, &[("CUDA_VISIBLE_DEVICES", "3,-1,7")]), 1);
        assert_eq!(count(&nvidia, &[("CUDA_VISIBLE_DEVICES", "")]), 0);
        let nodes = "sys/class/kfd/kfd/topology/nodes";
        let amd = tree(&[
            (&format!("{nodes}/0/properties"), "cpu_cores_count 8\nsimd_count 0\n"),
            (&format!("{nodes}/1/properties"), "simd_count 256\n"),
        ]);
        assert_eq!(count(&amd, &[]), 1);
        assert_eq!(count(&amd, &[("HIP_VISIBLE_DEVICES", "0,1")]), 2);
    }

    #[test]
    fn auto_falls_back_to_cpus_and_what_is_not_there_is_an_error() {
        let none = tree(&[]);
        let own = Affinity::of_caller().unwrap().processors().count();
        assert_eq!(Nproc::Auto.resolve(none.path(), &environment(&[])).unwrap(), own);
        for missing in [Nproc::Gpu, Nproc::Xpu] {
            let error = missing.resolve(none.path(), &environment(&[])).unwrap_err().to_string();
            assert!(error.contains("give their number"), "{error}");
        }
        let intel = tree(&[
            ("sys/class/drm/renderD128/device/vendor", "0x8086\n"),
            ("sys/class/drm/renderD129/device/vendor", "0x10de\n"),
        ]);
        assert_eq!(Nproc::Xpu.resolve(intel.path(), &environment(&[])).unwrap(), 1);
    }

    #[test]
    fn cpus_are_not_more_than_the_quota_of_any_group_above() {
        let root = tree(&[
            ("proc/self/mountinfo", "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("proc/self/cgroup", "0::/job/leaf\n"),
            ("sys/fs/cgroup/job/cpu.max", "50000 100000\n"),
            ("sys/fs/cgroup/job/leaf/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(Nproc::Cpu.resolve(root.path(), &environment(&[])).unwrap(), 1);
    }

    #[test]
    fn what_is_no_number_is_refused_with_a_hint() {
        for wrong in ["0", "-1", "many", ""] {
            assert!(wrong.parse::<Nproc>().unwrap_err().to_string().contains("auto, cpu, gpu, xpu"));
        }
    }
}
