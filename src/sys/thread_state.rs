//! What Linux keeps for each thread and a new process has from the thread that starts it: sched_getattr(2),
//! sched_getaffinity(2), ioprio_get(2), get_mempolicy(2), prctl(2) PR_GET_TIMERSLACK.

use std::{fmt, io, ptr};

use serde::{Deserialize, Serialize};

use super::affinity::{Affinity, mask_that_fits};

/// `None` stands for what cannot be asked for here, or is not wanted to change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ThreadState {
    scheduling: Option<Scheduling>,
    affinity: Option<Affinity>,
    timer_slack: Option<u64>,
    io_priority: Option<u32>,
    memory_policy: Option<MemoryPolicy>,
}

impl ThreadState {
    /// What a process has that the calling thread starts.
    pub(crate) fn of_caller() -> Self {
        Self {
            scheduling: Scheduling::of_caller().ok().map(Scheduling::inherited),
            affinity: Affinity::of_caller().ok(),
            timer_slack: timer_slack(),
            io_priority: io_priority().ok(),
            memory_policy: MemoryPolicy::of_caller().ok(),
        }
    }

    /// What of this is not so in `other`.
    pub(crate) fn unlike(&self, other: &Self) -> Self {
        fn changed<T: Clone + PartialEq>(here: &Option<T>, there: &Option<T>) -> Option<T> {
            here.clone().filter(|_| here != there)
        }
        Self {
            scheduling: changed(&self.scheduling, &other.scheduling),
            affinity: changed(&self.affinity, &other.affinity),
            timer_slack: changed(&self.timer_slack, &other.timer_slack),
            io_priority: changed(&self.io_priority, &other.io_priority),
            memory_policy: changed(&self.memory_policy, &other.memory_policy),
        }
    }

    /// Gives it to the calling thread.
    ///
    /// # Errors
    /// With what was wanted, and what the thread has, when that is not allowed.
    pub(crate) fn apply(&self) -> io::Result<()> {
        if let Some(affinity) = &self.affinity {
            // It was the other thread's a moment ago; if the system has taken it away since, this one's is as good.
            let _ = affinity.apply();
        }
        take(&self.scheduling, Scheduling::apply, || Scheduling::of_caller().ok())?;
        take(&self.io_priority.map(IoPriority), IoPriority::apply, || io_priority().ok().map(IoPriority))?;
        take(&self.timer_slack.map(TimerSlack), TimerSlack::apply, || timer_slack().map(TimerSlack))?;
        take(&self.memory_policy, MemoryPolicy::apply, || MemoryPolicy::of_caller().ok())
    }
}

fn take<T: fmt::Display>(
    wanted: &Option<T>,
    apply: impl FnOnce(&T) -> io::Result<()>,
    own: impl FnOnce() -> Option<T>,
) -> io::Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    apply(wanted).map_err(|error| {
        let own = own().map_or_else(|| "unknown".to_owned(), |own| own.to_string());
        io::Error::other(format!("taking on {wanted}, instead of {own}: {error}"))
    })
}

/// Policy, nice value and priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Scheduling {
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Runtime, deadline and period, of SCHED_DEADLINE only.
    times: [u64; 3],
}

impl Scheduling {
    fn of_caller() -> io::Result<Self> {
        let size = size_of::<libc::sched_attr>() as u32;
        let mut attr = libc::sched_attr {
            size,
            sched_policy: 0,
            sched_flags: 0,
            sched_nice: 0,
            sched_priority: 0,
            sched_runtime: 0,
            sched_deadline: 0,
            sched_period: 0,
        };
        // SAFETY: the kernel writes `size` bytes at most, and the record has that many.
        check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) })?;
        Ok(Self {
            policy: attr.sched_policy,
            flags: attr.sched_flags,
            nice: attr.sched_nice,
            priority: attr.sched_priority,
            times: [attr.sched_runtime, attr.sched_deadline, attr.sched_period],
        })
    }

    /// What a child has of it (sched(7), "Reset on fork").
    fn inherited(self) -> Self {
        const RESET_ON_FORK: u64 = libc::SCHED_FLAG_RESET_ON_FORK as u64;
        let kept = Self { flags: self.flags & !RESET_ON_FORK, ..self };
        let is_real_time = [libc::SCHED_FIFO, libc::SCHED_RR, libc::SCHED_DEADLINE]
            .into_iter()
            .any(|policy| policy as u32 == self.policy);
        match self.flags & RESET_ON_FORK {
            0 => kept,
            _ if is_real_time => {
                Self { policy: libc::SCHED_OTHER as u32, flags: 0, nice: 0, priority: 0, times: [0; 3] }
            }
            _ => Self { nice: self.nice.max(0), ..kept },
        }
    }

    fn apply(&self) -> io::Result<()> {
        let [sched_runtime, sched_deadline, sched_period] = self.times;
        let attr = libc::sched_attr {
            size: size_of::<libc::sched_attr>() as u32,
            sched_policy: self.policy,
            sched_flags: self.flags,
            sched_nice: self.nice,
            sched_priority: self.priority,
            sched_runtime,
            sched_deadline,
            sched_period,
        };
        // SAFETY: the record has the size that it says, and outlives the call.
        check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
    }
}

impl fmt::Display for Scheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, nice, priority, .. } = self;
        write!(f, "scheduling policy {policy} with nice value {nice} and priority {priority} (sched_setattr)")
    }
}

const IOPRIO_WHO_PROCESS: i32 = 1;
const IOPRIO_CLASS_SHIFT: u32 = 13;

fn io_priority() -> io::Result<u32> {
    // SAFETY: takes integers.
    let found = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) };
    check(found)?;
    // Without a class the level has no meaning, but is not always 0, as which alone it can be set.
    let found = found as u32;
    Ok(if found >> IOPRIO_CLASS_SHIFT == 0 { 0 } else { found })
}

struct IoPriority(u32);

impl IoPriority {
    fn apply(&self) -> io::Result<()> {
        // SAFETY: takes integers.
        check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, self.0) })
    }
}

impl fmt::Display for IoPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (class, level) = (self.0 >> IOPRIO_CLASS_SHIFT, self.0 & ((1 << IOPRIO_CLASS_SHIFT) - 1));
        write!(f, "I/O priority class {class}, level {level} (ioprio_set)")
    }
}

/// In nanoseconds. A real-time thread has none, and its children need none.
fn timer_slack() -> Option<u64> {
    // By the system call: the C library's function returns an int.
    // SAFETY: takes integers.
    let found = unsafe { libc::syscall(libc::SYS_prctl, libc::PR_GET_TIMERSLACK, 0, 0, 0, 0) };
    u64::try_from(found).ok().filter(|&slack| slack != 0)
}

struct TimerSlack(u64);

impl TimerSlack {
    fn apply(&self) -> io::Result<()> {
        // SAFETY: takes integers.
        check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_TIMERSLACK, self.0, 0, 0, 0) })
    }
}

impl fmt::Display for TimerSlack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timer slack of {} ns (prctl)", self.0)
    }
}

/// From which memory nodes a thread's memory comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MemoryPolicy {
    mode: i32,
    nodes: Vec<u64>,
}

impl MemoryPolicy {
    fn of_caller() -> io::Result<Self> {
        let mut mode = 0;
        let mut nodes = mask_that_fits(|words| {
            let (mask, bits, none) = (words.as_mut_ptr(), 64 * words.len(), ptr::null::<u8>());
            // SAFETY: the kernel writes as many bits at most, and the mask has them; it and `mode` outlive the call.
            check(unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, mask, bits, none, 0) })
        })?;
        let used = nodes.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1);
        nodes.truncate(used);
        Ok(Self { mode, nodes })
    }

    fn apply(&self) -> io::Result<()> {
        // The kernel takes one bit less than it is told; no nodes are a null pointer.
        let mask = if self.nodes.is_empty() { ptr::null() } else { self.nodes.as_ptr() };
        let bits = 64 * self.nodes.len() + 1;
        // SAFETY: the mask has as many bits as the kernel reads, or is null, and outlives the call.
        check(unsafe { libc::syscall(libc::SYS_set_mempolicy, self.mode, mask, bits) })
    }
}

impl fmt::Display for MemoryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory policy {:#x} of nodes {:x?} (set_mempolicy)", self.mode, self.nodes)
    }
}

fn check(done: libc::c_long) -> io::Result<()> {
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduling(policy: i32, nice: i32, priority: u32, flags: u64) -> Scheduling {
        Scheduling { policy: policy as u32, flags, nice, priority, times: [0; 3] }
    }

    #[test]
    fn child_has_what_reset_on_fork_leaves() {
        let plain = scheduling(libc::SCHED_OTHER, 0, 0, 0);
        for (parent, child) in [
            (scheduling(libc::SCHED_FIFO, 0, 9, 0), scheduling(libc::SCHED_FIFO, 0, 9, 0)),
            (scheduling(libc::SCHED_FIFO, 0, 9, 1), plain),
            (scheduling(libc::SCHED_OTHER, -5, 0, 1), plain),
            (scheduling(libc::SCHED_BATCH, 7, 0, 1), scheduling(libc::SCHED_BATCH, 7, 0, 0)),
        ] {
            assert_eq!(parent.inherited(), child, "{parent}");
        }
    }

    #[test]
    fn state_is_taken_on_and_only_what_differs() {
        let thread = std::thread::spawn(|| {
            let before = ThreadState::of_caller();
            let nicer = before.scheduling.map(|own| Scheduling { nice: own.nice + 3, ..own });
            let wanted = ThreadState {
                scheduling: nicer,
                timer_slack: Some(77_000),
                io_priority: Some((2 << IOPRIO_CLASS_SHIFT) | 6),
                ..before.clone()
            };
            let changes = wanted.unlike(&before);
            assert_eq!((&changes.affinity, &changes.memory_policy), (&None, &None));
            changes.apply().unwrap();
            assert_eq!(ThreadState::of_caller(), wanted);
            assert_eq!(wanted.unlike(&wanted), ThreadState::default());
            wanted.apply().unwrap();
        });
        thread.join().unwrap();
    }

    #[test]
    fn refusal_names_what_was_wanted_and_what_there_is() {
        let impossible = ThreadState {
            scheduling: Some(scheduling(libc::SCHED_OTHER, 0, 500, 0)),
            ..ThreadState::default()
        };
        let error = impossible.apply().unwrap_err().to_string();
        assert!(
            error.starts_with("taking on scheduling policy 0 with nice value 0 and priority 500"),
            "{error}"
        );
        assert!(error.contains("instead of scheduling policy 0 with nice value "), "{error}");
    }
}
