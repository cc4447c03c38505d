//! A job in a sealed memfd: length of the header, header, arguments.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use memmap2::Mmap;

use super::codec::{self, Encoded};
use super::message::Job;
use crate::shm::Storage;
use crate::sys::{map, memfd};

/// A job ready to be inherited, and the storages that go with it.
#[derive(Debug)]
pub(crate) struct JobFile {
    fd: OwnedFd,
    storages: Vec<Storage>,
}

impl JobFile {
    /// Writes `job` with these arguments. Their storages keep their descriptors' numbers in the worker.
    pub(crate) fn new(job: &Job, arguments: Encoded) -> io::Result<Self> {
        let Encoded { bytes: arguments, storages } = arguments;
        let numbers = storages.iter().map(|storage| storage.as_fd().as_raw_fd()).collect();
        let job = Job { storages: numbers, ..job.clone() };
        let header = codec::encode_plain(&job).map_err(io::Error::other)?;
        let length = (header.len() as u64).to_le_bytes();
        let fd = memfd::sealed_with("phalanx-job", &[&length, &header, &arguments])?;
        Ok(Self { fd, storages })
    }

    /// All descriptors that a worker must inherit for it.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.fd.as_fd()).chain(self.storages.iter().map(AsFd::as_fd))
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
    map: Mmap,
    arguments_at: usize,
}

impl OpenJob {
    /// Reads what [`JobFile::new`] wrote.
    pub(crate) fn read(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let map = map::map_sealed(fd)?;
        let (header, arguments_at) =
            header_of(&map).ok_or_else(|| io::Error::other("the job is cut short"))?;
        let job = codec::decode(header, Vec::new()).map_err(io::Error::other)?;
        Ok(Self { job, map, arguments_at })
    }

    pub(crate) fn arguments(&self) -> &[u8] {
        &self.map[self.arguments_at..]
    }
}

fn header_of(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    Some((rest.get(..length)?, 8 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job { image: vec![1, 2], entry: 3, function: "f".into(), name: "n".into(), storages: Vec::new() }
    }

    #[test]
    fn job_file_round_trips() {
        let storage = Storage::new(8).unwrap();
        let number = storage.as_fd().as_raw_fd();
        let arguments = Encoded { bytes: b"arguments".to_vec(), storages: vec![storage] };
        let file = JobFile::new(&job(), arguments).unwrap();
        let open = OpenJob::read(file.as_fd()).unwrap();
        assert_eq!(
            (&open.job, open.arguments()),
            (&Job { storages: vec![number], ..job() }, &b"arguments"[..])
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
