//! `phalanx run` is told to stop, stopped, or killed: in every way, and nobody is left.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

mod common;
mod launcher;

use common::{await_end, await_that, send, state_of, tagged, watched};
use launcher::{Place, Running};

/// In each worker: says that it runs, and sleeps, in steps that let its traps run.
const SLEEPS: &str = "echo up; while :; do sleep 0.02; done";

#[test]
fn stop_signals_are_passed_on_once_and_the_launcher_dies_of_them() {
    watched(|| {
        for (signal, name) in [
            (Signal::SIGTERM, "TERM"),
            (Signal::SIGINT, "INT"),
            (Signal::SIGHUP, "HUP"),
            (Signal::SIGQUIT, "QUIT"),
        ] {
            let place = Place::new();
            let script = format!("trap 'echo got {name}; exit 0' {name}; {SLEEPS}");
            let mut running = Running::start(&mut place.shell(2, &[], &script));
            assert!(running.hear().ends_with("up") && running.hear().ends_with("up"));
            running.send(signal);
            let ran = running.end();
            assert_eq!(ran.code, -(signal as i32), "{ran:?}");
            assert_eq!(ran.out.matches(&format!("got {name}")).count(), 2, "{ran:?}");
            place.assert_clean();
        }
    });
}

#[test]
fn worker_that_takes_no_signal_ends_by_the_stop_pipe() {
    watched(|| {
        let place = Place::new();
        let script = "trap '' TERM; echo up; read word </dev/fd/$PHALANX_STOP_FD; echo seen";
        // Longer than the watchdog waits.
        let options = ["--shutdown-timeout", "3600", "--nproc-per-node", "2", "sh", "-c", script];
        let mut running = Running::start(&mut place.phalanx(&options));
        assert!(running.hear().ends_with("up") && running.hear().ends_with("up"));
        running.send(Signal::SIGTERM);
        let ran = running.end();
        assert_eq!((ran.code, ran.out.matches("seen").count()), (-(Signal::SIGTERM as i32), 2), "{ran:?}");
        place.assert_clean();
    });
}

#[test]
fn worker_that_takes_no_signal_is_killed_after_the_time_or_at_the_second_signal() {
    watched(|| {
        let place = Place::new();
        let script = format!("trap '' TERM INT; {SLEEPS}");
        let mut running = Running::start(&mut place.shell(1, &["--shutdown-timeout", "0.2"], &script));
        running.hear();
        running.send(Signal::SIGTERM);
        let ran = running.end();
        assert!(ran.code == -15 && ran.err.contains("told to stop by SIGTERM"), "{ran:?}");

        let mut running = Running::start(&mut place.shell(1, &["--shutdown-timeout", "100000"], &script));
        running.hear();
        running.send(Signal::SIGINT);
        running.await_note();
        running.send(Signal::SIGINT);
        assert_eq!(running.end().code, -2);
    });
}

#[test]
fn other_signals_are_passed_on_to_all_ranks_without_stopping() {
    watched(|| {
        let place = Place::new();
        let traps = "trap 'echo one' USR1; trap 'echo two' USR2; trap 'echo size' WINCH; trap 'exit 0' TERM";
        let mut running = Running::start(&mut place.shell(3, &[], &format!("{traps}; {SLEEPS}")));
        let hear_all = |running: &mut Running, said: &str| {
            let mut lines = [running.hear(), running.hear(), running.hear()];
            lines.sort_unstable();
            assert_eq!(lines, [0, 1, 2].map(|rank| format!("[default{rank}]:{said}")));
        };
        hear_all(&mut running, "up");
        for (signal, said) in [(Signal::SIGUSR1, "one"), (Signal::SIGUSR2, "two"), (Signal::SIGWINCH, "size")]
        {
            running.send(signal);
            hear_all(&mut running, said);
        }
        running.send(Signal::SIGTERM);
        assert_eq!(running.end().code, -15);
    });
}

#[test]
fn worker_that_saves_at_the_engines_sigterm_is_waited_for() {
    watched(|| {
        let place = Place::new();
        let script = format!("trap 'sleep 0.3; echo whole > saved$RANK; exit 0' TERM; {SLEEPS}");
        let mut running = Running::start(&mut place.shell(2, &["--shutdown-timeout", "100000"], &script));
        running.hear();
        running.hear();
        running.send(Signal::SIGTERM);
        let ran = running.end();
        assert_eq!(ran.code, -15, "{ran:?}");
        for rank in 0..2 {
            assert_eq!(fs::read_to_string(place.path(&format!("saved{rank}"))).unwrap(), "whole\n");
        }
        assert!(!ran.err.contains("SIGKILL"), "{ran:?}");
    });
}

#[test]
fn under_nohup_a_hangup_stays_ignored() {
    watched(|| {
        let place = Place::new();
        let script = format!("trap 'echo term; exit 0' TERM; {SLEEPS}");
        let mut running = Running::start(&mut place.phalanx_under(&["nohup"], &["sh", "-c", &script]));
        running.hear();
        running.send(Signal::SIGHUP);
        // It goes on: the next signal is the one that stops it.
        running.send(Signal::SIGTERM);
        let ran = running.end();
        assert!(ran.code == -15 && ran.out.contains("term"), "{ran:?}");
    });
}

#[test]
fn stopped_launcher_stops_the_job_and_continues_it() {
    watched(|| {
        let place = Place::new();
        let mut running = Running::start(&mut place.shell(2, &[], &format!("echo $$; {SLEEPS}")));
        let mut pids = Vec::new();
        while pids.len() < 2 {
            pids.extend(running.hear().rsplit(':').next().unwrap().parse::<u32>());
        }
        let all = [pids.as_slice(), &[running.launcher.id()]].concat();
        running.send(Signal::SIGTSTP);
        // A shell may have been met in vfork: it waits, uninterruptibly, for a child that is stopped before its exec.
        let stands = |&pid: &u32| matches!(state_of(pid), Some('T' | 'D'));
        await_that(|| state_of(all[2]) == Some('T') && all.iter().all(stands));
        running.send(Signal::SIGCONT);
        await_that(|| !all.iter().any(stands));
        running.send(Signal::SIGTERM);
        assert_eq!(running.end().code, -15);
    });
}

/// Stops the launcher, lets time pass, and continues it; when it stood, and when it was continued.
fn suspend(running: &Running, time: Duration) -> (Instant, Instant) {
    running.send(Signal::SIGTSTP);
    await_that(|| state_of(running.launcher.id()) == Some('T'));
    let stood = Instant::now();
    #[expect(clippy::disallowed_methods, reason = "that time passes is what this is about")]
    std::thread::sleep(time);
    let continued = Instant::now();
    running.send(Signal::SIGCONT);
    (stood, continued)
}

#[test]
fn no_timer_of_the_job_runs_while_it_is_stopped() {
    const LIMIT: Duration = Duration::from_secs(1);
    watched(|| {
        let place = Place::new();
        // What was left of the time when the launcher stood is left when it goes on.
        let assert_put_off = |begun: Instant, (stood, continued): (Instant, Instant)| {
            let (left, took) = (LIMIT.saturating_sub(stood - begun), continued.elapsed());
            assert!(took >= left, "{took:?} of {left:?}");
        };
        let script = format!("trap '' TERM; {SLEEPS}");
        let mut running = Running::start(&mut place.shell(1, &["--shutdown-timeout", "1"], &script));
        running.hear();
        let begun = Instant::now();
        running.send(Signal::SIGTERM);
        running.await_note();
        let pause = suspend(&running, LIMIT);
        assert_eq!(running.end().code, -15);
        assert_put_off(begun, pause);

        // The second restart is put off by a second.
        let script = "echo up; while [ ! -e go$TORCHELASTIC_RESTART_COUNT ]; do sleep 0.01; done; exit 3";
        let mut running = Running::start(&mut place.shell(1, &["--max-restarts", "2"], script));
        running.hear();
        place.script("go0", "");
        running.hear();
        let begun = Instant::now();
        place.script("go1", "");
        running.await_note_of("attempt 2 follows in 1.0 s");
        let pause = suspend(&running, LIMIT);
        running.hear();
        assert_put_off(begun, pause);
        place.script("go2", "");
        assert_eq!(running.end().code, 3);

        let request = r#"printf '{"version": 1, "pid": %d, "scope_id": "step", "expiration_time": %s, "signal": 9}\n' $$"#;
        let script = format!(
            "echo up; read go < fifo; {request} $(date -d '1 sec' +%s.%N) > $TORCHELASTIC_TIMER_FILE; echo asked; exec sleep 600"
        );
        nix::unistd::mkfifo(&place.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut command = place.shell(1, &[], &script);
        let mut running = Running::start(command.env("TORCHELASTIC_ENABLE_FILE_TIMER", "1"));
        running.hear();
        let begun = Instant::now();
        fs::write(place.path("fifo"), "go\n").unwrap();
        running.hear();
        let pause = suspend(&running, LIMIT);
        let ran = running.end();
        assert!(ran.code == 137 && ran.err.contains("as its timer \"step\" had expired"), "{ran:?}");
        assert_put_off(begun, pause);
    });
}

#[test]
fn stop_while_workers_are_started_hangs_nobody() {
    watched(|| {
        for step in 0..8 {
            let place = Place::new();
            let mut running = Running::start(&mut place.shell(32, &[], "echo up; exit 0"));
            for _ in 0..step {
                running.hear();
            }
            running.send(Signal::SIGTSTP);
            // It may have ended before.
            await_that(|| matches!(state_of(running.launcher.id()), Some('T' | 'Z')));
            running.send(Signal::SIGCONT);
            let ran = running.end();
            assert_eq!((ran.code, ran.out.matches("up").count()), (0, 32 - step), "{ran:?}");
        }
    });
}

#[test]
fn nobody_is_left_when_the_launcher_is_killed_at_any_moment() {
    watched(|| {
        for step in 0..12_u32 {
            let place = Place::new();
            let tag = format!("{}-{step}", std::process::id());
            // A descendant in a session of its own, and one in the worker's group.
            let script = "sleep 600 & setsid sleep 600 & echo up; wait";
            let mut command = place.shell(3, &[], script);
            let mut running = Running::start(command.env("LAUNCH_STOP_TAG", &tag).stderr(Stdio::null()));
            for _ in 0..step.min(3) {
                running.hear();
            }
            running.send(Signal::SIGKILL);
            running.launcher.wait().unwrap();
            await_that(|| tagged("LAUNCH_STOP_TAG", &tag).is_empty());
            // The guardian's last act. Before it was forked there may be no directory.
            await_that(|| fs::read_dir(place.path("tmp")).unwrap().next().is_none());
        }
    });
}

#[test]
fn nobody_is_left_when_a_worker_fails_or_all_end() {
    watched(|| {
        for code in [0, 1] {
            let place = Place::new();
            let tag = format!("end-{}-{code}", std::process::id());
            let script =
                format!("(setsid sleep 600 &) ; setsid sh -c 'setsid sleep 600 & sleep 600' & exit {code}");
            let mut command = place.shell(2, &[], &script);
            let ran = place.end(command.env("LAUNCH_STOP_TAG", &tag));
            assert_eq!(ran.code, code, "{ran:?}");
            assert!(tagged("LAUNCH_STOP_TAG", &tag).is_empty());
        }
    });
}

#[test]
fn descendant_without_the_jobs_environment_is_not_left_either() {
    watched(|| {
        let place = Place::new();
        // Neither its environment nor its group tells whose it is, nor its child's.
        let script =
            "env -i PATH=$PATH setsid sh -c 'setsid sleep 600 & echo $! > child; echo $$ > left; wait' &
                      until [ -s left ]; do sleep 0.01; done; exit 5";
        let ran = place.end(&mut place.shell(1, &[], script));
        assert_eq!(ran.code, 5, "{ran:?}");
        for file in ["left", "child"] {
            let pid = fs::read_to_string(place.path(file)).unwrap().trim().to_owned();
            assert!(ran.err.contains("killed too") && ran.err.contains(&pid), "{ran:?}");
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{file}: {pid}");
        }
    });
}

#[test]
fn first_process_of_a_container_reaps_strangers_and_answers_signals() {
    watched(|| {
        let place = Place::new();
        let script = "(setsid sleep 0.1 &); (sh -c 'sleep 0.1 & exit' &); trap 'exit 0' TERM; echo up; while :; do sleep 0.02; ls -d \
                      /proc/[0-9]* | wc -l; done";
        let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
        let mut running = Running::start(&mut place.phalanx_under(&unshare, &["sh", "-c", script]));
        if running.hear().is_empty() {
            let ran = running.end();
            assert!(ran.err.contains("Operation not permitted"), "{ran:?}");
            common::skipped("this user may make no PID namespace");
            return;
        }
        // The launcher, the worker, its subshell with ls and wc: no zombie stays among them.
        await_that(|| running.hear_number() <= 5);
        let unshare = running.launcher.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
        let launcher = children.trim().parse().unwrap();
        send(launcher, Signal::SIGTERM);
        let ran = running.end();
        assert!(ran.err.contains("told to stop by SIGTERM"), "{ran:?}");
    });
}

#[test]
fn guardian_ends_with_its_launcher() {
    watched(|| {
        let place = Place::new();
        let tag = format!("guard-{}", std::process::id());
        let mut command = place.phalanx(&["true"]);
        let ran = place.end(command.env("LAUNCH_STOP_TAG", &tag));
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(tagged("LAUNCH_STOP_TAG", &tag).is_empty());
    });
}

#[test]
fn killed_worker_ends_the_others() {
    watched(|| {
        let place = Place::new();
        let mut running = Running::start(&mut place.shell(2, &[], "echo $$; exec sleep 600"));
        let pid = running.hear_number();
        running.hear_number();
        send(pid, Signal::SIGKILL);
        await_end(pid);
        let ran = running.end();
        assert!(ran.code == 137 && ran.err.contains(&format!("(pid {pid}) was ended by SIGKILL")), "{ran:?}");
        assert!(!ran.err.contains("out of memory"), "nothing tells that it was: {}", ran.err);
    });
}
