//! What tests of the built program stand on.

#![allow(
    dead_code,
    unused_imports,
    clippy::allow_attributes,
    reason = "every test binary uses its own part of this"
)]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

pub(crate) mod people;
mod running;

pub(crate) use running::{Running, Terminal};

/// How the launcher ended, and what it had printed.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The exit code; the negative number of a signal.
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints UTF-8");
        let code = output.status.code().or(output.status.signal().map(|number| -number));
        Self { code: code.expect("it has ended"), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The lines of stdout, in an order that does not depend on which worker was first.
    pub(crate) fn lines(&self) -> Vec<&str> {
        let mut lines: Vec<_> = self.out.lines().collect();
        lines.sort_unstable();
        lines
    }
}

/// A directory in which the launcher makes its temporary files, and which must be empty after it.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("launch-test").tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The built program, without what the environment of these tests may say to it.
    pub(crate) fn phalanx(&self, arguments: &[&str]) -> Command {
        let temporary = self.path("tmp");
        fs::create_dir_all(&temporary).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx"));
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy();
            if ["PET_", "PHALANX_", "TORCH", "OMP_"].iter().any(|start| name.starts_with(start)) {
                command.env_remove(&key);
            }
        }
        command.arg("run").args(arguments).stdin(Stdio::null()).env("TMPDIR", temporary);
        command.current_dir(self.dir.path());
        running::with_default_signals(&mut command);
        command
    }

    /// The same, started by another program, as by `nohup`.
    pub(crate) fn phalanx_under(&self, words: &[&str], arguments: &[&str]) -> Command {
        let phalanx = self.phalanx(arguments);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(phalanx.get_program()).args(phalanx.get_args());
        for (key, value) in phalanx.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command.stdin(Stdio::null()).current_dir(self.dir.path());
        command
    }

    /// A shell script in each of `nproc` workers.
    pub(crate) fn shell(&self, nproc: usize, options: &[&str], script: &str) -> Command {
        let nproc = nproc.to_string();
        self.phalanx(&[&["--nproc-per-node", &*nproc], options, &["sh", "-c", script]].concat())
    }

    /// Runs it to its end; nothing of it is left among the temporary files.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.end(&mut self.phalanx(arguments))
    }

    pub(crate) fn end(&self, command: &mut Command) -> Ran {
        let ran = Ran::of(command.output().unwrap());
        self.assert_clean();
        ran
    }

    pub(crate) fn assert_clean(&self) {
        let left: Vec<_> =
            fs::read_dir(self.path("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// A script in the directory.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }
}

/// Runs a shell script in each of `nproc` workers.
pub(crate) fn workers(nproc: usize, options: &[&str], script: &str) -> Ran {
    let place = Place::new();
    place.end(&mut place.shell(nproc, options, script))
}

/// All files below a directory, by their paths in it.
pub(crate) fn tree(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}
