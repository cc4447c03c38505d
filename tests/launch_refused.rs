//! `phalanx run` where the system refuses it something, or a program gets rid of what the launcher has given it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

#[path = "common/seccomp.rs"]
mod seccomp;

mod common;
mod launcher;

use common::{await_that, tagged, watched};
use launcher::{Place, Running};

/// What Docker refuses a container that has no further capabilities.
#[expect(unsafe_code, reason = "the filters must be the launcher's alone")]
fn as_in_docker(command: &mut Command) -> &mut Command {
    let refuse = || {
        seccomp::refuse(libc::SYS_clone3, libc::ENOSYS);
        for call in [
            libc::SYS_set_mempolicy,
            libc::SYS_get_mempolicy,
            libc::SYS_mbind,
            libc::SYS_pidfd_getfd,
            libc::SYS_process_madvise,
            libc::SYS_ptrace,
            libc::SYS_unshare,
            libc::SYS_setns,
        ] {
            seccomp::refuse(call, libc::EPERM);
        }
        Ok(())
    };
    // SAFETY: it makes system calls only, in a child of this one thread.
    unsafe { command.pre_exec(refuse) }
}

#[test]
fn job_runs_under_the_filters_of_docker() {
    watched(|| {
        let place = Place::new();
        let tag = format!("docker-{}", std::process::id());
        let script = "setsid sleep 600 & [ $TORCHELASTIC_RESTART_COUNT = 1 ] || exit 3; echo $RANK";
        for binding in [&[][..], &["--numa-binding", "node"]] {
            let options = [binding, &["--max-restarts", "1", "-t", "3"]].concat();
            let mut command = place.shell(2, &[&options[..], &["--log-dir", "logs"]].concat(), script);
            let ran = place.end(as_in_docker(&mut command).env("LAUNCH_TAG", &tag));
            assert_eq!(ran.code, 0, "{ran:?}");
            assert_eq!(ran.lines(), ["[default0]:0", "[default1]:1"]);
            assert!(tagged("LAUNCH_TAG", &tag).is_empty());
        }
    });
}

#[test]
fn memory_that_cannot_be_bound_ends_no_worker() {
    watched(|| {
        let place = Place::new();
        let mut command = place.shell(1, &["--numa-binding", "node"], "echo ran");
        // A container without CAP_SYS_NICE, and a kernel without NUMA.
        for errno in [libc::EPERM, libc::ENOSYS] {
            let refuse = move || {
                seccomp::refuse(libc::SYS_set_mempolicy, errno);
                Ok(())
            };
            // SAFETY: it makes system calls only, in a child of this one thread.
            #[expect(unsafe_code, reason = "the filter must be the launcher's alone")]
            unsafe {
                command.pre_exec(refuse)
            };
            let ran = place.end(&mut command);
            assert_eq!((ran.code, ran.out.as_str()), (0, "[default0]:ran\n"), "{ran:?}");
        }
    });
}

#[test]
fn program_whose_death_signal_exec_has_cleared_ends_with_its_launcher() {
    watched(|| {
        if !nix::unistd::geteuid().is_root() {
            common::skipped("only root can make a program that runs as another user");
            return;
        }
        let place = Place::new();
        let program = place.path("sleeper");
        fs::copy("/bin/sleep", &program).unwrap();
        chown(&program, Some(61_235), None).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
        fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let tag = format!("setuid-{}", std::process::id());
        let mut command = place.shell(2, &[], "echo up; exec ./sleeper 600");
        let mut running = Running::start(command.env("LAUNCH_TAG", &tag).stderr(std::process::Stdio::null()));
        running.hear();
        running.hear();
        let sleepers = || {
            tagged("LAUNCH_TAG", &tag)
                .into_iter()
                .filter(|pid| {
                    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleeper\n")
                })
                .count()
        };
        await_that(|| sleepers() == 2);
        running.send(Signal::SIGKILL);
        running.launcher.wait().unwrap();
        await_that(|| tagged("LAUNCH_TAG", &tag).is_empty());
        await_that(|| fs::read_dir(place.path("tmp")).unwrap().next().is_none());
    });
}

#[test]
fn worker_that_sigkill_does_not_end_is_told_and_not_waited_for() {
    watched(|| {
        let place = Place::new();
        let mut command = place.shell(
            2,
            &["--shutdown-timeout", "0.1"],
            "echo $$; [ $RANK = 0 ] && exec sleep 600; read go < fifo; exit 3",
        );
        nix::unistd::mkfifo(&place.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut running = Running::start(&mut command);
        let lines = [running.hear(), running.hear()];
        let held =
            lines.iter().find_map(|line| line.strip_prefix("[default0]:")?.parse::<i32>().ok()).unwrap();
        // One that a debugger holds looks as one that hangs in the kernel: it is killed, but never gone.
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: PTRACE_SEIZE passes no memory.
        #[expect(unsafe_code, reason = "nix has ptrace behind a feature of its own")]
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, held, none, none) } == 0;
        fs::write(place.path("fifo"), "go\n").unwrap();
        let ran = running.end();
        assert_eq!(ran.code, 3, "{ran:?}");
        if !seized {
            common::skipped("this process may trace no other");
            return;
        }
        for text in ["rank 0 was left behind; SIGKILL did not end it", "root cause: rank 1"] {
            assert!(ran.err.contains(text), "{text}: {ran:?}");
        }
        waitpid(Pid::from_raw(held), Some(WaitPidFlag::__WALL)).unwrap();
        place.assert_clean();
    });
}
