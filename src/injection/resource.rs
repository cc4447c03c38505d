//! Pure: the limits that a plan can lower.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text;

/// A limit of getrlimit(2) that a plan may lower: `limit=nofile/64`.
///
/// The soft and the hard limit are lowered, for good. The kernel refuses what the process asks for beyond it, by the error in brackets.
///
/// ```
/// use phalanx::fault::{Action, Plan, Resource};
///
/// let plan: Plan = "limit=nofile/64@start:rank=1".parse()?;
/// assert_eq!(plan.rules()[0].action(), Action::Limit(Resource::Descriptors, 64));
/// # Ok::<(), phalanx::fault::PlanError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Resource {
    /// `nofile`: descriptors (EMFILE).
    Descriptors,
    /// `nproc`: processes and threads of the user (EAGAIN); root has no such limit.
    Processes,
    /// `fsize`: bytes of a file (SIGXFSZ, or EFBIG where that is ignored).
    FileSize,
    /// `data`: bytes of memory of the process's own (ENOMEM).
    Data,
    /// `as`: bytes of all that is mapped (ENOMEM).
    AddressSpace,
    /// `stack`: bytes of the stack of the main thread (SIGSEGV).
    Stack,
    /// `memlock`: bytes that are locked into memory (ENOMEM, EPERM).
    LockedMemory,
    /// `cpu`: seconds of processor time (SIGXCPU, then SIGKILL).
    ProcessorTime,
}

/// With their numbers in getrlimit(2).
const NAMES: [(&str, Resource, u8); 8] = [
    ("nofile", Resource::Descriptors, 7),
    ("nproc", Resource::Processes, 6),
    ("fsize", Resource::FileSize, 1),
    ("data", Resource::Data, 2),
    ("as", Resource::AddressSpace, 9),
    ("stack", Resource::Stack, 3),
    ("memlock", Resource::LockedMemory, 8),
    ("cpu", Resource::ProcessorTime, 0),
];

impl Resource {
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(known, ..)| *known == name).map(|(_, resource, _)| *resource);
        found.ok_or_else(|| text::unknown("limit", name, NAMES.iter().map(|(name, ..)| *name)))
    }

    /// Its number in getrlimit(2).
    pub(crate) fn number(self) -> u8 {
        NAMES.iter().find(|(_, known, _)| *known == self).map_or(0, |(.., number)| *number)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(_, known, _)| known == self).map_or("", |(name, ..)| name))
    }
}
