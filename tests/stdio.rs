//! What C's streams have in their buffers is written once, whichever way a worker starts and ends.

#![expect(unsafe_code, reason = "C's printf and dup2")]

mod common;

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};

use common::{by, watched};
use phalanx::{Descriptor, StartMethod, spawn, start_processes};

phalanx::auto_init!();

fn print(rank: usize, _: ()) -> anyhow::Result<()> {
    // SAFETY: the format takes one int.
    let printed = unsafe { libc::printf(c"rank %d\n".as_ptr(), rank as i32) };
    anyhow::ensure!(printed > 0, "printf");
    Ok(())
}

/// A launcher that has printed something before it starts workers, which print too.
fn launch(_: usize, (method, output): (StartMethod, Descriptor)) -> anyhow::Result<()> {
    // SAFETY: this process has one thread, and nobody owns stdout.
    anyhow::ensure!(unsafe { libc::dup2(output.as_fd().as_raw_fd(), 1) } == 1, "dup2");
    // SAFETY: the string is its format, which takes nothing.
    let printed = unsafe { libc::printf(c"launcher\n".as_ptr()) };
    anyhow::ensure!(printed > 0, "printf");
    start_processes(print, (), by(method, 2))?.join()?;
    Ok(())
}

#[test]
fn output_of_c_is_written_once_by_each_method() {
    watched(|| {
        for method in [StartMethod::Spawn, StartMethod::Fork, StartMethod::ForkServer] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("output");
            let output = File::options().create(true).append(true).open(&path).unwrap();
            spawn(launch, (method, Descriptor::from(output)), 1).unwrap();
            let written = fs::read_to_string(&path).unwrap();
            let mut lines: Vec<_> = written.lines().collect();
            lines.sort_unstable();
            assert_eq!(lines, ["launcher", "rank 0", "rank 1"], "{method:?}");
        }
    });
}
