//! Pure: what one exit means.

use std::time::Duration;

use crate::error::{Callee, Captured, Cause, OomScope, ResourceUsage, Status, Traceback};
use crate::sys::signal::{NO_ADDRESS, Signal, Signals};
use crate::sys::wait::{Exit, ExitStatus};
use crate::wire::lifecycle::State;
use crate::wire::slot::FaultRecord;

/// Kills for want of memory that may be the end of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OomKills {
    pub(crate) count: u64,
    pub(crate) scope: OomScope,
}

/// Whether an end may be a kill for want of memory.
pub(super) fn is_kill(status: ExitStatus) -> bool {
    matches!(status, ExitStatus::Signal { signal: Signal::KILL, .. })
}

/// What is known about the end of a worker besides its exit status.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evidence {
    /// How far it had come; a report that turned out to be damaged counts as not written.
    pub(crate) state: State,
    /// What its signal handler has recorded of a fatal signal.
    pub(crate) fault: Option<FaultKind>,
    /// Kills for want of memory that the kernel counted since the start, if a signal may have been one of them.
    pub(crate) oom: Option<OomKills>,
    /// The signals that the program sent it through its context.
    pub(crate) sent_by_program: Signals,
    /// The strongest signal that the teardown sent it.
    pub(crate) sent_by_teardown: Option<Signal>,
}

impl Evidence {
    /// Whether it ended by a signal that the launcher had sent it.
    fn is_ended_by_launcher(&self, exit: ExitStatus) -> bool {
        let ExitStatus::Signal { signal, .. } = exit else { return false };
        // Before SIGKILL the teardown has sent SIGTERM.
        let by_teardown = self.sent_by_teardown.is_some_and(|sent| signal == sent || signal == Signal::TERM);
        by_teardown || self.sent_by_program.contains(signal)
    }
}

/// How the worker ended, in one word, and what probably ended it.
pub(crate) fn diagnose(exit: Option<ExitStatus>, evidence: &Evidence) -> (Status, Option<Cause>) {
    let status = match (evidence.state, exit) {
        (State::Raised, _) => Status::Raised,
        (State::Returned, None | Some(ExitStatus::Code(0))) => Status::Succeeded,
        // Its result is whole: the launcher ended only a process that did not exit.
        (State::Returned, Some(exit)) if evidence.is_ended_by_launcher(exit) => Status::Succeeded,
        (_, None) => Status::Lost,
        (_, Some(ExitStatus::Code(code))) => Status::Exited { code },
        (_, Some(ExitStatus::Signal { signal, core_dumped })) => Status::Signaled { signal, core_dumped },
    };
    let cut_short = matches!(status, Status::Succeeded | Status::Raised)
        && exit.is_some_and(|exit| evidence.is_ended_by_launcher(exit));
    (status, if cut_short { Some(Cause::EndedWhileExiting) } else { cause(status, evidence) })
}

fn cause(status: Status, evidence: &Evidence) -> Option<Cause> {
    let signal = match status {
        Status::Signaled { signal, .. } => Some(signal),
        Status::Exited { .. } => None,
        // There is no evidence where the status is lost, and no need of a cause where the worker has reported.
        _ => return None,
    };
    if signal.is_some_and(|signal| evidence.sent_by_program.contains(signal)) {
        return Some(Cause::SignaledByLauncher);
    }
    let oom = evidence.oom.filter(|_| signal == Some(Signal::KILL));
    let by_teardown = signal.is_some() && signal == evidence.sent_by_teardown;
    match oom {
        // The kernel killed its whole cgroup, and this worker with it: what the teardown sent after that had no effect.
        Some(OomKills { count, scope }) if !by_teardown || scope == OomScope::WholeCgroup => {
            return Some(Cause::OutOfMemory { kills: count, scope });
        }
        _ if by_teardown => return None,
        _ => {}
    }
    match evidence.fault {
        Some(FaultKind::StackOverflow) => return Some(Cause::StackOverflow),
        Some(FaultKind::InvalidAccess(address)) => return Some(Cause::InvalidAccess { address }),
        None => {}
    }
    match (evidence.state, signal) {
        (State::Empty, Some(Signal::KILL | Signal::TERM)) => None,
        (State::Empty, _) => Some(Cause::NeverReachedInit),
        (State::Refused, _) => Some(Cause::CouldNotBegin),
        (State::Reporting, _) => Some(Cause::ReportCutShort),
        (State::Returned, _) => Some(Cause::FailedAfterReturning),
        (State::Running, None) => Some(Cause::ExitedBeforeReturning),
        (State::Begun | State::Running | State::Raised, _) => None,
    }
}

/// How near to the stack pointer the failing address of a stack overflow lies: a frame touches its pages in
/// order, from the last one that was there.
const PROBE_REACH: u64 = 64 * 1024;

/// What a fatal signal's address tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    StackOverflow,
    InvalidAccess(u64),
}

/// What the signal handler's record means, if it has an address.
pub(crate) fn fault_kind(fault: &FaultRecord) -> Option<FaultKind> {
    let near = fault.address.abs_diff(fault.stack) <= PROBE_REACH;
    match fault.address {
        NO_ADDRESS => None,
        _ if near && fault.signal == Signal::SEGV => Some(FaultKind::StackOverflow),
        address => Some(FaultKind::InvalidAccess(address)),
    }
}

/// The traceback of a fatal signal.
pub(crate) fn traceback_of(fault: FaultRecord, callee: Callee) -> Traceback {
    Traceback::new(Captured { addresses: fault.frames, modules: fault.modules }, callee)
}

/// What a worker had used. The peak that the worker itself has measured is its own. The kernel's count goes on through exec from the
/// launcher's (`floor_kib`), so it says something only where it is higher.
pub(crate) fn usage(exit: Option<Exit>, own_peak_kib: u64, floor_kib: u64) -> ResourceUsage {
    let from_kernel = exit.map(|exit| exit.max_rss_kib).filter(|&kib| kib > floor_kib);
    let from_worker = (own_peak_kib > 0).then_some(own_peak_kib);
    ResourceUsage {
        user: exit.map_or(Duration::ZERO, |exit| exit.user),
        system: exit.map_or(Duration::ZERO, |exit| exit.system),
        peak_memory: from_worker.or(from_kernel).map(|kib| kib * 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Evidence = Evidence {
        state: State::Running,
        fault: None,
        oom: None,
        sent_by_program: Signals::NONE,
        sent_by_teardown: None,
    };

    fn killed(signal: Signal) -> Option<ExitStatus> {
        Some(ExitStatus::Signal { signal, core_dumped: false })
    }

    fn cause_of(exit: Option<ExitStatus>, evidence: Evidence) -> Option<Cause> {
        diagnose(exit, &evidence).1
    }

    #[test]
    fn success_needs_a_result_and_exit_zero() {
        let in_state = |state, code| diagnose(Some(ExitStatus::Code(code)), &Evidence { state, ..PLAIN });
        assert_eq!(in_state(State::Returned, 0), (Status::Succeeded, None));
        assert_eq!(
            in_state(State::Returned, 3),
            (Status::Exited { code: 3 }, Some(Cause::FailedAfterReturning))
        );
        assert_eq!(
            in_state(State::Running, 0),
            (Status::Exited { code: 0 }, Some(Cause::ExitedBeforeReturning))
        );
        assert_eq!(in_state(State::Empty, 0), (Status::Exited { code: 0 }, Some(Cause::NeverReachedInit)));
        assert_eq!(in_state(State::Refused, 70), (Status::Exited { code: 70 }, Some(Cause::CouldNotBegin)));
    }

    #[test]
    fn whole_error_report_wins_over_the_exit_status() {
        let raised = Evidence { state: State::Raised, ..PLAIN };
        assert_eq!(diagnose(killed(Signal::KILL), &raised), (Status::Raised, None));
    }

    #[test]
    fn whole_report_stands_when_the_launcher_ends_the_exit() {
        let ended = |state, sent_by_teardown, signal| {
            diagnose(killed(signal), &Evidence { state, sent_by_teardown, ..PLAIN })
        };
        let (term, kill) = (Some(Signal::TERM), Some(Signal::KILL));
        let cut_short = Some(Cause::EndedWhileExiting);
        assert_eq!(ended(State::Returned, term, Signal::TERM), (Status::Succeeded, cut_short));
        assert_eq!(ended(State::Returned, kill, Signal::KILL), (Status::Succeeded, cut_short));
        assert_eq!(ended(State::Returned, kill, Signal::TERM), (Status::Succeeded, cut_short));
        assert_eq!(ended(State::Raised, kill, Signal::KILL), (Status::Raised, cut_short));
        // By somebody else, or with no whole report.
        assert_eq!(ended(State::Returned, term, Signal::KILL).1, Some(Cause::FailedAfterReturning));
        assert_eq!(ended(State::Reporting, kill, Signal::KILL).1, None);
        let mut sent_by_program = Signals::NONE;
        sent_by_program.insert(Signal::KILL);
        let program = Evidence { state: State::Returned, sent_by_program, ..PLAIN };
        assert_eq!(diagnose(killed(Signal::KILL), &program), (Status::Succeeded, cut_short));
    }

    #[test]
    fn report_cut_short_and_lost_status_are_told() {
        let reporting = Evidence { state: State::Reporting, ..PLAIN };
        assert_eq!(cause_of(killed(Signal::KILL), reporting), Some(Cause::ReportCutShort));
        assert_eq!(diagnose(None, &PLAIN).0, Status::Lost);
        assert_eq!(diagnose(None, &Evidence { state: State::Returned, ..PLAIN }).0, Status::Succeeded);
    }

    #[test]
    fn kill_is_for_memory_only_when_the_kernel_counted_and_nobody_sent_it() {
        let scope = OomScope::Cgroup;
        let counted = Evidence { oom: Some(OomKills { count: 2, scope }), ..PLAIN };
        assert_eq!(cause_of(killed(Signal::KILL), counted), Some(Cause::OutOfMemory { kills: 2, scope }));
        assert_eq!(cause_of(killed(Signal::TERM), counted), None);
        assert_eq!(cause_of(killed(Signal::KILL), PLAIN), None);
        let ours = Evidence { sent_by_teardown: Some(Signal::KILL), ..counted };
        assert_eq!(cause_of(killed(Signal::KILL), ours), None);
        let scope = OomScope::WholeCgroup;
        let whole = Evidence { oom: Some(OomKills { count: 2, scope }), ..ours };
        assert_eq!(cause_of(killed(Signal::KILL), whole), Some(Cause::OutOfMemory { kills: 2, scope }));
        let mut sent_by_program = Signals::NONE;
        sent_by_program.insert(Signal::KILL);
        sent_by_program.insert(Signal::CONT);
        let program = Evidence { sent_by_program, ..counted };
        assert_eq!(cause_of(killed(Signal::KILL), program), Some(Cause::SignaledByLauncher));
    }

    #[test]
    fn stack_overflow_is_a_fault_beside_the_stack_pointer() {
        let fault = |address, stack| FaultRecord {
            signal: Signal::SEGV,
            address,
            stack,
            frames: vec![],
            modules: vec![],
        };
        let kind = |address| fault_kind(&fault(address, 0x7fff_0000_1000));
        assert_eq!(kind(0x7fff_0000_0ff8), Some(FaultKind::StackOverflow));
        assert_eq!(kind(0), Some(FaultKind::InvalidAccess(0)));
        assert_eq!(kind(0x5555_0000_0000), Some(FaultKind::InvalidAccess(0x5555_0000_0000)));
        assert_eq!(kind(NO_ADDRESS), None);
        let with = |fault| cause_of(killed(Signal::SEGV), Evidence { fault, ..PLAIN });
        assert_eq!(with(Some(FaultKind::StackOverflow)), Some(Cause::StackOverflow));
        assert_eq!(with(Some(FaultKind::InvalidAccess(8))), Some(Cause::InvalidAccess { address: 8 }));
    }

    #[test]
    fn peak_memory_below_the_launchers_is_the_workers_own() {
        let exit = |max_rss_kib| {
            Some(Exit {
                status: ExitStatus::Code(0),
                user: Duration::ZERO,
                system: Duration::ZERO,
                max_rss_kib,
            })
        };
        assert_eq!(usage(exit(900), 70, 500).peak_memory, Some(70 * 1024));
        assert_eq!(usage(exit(900), 0, 500).peak_memory, Some(900 * 1024));
        assert_eq!(usage(exit(500), 70, 500).peak_memory, Some(70 * 1024));
        assert_eq!(usage(exit(500), 0, 500).peak_memory, None);
    }
}
