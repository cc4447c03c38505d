//! What happens at a point.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::resource::Resource;
use super::text;
use crate::point::Admits;
use crate::sys::errno;
use crate::sys::signal::Signal;

/// What a rule of a plan does.
///
/// | in a plan | what the process does |
/// |---|---|
/// | `kill`, `term`, `int`, `abort` | sends itself SIGKILL, SIGTERM, SIGINT; aborts |
/// | `segv`, `bus`, `overflow` | uses memory that is not there; the part of a mapped file that was cut off; all of its stack |
/// | `exit=3` | calls `exit` |
/// | `panic` | panics, at the point |
/// | `error`, `error=ENOSPC` | the point fails, with EIO or the errno of that name |
/// | `stop` | sends itself SIGSTOP |
/// | `hang`, `deaf`, `spin` | the thread sleeps, without end or for the time of `for=`; so does it, and the process ignores SIGTERM; it works for nothing |
/// | `slow=200ms` | the thread sleeps for so long, and goes on |
/// | `limit=nofile/64` | goes on, but it and what it starts may have no more of a [`Resource`](crate::fault::Resource) than this number |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Action {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Term,
    /// SIGINT.
    Int,
    /// An access to memory that is not there.
    Segv,
    /// An access to a part of a mapped file that is not there.
    Bus,
    /// SIGABRT, by abort(3).
    Abort,
    /// A recursion without end.
    Overflow,
    /// An exit with this code.
    Exit(i32),
    /// A panic.
    Panic,
    /// The point fails with this errno.
    Error(i32),
    /// SIGSTOP.
    Stop,
    /// The thread sleeps.
    Hang,
    /// The thread sleeps, and the process ignores SIGTERM.
    Deaf,
    /// The thread uses its processor for nothing.
    Spin,
    /// The thread sleeps for so long.
    Slow(Duration),
    /// The process may have no more of a resource than this number.
    Limit(Resource, u64),
}

/// Those without an argument.
const PLAIN: [(&str, Action); 13] = [
    ("kill", Action::Kill),
    ("term", Action::Term),
    ("int", Action::Int),
    ("segv", Action::Segv),
    ("bus", Action::Bus),
    ("abort", Action::Abort),
    ("overflow", Action::Overflow),
    ("panic", Action::Panic),
    ("error", Action::Error(errno::EIO)),
    ("stop", Action::Stop),
    ("hang", Action::Hang),
    ("deaf", Action::Deaf),
    ("spin", Action::Spin),
];

impl Action {
    /// Whether the process ends by it.
    #[must_use]
    pub fn is_death(self) -> bool {
        !matches!(self, Self::Panic | Self::Error(_) | Self::Limit(..)) && !self.is_delay()
    }

    /// Whether the process neither ends nor fails by it, but does not go on for a while, or for ever.
    #[must_use]
    pub fn is_delay(self) -> bool {
        matches!(self, Self::Stop | Self::Slow(_)) || self.takes_time()
    }

    /// Whether another process can do it to any process.
    pub(super) fn is_done_by_others(self) -> bool {
        self.signal().is_some() || matches!(self, Self::Limit(..))
    }

    /// Whether a process may fail by it, or in another way, or not at all.
    #[must_use]
    pub fn may_fail(self) -> bool {
        matches!(self, Self::Error(_) | Self::Limit(..))
    }

    /// The signal that another process does it by.
    pub(crate) fn signal(self) -> Option<Signal> {
        match self {
            Self::Kill => Some(Signal::KILL),
            Self::Term => Some(Signal::TERM),
            Self::Int => Some(Signal::INT),
            Self::Abort => Some(Signal::ABRT),
            Self::Segv => Some(Signal::SEGV),
            Self::Bus => Some(Signal::BUS),
            Self::Stop => Some(Signal::STOP),
            _ => None,
        }
    }

    /// Whether it may end by itself after the time of `for=`.
    pub(super) fn takes_time(self) -> bool {
        matches!(self, Self::Hang | Self::Deaf | Self::Spin)
    }

    /// What a point must admit for it.
    pub(super) fn needs(self) -> Admits {
        match self {
            Self::Error(_) => Admits::Errors,
            Self::Panic => Admits::Panics,
            _ => Admits::Deaths,
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (name, argument) =
            text.split_once('=').map_or((text, None), |(name, argument)| (name, Some(argument)));
        match (name, argument) {
            ("exit", Some(code)) => Ok(Self::Exit(text::number::<u8>(code, "exit code (0 to 255)")?.into())),
            ("error", Some(name)) => Ok(Self::Error(text::errno(name)?)),
            ("slow", Some(time)) => Ok(Self::Slow(text::duration(time)?)),
            ("limit", Some(limit)) => {
                let (name, most) = limit.split_once('/').ok_or("a limit is written as limit=nofile/64")?;
                Ok(Self::Limit(Resource::parse(name)?, text::number(most, "limit")?))
            }
            ("exit" | "slow" | "limit", None) => {
                Err(format!("`{name}` needs a value: exit=3, slow=200ms, limit=nofile/64"))
            }
            (name, argument) => {
                let known = PLAIN.iter().find(|(known, _)| *known == name);
                match (known, argument) {
                    (Some((_, action)), None) => Ok(*action),
                    (Some(_), Some(_)) => Err(format!("`{name}` takes no value")),
                    (None, _) => {
                        let names = PLAIN.iter().map(|(name, _)| *name);
                        Err(text::unknown("action", name, names.chain(["exit", "slow", "limit"])))
                    }
                }
            }
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit={code}"),
            Self::Error(number) => write!(f, "error={}", errno::name(*number).unwrap_or("EIO")),
            Self::Slow(time) => write!(f, "slow={}", text::of_duration(*time)),
            Self::Limit(resource, most) => write!(f, "limit={resource}/{most}"),
            plain => {
                let name = PLAIN.iter().find(|(_, action)| action == plain).map(|(name, _)| *name);
                f.write_str(name.unwrap_or_default())
            }
        }
    }
}
