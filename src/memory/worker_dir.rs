//! A worker's directory of named memory, which its launcher makes before it starts the worker and removes when it has reaped it.

use std::io;
use std::sync::Arc;

use super::named::{OUT, ProcessDir, argument_in, result_in, worker_dir_in};

/// A worker's directory, as its launcher has it. Dropping it removes the directory and all its files.
#[derive(Debug)]
pub(crate) struct WorkerDir {
    /// The launcher's own directory, in which the worker's lies.
    process_dir: Arc<ProcessDir>,
    /// The path of the worker's directory in the tree's, with a "/" at its end.
    path: String,
    /// The number that the worker's directory is named by in the launcher's.
    number: u64,
}

impl WorkerDir {
    /// Makes one for a worker that is to be started, in this process's directory.
    pub(crate) fn make(process_dir: &Arc<ProcessDir>) -> io::Result<Self> {
        let number = process_dir.next();
        let path = worker_dir_in(process_dir.own(), number);
        let made = process_dir.tree.make_dir(path.trim_end_matches('/'));
        made.map_err(|error| process_dir.explain(error))?;
        Ok(Self { process_dir: process_dir.clone(), path, number })
    }

    /// The number by which the worker finds its directory: see [`adopt_process_dir`](super::named::adopt_process_dir).
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The path of a storage in the worker's arguments.
    pub(crate) fn argument(&self, number: usize) -> String {
        argument_in(&self.path, number)
    }

    /// The path of a storage in the worker's result.
    pub(crate) fn result(&self, number: usize) -> String {
        result_in(&format!("{}{OUT}", self.path), number)
    }

    /// Removes the files of the worker, but those of its result.
    pub(crate) fn clear_but_result(&self) {
        // An error is ignored: the directory is removed once more when this is dropped.
        let _ = self
            .process_dir
            .tree
            .open_dir(self.path.trim_end_matches('/'))
            .and_then(|worker_dir| worker_dir.clear(|name| name != OUT));
    }
}

impl Drop for WorkerDir {
    /// What cannot be removed goes with the directory of the tree.
    fn drop(&mut self) {
        if self.process_dir.is_own() {
            let _ = self.process_dir.tree.remove_tree(self.path.trim_end_matches('/'));
        }
    }
}
