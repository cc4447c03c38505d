//! What goes beside the bytes of a value: from a parcel to descriptors that are sent, and on the other side to arrivals.
//!
//! A message takes 253 descriptors. When a value has more, they are put into sockets first, and it is the other ends of
//! these that travel: so one value is one message, whoever else sends there and whenever its sender dies.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use super::message::{Manifest, Way};
use crate::memory::descriptor::Descriptor;
use crate::memory::named::{self, Nest, Place};
use crate::memory::segment::Vehicle;
use crate::sys::limits::{self, with_room};
use crate::sys::socket::{Attempt, MAX_DESCRIPTORS, Socket};
use crate::transfer::context::Parcel;
use crate::transfer::received::{Arrival, Arrivals};

/// The most descriptors that travel with a message themselves: the sender may add one of its own.
const DIRECT: usize = MAX_DESCRIPTORS - 1;
/// How many a socket takes that nobody reads meanwhile. It has room for some 270 messages (net.core.wmem_default).
const PER_SOCKET: usize = 128 * MAX_DESCRIPTORS;

/// A parcel's descriptors, and which of them is what.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) manifest: Manifest,
    pub(super) descriptors: Vec<Descriptor>,
}

impl Load {
    /// What has a name gets one where the launcher looks, if it has given this process a place in its tree; else it goes
    /// as a descriptor of its file.
    pub(super) fn of(parcel: &Parcel, place: Option<&Place>) -> io::Result<Self> {
        let named = parcel.segments.iter().any(|segment| matches!(segment.vehicle(), Vehicle::Name));
        let out = place.filter(|_| named).map(Place::make_out).transpose()?.flatten();
        let mut load = Self::default();
        for (number, segment) in parcel.segments.iter().enumerate() {
            let way = match (segment.vehicle(), &out) {
                (Vehicle::Descriptor(fd), _) => Way::Descriptor { number: load.carry(fd.clone()) },
                (Vehicle::Name, None) => Way::Descriptor { number: load.carry(segment.open()?.into()) },
                (Vehicle::Name, Some(out)) => {
                    segment.link(&named::result_in(out, number))?;
                    Way::Name
                }
            };
            load.manifest.segments.push(way);
        }
        load.manifest.grants.clone_from(&parcel.grants);
        for descriptor in &parcel.descriptors {
            let number = load.carry(descriptor.clone());
            load.manifest.descriptors.push(number);
        }
        Ok(load)
    }

    fn carry(&mut self, descriptor: Descriptor) -> RawFd {
        self.descriptors.push(descriptor);
        self.descriptors.len() as RawFd - 1
    }
}

/// What goes beside the bytes of a value in a message, ready to be sent.
#[derive(Debug)]
pub(crate) struct Freight {
    load: Load,
    /// Sockets in which the descriptors are, when these are too many for a message.
    sockets: Vec<OwnedFd>,
    parcel: Parcel,
}

impl Freight {
    /// Makes all ready that can be before there is a place to send it to.
    ///
    /// # Errors
    /// When a file of named memory cannot be opened.
    pub(crate) fn load(parcel: Parcel) -> io::Result<Self> {
        Ok(Self { load: Load::of(&parcel, None)?, sockets: Vec::new(), parcel })
    }

    /// What the other side needs to make arrivals of the descriptors.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.load.manifest
    }

    /// How many descriptors the message will have.
    pub(crate) fn direct(&self) -> usize {
        direct(self.load.descriptors.len())
    }

    /// Sends one message with these bytes and the descriptors, and before them one of the caller's own.
    pub(crate) fn try_send(
        &mut self,
        socket: &Socket<impl AsFd>,
        bytes: &[u8],
        first: Option<BorrowedFd<'_>>,
    ) -> io::Result<Attempt> {
        let attempt = self.attempt(socket, bytes, first)?;
        if attempt != Attempt::Crowded {
            return Ok(attempt);
        }
        // As many may be on their way as this process may have.
        limits::make_room_for_descriptors(usize::MAX);
        self.attempt(socket, bytes, first)
    }

    fn attempt(
        &mut self,
        socket: &Socket<impl AsFd>,
        bytes: &[u8],
        first: Option<BorrowedFd<'_>>,
    ) -> io::Result<Attempt> {
        if self.load.descriptors.len() <= DIRECT {
            let own = self.load.descriptors.iter().map(AsFd::as_fd);
            return socket.try_send(bytes, &first.into_iter().chain(own).collect::<Vec<_>>());
        }
        if self.sockets.is_empty() {
            match fill_sockets(&self.load.descriptors)? {
                Ok(sockets) => self.sockets = sockets,
                Err(attempt) => return Ok(attempt),
            }
        }
        let sockets = self.sockets.iter().map(AsFd::as_fd);
        socket.try_send(bytes, &first.into_iter().chain(sockets).collect::<Vec<_>>())
    }

    /// Says that the message was sent. Who takes it may live as long as it likes: nothing is lent.
    pub(crate) fn deliver(mut self) {
        let _lent = self.parcel.deliver();
    }
}

/// How many descriptors a message has for so many of a value.
fn direct(count: usize) -> usize {
    if count <= DIRECT { count } else { count.div_ceil(PER_SOCKET) }
}

/// Sockets from which the descriptors can be received. If it cannot be done now, none is kept: two senders that each
/// had half of theirs on their way would wait for one another.
fn fill_sockets(descriptors: &[Descriptor]) -> io::Result<Result<Vec<OwnedFd>, Attempt>> {
    let mut sockets = Vec::new();
    for some in descriptors.chunks(PER_SOCKET) {
        let (end, into) = with_room(Socket::pair)?;
        for batch in some.chunks(MAX_DESCRIPTORS) {
            let batch: Vec<_> = batch.iter().map(AsFd::as_fd).collect();
            match into.try_send(&[0], &batch)? {
                Attempt::Sent => {}
                Attempt::Full => {
                    return Err(io::Error::other(format!(
                        "a socket has no room for {} descriptors: net.core.wmem_default is too small",
                        some.len()
                    )));
                }
                Attempt::Crowded => return Ok(Err(Attempt::Crowded)),
            }
        }
        sockets.push(end.into_descriptor());
    }
    Ok(Ok(sockets))
}

/// What arrived of a freight with its message.
///
/// # Errors
/// When some descriptors were lost, as for want of room in this process.
pub(crate) fn receive(manifest: Manifest, descriptors: Vec<OwnedFd>) -> Result<Arrivals, String> {
    let count = manifest.count();
    let descriptors = if count > DIRECT { empty_sockets(descriptors, count) } else { descriptors };
    if descriptors.len() != count {
        return Err(lost(descriptors.len(), count));
    }
    Ok(unload(manifest, descriptors, None))
}

fn empty_sockets(sockets: Vec<OwnedFd>, count: usize) -> Vec<OwnedFd> {
    limits::make_room_for_descriptors(count);
    let mut descriptors = Vec::with_capacity(count);
    for socket in sockets.into_iter().map(Socket::from_descriptor) {
        // All is in it by now: it is never waited for.
        while descriptors.len() < count
            && let Ok(Some(message)) = socket.try_receive::<1>()
            && !message.descriptors.is_empty()
        {
            descriptors.extend(message.descriptors);
        }
    }
    descriptors
}

/// What arrived of a load, whose named files are in `nest`. When some descriptors were lost nobody knows which the others
/// are.
pub(crate) fn unload(manifest: Manifest, descriptors: Vec<OwnedFd>, nest: Option<&Nest>) -> Arrivals {
    let (came, count) = (descriptors.len(), manifest.count());
    let Manifest { segments, grants, descriptors: numbers } = manifest;
    let descriptors = if came == count { descriptors } else { Vec::new() };
    let mut descriptors: Vec<_> = descriptors.into_iter().map(Some).collect();
    let mut take = |number: RawFd| {
        let place = usize::try_from(number).ok().and_then(|number| descriptors.get_mut(number));
        place.and_then(Option::take).ok_or_else(|| lost(came, count))
    };
    let arrival = |(number, way): (usize, &Way)| match *way {
        Way::Descriptor { number } => take(number).map_or_else(Arrival::Broken, Arrival::Descriptor),
        Way::Name => nest.map_or_else(
            || Arrival::Broken("it has no place for named memory".to_owned()),
            |nest| Arrival::Name(nest.result(number)),
        ),
    };
    let segments = segments.iter().enumerate().map(arrival).collect();
    let descriptors = numbers.into_iter().map(take).collect();
    Arrivals::new(segments, grants, descriptors)
}

/// What to say when only so many came.
pub(super) fn lost(came: usize, count: usize) -> String {
    let limit = limits::descriptors_text().unwrap_or_default();
    format!("only {came} of its {count} descriptors arrived: {limit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec;

    /// A freight of so many descriptors that are all different.
    fn freight_of(count: usize) -> Freight {
        let copy = |file: &Descriptor| file.as_fd().try_clone_to_owned().unwrap();
        let file = Descriptor::from(tempfile::tempfile().unwrap());
        let files: Vec<_> = (0..count).map(|_| Descriptor::from(copy(&file))).collect();
        Freight::load(codec::encode(&files).unwrap().parcel).unwrap()
    }

    #[test]
    fn message_has_the_bytes_and_the_first_descriptor_of_its_sender() {
        let (here, there) = Socket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        for (count, direct) in [(0, 0), (252, 252), (253, 1), (600, 1)] {
            let mut freight = freight_of(count);
            assert_eq!(freight.direct(), direct);
            assert_eq!(freight.try_send(&there, b"ticket", Some(file.as_fd())).unwrap(), Attempt::Sent);
            let manifest = freight.manifest().clone();
            freight.deliver();
            let mut message = here.try_receive::<6>().unwrap().unwrap();
            assert_eq!((&message.bytes, message.descriptors.len()), (b"ticket", 1 + direct));
            message.descriptors.remove(0);
            receive(manifest, message.descriptors).unwrap();
        }
    }

    #[test]
    fn descriptors_that_are_missing_in_a_socket_are_told() {
        let manifest = freight_of(300).manifest().clone();
        let file = tempfile::tempfile().unwrap();
        for came in [0, 1, 253, 299, 301] {
            let (end, into) = Socket::pair().unwrap();
            for batch in vec![file.as_fd(); came].chunks(MAX_DESCRIPTORS) {
                assert_eq!(into.try_send(&[0], batch).unwrap(), Attempt::Sent);
            }
            let error = receive(manifest.clone(), vec![end.into_descriptor()]).unwrap_err();
            assert!(error.starts_with(&format!("only {came} of its 300 descriptors arrived: ")), "{error}");
        }
        let no_socket = receive(manifest, vec![file.into()]).unwrap_err();
        assert!(no_socket.starts_with("only 0 of its 300 "), "{no_socket}");
    }
}
