//! `phalanx ps` and `phalanx stop`: a running job, seen and ended from another terminal.

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send as send_to, socket,
};

mod common;
mod launcher;

use common::{await_end, await_that, state_of, watched};
use launcher::people::{SLEEPS, command, name, phalanx, start};
use launcher::{Place, Running};

/// The object of a job in the list of `phalanx ps`.
fn listed(job: &str) -> Option<serde_json::Value> {
    let ran = phalanx(&["ps", "--json"]);
    let jobs: Vec<serde_json::Value> = serde_json::from_str(&ran.out).unwrap();
    jobs.into_iter().find(|listed| listed["job"] == job)
}

#[test]
fn running_jobs_are_listed_until_they_have_ended() {
    watched(|| {
        let (place, job) = (Place::new(), name("list"));
        let running = start(&place, 3, &["--job-name", &job, "--max-restarts", "2"], SLEEPS);
        let found = listed(&job).unwrap();
        let fields = ["pid", "workers", "workers_up", "attempt", "max_restarts"].map(|key| &found[key]);
        assert_eq!(fields.map(|value| value.as_u64().unwrap()), [running.launcher.id().into(), 3, 3, 0, 2]);
        assert!(found["program"].as_str().unwrap().starts_with("sh -c ") && found["age_seconds"].is_number());
        let table = phalanx(&["ps"]).out;
        let mut row = table.lines().find(|line| line.starts_with(&job)).unwrap().split_whitespace().skip(1);
        assert_eq!(row.next(), Some(&*running.launcher.id().to_string()));
        assert_eq!(row.next(), Some("3/3"));
        running.send(Signal::SIGTERM);
        let ran = running.end();
        assert_eq!(ran.err.matches(&format!("job {job}: `phalanx logs {job}`")).count(), 1, "{}", ran.err);
        assert_eq!(listed(&job), None);
    });
}

#[test]
fn name_is_one_jobs_until_its_launcher_is_gone_however_it_ends() {
    watched(|| {
        let (place, job) = (Place::new(), name("twice"));
        let mut first = start(&place, 1, &["--job-name", &job], SLEEPS);
        let second = place.phalanx(&["--job-name", &job, "true"]).output().unwrap();
        let text = format!(
            "phalanx: a job named {job} runs already; choose another name, or end that one by `phalanx stop {job}`\n"
        );
        assert_eq!((second.status.code(), String::from_utf8(second.stderr).unwrap()), (Some(2), text));
        first.send(Signal::SIGKILL);
        first.launcher.wait().unwrap();
        let third = place.phalanx(&["--job-name", &job, "true"]).output().unwrap();
        assert_eq!(third.status.code(), Some(0), "{third:?}");
        let wrong = phalanx(&["run", "--job-name", "a/b", "true"]);
        assert!(wrong.code == 2 && wrong.err.contains("1 to 64 letters"), "{wrong:?}");
        // The guardian's last act.
        await_that(|| fs::read_dir(place.path("tmp")).unwrap().next().is_none());
    });
}

#[test]
fn job_that_a_worker_launches_has_a_name_of_its_own() {
    watched(|| {
        let (place, job) = (Place::new(), name("outer"));
        let phalanx = env!("CARGO_BIN_EXE_phalanx");
        let nested = ["--no-python", phalanx, "run", "--no-python", "true"];
        let ran = place.phalanx(&nested).env("PHALANX_JOB_NAME", &job).output().unwrap();
        assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    });
}

#[test]
fn job_without_a_name_has_its_run_id_or_four_letters() {
    watched(|| {
        let (place, id) = (Place::new(), name("id"));
        let announced = |running: Running| {
            running.send(Signal::SIGTERM);
            let ran = running.end();
            let line = ran.err.lines().find(|line| line.contains("`phalanx logs")).unwrap().to_owned();
            line.strip_prefix("phalanx: job ").unwrap().split(':').next().unwrap().to_owned()
        };
        let first = start(&place, 1, &["--rdzv-id", &id], SLEEPS);
        // torchrun lets two jobs have one id.
        let second = announced(start(&place, 1, &["--rdzv-id", &id], SLEEPS));
        assert!(second.len() == 4 && second.bytes().all(|byte| byte.is_ascii_lowercase()), "{second}");
        assert_eq!(announced(first), id);
        let quiet = phalanx(&["run", "--quiet", "true"]);
        assert!(quiet.code == 0 && quiet.err.is_empty(), "{quiet:?}");
    });
}

#[test]
fn job_that_is_told_to_stop_ends_gracefully_before_the_command_does() {
    watched(|| {
        let (place, job) = (Place::new(), name("stop"));
        let script = "trap 'sleep 0.1; touch ended$RANK; exit 0' TERM; echo up; while :; do sleep 0.02; done";
        let mut running = start(&place, 2, &["--job-name", &job], script);
        let ran = phalanx(&["stop", &job]);
        assert_eq!((ran.code, ran.out), (0, format!("job {job} has ended: exit code 143\n")), "{}", ran.err);
        assert!(place.path("ended0").exists() && place.path("ended1").exists());
        // Its files are removed by then.
        place.assert_clean();
        let again = phalanx(&["stop", &job]);
        assert!(again.code == 2 && again.err.contains(&format!("no job named {job:?} runs; ")), "{again:?}");
        // It dies of the signal, as by `kill`.
        running.launcher.wait().unwrap();
        assert_eq!(running.end().code, -15);
    });
}

#[test]
fn workers_that_do_not_end_are_killed_after_the_time_or_at_once() {
    watched(|| {
        let (place, job) = (Place::new(), name("kill"));
        let script = format!("trap '' TERM; {SLEEPS}");
        let running = start(&place, 2, &["--job-name", &job, "--shutdown-timeout", "0.2"], &script);
        let ran = phalanx(&["stop", &job]);
        let text = "phalanx: killed, as they had not ended in time: rank 0, 1\n";
        assert_eq!((ran.code, &*ran.err), (1, text));
        assert_eq!(running.end().code, -15);
        let mut running = start(&place, 2, &["--job-name", &job, "--shutdown-timeout", "100000"], &script);
        // The command that has asked for the stop waits for the end, however that comes.
        let waiter = command(&["stop", &job]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        running.await_note();
        let ran = phalanx(&["stop", "--kill", &job]);
        assert_eq!((ran.code, &*ran.err), (0, ""));
        assert_eq!(running.end().code, -15);
        assert!(String::from_utf8(waiter.wait_with_output().unwrap().stdout).unwrap().contains("has ended"));
    });
}

#[test]
fn job_is_stopped_between_two_attempts_too() {
    watched(|| {
        let (place, job) = (Place::new(), name("pause"));
        let mut command = place.shell(1, &["--job-name", &job, "--max-restarts", "99"], "echo up; exit 3");
        let mut running = Running::start(&mut command);
        for _ in 0..2 {
            running.hear();
        }
        let ran = phalanx(&["stop", &job]);
        assert_eq!(ran.code, 0, "{ran:?}");
        // Three equal failures would have ended it by themselves.
        assert!([-15, 93].contains(&running.end().code));
    });
}

#[test]
fn unknown_job_is_told_with_those_that_run() {
    watched(|| {
        let (place, job) = (Place::new(), name("known"));
        let running = start(&place, 1, &["--job-name", &job], SLEEPS);
        for words in [&["stop", "no-such-job"][..], &["logs", "no-such-job"], &["logs", "-f", "no such", "0"]]
        {
            let ran = phalanx(words);
            assert!(ran.code == 2 && ran.err.contains(&job) && ran.out.is_empty(), "{ran:?}");
        }
        running.send(Signal::SIGTERM);
        running.end();
    });
}

#[test]
fn stopped_launcher_is_told_as_such() {
    watched(|| {
        let (place, job) = (Place::new(), name("stopped"));
        let running = start(&place, 1, &["--job-name", &job], SLEEPS);
        let pid = running.launcher.id();
        running.send(Signal::SIGTSTP);
        await_that(|| state_of(pid) == Some('T'));
        let table = phalanx(&["ps"]).out;
        let row = table.lines().find(|line| line.starts_with(&job)).unwrap();
        assert!(
            row.contains(&format!("it is stopped, as by Ctrl-Z; continue it by `fg` or `kill -CONT {pid}`")),
            "{row}"
        );
        running.send(Signal::SIGCONT);
        // What was asked meanwhile is answered, or has gone; the next one is served.
        assert_eq!(phalanx(&["stop", &job]).code, 0);
        assert_eq!(running.end().code, -15);
    });
}

/// Connects to a job as a user of its socket that need not be `phalanx`.
fn visitor(job: &str) -> nix::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let name = format!("phalanx-{}-{job}", nix::unistd::geteuid());
    connect(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    Ok(fd)
}

/// What the launcher says to a visitor; empty: it has closed the connection.
fn heard(visitor: &OwnedFd) -> String {
    let mut bytes = vec![0; 1 << 16];
    let count = recv(visitor.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap_or(0);
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

#[test]
fn hostile_visitors_hold_nobody_up() {
    watched(|| {
        let (place, job) = (Place::new(), name("hostile"));
        let running = start(&place, 1, &["--job-name", &job], &format!("trap 'exit 0' TERM; {SLEEPS}"));
        let say = |text: &[u8]| {
            let visitor = visitor(&job).unwrap();
            send_to(visitor.as_raw_fd(), text, MsgFlags::empty()).unwrap();
            visitor
        };
        // Silent ones are let go after a while.
        let silent: Vec<_> = (0..20).map(|_| visitor(&job).unwrap()).collect();
        assert!(listed(&job).is_some());
        assert!(heard(&say(b"\xff\xfe")).contains("no request"));
        assert!(heard(&say(br#"{"version":9,"ask":"Status"}"#)).contains("asked in version 9"));
        assert_eq!(heard(&say(&vec![b'['; 100_000])), "");
        // They ask for all there is, and take nothing.
        let follow = br#"{"version":1,"ask":{"Logs":{"ranks":[[0,18446744073709551615]],"follow":true}}}"#;
        let greedy: Vec<_> = (0..5).map(|_| say(follow)).collect();
        assert!(silent.iter().all(|visitor| heard(visitor).is_empty()));
        assert!(listed(&job).is_some());
        assert_eq!(phalanx(&["stop", &job]).code, 0);
        drop(greedy);
        assert_eq!(running.end().code, -15);
    });
}

#[test]
fn other_users_are_turned_away() {
    watched(|| {
        if !nix::unistd::geteuid().is_root() {
            common::skipped("only root can become another user");
            return;
        }
        let (place, job) = (Place::new(), name("user"));
        let running = start(&place, 1, &["--job-name", &job], SLEEPS);
        let visitor = visitor_as(65_534, &job);
        // What it has said is not read, if it could say it at all.
        let _ = send_to(
            visitor.as_raw_fd(),
            br#"{"version":1,"ask":{"Stop":{"kill":true}}}"#,
            MsgFlags::MSG_NOSIGNAL,
        );
        assert_eq!(heard(&visitor), "");
        assert_eq!(listed(&job).unwrap()["workers_up"], 1);
        running.send(Signal::SIGTERM);
        running.end();
    });
}

/// Connects in a thread that is another user.
fn visitor_as(user: u32, job: &str) -> OwnedFd {
    let name = format!("phalanx-{}-{job}", nix::unistd::geteuid());
    let connect = move || {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        // The bare system call changes this thread alone.
        #[expect(unsafe_code, reason = "the C library's call would change all threads")]
        // SAFETY: takes three integers.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
        assert_eq!(changed, 0);
        connect(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).unwrap()).unwrap();
        fd
    };
    std::thread::spawn(connect).join().unwrap()
}

#[test]
fn killed_launcher_is_told_to_those_who_wait_for_its_end() {
    watched(|| {
        let (place, job) = (Place::new(), name("killed"));
        let script = format!("trap '' TERM; {SLEEPS}");
        let mut running = start(&place, 1, &["--job-name", &job, "--shutdown-timeout", "100000"], &script);
        let mut stop = command(&["stop", &job]).stderr(Stdio::piped()).spawn().unwrap();
        running.await_note();
        running.send(Signal::SIGKILL);
        await_end(running.launcher.id());
        assert_eq!(stop.wait().unwrap().code(), Some(1));
        let mut text = String::new();
        stop.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(text.contains("it has ended without an answer"), "{text}");
        running.launcher.wait().unwrap();
        await_that(|| fs::read_dir(place.path("tmp")).unwrap().next().is_none());
    });
}

#[test]
fn commands_have_help_completions_and_pages() {
    watched(|| {
        let bash = phalanx(&["completions", "bash"]).out;
        for word in ["phalanx__subcmd__ps", "phalanx__subcmd__stop", "phalanx__subcmd__logs", "--job-name"] {
            assert!(bash.contains(word), "{word}");
        }
        for command in ["ps", "stop", "logs", "run"] {
            assert!(phalanx(&["--help"]).out.contains(&format!("\n  {command} ")));
            assert!(phalanx(&[command, "--help"]).out.contains(&format!("Usage: phalanx {command}")));
            let page = phalanx(&["man", command]).out;
            assert!(page.contains(&format!(".TH phalanx-{command} 1")), "{page}");
        }
        assert!(phalanx(&["man"]).out.contains("phalanx\\-logs(1)"));
        assert_eq!(phalanx(&["man", "dance"]).code, 2);
    });
}
