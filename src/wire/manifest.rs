//! The manifest of a value: how each thing that travels beside its bytes gets to the other side.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::fd_passing::{self, FdBatch};
use crate::memory::descriptor::Descriptor;
use crate::memory::segment::{Segment, Transport};
use crate::sys::clock::Moment;
use crate::sys::socket::{Attempt, Socket};
use crate::transfer::attachments::Attachments;
use crate::transfer::grant::Grant;
use crate::transfer::received::{Received, ReceivedSegment};

/// The list of what travels beside the bytes of a value. A grant names its segment by the place in `segments`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) segments: Vec<Source>,
    pub(crate) grants: Vec<Grant>,
    /// The numbers of the descriptors: of inherited ones, or of those that were sent.
    pub(crate) descriptors: Vec<RawFd>,
}

/// Where the receiver finds a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    /// The segment is a descriptor: the inherited one of this number, or the one at this place among those that were sent.
    Descriptor { number: RawFd },
    /// The segment is a file in the receiver's directory of named memory; its name is made of the segment's place in the list.
    Name,
}

/// Makes a hard link to the named segment with this place in the list, where the receiver looks for it.
pub(super) type Link<'a> = &'a dyn Fn(usize, &Segment) -> io::Result<()>;

impl Manifest {
    /// Lists what is to travel. `carry` takes each descriptor and returns the number by which the receiver finds it. Without
    /// a `link` the receiver shares no directory with this process, and named segments travel as descriptors of their files.
    pub(super) fn of(
        attachments: &Attachments,
        mut carry: impl FnMut(Descriptor) -> io::Result<RawFd>,
        link: Option<Link<'_>>,
    ) -> io::Result<Self> {
        let mut source = |(number, segment): (usize, &_)| match (Segment::transport(segment), link) {
            (Transport::Descriptor(fd), _) => carry(fd.clone()).map(|number| Source::Descriptor { number }),
            (Transport::Opened, _) | (Transport::Name, None) => {
                carry(segment.open()?.into()).map(|number| Source::Descriptor { number })
            }
            (Transport::Name, Some(link)) => link(number, segment).map(|()| Source::Name),
        };
        let segments = attachments.segments.iter().map(AsRef::as_ref).enumerate();
        let segments = segments.map(&mut source).collect::<io::Result<_>>()?;
        let descriptors = attachments.descriptors.iter().cloned().map(carry).collect::<io::Result<_>>()?;
        Ok(Self { segments, grants: attachments.grants.clone(), descriptors })
    }

    /// The numbers of all descriptors, those of segments first.
    pub(super) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        let of_segments = self.segments.iter().filter_map(|source| match *source {
            Source::Descriptor { number } => Some(number),
            Source::Name => None,
        });
        of_segments.chain(self.descriptors.iter().copied())
    }

    /// The number of descriptors that travel.
    pub(crate) fn count(&self) -> usize {
        self.numbers().count()
    }

    /// What the receiver gets. `take` finds the descriptor of a number, or says why it is not there; `name` makes the path of a named
    /// segment, if this process has a directory of named memory.
    pub(super) fn receive(
        &self,
        mut take: impl FnMut(RawFd) -> Result<OwnedFd, String>,
        name: impl Fn(usize) -> Option<String>,
    ) -> Received {
        let segment = |(number, source): (usize, &Source)| match *source {
            Source::Descriptor { number } => {
                take(number).map_or_else(ReceivedSegment::Broken, ReceivedSegment::Descriptor)
            }
            Source::Name => name(number).map_or_else(
                || ReceivedSegment::Broken("this process has no directory of named memory".to_owned()),
                ReceivedSegment::Name,
            ),
        };
        let segments = self.segments.iter().enumerate().map(segment).collect();
        let descriptors = self.descriptors.iter().map(|&number| take(number)).collect();
        Received::new(segments, self.grants.clone(), descriptors)
    }

    /// As [`receive`](Self::receive), with descriptors that were sent in the order of the manifest. When some were lost, all count as
    /// lost: it is not known which ones arrived.
    pub(crate) fn receive_sent(
        &self,
        sent: Result<Vec<OwnedFd>, String>,
        name: impl Fn(usize) -> Option<String>,
    ) -> Received {
        let (sent, lost) = sent.map_or_else(|lost| (Vec::new(), Some(lost)), |sent| (sent, None));
        let mut sent: Vec<_> = sent.into_iter().map(Some).collect();
        let take = |number: RawFd| {
            let descriptor = usize::try_from(number).ok().and_then(|number| sent.get_mut(number));
            // A damaged manifest may name one that does not exist, or one twice.
            let missing = || lost.clone().unwrap_or_else(|| format!("it has no descriptor {number}"));
            descriptor.and_then(Option::take).ok_or_else(missing)
        };
        self.receive(take, name)
    }
}

/// Attachments as a message carries them: the descriptors, and the manifest that tells which of them is what.
#[derive(Debug)]
pub(crate) struct OutgoingAttachments {
    manifest: Manifest,
    descriptors: FdBatch<Descriptor>,
    attachments: Attachments,
}

impl OutgoingAttachments {
    /// Does all of the work that needs no room in a socket. The receiver may be a process of another tree, so named memory travels as
    /// descriptors of its files.
    ///
    /// # Errors
    /// When a file of named memory cannot be opened.
    pub(crate) fn new(attachments: Attachments) -> io::Result<Self> {
        Self::with_links(attachments, None)
    }

    /// As [`new`](Self::new), for a receiver that finds named memory by the hard links that `link` makes.
    pub(super) fn with_links(attachments: Attachments, link: Option<Link<'_>>) -> io::Result<Self> {
        let mut descriptors = Vec::new();
        let carry = |descriptor| {
            descriptors.push(descriptor);
            Ok(descriptors.len() as RawFd - 1)
        };
        let manifest = Manifest::of(&attachments, carry, link)?;
        Ok(Self { manifest, descriptors: FdBatch::new(descriptors), attachments })
    }

    /// The same once more, for another message; `None`: something in it only one process may get.
    pub(crate) fn duplicate(&self) -> Option<Self> {
        let attachments = self.attachments.duplicate()?;
        let descriptors = FdBatch::new(self.descriptors.all().to_vec());
        Some(Self { manifest: self.manifest.clone(), descriptors, attachments })
    }

    /// The kind of a thing in it that only one process may get; `None`: there is no such thing.
    pub(crate) fn exclusive(&self) -> Option<&'static str> {
        self.attachments.exclusive()
    }

    /// Which descriptor of the message is what.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Sends the descriptors with these bytes as one message, and before them one descriptor of the caller's own.
    pub(crate) fn try_send(
        &mut self,
        socket: &Socket<impl AsFd>,
        bytes: &[u8],
        first: Option<BorrowedFd<'_>>,
    ) -> io::Result<Attempt> {
        self.descriptors.try_send(socket, bytes, first)
    }

    /// As [`try_send`](Self::try_send), without a descriptor of the caller's own; waits until `deadline`.
    pub(super) fn send(&mut self, socket: &Socket, bytes: &[u8], deadline: Option<Moment>) -> io::Result<()> {
        self.descriptors.send(socket, bytes, None, deadline)
    }

    pub(super) fn into_parts(self) -> (Manifest, FdBatch<Descriptor>, Attachments) {
        (self.manifest, self.descriptors, self.attachments)
    }

    /// Notes that the message was sent. There are no loans: this process does not learn when the receiver ends.
    pub(crate) fn deliver(mut self) {
        let _lent = self.attachments.deliver();
    }
}

/// What arrived of [`OutgoingAttachments`] with their message.
///
/// # Errors
/// When some descriptors were lost, as when this process had no numbers left for them.
pub(crate) fn receive(manifest: &Manifest, descriptors: Vec<OwnedFd>) -> Result<Received, String> {
    receive_unpacked(manifest, fd_passing::unpack(descriptors, manifest.count())?)
}

/// As [`receive`], of descriptors that were [unpacked](fd_passing::unpack) already.
pub(super) fn receive_unpacked(manifest: &Manifest, descriptors: Vec<OwnedFd>) -> Result<Received, String> {
    if descriptors.len() != manifest.count() {
        return Err(fd_passing::lost(descriptors.len(), manifest.count()));
    }
    Ok(manifest.receive_sent(Ok(descriptors), |_| None))
}
