//! The desk of a worker: what it says of itself, in shared memory.
//!
//! The worker of a seat is the only writer of most of it, so plain stores do; the pool reads it at any moment, and after the worker's
//! death, but what becomes of a task never depends on it: that is what the words of the ledger are for. The pool writes `seat`,
//! `errands`, and, before a start, what the last worker has left there.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::sys::atomic_record::atomic_record;
use crate::sys::futex;
use crate::sys::robust::RobustWord;

atomic_record! {
    /// What a worker says of itself.
    pub(super) struct Desk {
        /// How many tasks and items have begun.
        pub(super) begun: AtomicU64,
        /// How many of them have failed by an error or a panic.
        pub(super) failed: AtomicU64,
        /// The cell of the task that runs, plus one; 0: none.
        pub(super) cell: AtomicU64,
        /// The time for which functions have run; nanoseconds.
        pub(super) busy: AtomicU64,
        /// When the task that runs was begun; nanoseconds of CLOCK_MONOTONIC.
        pub(super) since: AtomicU64,
        /// How far the running function says that it is, in billionths, plus one; 0: it has not said it.
        progress: AtomicU64,
        /// 1: the worker takes no more tasks after the one that it has.
        pub(super) leaving: AtomicU64,
        /// How far its worker is, a [`Stage`].
        stage: AtomicU64,
        /// How many errands the worker has been given. It sleeps on this word, too, while it waits for a task.
        pub(super) errands: AtomicU64,
        /// The seat of the worker that is being started at this place. The pool writes it before the start, the worker reads it once.
        pub(super) seat: AtomicU64,
        /// Owned by the worker that takes tasks at this place, where a successor may wait for it.
        pub(super) place: RobustWord,
    }
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It sets itself up, and makes its state.
    Beginning,
    /// It takes tasks, or will when its place is free.
    Serving,
    /// It has no more tasks, and gives up its state.
    Retiring,
}

impl Desk {
    const WHOLE: f64 = 1e9;

    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(Acquire) {
            1 => Stage::Serving,
            2 => Stage::Retiring,
            _ => Stage::Beginning,
        }
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u64, Release);
    }

    /// Tells the worker that there is an errand for it, and wakes it if it waits for a task.
    pub(super) fn post_errand(&self) {
        // Release: the errand is where the worker will ask for it.
        self.errands.fetch_add(1, AcqRel);
        // After the change, as in `Cell::ask`.
        let [(half, _), _] = futex::halves(&self.errands, 0);
        futex::wake_all(half);
    }

    /// A function begins, and has not said how far it is.
    pub(super) fn forget_progress(&self) {
        self.progress.store(0, Relaxed);
    }

    /// Notes how far the running function is. What is no part of a whole counts as none or all of it.
    pub(super) fn set_progress(&self, part: f64) {
        // `as` makes 0 of what is no number.
        self.progress.store((part.clamp(0.0, 1.0) * Self::WHOLE) as u64 + 1, Relaxed);
    }

    pub(super) fn progress(&self) -> Option<f64> {
        self.progress.load(Relaxed).checked_sub(1).map(|part| part as f64 / Self::WHOLE)
    }
}
