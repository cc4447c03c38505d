//! A process does to itself what a rule says, by the plainest means.

use std::time::Duration;

use super::action::Action;
use super::plan::Rule;
use crate::point::Reaction;
use crate::sys::clock::Moment;
use crate::sys::epoll::pause;
use crate::sys::fatal;
use crate::sys::limits;
use crate::sys::pidfd;
use crate::sys::signal::{self, Signal};

/// Does it. Returns where the process is to go on, or its point is to panic or fail.
pub(super) fn act(rule: &Rule) -> Reaction {
    match rule.action() {
        Action::Panic => return Reaction::Panic,
        Action::Error(errno) => return Reaction::Fail(errno),
        Action::Kill => raise(Signal::KILL),
        // Where it is ignored, as while a report is written, the process goes on.
        Action::Term => raise(Signal::TERM),
        Action::Int => raise(Signal::INT),
        Action::Abort => std::process::abort(),
        Action::Segv => fatal::use_no_memory(),
        Action::Bus => fatal::use_memory_beyond_a_file(),
        Action::Overflow => fatal::use_all_of_the_stack(),
        Action::Exit(code) => exit(code),
        Action::Stop => raise(Signal::STOP),
        // Refused only by a filter of system calls: then the limit is not met, and the process goes on.
        Action::Limit(resource, most) => drop(limits::lower(None, resource.number(), most)),
        Action::Slow(time) => sleep_until(Moment::now().checked_add(time)),
        Action::Hang => sleep_until(end(rule.time)),
        Action::Deaf => {
            // Refused only for signals that cannot be ignored (sigaction(2)).
            let _ = signal::ignore(Signal::TERM);
            sleep_until(end(rule.time));
        }
        Action::Spin => {
            let end = end(rule.time);
            while end.is_none_or(|end| Moment::now() < end) {
                std::hint::spin_loop();
            }
        }
    }
    Reaction::GoOn
}

/// Does it from a thread of its own. That takes no signals, so those that a handler may take go to the process.
pub(super) fn act_from_aside(rule: &Rule) {
    match rule.action().signal() {
        // Refused only for what is no signal (kill(2)).
        Some(signal @ (Signal::TERM | Signal::INT)) => drop(pidfd::signal_own_process(signal)),
        // At such a site a rule neither panics nor fails.
        _ => drop(act(rule)),
    }
}

#[expect(clippy::exit, clippy::disallowed_methods, reason = "the plan asks for it")]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}

fn raise(signal: Signal) {
    // Refused only for what is no signal (kill(2)).
    let _ = signal::raise(signal);
}

fn end(time: Option<Duration>) -> Option<Moment> {
    time.and_then(|time| Moment::now().checked_add(time))
}

/// `None`: for ever. Signals may end a pause early.
fn sleep_until(end: Option<Moment>) {
    loop {
        let left = end.map_or(Duration::from_secs(3600), |end| end.since(Moment::now()));
        if left.is_zero() || pause(left).is_err() {
            return;
        }
    }
}
