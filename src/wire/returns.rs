//! Results with memory beside them: a worker sends the descriptors through a socket that all workers of a context share,
//! or puts names where the launcher looks, and writes the bytes into its report slot after that.
//!
//! What was sent is in the socket when its sender is dead. The launcher takes it out whenever it looks at its workers, so
//! that none of them waits for room in it for long.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::codec::{self, Encoded};
use super::message::{Manifest, Way};
use crate::shm::passing::{Arrival, Arrivals, Parcel};
use crate::shm::segment::Vehicle;
use crate::shm::tree::{self, Nest, Place};
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::limits;
use crate::sys::socket::{MAX_DESCRIPTORS, Message, Socket};

/// The launcher's end, with what has arrived.
#[derive(Debug)]
pub(crate) struct Returns {
    inbox: Socket,
    /// What the workers inherit; kept here too, so that the inbox never comes to an end.
    outbox: Socket,
    /// By rank.
    arrived: HashMap<u64, Vec<OwnedFd>>,
}

impl Returns {
    pub(crate) fn new() -> io::Result<Self> {
        let (inbox, outbox) = Socket::pair()?;
        Ok(Self { inbox, outbox, arrived: HashMap::new() })
    }

    /// The number under which a worker inherits its end.
    pub(crate) fn number(&self) -> RawFd {
        self.outbox.as_fd().as_raw_fd()
    }

    /// What a worker inherits.
    pub(crate) fn outbox(&self) -> BorrowedFd<'_> {
        self.outbox.as_fd()
    }

    /// Takes out all that is there, without waiting.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        while wait_readable(self.inbox.as_fd(), Some(Moment::now()))? {
            // What there is no room for would be lost.
            limits::make_room_for_descriptors(MAX_DESCRIPTORS);
            match self.inbox.try_receive() {
                Ok(Some(message)) => self.keep(message),
                Ok(None) => break,
                // Not from a worker of ours: some child of theirs that has the descriptor.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn keep(&mut self, Message { bytes, descriptors }: Message<8>) {
        self.arrived.entry(u64::from_ne_bytes(bytes)).or_default().extend(descriptors);
    }

    /// What a rank has sent.
    pub(crate) fn take(&mut self, rank: usize) -> Vec<OwnedFd> {
        self.arrived.remove(&(rank as u64)).unwrap_or_default()
    }
}

impl AsFd for Returns {
    /// Readable when something has arrived.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }
}

/// Sends what goes beside the bytes of a rank's result; returns what goes into the report slot.
pub(crate) fn send(
    rank: usize,
    result: Encoded,
    outbox: &Socket,
    place: Option<&Place>,
) -> Result<Vec<u8>, String> {
    let Encoded { bytes, mut parcel } = result;
    let failed = |error: io::Error| format!("its memory cannot be sent: {error}");
    let load = Load::of(&parcel, place).map_err(failed)?;
    for batch in load.descriptors.chunks(MAX_DESCRIPTORS) {
        let batch: Vec<_> = batch.iter().map(Carried::as_fd).collect();
        outbox.send(&(rank as u64).to_ne_bytes(), &batch, None).map_err(failed)?;
    }
    let header = codec::with_header(&Manifest { segments: load.ways, grants: parcel.grants.clone() })?;
    // This process ends with its result: what it lends nobody here asks for any more.
    let _lent = parcel.deliver();
    Ok([header, bytes].concat())
}

/// The segments of a result, each with its way.
#[derive(Default)]
struct Load<'a> {
    ways: Vec<Way>,
    descriptors: Vec<Carried<'a>>,
}

enum Carried<'a> {
    Kept(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl Carried<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Kept(fd) => *fd,
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

impl<'a> Load<'a> {
    /// What has a name gets one where the launcher looks, if it has given this process a place in its tree.
    fn of(parcel: &'a Parcel, place: Option<&Place>) -> io::Result<Self> {
        let named = parcel.segments.iter().any(|segment| matches!(segment.vehicle(), Vehicle::Name));
        let out = place.filter(|_| named).map(Place::make_out).transpose()?.flatten();
        let mut load = Self::default();
        for (number, segment) in parcel.segments.iter().enumerate() {
            let way = match (segment.vehicle(), &out) {
                (Vehicle::Descriptor { fd, sealed }, _) => load.carry(Carried::Kept(fd), sealed),
                (Vehicle::Name, None) => load.carry(Carried::Opened(segment.open()?), false),
                (Vehicle::Name, Some(out)) => {
                    segment.link(&tree::result_in(out, number))?;
                    Way::Name
                }
            };
            load.ways.push(way);
        }
        Ok(load)
    }

    fn carry(&mut self, descriptor: Carried<'a>, sealed: bool) -> Way {
        self.descriptors.push(descriptor);
        Way::Descriptor { number: self.descriptors.len() as RawFd - 1, sealed }
    }
}

/// What a result says of the memory beside it, and where its bytes begin.
pub(crate) fn open(body: &[u8]) -> Result<(Manifest, usize), String> {
    codec::read_header(body)
}

/// What arrived beside a result. When some descriptors were lost nobody knows which the others are.
pub(crate) fn arrivals(manifest: Manifest, descriptors: Vec<OwnedFd>, nest: Option<&Nest>) -> Arrivals {
    let came = descriptors.len();
    let is_descriptor = |way: &&Way| matches!(way, Way::Descriptor { .. });
    let whole = manifest.segments.iter().filter(is_descriptor).count() == came;
    let descriptors = if whole { descriptors } else { Vec::new() };
    let mut descriptors: Vec<_> = descriptors.into_iter().map(Some).collect();
    let mut take = |number: RawFd| {
        let place = usize::try_from(number).ok().and_then(|number| descriptors.get_mut(number));
        place.and_then(Option::take)
    };
    let arrival = |(number, way): (usize, &Way)| match *way {
        Way::Descriptor { number, sealed } => {
            take(number).map_or_else(|| Arrival::Broken(lost(came)), |fd| Arrival::Descriptor { fd, sealed })
        }
        Way::Name => nest.map_or_else(
            || Arrival::Broken("it has no place for named memory".to_owned()),
            |nest| Arrival::Name(nest.result(number)),
        ),
    };
    let segments = manifest.segments.iter().enumerate().map(arrival).collect();
    Arrivals::new(segments, manifest.grants)
}

fn lost(came: usize) -> String {
    let limit = limits::descriptors_text().unwrap_or_default();
    format!("only {came} of its descriptors arrived: {limit}")
}
