//! The launcher beside its rivals: from its start to the last worker's first line, what it needs of memory, and how fast it carries
//! output. `phalanx run` must have been built: `cargo build --release --features cli`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

fn main() -> Result<()> {
    let quick = std::env::var_os("PHALANX_BENCH_QUICK").is_some();
    let rounds = if quick { 3 } else { 41 };
    let phalanx = phalanx()?;
    first_lines(&phalanx, rounds)?;
    memory(&phalanx)?;
    drain(&phalanx, if quick { 1 } else { 7 })
}

/// The program, beside the benchmarks' own directory.
fn phalanx() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own
        .parent()
        .and_then(Path::parent)
        .context("the benchmark lies in target/release/deps")?
        .join("phalanx");
    ensure!(path.exists(), "{} is not there: cargo build --release --features cli", path.display());
    Ok(path)
}

fn run(phalanx: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(phalanx);
    command.arg("run").args(["--quiet", "--nproc-per-node"]).args(arguments).stdin(Stdio::null());
    command
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

/// The time from the start of a command until it has printed `lines` lines.
fn until_lines(mut command: Command, lines: usize) -> Result<Duration> {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let out = BufReader::new(child.stdout.take().context("it is piped")?);
    let seen = out.lines().take(lines).filter(Result::is_ok).count();
    let took = start.elapsed();
    ensure!(seen == lines, "{seen} lines instead of {lines}");
    ensure!(child.wait()?.success(), "{command:?} failed");
    Ok(took)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn first_lines(phalanx: &Path, rounds: usize) -> Result<()> {
    println!("| workers | shell loop, `&` and `wait` | phalanx run | phalanx / shell | torchrun |");
    println!("|---|---|---|---|---|");
    for workers in [2, 64] {
        let number = workers.to_string();
        let (mut by_shell, mut by_phalanx) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            // By turns: what slows one down slows down the other too.
            let script =
                format!("i=0; while [ $i -lt {workers} ]; do /bin/echo line & i=$((i+1)); done; wait");
            by_shell.push(until_lines(shell(&script), workers)?);
            by_phalanx.push(until_lines(run(phalanx, &[&number, "/bin/echo", "line"]), workers)?);
        }
        let (by_shell, by_phalanx) = (median(by_shell), median(by_phalanx));
        let ratio = by_phalanx.as_secs_f64() / by_shell.as_secs_f64();
        println!(
            "| {workers} | {by_shell:.2?} | {by_phalanx:.2?} | {ratio:.2} | {} |",
            torchrun(&number, workers)
        );
    }
    Ok(())
}

/// torchrun, where it is in PATH.
fn torchrun(number: &str, workers: usize) -> String {
    let once = || {
        let mut command = Command::new("torchrun");
        command.args(["--nproc-per-node", number, "--no-python", "/bin/echo", "line"]).stdin(Stdio::null());
        until_lines(command, workers)
    };
    match (0..3).map(|_| once()).collect::<Result<Vec<_>>>() {
        Ok(times) => format!("{:.2?}", median(times)),
        Err(_) => "–".to_owned(),
    }
}

/// The most memory that the launcher has resident while 64 workers print.
fn memory(phalanx: &Path) -> Result<()> {
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; sleep 0.3";
    let mut child = run(phalanx, &["64", "sh", "-c", script]).stdout(Stdio::piped()).spawn()?;
    let mut out = child.stdout.take().context("it is piped")?;
    let reader = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak = peak.max(kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0));
        std::thread::yield_now();
    }
    reader.join().expect("it does not panic")?;
    println!("\nmemory of the launcher with 64 workers that print: {:.1} MiB", peak as f64 / 1024.0);
    Ok(())
}

/// 32 workers write 100 MB in all, in lines of 100 bytes.
fn drain(phalanx: &Path, rounds: usize) -> Result<()> {
    const WORKERS: usize = 32;
    const BYTES: usize = 100_000_000;
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_str().context("a plain path")?;
    let text = dir.path().join("text");
    let line = [&[b'x'; 99][..], b"\n"].concat();
    std::fs::write(&text, line.repeat(BYTES / WORKERS / line.len()))?;
    let text = text.to_str().context("a plain path")?;
    let (mut by_cat, mut by_phalanx) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let script = format!("i=0; while [ $i -lt {WORKERS} ]; do cat {text}; i=$((i+1)); done | cat");
        by_cat.push(drained(shell(&script))?);
        let logs = tempfile::tempdir_in(path)?;
        let to = logs.path().to_str().context("a plain path")?;
        by_phalanx.push(drained(run(phalanx, &["32", "--log-dir", to, "-t", "3", "cat", text]))?);
    }
    let rate = |time: Duration| BYTES as f64 / 1e6 / time.as_secs_f64();
    let (cat, phalanx) = (rate(median(by_cat)), rate(median(by_phalanx)));
    println!(
        "32 workers, 100 MB in lines of 100 bytes: {phalanx:.0} MB/s prefixed into a pipe and to files; `cat | cat` {cat:.0} MB/s ({:.2})",
        phalanx / cat
    );
    Ok(())
}

/// How long a command takes whose output is read and thrown away.
fn drained(mut command: Command) -> Result<Duration> {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut out = child.stdout.take().context("it is piped")?;
    let mut buffer = vec![0; 1 << 20];
    while out.read(&mut buffer)? > 0 {}
    ensure!(child.wait()?.success(), "{command:?} failed");
    Ok(start.elapsed())
}
