//! What a worker left is read, and put together with what the launcher knows.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;

use super::returned::Returned;
use crate::error::{Callee, Cause, Ended, FailureKind, OomScope, Raised, RaisedError, ResourceUsage, Status};
use crate::supervise::diagnose::{self, Evidence};
use crate::supervise::group::{EndedChild, LeftBehind};
use crate::supervise::verdict;
use crate::sys::clock::Moment;
use crate::wire::codec;
use crate::wire::lifecycle::State;
use crate::wire::slot::{Slot, SlotHeader};

/// What is kept of a worker that has ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) ended: Ended,
    /// The moment of failure, if the worker recorded one.
    pub(super) recorded: Option<Moment>,
    pub(super) alive: Moment,
    /// The processes for which it had waited, if that wait failed and it of that.
    pub(super) waited_for: Option<Vec<u32>>,
    /// The most memory it had, if the kernel killed its whole cgroup at once for want of memory.
    pub(super) killed_with_cgroup: Option<u64>,
    pub(super) result: Option<Returned>,
}

/// Reads what a worker left in its slot and says what it means. `times`: when the first worker of its context was started,
/// and when it was; `descriptors`: what it sent with its result.
pub(crate) fn examine(
    slot: Slot,
    known: &EndedChild,
    times: (Moment, Moment),
    callee: Callee,
    descriptors: Vec<OwnedFd>,
) -> End {
    let seen = Moment::now();
    let exit = known.exit;
    let mut found = Findings::read(&slot);
    let header = found.header.as_ref();
    let fault = header.and_then(|header| header.fault.clone());
    let evidence = Evidence {
        state: found.state,
        fault: fault.as_ref().and_then(diagnose::fault_kind),
        oom: known.oom,
        sent_by_program: known.sent_by_program,
        sent_by_teardown: known.sent_by_teardown.map(|sent| sent.strongest),
    };
    let (status, cause) = diagnose::diagnose(exit.map(|exit| exit.status), &evidence);
    let failed = status != Status::Succeeded;
    // A worker cannot have failed after it was seen dead, whatever its memory says.
    let recorded = header.and_then(|header| header.failed_at).filter(|_| failed).map(|at| at.min(seen));
    let at = recorded.unwrap_or(seen);
    let peak_kib = header.map_or(0, |header| header.peak_kib);
    let by_program = cause == Some(Cause::SignaledByLauncher);
    let at_once = matches!(cause, Some(Cause::OutOfMemory { scope: OomScope::WholeCgroup, .. }));
    let victim = !by_program && !at_once && verdict::is_victim(status, recorded, known.sent_by_teardown);
    let usage = diagnose::usage(exit, peak_kib, known.rss_floor_kib);
    let ended = Ended {
        kind: failed.then_some(if victim { FailureKind::Teardown } else { FailureKind::Own }),
        recorded: recorded.is_some(),
        cause,
        note: found.note.take().filter(|_| failed && status != Status::Raised),
        error: found.raised.take().map(|raised| Arc::new(RaisedError::new(raised, callee))),
        traceback: fault.map(|fault| diagnose::traceback_of(fault, callee)),
        usage,
        ..bare(status, times, at)
    };
    let header = found.header.filter(|_| !failed);
    let result = header.map(|header| Returned::new(slot, header, descriptors));
    let killed_with_cgroup = at_once.then(|| usage.peak_memory.unwrap_or(0));
    End { ended, recorded, alive: known.alive, waited_for: found.waited_for, killed_with_cgroup, result }
}

impl End {
    /// Whether it failed by itself, and was not ended by the teardown.
    pub(super) fn has_failed(&self) -> bool {
        self.ended.kind == Some(FailureKind::Own)
    }

    /// Of a worker that no signal ended. `times`: when the first worker of its context was started, and when it was.
    pub(crate) fn left_behind(why: &LeftBehind, times: (Moment, Moment)) -> Self {
        let (status, cause) = match why {
            LeftBehind::Survived => (Status::Survived, None),
            LeftBehind::Refused { signal, os } => {
                let errno = os.raw_os_error().unwrap_or(0);
                (Status::Abandoned, Some(Cause::SignalRefused { signal: *signal, errno }))
            }
        };
        let now = Moment::now();
        let ended = Ended { cause, kind: Some(FailureKind::Own), ..bare(status, times, now) };
        Self {
            ended,
            recorded: Some(now),
            alive: now,
            waited_for: None,
            killed_with_cgroup: None,
            result: None,
        }
    }
}

/// What is known of a worker of which there is no report: its state, and when it was seen so. Times are from the start of the first
/// worker (`begin`), and of this one (`started`).
fn bare(status: Status, (begin, started): (Moment, Moment), at: Moment) -> Ended {
    Ended {
        status,
        kind: None,
        cause: None,
        error: None,
        traceback: None,
        note: None,
        recorded: false,
        lifetime: at.since(started),
        since_start: at.since(begin),
        at: wall_clock(at),
        usage: ResourceUsage::default(),
    }
}

/// The reading that the wall clock had at a moment, by what it reads now.
fn wall_clock(moment: Moment) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(Moment::now().since(moment)).unwrap_or(now)
}

/// What a report slot had in it.
struct Findings {
    state: State,
    header: Option<SlotHeader>,
    raised: Option<Raised>,
    /// The processes for which it had waited, if what it raised is the error of that wait.
    waited_for: Option<Vec<u32>>,
    note: Option<String>,
}

impl Findings {
    /// A report that cannot be read counts as cut short, with the reason as a note.
    fn read(slot: &Slot) -> Self {
        let header = match slot.header() {
            Ok(header) => header,
            Err(error) => return Self::damaged(None, &error.to_string()),
        };
        let (state, note) = (header.state, header.note.clone());
        let mut found = Self { state, raised: None, waited_for: None, note, header: None };
        if header.state == State::Raised {
            let body = slot.body(&header).and_then(|body| codec::decode_plain(&body));
            match body {
                Ok((raised, waited_for)) => (found.raised, found.waited_for) = (Some(raised), waited_for),
                Err(reason) => return Self::damaged(Some(header), &reason),
            }
        }
        found.header = Some(header);
        found
    }

    fn damaged(header: Option<SlotHeader>, reason: &str) -> Self {
        let note = Some(format!("its report cannot be read: {reason}"));
        Self { state: State::Reporting, header, raised: None, waited_for: None, note }
    }
}
