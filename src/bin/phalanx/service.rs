//! For those that run the launcher: systemd's notifications, the health port, Kubernetes' termination log.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use phalanx::launch::{Ending, Event};

use crate::options::RunOptions;

/// Kubernetes reads no more of a termination log, in bytes.
const TERMINATION_LOG: usize = 4096;
const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";

/// The services that were asked for.
pub(crate) struct Services {
    systemd: Option<Systemd>,
    health: Option<Health>,
    termination_log: Option<PathBuf>,
}

impl Services {
    pub(crate) fn start(options: &RunOptions) -> Result<Self, String> {
        let port = match options.health_port {
            Some(port) => Some(port),
            None => match std::env::var("TORCHELASTIC_HEALTH_CHECK_PORT") {
                Ok(text) => Some(
                    text.parse()
                        .map_err(|_| format!("TORCHELASTIC_HEALTH_CHECK_PORT {text:?} is no port"))?,
                ),
                Err(_) => None,
            },
        };
        let bound =
            port.map(|port| Health::bind(port).map_err(|error| format!("the health port {port}: {error}")));
        let default = || Some(PathBuf::from(DEFAULT_TERMINATION_LOG)).filter(|path| path.exists());
        Ok(Self {
            systemd: Systemd::from_environment(),
            health: bound.transpose()?,
            termination_log: options.termination_log.clone().or_else(default),
        })
    }

    /// Passes on what has happened.
    pub(crate) fn hear(&mut self, event: &Event) {
        if let Some(systemd) = &self.systemd {
            systemd.hear(event);
        }
        if let Some(health) = &mut self.health {
            health.hear(event);
        }
    }

    /// Writes the root cause where Kubernetes shows it.
    pub(crate) fn record_failure(&self, report: &str) {
        let Some(path) = &self.termination_log else { return };
        let end = (0..=report.len().min(TERMINATION_LOG)).rev().find(|&end| report.is_char_boundary(end));
        if let Err(error) = write_in_place(path, &report[..end.unwrap_or(0)]) {
            eprintln!("phalanx: the termination log {} cannot be written: {error}", path.display());
        }
    }
}

/// The file is a mount of its own in a container, which cannot be replaced.
fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    std::fs::File::create(path)?.write_all(text.as_bytes())
}

/// sd_notify(3): a service of `Type=notify` is ready when its workers run.
struct Systemd(UnixDatagram, SocketAddr);

impl Systemd {
    fn from_environment() -> Option<Self> {
        let name = std::env::var("NOTIFY_SOCKET").ok().filter(|name| !name.is_empty())?;
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name).ok()?,
            None => SocketAddr::from_pathname(name).ok()?,
        };
        Some(Self(UnixDatagram::unbound().ok()?, address))
    }

    fn hear(&self, event: &Event) {
        let text = match event {
            Event::Started { attempt, pids, .. } => {
                format!("READY=1\nSTATUS={} worker(s) run, attempt {attempt}", pids.len())
            }
            Event::Stopping { signal } => format!("STOPPING=1\nSTATUS=stopping: {signal}"),
            Event::Restarting { attempt, .. } => format!("STATUS=attempt {attempt} follows"),
            _ => return,
        };
        // A manager that is gone needs no news.
        let _ = self.0.send_to_addr(text.as_bytes(), &self.1);
    }
}

/// A thread that answers HTTP. It begins with the first workers: the job starts in a process of one thread.
struct Health {
    listener: Option<TcpListener>,
    is_well: Arc<AtomicBool>,
}

impl Health {
    fn bind(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind(("0.0.0.0", port))?;
        Ok(Self { listener: Some(listener), is_well: Arc::default() })
    }

    fn hear(&mut self, event: &Event) {
        match event {
            Event::Started { .. } => {
                self.is_well.store(true, Relaxed);
                if let Some(listener) = self.listener.take() {
                    let is_well = Arc::clone(&self.is_well);
                    // It ends with the process.
                    std::thread::spawn(move || serve(&listener, &is_well));
                }
            }
            Event::Ended { ending, .. } if *ending != Ending::Succeeded => self.is_well.store(false, Relaxed),
            Event::Failed { .. } | Event::Stopping { .. } => self.is_well.store(false, Relaxed),
            _ => {}
        }
    }
}

fn serve(listener: &TcpListener, is_well: &AtomicBool) {
    for stream in listener.incoming().flatten() {
        // A client that breaks off has its answer.
        let _ = answer(stream, is_well.load(Relaxed));
    }
}

fn answer(mut stream: TcpStream, is_well: bool) -> io::Result<()> {
    // A client that says nothing holds up the next one for so long.
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    // Whatever is asked for, the answer is the same.
    let _ = stream.read(&mut [0; 1024])?;
    let (status, body) =
        if is_well { ("200 OK", "ok\n") } else { ("503 Service Unavailable", "not running\n") };
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}
