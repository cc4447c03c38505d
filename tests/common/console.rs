//! What a launcher and its workers print, as its user would see it.

#![allow(dead_code, clippy::allow_attributes, reason = "every test binary uses its own part of this")]

use std::fs;

use phalanx::{Options, OutputFile, RankOptions, StartMethod, start_processes};

use crate::common::{await_that, tagged};

/// Names a launcher's processes.
pub(crate) const TAG: &str = "PHALANX_OUTPUT_TEST";

/// Runs a launcher in a process of its own; returns what it and its workers have printed to stdout and to stderr.
pub(crate) fn console(
    test: impl Fn(usize, StartMethod) -> anyhow::Result<()> + Copy + Send + 'static,
    method: StartMethod,
) -> [String; 2] {
    let dir = tempfile::tempdir().unwrap();
    let files = [dir.path().join("stdout"), dir.path().join("stderr")];
    let tag = format!("{}-{}", std::process::id(), dir.path().display());
    let options = Options::new(1).env(TAG, &tag).rank_options(|_| {
        let [stdout, stderr] = files.each_ref().map(OutputFile::truncate);
        RankOptions::new().stdout(stdout).stderr(stderr)
    });
    if let Err(error) = start_processes(test, method, options).unwrap().join() {
        panic!("{method:?}: {error}");
    }
    // Its fork server ends after it.
    await_that(|| tagged(TAG, &tag).is_empty());
    files.map(|file| fs::read_to_string(file).unwrap())
}
