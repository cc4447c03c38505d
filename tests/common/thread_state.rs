//! What Linux keeps for each thread, asked for and changed.

use std::fs;
use std::path::PathBuf;

use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

const IOPRIO_WHO_PROCESS: i32 = 1;
const SCHED_BATCH: i32 = 3;
/// The nice value that `become_special` gives to a thread which has this one; the kernel cuts it at 19 (setpriority(2)).
pub(crate) fn nicer(nice: i32) -> i32 {
    (nice + 7).min(19)
}

static NODE_0: u64 = 1;

/// What a thread has, and its children have from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) nice: i32,
    policy: i32,
    pub(crate) timer_slack: i32,
    pub(crate) io_priority: i64,
    pub(crate) affinity: Vec<usize>,
    pub(crate) umask: Option<String>,
    pub(crate) directory: PathBuf,
    pub(crate) no_new_privileges: Option<String>,
    /// Mode and nodes; `None` where it cannot be asked for.
    memory_policy: Option<(i32, u64)>,
}

#[expect(unsafe_code, reason = "neither std nor nix has these calls")]
pub(crate) fn own_state() -> State {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let field =
        |name| status.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned());
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
    State {
        // SAFETY: takes integers.
        nice: unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) },
        // SAFETY: likewise.
        policy: unsafe { libc::sched_getscheduler(0) },
        // SAFETY: likewise.
        timer_slack: unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) },
        // SAFETY: likewise.
        io_priority: unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) },
        affinity: (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap()).collect(),
        umask: field("Umask:"),
        directory: std::env::current_dir().unwrap(),
        no_new_privileges: field("NoNewPrivs:"),
        memory_policy: memory_policy(),
    }
}

#[expect(unsafe_code, reason = "neither std nor nix has this call")]
fn memory_policy() -> Option<(i32, u64)> {
    let (mut mode, mut nodes, none) = (0_i32, [0_u64; 1024], std::ptr::null::<u8>());
    let bits = 64 * nodes.len();
    let mask = nodes.as_mut_ptr();
    // SAFETY: the mode and so many bits are ours, and outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, mask, bits, none, 0) };
    (done == 0).then_some((mode, nodes[0]))
}

impl State {
    /// Whether the thread, or the one that started it, has called [`become_special`].
    pub(crate) fn is_special(&self) -> bool {
        self.policy == SCHED_BATCH && self.directory.as_os_str() == "/proc"
    }
}

/// Makes the calling thread another than all others of this process, in what anybody may change. The nice value is told
/// relative to the test's own, which somebody may have started with nice(1).
#[expect(unsafe_code, reason = "neither std nor nix has these calls")]
pub(crate) fn become_special() {
    let mut one = CpuSet::new();
    one.set(own_state().affinity[0]).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    // From here on this thread has its own umask and working directory.
    unshare(CloneFlags::CLONE_FS).unwrap();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
    std::env::set_current_dir("/proc").unwrap();
    // Where it is not allowed, it stays as it is.
    // SAFETY: takes a pointer to 64 bits that outlive the call.
    let _ = unsafe { libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_INTERLEAVE, &raw const NODE_0, 65) };
    let param = libc::sched_param { sched_priority: 0 };
    // Best effort class, level 6 (ioprio_set(2)).
    let io_priority = (2 << 13) | 6;
    let nice = nicer(own_state().nice);
    let done = [
        // SAFETY: takes integers.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) },
        // SAFETY: and a pointer to a record that outlives the call.
        unsafe { libc::sched_setscheduler(0, SCHED_BATCH, &raw const param) },
        // SAFETY: takes integers.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 123_000) },
        // SAFETY: likewise.
        unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, io_priority) } as i32,
    ];
    assert_eq!(done, [0; 4], "{}", std::io::Error::last_os_error());
}

#[expect(unsafe_code, reason = "nix has prctl behind a feature")]
pub(crate) fn set_no_new_privileges() {
    // SAFETY: takes integers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
}
