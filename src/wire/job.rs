//! A job in a sealed memfd: the header, then the arguments.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::abort::Abort;
use super::codec::{self, Encoded};
use super::message::{Job, Manifest, Way};
use super::roster::Roster;
use crate::memory::descriptor::Descriptor;
use crate::memory::named::{Nest, Place};
use crate::memory::segment::Vehicle;
use crate::memory::storage::Loan;
use crate::sys::map::SharedMap;
use crate::sys::memfd;
use crate::transfer::context::Parcel;
use crate::transfer::received::{Arrival, Arrivals};

/// A job ready to be inherited, and the memory that goes with it.
#[derive(Debug)]
pub(crate) struct JobFile {
    fd: OwnedFd,
    parcel: Parcel,
    /// What goes with the arguments.
    beside: Vec<Descriptor>,
}

impl JobFile {
    /// Writes `job` with these arguments. The descriptors of their memory keep their numbers in the worker.
    pub(crate) fn new(job: &Job, arguments: Encoded) -> io::Result<Self> {
        let Encoded { bytes: arguments, parcel } = arguments;
        let (by_name, mut beside) = (job.place.is_some(), Vec::new());
        let mut inherit = |descriptor: Descriptor| {
            let number = descriptor.as_fd().as_raw_fd();
            beside.push(descriptor);
            number
        };
        let mut segments = Vec::with_capacity(parcel.segments.len());
        for segment in &parcel.segments {
            segments.push(match segment.vehicle() {
                Vehicle::Descriptor(fd) => Way::Descriptor { number: inherit(fd.clone()) },
                Vehicle::Name if by_name => Way::Name,
                Vehicle::Name => Way::Descriptor { number: inherit(segment.open()?.into()) },
            });
        }
        let beyond_stdio = parcel.descriptors.iter().map(Descriptor::beyond_stdio);
        let descriptors = beyond_stdio.map(|made| made.map(&mut inherit)).collect::<io::Result<_>>()?;
        let manifest = Manifest { segments, grants: parcel.grants.clone(), descriptors };
        let job = Job { manifest, ..job.clone() };
        let header = codec::with_header(&job).map_err(io::Error::other)?;
        let fd = memfd::sealed_with("phalanx-job", &[&header, &arguments])?;
        Ok(Self { fd, parcel, beside })
    }

    /// With the memory in which its worker enters itself, and with what it is told of failures by.
    pub(crate) fn with_crew(mut self, roster: &Roster, abort: Option<&Abort>) -> Self {
        let of_abort = abort.into_iter().flat_map(Abort::descriptors);
        self.beside.extend(of_abort.chain([roster.descriptor()]).cloned());
        self
    }

    /// The descriptors that a worker must inherit for it.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.fd.as_fd()).chain(self.beside.iter().map(AsFd::as_fd))
    }

    /// Puts the memory that has names where a worker looks for it.
    pub(crate) fn link_into(&self, nest: &Nest) -> io::Result<()> {
        let numbered = self.parcel.segments.iter().enumerate();
        let mut named = numbered.filter(|(_, segment)| matches!(segment.vehicle(), Vehicle::Name));
        named.try_for_each(|(number, segment)| segment.link(&nest.argument(number)))
    }

    /// What its arguments have that only one worker may get.
    pub(crate) fn exclusive(&self) -> Option<&'static str> {
        self.parcel.exclusive()
    }

    /// Says that a worker has been started with it; returns what is lent, the first time.
    pub(crate) fn deliver(&mut self) -> Vec<Loan> {
        self.parcel.deliver()
    }
}

impl AsFd for JobFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A job as a worker reads it, in place.
#[derive(Debug)]
pub(crate) struct OpenJob {
    pub(crate) job: Job,
    map: SharedMap,
    arguments_at: usize,
}

impl OpenJob {
    /// Reads what [`JobFile::new`] wrote.
    pub(crate) fn read(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let (_, size) = memfd::identity(fd)?;
        let map = SharedMap::sealed(fd, usize::try_from(size).map_err(io::Error::other)?)?;
        let (job, arguments_at) = codec::read_header(map.sealed_bytes().unwrap_or_default())
            .map_err(|error| io::Error::other(format!("the job cannot be read: {error}")))?;
        Ok(Self { job, map, arguments_at })
    }

    pub(crate) fn arguments(&self) -> &[u8] {
        self.map.sealed_bytes().and_then(|bytes| bytes.get(self.arguments_at..)).unwrap_or_default()
    }

    /// Takes over the inherited descriptors of the arguments, and finds their names in this process's place.
    pub(crate) fn arrivals(
        &self,
        place: Option<&Place>,
        adopt: impl Fn(RawFd) -> io::Result<OwnedFd>,
    ) -> io::Result<Arrivals> {
        let Manifest { segments, grants, descriptors } = &self.job.manifest;
        let arrival = |(number, way): (usize, &Way)| match *way {
            Way::Descriptor { number } => Ok(Arrival::Descriptor(adopt(number)?)),
            Way::Name => {
                let place =
                    place.ok_or_else(|| io::Error::other("the launcher gave no place for named memory"))?;
                Ok(Arrival::Name(place.argument(number)))
            }
        };
        let segments = segments.iter().enumerate().map(arrival).collect::<io::Result<_>>()?;
        let descriptors =
            descriptors.iter().map(|&number| adopt(number).map(Ok)).collect::<io::Result<_>>()?;
        Ok(Arrivals::new(segments, grants.clone(), descriptors))
    }

    /// All descriptors that came with it.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = i32> {
        let of_segments = self.job.manifest.segments.iter().filter_map(|way| match *way {
            Way::Descriptor { number } => Some(number),
            Way::Name => None,
        });
        let of_values = self.job.manifest.descriptors.iter().copied();
        let of_abort = self.job.abort.into_iter().flatten();
        let of_place = self.job.place.iter().map(|(raw, _)| *raw);
        of_segments
            .chain(of_values)
            .chain(of_place)
            .chain(of_abort)
            .chain(self.job.guards)
            .chain([self.job.roster, self.job.returns])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::memory::strategy::Choice;
    use crate::wire::setup::Setup;

    fn job() -> Job {
        Job {
            image: vec![1, 2],
            entry: 3,
            function: "f".into(),
            name: "n".into(),
            sharing: Choice::of_this_process(),
            place: Some((9, "w1/".into())),
            returns: 7,
            guards: Some(8),
            abort: Some([5, 6]),
            roster: 4,
            setup: Setup::default(),
            manifest: Manifest::default(),
        }
    }

    #[test]
    fn job_file_round_trips() {
        let tensor = Tensor::<u8>::zeros(&[8]).unwrap();
        let given = Descriptor::from(tempfile::tempfile().unwrap());
        let arguments = codec::encode(&(tensor, &given, &given)).unwrap();
        let bytes = arguments.bytes.clone();
        let file = JobFile::new(&job(), arguments).unwrap();
        let open = OpenJob::read(file.as_fd()).unwrap();
        let inherited: Vec<_> = file.descriptors().skip(1).map(|fd| fd.as_raw_fd()).collect();
        assert_eq!(open.descriptors().collect::<Vec<_>>(), [&inherited[..], &[9, 5, 6, 8, 4, 7]].concat());
        assert_eq!(open.job.manifest.grants.len(), 1);
        assert_eq!(open.job.manifest.descriptors, [given.as_fd().as_raw_fd()]);
        assert_eq!(
            (&Job { manifest: Manifest::default(), ..open.job.clone() }, open.arguments()),
            (&job(), &bytes[..])
        );
    }

    #[test]
    fn damaged_job_file_is_an_error() {
        for bytes in [&b""[..], b"1234567", b"\xff\xff\xff\xff\xff\xff\xff\xff123", b"\x02\0\0\0\0\0\0\0ab"] {
            let fd = memfd::sealed_with("damaged", &[bytes]).unwrap();
            assert!(OpenJob::read(fd.as_fd()).is_err(), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn hostile_job_never_panics(bytes: Vec<u8>, length in 0_u64..64) {
            let whole = [&length.to_le_bytes()[..], &bytes].concat();
            let fd = memfd::sealed_with("hostile", &[&whole]).unwrap();
            if let Ok(open) = OpenJob::read(fd.as_fd()) {
                proptest::prop_assert!(open.arguments().len() <= bytes.len());
            }
        }
    }
}
