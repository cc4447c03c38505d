//! What the launcher is told while an attempt runs, by signals and through the job's socket, carried out.

use super::super::error::Result;
use super::super::event::Event;
use super::super::stopping::Order;
use super::super::timers::Timers;
use super::Running;
use crate::supervise::stop::Stop;
use crate::sys::clock::Moment;
use crate::sys::signal::Signal;

impl Running<'_> {
    /// Does what the signals of this process say, in the order in which they came.
    pub(super) fn obey(&mut self) -> Result<()> {
        // What was said to the timers before Ctrl-Z counts from before it.
        self.job.timers.as_mut().map_or(Ok(()), Timers::read)?;
        let orders = self.job.control.orders(&mut self.group)?;
        let suspended = self.job.control.take_suspended();
        self.job.timers.iter_mut().for_each(|timers| timers.put_off(suspended));
        self.planned.put_off(suspended);
        self.carry_out(orders);
        Ok(())
    }

    /// Answers those who have come to the job's socket, and does what they want.
    pub(super) fn attend(&mut self) -> Result<()> {
        let orders = self.job.attend()?;
        self.carry_out(orders);
        Ok(())
    }

    fn carry_out(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Stop(signal) => self.stop(signal),
                Order::Kill => self.end_all(Stop::at_once(Moment::now())),
                Order::Pass(signal) => self.pass(signal),
            }
        }
    }

    /// Passes a stop signal on, and ends all after the shutdown timeout.
    fn stop(&mut self, signal: Signal) {
        let now = Moment::now();
        self.stopped_at.get_or_insert(now);
        self.job.stopped_by.get_or_insert(signal);
        // Before the signal: its handler in the worker may ask whether it is being ended.
        self.stop_pipe.begin();
        // The stop's own bound holds, even if a failure's has begun before.
        self.pass(signal);
        // A stopped process takes the signal only when it goes on.
        self.pass(Signal::CONT);
        self.end_all(Stop::after_signal(self.job.shutdown_timeout, now));
        self.job.tell(&Event::Stopping { signal });
    }

    /// Ends the workers that still run.
    pub(super) fn end_all(&mut self, how: Stop) {
        self.stop_pipe.begin();
        self.group.stop(Some(how));
    }

    /// Sends a signal to the process groups of all workers that run.
    fn pass(&mut self, signal: Signal) {
        if let Err(error) = self.group.signal_all(signal) {
            self.job.tell(&Event::Note(format!("{signal} could not be passed on to a worker: {error}")));
        }
    }
}
