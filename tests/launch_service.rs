//! `phalanx run` for those that run it: systemd, a health check, Kubernetes' termination log.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::sys::signal::Signal;

mod common;
mod launcher;

use common::{await_that, watched};
use launcher::{Place, Running};

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// The status line of what the health port answers.
fn health(port: u16) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn health_port_tells_whether_all_workers_run() {
    watched(|| {
        for by_variable in [false, true] {
            let place = Place::new();
            let port = free_port();
            let option = ["--health-port", &port.to_string()].map(str::to_owned);
            let option: Vec<_> = option.iter().map(String::as_str).filter(|_| !by_variable).collect();
            // After its failure rank 0 ends when the test allows it.
            let script = "trap '' TERM; echo up; if [ $RANK = 1 ]; then while [ ! -e fail ]; do sleep 0.02; done; exit 5; fi; while [ ! -e end ]; do \
                          sleep 0.02; done";
            let mut command = place.shell(2, &option, script);
            if by_variable {
                command.env("TORCHELASTIC_HEALTH_CHECK_PORT", port.to_string());
            }
            let mut running = Running::start(&mut command);
            running.hear();
            running.hear();
            await_that(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
            assert_eq!(health(port), "HTTP/1.1 200 OK");
            place.script("fail", "");
            await_that(|| health(port) == "HTTP/1.1 503 Service Unavailable");
            place.script("end", "");
            assert_eq!(running.end().code, 5);
        }
    });
}

#[test]
fn health_port_that_is_taken_is_told_before_anything_runs() {
    watched(|| {
        let place = Place::new();
        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let ran = place.run(&["--health-port", &port, "touch", "made"]);
        assert!(
            ran.code == 1 && ran.err.contains(&format!("the health port {port}: Address already in use")),
            "{ran:?}"
        );
        let ran = place.end(place.phalanx(&["touch", "made"]).env("TORCHELASTIC_HEALTH_CHECK_PORT", "web"));
        assert!(ran.code == 1 && ran.err.contains("\"web\" is no port"), "{ran:?}");
        assert!(!place.path("made").exists());
    });
}

/// What systemd is told, up to a message that begins so.
fn heard_until(manager: &UnixDatagram, begin: &str) -> Vec<String> {
    let mut heard = Vec::new();
    loop {
        let mut message = [0; 512];
        let count = manager.recv(&mut message).unwrap();
        heard.push(String::from_utf8_lossy(&message[..count]).into_owned());
        if heard.last().is_some_and(|message| message.starts_with(begin)) {
            return heard;
        }
    }
}

#[test]
fn systemd_is_told_when_the_workers_run_and_when_they_are_to_stop() {
    watched(|| {
        let place = Place::new();
        let path = place.path("notify").to_str().unwrap().to_owned();
        let name = format!("launch-test-{}", std::process::id());
        let by_path = (UnixDatagram::bind(&path).unwrap(), path);
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"));
        for (manager, socket) in [by_path, by_name] {
            let script = "[ $TORCHELASTIC_RESTART_COUNT = 1 ] || exit 3; exec sleep 600";
            let mut command = place.shell(2, &["--max-restarts", "1"], script);
            let running = Running::start(command.env("NOTIFY_SOCKET", socket));
            let first = heard_until(&manager, "READY=1");
            assert_eq!(first, ["READY=1\nSTATUS=2 worker(s) run, attempt 0"]);
            assert_eq!(heard_until(&manager, "STATUS"), ["STATUS=attempt 1 follows"]);
            heard_until(&manager, "READY=1");
            running.send(Signal::SIGTERM);
            assert_eq!(heard_until(&manager, "STOPPING=1"), ["STOPPING=1\nSTATUS=stopping: SIGTERM"]);
            assert_eq!(running.end().code, -15);
        }
    });
}

#[test]
fn termination_log_has_the_root_cause_in_no_more_than_kubernetes_reads() {
    watched(|| {
        let place = Place::new();
        let log = |options: &[&str], script: &str| {
            let options = [&["--termination-log", "log"], options].concat();
            place.end(&mut place.shell(1, &options, script))
        };
        assert_eq!(log(&[], "exit 0").code, 0);
        assert!(!place.path("log").exists(), "a job that succeeds says nothing");
        // It is a mount in a container, and has what an earlier container has left.
        place.script("log", &"old".repeat(3000));
        let script =
            "for i in 1 2 3 4 5 6 7 8 9; do printf '%0500d' 0 | sed s/0/ä/g >&2; echo >&2; done; exit 6";
        let ran = log(&["--quiet"], script);
        assert_eq!(ran.code, 6, "{ran:?}");
        let text = fs::read_to_string(place.path("log")).unwrap();
        assert!(text.len() > 4000 && text.len() <= 4096, "{}", text.len());
        assert!(text.contains("root cause: rank 0") && text.contains("exited with code 6"), "{text}");
        // One that cannot be written takes nothing away from the exit code.
        let ran = place.end(&mut place.shell(1, &["--termination-log", "no/log"], "exit 6"));
        assert!(ran.code == 6 && ran.err.contains("the termination log no/log cannot be written"), "{ran:?}");
    });
}
