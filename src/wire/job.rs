//! A job in a sealed memfd: the header, then the arguments.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::codec::{self, Encoded};
use super::manifest::{Link, Manifest};
use super::message::{Job, Shared};
use super::roster::Roster;
use super::stop_word::StopWord;
use crate::memory::descriptor::Descriptor;
use crate::memory::named::ProcessDir;
use crate::memory::segment::Transport;
use crate::memory::storage::Loan;
use crate::memory::worker_dir::WorkerDir;
use crate::sys::map::SharedMap;
use crate::sys::memfd;
use crate::transfer::attachments::Attachments;
use crate::transfer::received::Received;

/// A job ready to be inherited, with the attachments of its arguments.
#[derive(Debug)]
pub(crate) struct JobFile {
    fd: OwnedFd,
    attachments: Attachments,
    /// The descriptors of the arguments, and those of the group.
    beside: Vec<Descriptor>,
}

impl JobFile {
    /// Writes `job` with these arguments. The descriptors of their memory keep their numbers in the worker.
    pub(crate) fn new(job: &Job, arguments: Encoded) -> io::Result<Self> {
        let Encoded { bytes: arguments, attachments } = arguments;
        let mut beside = Vec::new();
        let inherit = |descriptor: Descriptor| {
            // What the worker would take for its stdin, stdout or stderr moves to another number.
            let descriptor = descriptor.beyond_stdio()?;
            let number = descriptor.as_fd().as_raw_fd();
            beside.push(descriptor);
            Ok(number)
        };
        // The names are made for each worker: `link_into`.
        let has_names = job.shared.as_ref().is_some_and(|shared| shared.process_dir.is_some());
        let link: Option<Link<'_>> = if has_names { Some(&|_, _| Ok(())) } else { None };
        let manifest = Manifest::of(&attachments, inherit, link)?;
        let job = Job { manifest, ..job.clone() };
        let header = codec::with_header(&job).map_err(io::Error::other)?;
        let fd = memfd::sealed_with("phalanx-job", &[&header, &arguments])?;
        Ok(Self { fd, attachments, beside })
    }

    /// Adds the roster, in which the worker enters its pid, the event of the stop word, and the page of a plan of faults.
    pub(crate) fn with_group(
        mut self,
        roster: &Roster,
        stop: &StopWord,
        faults: Option<&Descriptor>,
    ) -> Self {
        self.beside.extend([stop.descriptor(), roster.descriptor()].into_iter().chain(faults).cloned());
        self
    }

    /// The descriptors that a worker must inherit to read this job: the job's own memfd first.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.fd.as_fd()).chain(self.beside.iter().map(AsFd::as_fd))
    }

    /// Links the named memory of the arguments into a worker's directory.
    pub(crate) fn link_into(&self, worker_dir: &WorkerDir) -> io::Result<()> {
        let numbered = self.attachments.segments.iter().enumerate();
        let mut named = numbered.filter(|(_, segment)| matches!(segment.transport(), Transport::Name));
        named.try_for_each(|(number, segment)| segment.link(&worker_dir.argument(number)))
    }

    /// The name of a thing in the arguments that only one worker may have, such as a shard; `None` when there is none.
    pub(crate) fn exclusive(&self) -> Option<&'static str> {
        self.attachments.exclusive()
    }

    /// Notes that a worker was started with this job. The first call returns the loans: the rights to write that these workers have.
    pub(crate) fn deliver(&mut self) -> Vec<Loan> {
        self.attachments.deliver()
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

    /// The bytes of the arguments.
    pub(crate) fn arguments(&self) -> &[u8] {
        self.map.sealed_bytes().and_then(|bytes| bytes.get(self.arguments_at..)).unwrap_or_default()
    }

    /// Takes over the inherited descriptors of the arguments, and finds the names of their memory in this process's directory.
    pub(crate) fn received(
        &self,
        process_dir: Option<&ProcessDir>,
        adopt: impl Fn(RawFd) -> io::Result<OwnedFd>,
    ) -> io::Result<Received> {
        // A descriptor that was not inherited is an error of the start, with the system's text. Without this check decoding the arguments
        // would fail, which would be reported as a failure of the user's function.
        let mut refused = None;
        let take = |number| adopt(number).map_err(|error| refused.insert(error).to_string());
        let received = self
            .job
            .manifest
            .receive(take, |number| process_dir.map(|process_dir| process_dir.argument(number)));
        refused.map_or(Ok(received), Err)
    }

    /// The numbers, in the launcher, of all descriptors that came with the job.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = i32> {
        self.job.manifest.numbers().chain(self.job.shared.iter().flat_map(Shared::numbers))
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
            setup: Setup::default(),
            shared: Some(Shared {
                sharing: Choice::of_this_process(),
                process_dir: Some((9, "w1/".into())),
                result_channel: 7,
                guards: Some(8),
                stop: 5,
                aborts: true,
                roster: 4,
                faults: Some((6, "kill@a".into())),
            }),
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
        assert_eq!(open.descriptors().collect::<Vec<_>>(), [&inherited[..], &[9, 5, 8, 4, 7, 6]].concat());
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
