//! What goes beside the bytes of a value: from a parcel to descriptors that are sent, and on the other side to arrivals.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use super::message::{Manifest, Way};
use crate::shm::Descriptor;
use crate::shm::passing::{Arrival, Arrivals, Parcel};
use crate::shm::segment::Vehicle;
use crate::shm::tree::{self, Nest, Place};
use crate::sys::limits;

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
                (Vehicle::Descriptor { fd, sealed }, _) => {
                    Way::Descriptor { number: load.carry(fd.clone()), sealed }
                }
                (Vehicle::Name, None) => {
                    Way::Descriptor { number: load.carry(segment.open()?.into()), sealed: false }
                }
                (Vehicle::Name, Some(out)) => {
                    segment.link(&tree::result_in(out, number))?;
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

/// What arrived of a load, whose named files are in `nest`. When some descriptors were lost nobody knows which the others
/// are.
pub(crate) fn unload(manifest: Manifest, descriptors: Vec<OwnedFd>, nest: Option<&Nest>) -> Arrivals {
    let Manifest { segments, grants, descriptors: numbers } = manifest;
    let came = descriptors.len();
    let is_descriptor = |way: &&Way| matches!(way, Way::Descriptor { .. });
    let whole = segments.iter().filter(is_descriptor).count() + numbers.len() == came;
    let descriptors = if whole { descriptors } else { Vec::new() };
    let mut descriptors: Vec<_> = descriptors.into_iter().map(Some).collect();
    let mut take = |number: RawFd| {
        let place = usize::try_from(number).ok().and_then(|number| descriptors.get_mut(number));
        place.and_then(Option::take).ok_or_else(|| lost(came))
    };
    let arrival = |(number, way): (usize, &Way)| match *way {
        Way::Descriptor { number, sealed } => {
            take(number).map_or_else(Arrival::Broken, |fd| Arrival::Descriptor { fd, sealed })
        }
        Way::Name => nest.map_or_else(
            || Arrival::Broken("it has no place for named memory".to_owned()),
            |nest| Arrival::Name(nest.result(number)),
        ),
    };
    let segments = segments.iter().enumerate().map(arrival).collect();
    let descriptors = numbers.into_iter().map(take).collect();
    Arrivals::new(segments, grants, descriptors)
}

fn lost(came: usize) -> String {
    let limit = limits::descriptors_text().unwrap_or_default();
    format!("only {came} of its descriptors arrived: {limit}")
}
