//! What Linux keeps for each thread: a worker of the fork server has it from the thread that asked for it, or is refused.

mod common;
#[path = "common/seccomp.rs"]
mod seccomp;
#[path = "common/thread_state.rs"]
mod thread_state;

use common::{launched, served, skipped, start};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use phalanx::{ForkServer, start_processes};
use thread_state::{become_special, nicer, own_state, set_no_new_privileges};

phalanx::auto_init!();

/// Runs something in a thread of its own.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Whether the test may not change what only root may.
fn is_unprivileged() -> bool {
    let unprivileged = !nix::unistd::geteuid().is_root();
    if unprivileged {
        skipped("it takes root to be another than the fork server");
    }
    unprivileged
}

fn each_has_its_own_state(order: [bool; 3]) -> anyhow::Result<()> {
    for special in order {
        let [thread, worker] = in_thread(|| {
            if special {
                become_special();
            }
            [own_state(), start(|_, ()| Ok(own_state()), 1).join().unwrap().remove(0)]
        });
        assert_eq!(worker, thread);
        assert_eq!(worker.is_special(), special, "{worker:?}");
    }
    Ok(())
}

#[test]
fn workers_have_the_state_of_the_thread_that_asks_whoever_was_first() {
    launched(|_, ()| each_has_its_own_state([false, true, false]));
    if !is_unprivileged() {
        // Back to a lower nice value than the server's.
        launched(|_, ()| each_has_its_own_state([true, false, true]));
    }
}

/// All soft and hard limits of this process.
fn limits() -> Vec<(u64, u64)> {
    const ALL: [Resource; 16] = [
        Resource::RLIMIT_AS,
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_LOCKS,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_MSGQUEUE,
        Resource::RLIMIT_NICE,
        Resource::RLIMIT_NOFILE,
        Resource::RLIMIT_NPROC,
        Resource::RLIMIT_RSS,
        Resource::RLIMIT_RTPRIO,
        Resource::RLIMIT_RTTIME,
        Resource::RLIMIT_SIGPENDING,
        Resource::RLIMIT_STACK,
    ];
    ALL.into_iter().map(|limit| getrlimit(limit).unwrap()).collect()
}

#[test]
fn workers_have_all_limits_of_the_launcher_as_they_are_now() {
    launched(|_, ()| {
        let look = |_, ()| Ok(limits());
        assert_eq!(start(look, 1).join()?, [limits()]);
        for (limit, soft) in [
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_STACK, 1 << 20),
            (Resource::RLIMIT_MSGQUEUE, 1000),
            (Resource::RLIMIT_NOFILE, 300),
            (Resource::RLIMIT_CPU, 1000),
        ] {
            setrlimit(limit, soft, getrlimit(limit)?.1)?;
        }
        setrlimit(Resource::RLIMIT_RTTIME, 1_000_000, 2_000_000)?;
        assert_eq!(start(look, 2).join()?, [limits(), limits()]);
        Ok(())
    });
}

/// Why a start from a thread that has been changed is refused, after which another thread's is not.
fn refusal(change: impl FnOnce() + Send) -> String {
    start(|_, ()| Ok(()), 1).join().unwrap();
    let server = ForkServer::pid();
    let refused = in_thread(|| {
        change();
        start_processes(|_, ()| anyhow::Ok(()), (), served(2)).map(drop)
    });
    assert_eq!(start(|rank, ()| Ok(rank), 2).join().unwrap(), [0, 1]);
    assert_eq!(ForkServer::pid(), server);
    refused.unwrap_err().to_string()
}

#[expect(unsafe_code, reason = "nix has prctl behind a feature")]
fn prctl(option: i32, value: u64) {
    // SAFETY: these options take integers.
    assert_eq!(unsafe { libc::prctl(option, value, 0, 0, 0) }, 0, "{}", std::io::Error::last_os_error());
}

#[expect(unsafe_code, reason = "the C library would change all threads")]
fn set_group(group: u32) {
    // SAFETY: takes integers.
    assert_eq!(unsafe { libc::syscall(libc::SYS_setresgid, -1, group, -1) }, 0);
}

#[test]
fn thread_with_other_privileges_than_the_server_is_refused_with_both_values() {
    launched(|_, ()| {
        let text = refusal(set_no_new_privileges);
        assert!(
            text.contains("no_new_privs, not the calling thread's: \"0\" in the server, \"1\" in the"),
            "{text}"
        );
        assert!(text.contains("use StartMethod::Spawn") || text.contains("Use StartMethod::Spawn"), "{text}");
        if is_unprivileged() {
            return Ok(());
        }
        const CAP_SYS_BOOT: u64 = 22;
        const SECBIT_NO_SETUID_FIXUP: u64 = 4;
        let text = refusal(|| prctl(libc::PR_CAPBSET_DROP, CAP_SYS_BOOT));
        assert!(text.contains("bounding set of capabilities"), "{text}");
        let text = refusal(|| prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP));
        assert!(
            text.contains("securebits, not the calling thread's: \"0\" in the server, \"4\" in"),
            "{text}"
        );
        let text = refusal(|| set_group(65534));
        assert!(text.contains("group ids") && text.contains("\"0 65534 0 65534\" in the thread"), "{text}");
        Ok(())
    });
}

#[test]
fn thread_in_another_namespace_or_root_than_the_server_is_refused() {
    if is_unprivileged() {
        return;
    }
    launched(|_, ()| {
        for (flag, name) in [
            (CloneFlags::CLONE_NEWCGROUP, "cgroup namespace"),
            (CloneFlags::CLONE_NEWIPC, "IPC namespace"),
            (CloneFlags::CLONE_NEWNS, "mount namespace"),
            (CloneFlags::CLONE_NEWNET, "network namespace"),
            (CloneFlags::CLONE_NEWUTS, "UTS namespace"),
        ] {
            let text = refusal(|| unshare(flag).unwrap());
            assert!(text.contains(&format!("server's {name}, not the calling thread's")), "{text}");
        }
        Ok(())
    });
    launched(|_, ()| {
        start(|_, ()| Ok(()), 1).join()?;
        let new_time = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
        unshare(new_time)?;
        // With itself, not only its children, which every start refuses.
        setns(std::fs::File::open("/proc/self/ns/time_for_children")?, new_time)?;
        let refused = start_processes(|_, ()| anyhow::Ok(()), (), served(2)).map(drop);
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("server's time namespace, not the calling thread's"), "{text}");
        Ok(())
    });
    launched(|_, ()| {
        // A root of its own, in which /proc is to be seen.
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("none"), "/mnt", Some("tmpfs"), MsFlags::empty(), none)?;
        std::fs::create_dir("/mnt/proc")?;
        mount(Some("/proc"), "/mnt/proc", none, MsFlags::MS_BIND, none)?;
        let text = refusal(|| {
            unshare(CloneFlags::CLONE_FS).unwrap();
            nix::unistd::chroot("/mnt").unwrap();
        });
        assert!(text.contains("root directory (device:inode)"), "{text}");
        Ok(())
    });
}

fn go_elsewhere() -> anyhow::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWPID)?)
}

#[test]
fn preload_function_that_sends_children_into_another_namespace_is_told() {
    if is_unprivileged() {
        return;
    }
    launched(|_, ()| {
        ForkServer::preload(go_elsewhere)?;
        let refused = start_processes(|_, ()| anyhow::Ok(()), (), served(1)).map(drop);
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("its preload function") && text.contains("another PID namespace"), "{text}");
        Ok(())
    });
}

/// Puts the calling thread under Landlock rules that forbid next to nothing; false where the kernel has none.
#[expect(unsafe_code, reason = "neither libc nor nix has these calls")]
fn restrict() -> bool {
    const CREATE_RULESET: libc::c_long = 444;
    const RESTRICT_SELF: libc::c_long = 446;
    /// LANDLOCK_ACCESS_FS_MAKE_BLOCK.
    const MAKE_BLOCK: u64 = 1 << 11;
    let handled = MAKE_BLOCK;
    // SAFETY: the attributes outlive the call and have the size that is said.
    let rules = unsafe { libc::syscall(CREATE_RULESET, &raw const handled, size_of::<u64>(), 0) };
    if rules < 0 {
        return false;
    }
    // SAFETY: takes integers.
    let done = unsafe { libc::syscall(RESTRICT_SELF, rules, 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is ours, and nobody else knows it.
    unsafe { libc::close(rules as i32) };
    true
}

#[test]
fn thread_under_other_filters_or_rules_than_the_server_is_refused() {
    launched(|_, ()| {
        // Filters and rules take it; here the server has it too.
        set_no_new_privileges();
        let text = refusal(|| seccomp::refuse(libc::SYS_swapon, libc::EPERM));
        assert!(
            text.contains("mode of seccomp, not the calling thread's: \"0\" in the server, \"2\" in"),
            "{text}"
        );
        if !in_thread(restrict) {
            skipped("the kernel has no Landlock");
            return Ok(());
        }
        let text = refusal(|| assert!(restrict()));
        assert!(text.contains("Landlock rules"), "{text}");
        Ok(())
    });
    launched(|_, ()| {
        set_no_new_privileges();
        let is_restricted = in_thread(|| {
            let is_restricted = restrict();
            // Twice: the server has the rules of this thread.
            for _ in 0..2 {
                assert_eq!(start(|rank, ()| Ok(rank), 1).join().unwrap(), [0]);
            }
            is_restricted
        });
        let started = start_processes(|_, ()| anyhow::Ok(()), (), served(1)).map(drop);
        if is_restricted {
            let text = started.unwrap_err().to_string();
            assert!(text.contains("Landlock rules"), "{text}");
        }
        Ok(())
    });
}

/// Takes the right to lower nice values from the calling thread, and from what it starts, for ever.
#[expect(unsafe_code, reason = "neither std nor nix has this call")]
fn drop_sys_nice() {
    const CAP_SYS_NICE: u32 = 23;
    /// Of the header, _LINUX_CAPABILITY_VERSION_3.
    const VERSION_3: u32 = 0x2008_0522;
    prctl(libc::PR_CAPBSET_DROP, CAP_SYS_NICE.into());
    let header = [VERSION_3, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: both records have the size of this version, and outlive the call.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut sets) }, 0);
    sets[..3].iter_mut().for_each(|set| *set &= !(1 << CAP_SYS_NICE));
    // SAFETY: likewise.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const sets) }, 0);
}

#[test]
fn worker_that_may_not_become_as_the_thread_says_what_it_lacks() {
    if is_unprivileged() {
        return;
    }
    launched(|_, ()| {
        drop_sys_nice();
        setrlimit(Resource::RLIMIT_NICE, 0, 0)?;
        in_thread(|| {
            become_special();
            start(|_, ()| Ok(()), 1).join().unwrap();
        });
        let error = start(|_, ()| Ok(()), 2).join().unwrap_err().to_string();
        let nice = own_state().nice;
        let wanted = format!("taking on scheduling policy 0 with nice value {nice}");
        let found = format!("instead of scheduling policy 3 with nice value {}", nicer(nice));
        assert!(error.contains(&wanted) && error.contains(&found), "{error}");
        assert!(error.contains("StartMethod::Spawn"), "{error}");
        Ok(())
    });
}
