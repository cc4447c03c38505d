//! Attachments that have arrived beside the bytes of a value. Each grant and descriptor is checked when a type's `Deserialize` asks
//! for it, whoever has sent it.

use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::grant::{Cut, Grant, MAX_ALIGN, Part, RECORD_UNIT};
use crate::error::with_hint;
use crate::memory::descriptor::Descriptor;
use crate::memory::segment::Segment;
use crate::memory::storage::Storage;

/// A segment that was sent, before and after it is mapped.
#[derive(Debug)]
pub(crate) enum ReceivedSegment {
    Descriptor(OwnedFd),
    /// The path of a named file, in the directory that the launcher and its workers share.
    Name(String),
    Mapped(Arc<Segment>),
    /// It could not be mapped, or did not arrive, for this reason.
    Broken(String),
}

/// The attachments that have arrived with a value.
#[derive(Debug, Default)]
pub(crate) struct Received {
    segments: Vec<ReceivedSegment>,
    grants: Vec<ReceivedGrant>,
    descriptors: Vec<ReceivedDescriptor>,
}

/// A grant, and the storage that was opened by it.
#[derive(Debug)]
struct ReceivedGrant {
    grant: Grant,
    /// A second request for a shared grant gets the same storage.
    opened: Option<Storage>,
    /// An exclusive grant can be taken once.
    taken: bool,
}

/// A descriptor that was sent, and whether a value has taken it.
#[derive(Debug)]
enum ReceivedDescriptor {
    Waiting(OwnedFd),
    /// A second request gets the same descriptor.
    Shared(Descriptor),
    /// Taken by a value that has it alone.
    Taken,
    /// It did not arrive, for this reason.
    Lost(String),
}

impl Received {
    pub(super) fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.descriptors.is_empty()
    }

    /// What has arrived. An element of `descriptors` is the reason, if that descriptor did not arrive.
    pub(crate) fn new(
        segments: Vec<ReceivedSegment>,
        grants: Vec<Grant>,
        descriptors: Vec<Result<OwnedFd, String>>,
    ) -> Self {
        let incoming = |grant| ReceivedGrant { grant, opened: None, taken: false };
        let slot =
            |came: Result<_, _>| came.map_or_else(ReceivedDescriptor::Lost, ReceivedDescriptor::Waiting);
        let descriptors = descriptors.into_iter().map(slot).collect();
        Self { segments, grants: grants.into_iter().map(incoming).collect(), descriptors }
    }

    fn segment(&mut self, number: u32) -> Result<Arc<Segment>, String> {
        let count = self.segments.len();
        let place = self.segments.get_mut(number as usize);
        let place = place.ok_or_else(|| format!("segment {number} of {count} does not exist"))?;
        let failed =
            |error: std::io::Error| format!("segment {number} cannot be mapped: {}", with_hint(&error));
        let mapped = match mem::replace(place, ReceivedSegment::Broken(String::new())) {
            ReceivedSegment::Mapped(segment) => Ok(segment),
            ReceivedSegment::Descriptor(fd) => Segment::receive(fd).map_err(failed),
            ReceivedSegment::Name(path) => Segment::receive_named(&path).map_err(failed),
            ReceivedSegment::Broken(why) => Err(why),
        };
        match mapped {
            Ok(segment) => {
                *place = ReceivedSegment::Mapped(segment.clone());
                Ok(segment)
            }
            Err(why) => {
                *place = ReceivedSegment::Broken(why.clone());
                Err(why)
            }
        }
    }

    /// The memory of a part, once its bounds are checked against the size of its segment.
    fn storage(&mut self, part: Part, align: usize, shared: bool) -> Result<Storage, String> {
        let Part { segment, offset, len, unit } = part;
        if !matches!(unit, 1 | 2 | 4 | 8 | RECORD_UNIT) {
            return Err(format!("there are no elements of {unit} bytes"));
        }
        let segment = segment.map(|number| self.segment(number)).transpose()?;
        let size = segment.as_ref().map_or(0, |segment| segment.len());
        let storage = Storage::checked(segment, (offset, len), align, shared).ok_or_else(|| {
            format!("{len} bytes at offset {offset} are not in a segment of {size} bytes, or not aligned to {align} bytes")
        })?;
        storage.claim_unit(unit.into()).map_err(|error| error.to_string())?;
        Ok(storage)
    }

    pub(super) fn open_shared(&mut self, number: u32) -> Result<Storage, String> {
        let incoming = self.grant(number)?;
        if let Some(storage) = &incoming.opened {
            return Ok(storage.clone());
        }
        let part = match incoming.grant {
            Grant::Shared(part) => part,
            Grant::Exclusive(..) => return Err(format!("grant {number} is a shard's")),
        };
        let storage = self.storage(part, MAX_ALIGN, true)?;
        self.grant(number)?.opened = Some(storage.clone());
        Ok(storage)
    }

    pub(super) fn take_exclusive(&mut self, number: u32) -> Result<(Cut, Storage), String> {
        let incoming = self.grant(number)?;
        let (part, cut) = match &incoming.grant {
            Grant::Exclusive(part, cut) => (*part, cut.clone()),
            Grant::Shared(_) => return Err(format!("grant {number} is no shard's")),
        };
        if incoming.taken {
            return Err("it was taken already: a shard can be read out of a message only once".to_owned());
        }
        let storage = self.storage(part, cut.align(), false)?;
        self.grant(number)?.taken = true;
        Ok((cut, storage))
    }

    fn grant(&mut self, number: u32) -> Result<&mut ReceivedGrant, String> {
        let count = self.grants.len();
        let incoming = self.grants.get_mut(number as usize);
        incoming.ok_or_else(|| format!("grant {number} of {count} does not exist"))
    }

    /// The descriptor of a number; the same one at each call.
    pub(super) fn share_descriptor(&mut self, number: u32) -> Result<Descriptor, String> {
        let slot = self.slot(number)?;
        let descriptor = match mem::replace(slot, ReceivedDescriptor::Taken) {
            ReceivedDescriptor::Waiting(fd) => Descriptor::from(fd),
            ReceivedDescriptor::Shared(descriptor) => descriptor,
            other => return Err(slot.refuse(other)),
        };
        *slot = ReceivedDescriptor::Shared(descriptor.clone());
        Ok(descriptor)
    }

    /// The descriptor of a number, once.
    pub(super) fn take_descriptor(&mut self, number: u32) -> Result<Descriptor, String> {
        let slot = self.slot(number)?;
        match mem::replace(slot, ReceivedDescriptor::Taken) {
            ReceivedDescriptor::Waiting(fd) => Ok(Descriptor::from(fd)),
            other => Err(slot.refuse(other)),
        }
    }

    fn slot(&mut self, number: u32) -> Result<&mut ReceivedDescriptor, String> {
        let count = self.descriptors.len();
        let slot = self.descriptors.get_mut(number as usize);
        slot.ok_or_else(|| format!("descriptor {number} of {count} does not exist"))
    }
}

impl ReceivedDescriptor {
    /// Restores the state before the request, and returns why the request is refused.
    fn refuse(&mut self, before: Self) -> String {
        *self = before;
        match self {
            Self::Lost(why) => why.clone(),
            Self::Waiting(_) | Self::Shared(_) | Self::Taken => {
                "it was taken already: what only one process can have can be read out of a message only once"
                    .to_owned()
            }
        }
    }
}
