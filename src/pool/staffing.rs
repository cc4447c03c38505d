//! What the pool's thread does so that there are as many workers as are wanted: it starts some, and asks some to leave.
//!
//! It runs on that thread alone, which so is the only one that changes [`Seats`](super::seats::Seats), and needs no lock for them. A
//! worker says in shared memory that it leaves, and rings where it needs a successor; ends are seen in what the group of children
//! reports. After each event the number of workers that are wanted is computed anew from the pool's table, so a start that failed, or a
//! message that nobody took, needs no repair of its own.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

use super::desk::Stage;
use super::hub::Phase;
use super::keeper::{AGAIN, Keeper};
use super::seats::Seat;
use crate::error::Error;
use crate::start;
use crate::sys::clock::Moment;

impl Keeper {
    /// Starts the worker of a seat that is empty. Its desk is made ready first, since the worker may read it before this call returns;
    /// the totals of its predecessors (`begun`, `failed`, `busy`) stay. The pid is entered last, under the lock: until then
    /// [`Hub::post`](super::hub::Hub::post) refuses errands for the seat, so none is counted at a desk that is then made ready.
    ///
    /// # Errors
    /// When the process cannot be started. The seat stays empty.
    pub(super) fn start_worker(&mut self, seat: usize) -> Result<(), Error> {
        let (hub, place) = (&self.hub, seat % self.hub.size());
        let desk = &hub.ledger.desks()[seat];
        // The desk of a worker that has died still says what it ran.
        desk.cell.store(0, Relaxed);
        desk.leaving.store(0, Relaxed);
        desk.set_stage(Stage::Beginning);
        desk.errands.store(0, Relaxed);
        // Read once, by this worker: another one is started at this place only when this one has begun a task or has ended.
        hub.ledger.desks()[place].seat.store(seat as u64, Relaxed);
        let (children, worker, seats_of) = (&mut self.children, &mut self.workers[seat], &mut self.seats_of);
        let (output, file) = (&mut self.output, self.stderr_files.get(place));
        start::start_rank(&mut self.plan, place, |child, slot, readers| {
            if let Some(output) = output {
                // Another worker of this place may follow, so the file stays open.
                let copy = |(file, path): &(File, PathBuf)| io::Result::Ok((file.try_clone()?, path.clone()));
                let file = file.and_then(Option::as_ref).map(copy).transpose()?;
                output.carry((seat, place), readers, file);
            }
            let pid = child.pid();
            // The slot first: if the child cannot be watched, its drop reaps it while the slot still exists.
            worker.slot = Some(slot);
            worker.begun = desk.begun.load(Relaxed);
            worker.set_up_until = hub.init_limit.and_then(|limit| Moment::now().checked_add(limit));
            worker.is_late = false;
            match worker.child {
                Some(number) => children.replace(number, child)?,
                None => {
                    children.add(child)?;
                    worker.child = Some(seats_of.len());
                    seats_of.push(seat);
                }
            }
            // Only now: one that cannot be watched is no worker.
            hub.lock().pids[seat] = pid;
            Ok(())
        })?;
        self.seats.set(seat, Seat::Taken);
        Ok(())
    }

    /// Notes which workers have said that they leave.
    pub(super) fn look_at_desks(&mut self) {
        let leaving = self.hub.ledger.desks().iter().enumerate();
        for (seat, _) in leaving.filter(|(_, desk)| desk.leaving.load(Relaxed) != 0) {
            self.seats.note_leaving(seat);
        }
    }

    /// Tells the handles with how many tasks this thread is to be called, and itself when it looks for workers that are not needed.
    ///
    /// `calls_above` is that number: up to it each task has a worker, and a submit costs no system call for this thread's sake.
    pub(super) fn note_size(&mut self) {
        let (size, staying) = (self.hub.size, self.seats.staying());
        self.hub.lock().calls_above = size.calls_above(staying);
        self.next_look = match size.may_shrink(staying) {
            Some(time) => self.next_look.or_else(|| Moment::now().checked_add(time)),
            None => None,
        };
    }

    /// Asks workers to leave that were not needed since the last look.
    //
    // From the table alone, and from the beginning at each look: whatever became of a message that asked one to leave, the next look
    // counts the workers that are there.
    pub(super) fn look_for_idle(&mut self) {
        if self.next_look.is_none_or(|at| at > Moment::now()) {
            return;
        }
        self.next_look = None;
        // A message of an earlier look either was taken, and its worker has said that it leaves, or is still in the queue: none is asked twice.
        if self.hub.tasks.core().len() > 0 {
            return;
        }
        self.look_at_desks();
        let (peak, is_open) = {
            let mut state = self.hub.lock();
            let now = state.outstanding();
            (std::mem::replace(&mut state.peak, now), state.phase == Phase::Open)
        };
        if is_open {
            (0..self.hub.size.surplus(self.seats.staying(), peak)).for_each(|_| self.hub.ask_one_to_leave());
        }
    }

    /// How many workers there are to be; `None`: no more are started.
    pub(super) fn wanted(&self) -> Option<usize> {
        let state = self.hub.lock();
        let outstanding = state.outstanding();
        let starts = match state.phase {
            Phase::Open => true,
            Phase::Closing => outstanding > 0,
            Phase::Ending { .. } | Phase::Broken(_) => false,
        };
        starts.then(|| self.hub.size.wanted(outstanding))
    }

    /// Starts workers where fewer stay than are wanted.
    ///
    /// One that cannot be started counts as one that has ended early, and the start is tried again 5 ms later: three within five seconds
    /// break the pool.
    pub(super) fn start_missing(&mut self, wanted: usize) {
        self.next_start = None;
        for seat in self.seats.to_start(wanted) {
            if let Err(error) = self.start_worker(seat) {
                self.note_failed_start(format!("a worker cannot be started: {error}"), false);
                self.next_start = Moment::now().checked_add(AGAIN);
                return;
            }
        }
    }
}
