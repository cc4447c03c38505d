//! An encoded value as one message on a SEQPACKET socket, whatever its size and however many descriptors it has.
//!
//! A message is a frame of two bytes (where the contents are, and how many descriptors came), then the contents, unless
//! these are in a sealed memfd, which is its first descriptor. The contents are the manifest, with its length, and the bytes of
//! the value.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::de::DeserializeOwned;

use super::codec::{self, Encoded};
use super::freight::{self, Freight, lost};
use super::message::Manifest;
use crate::sys::map::SharedMap;
use crate::sys::socket::{Attempt, Message, Socket};
use crate::sys::{limits, memfd};
use crate::transfer::received::Arrivals;

/// The most bytes of contents that are in the message itself. The socket has room for some 200 KiB.
const INLINE: usize = 32 << 10;
/// Bytes of the frame.
const FRAME: usize = 2;

const IN_MESSAGE: u8 = 0;
const IN_MEMFD: u8 = 1;

/// A value ready to be sent.
#[derive(Debug)]
pub(crate) struct Packet {
    bytes: Vec<u8>,
    contents: Option<OwnedFd>,
    freight: Freight,
}

impl Packet {
    /// Makes all ready that can be before there is a place to send it to.
    ///
    /// # Errors
    /// When there is no memory for large contents, or no descriptor.
    pub(crate) fn load(value: Encoded) -> io::Result<Self> {
        let Encoded { bytes: value, parcel } = value;
        let freight = Freight::load(parcel)?;
        let header = codec::with_header(freight.manifest()).map_err(io::Error::other)?;
        let direct = u8::try_from(freight.direct()).map_err(|_| {
            io::Error::other(format!("{} descriptors are too many", freight.manifest().count()))
        })?;
        if header.len() + value.len() <= INLINE {
            let bytes = [&[IN_MESSAGE, direct][..], &header, &value].concat();
            return Ok(Self { bytes, contents: None, freight });
        }
        let seal = || memfd::sealed_with("phalanx-message", &[&header, &value]);
        let contents = Some(limits::with_room(seal)?);
        Ok(Self { bytes: vec![IN_MEMFD, direct.saturating_add(1)], contents, freight })
    }

    /// Sends it, if that can be done without waiting.
    pub(crate) fn try_send(&mut self, socket: &Socket<impl AsFd>) -> io::Result<Attempt> {
        self.freight.try_send(socket, &self.bytes, self.contents.as_ref().map(AsFd::as_fd))
    }

    /// Says that it was sent.
    pub(crate) fn deliver(self) {
        self.freight.deliver();
    }
}

/// A message that arrived.
#[derive(Debug)]
pub(crate) struct Arrived {
    contents: Contents,
    /// Where the bytes of the value begin.
    value_at: usize,
    arrivals: Arrivals,
}

#[derive(Debug)]
enum Contents {
    /// With the frame.
    Message(Vec<u8>),
    Map(SharedMap),
}

impl Contents {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Message(bytes) => bytes.get(FRAME..).unwrap_or_default(),
            Self::Map(map) => map.sealed_bytes().unwrap_or_default(),
        }
    }
}

/// Why there is no message. The one that there was is gone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Nobody has the other end any more, and all that was sent has been received.
    #[error("the other end is gone")]
    Ended,
    /// It had descriptors that did not arrive.
    #[error("{0}")]
    Lost(String),
    /// It is none of ours.
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    System(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Ended,
            io::ErrorKind::InvalidData => {
                Self::Damaged(format!("a message has more than {} bytes", FRAME + INLINE))
            }
            _ => Self::System(error),
        }
    }
}

/// The next message, if one is there. It does not wait.
pub(crate) fn try_receive(socket: &Socket<impl AsFd>) -> Result<Option<Arrived>, Fault> {
    let Some([_, direct]) = socket.peek::<FRAME>()? else { return Ok(None) };
    if direct > 0 {
        // What there is no room for would be lost.
        limits::make_room_for_descriptors(direct.into());
    }
    socket.try_receive_up_to(FRAME + INLINE)?.map(open).transpose()
}

fn open(message: Message<Vec<u8>>) -> Result<Arrived, Fault> {
    let Message { bytes, mut descriptors } = message;
    let damaged = |what: &str| Fault::Damaged(format!("a message of {} bytes {what}", bytes.len()));
    let [place, direct, ..] = bytes[..] else { return Err(damaged("has no frame")) };
    if descriptors.len() != usize::from(direct) {
        return Err(Fault::Lost(lost(descriptors.len(), direct.into())));
    }
    let contents = match place {
        IN_MESSAGE => Contents::Message(bytes),
        IN_MEMFD if !descriptors.is_empty() => Contents::Map(map(descriptors.remove(0))?),
        _ => return Err(damaged("does not say where its contents are")),
    };
    let header = codec::read_header::<Manifest>(contents.bytes());
    let (manifest, value_at) =
        header.map_err(|error| Fault::Damaged(format!("the manifest of a message: {error}")))?;
    let arrivals = freight::receive(manifest, descriptors).map_err(Fault::Lost)?;
    Ok(Arrived { contents, value_at, arrivals })
}

/// Maps contents, which nobody can change any more.
pub(crate) fn map(fd: OwnedFd) -> Result<SharedMap, Fault> {
    let (_, size) = memfd::identity(fd.as_fd()).map_err(|error| Fault::Damaged(error.to_string()))?;
    if !memfd::is_content_sealed(fd.as_fd()) {
        return Err(Fault::Damaged("the contents of a message are not sealed".to_owned()));
    }
    let map =
        usize::try_from(size).map_err(io::Error::other).and_then(|size| SharedMap::sealed(fd.as_fd(), size));
    map.map_err(Fault::System)
}

impl Arrived {
    /// The bytes of the value, and what came beside them.
    pub(crate) fn decode<T: DeserializeOwned>(self) -> Result<T, String> {
        let bytes = self.contents.bytes().get(self.value_at..).unwrap_or_default();
        codec::decode(bytes, self.arrivals).0
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use proptest::prelude::*;

    use super::*;
    use crate::shm::StorageOptions;
    use crate::sys::clock::Moment;
    use crate::sys::epoll::wait_readable;
    use crate::wire::message::Way;
    use crate::{Descriptor, Shard, SharingStrategy, Tensor};

    type Pair = (Socket, Socket);

    fn send<T: serde::Serialize>(socket: &Socket, value: &T) {
        let mut packet = Packet::load(codec::encode(value).unwrap()).unwrap();
        assert_eq!(packet.try_send(socket).unwrap(), Attempt::Sent);
        packet.deliver();
    }

    fn receive<T: DeserializeOwned>(socket: &Socket) -> T {
        try_receive(socket).unwrap().unwrap().decode().unwrap()
    }

    fn file_of(text: &str) -> Descriptor {
        // A shell's limit of 1024 is less than all senders of a test need at a time.
        let (reader, mut writer) = limits::with_room(std::io::pipe).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        OwnedFd::from(reader).into()
    }

    #[test]
    fn value_of_any_size_with_any_number_of_descriptors_is_one_message() {
        let (here, there): Pair = Socket::pair().unwrap();
        let file = Descriptor::from(tempfile::tempfile().unwrap());
        for size in [0, INLINE - 40, INLINE, 1 << 20] {
            for count in [0, 1, 252, 253, 700] {
                // Each its own, or it would travel once.
                let own = |number: usize| match number {
                    0 => file.clone(),
                    _ => file.as_fd().try_clone_to_owned().unwrap().into(),
                };
                let files: Vec<_> = (0..count).map(own).collect();
                send(&there, &("x".repeat(size), files));
                let (text, files) = receive::<(String, Vec<Descriptor>)>(&here);
                assert_eq!((text.len(), files.len()), (size, count));
                assert!(try_receive(&here).unwrap().is_none());
            }
        }
        drop(there);
        assert!(matches!(try_receive(&here), Err(Fault::Ended)));
    }

    #[test]
    fn descriptors_arrive_in_their_places() {
        let (here, there): Pair = Socket::pair().unwrap();
        let count = 2 * 253 + 5;
        send(&there, &(0..count).map(|number| file_of(&number.to_string())).collect::<Vec<_>>());
        for (number, file) in receive::<Vec<Descriptor>>(&here).into_iter().enumerate() {
            let mut text = String::new();
            File::from(file.into_owned().unwrap()).read_to_string(&mut text).unwrap();
            assert_eq!(text, number.to_string());
        }
    }

    #[test]
    fn several_senders_do_not_mix_their_descriptors() {
        /// More than fit beside one message, and so few that all of them together need less than 1000 descriptors.
        const FILES: usize = 260;
        let (here, there): Pair = Socket::pair().unwrap();
        std::thread::scope(|scope| {
            for sender in 0_usize..2 {
                let there = &there;
                scope.spawn(move || {
                    for _ in 0..10 {
                        let files: Vec<_> = (0..FILES).map(|_| file_of(&sender.to_string())).collect();
                        send(there, &(sender, files));
                    }
                });
            }
            for _ in 0..20 {
                assert!(wait_readable(here.as_fd(), None).unwrap());
                let (sender, files) = receive::<(usize, Vec<Descriptor>)>(&here);
                let mut texts = String::new();
                for file in files {
                    File::from(file.into_owned().unwrap()).read_to_string(&mut texts).unwrap();
                }
                assert_eq!(texts, sender.to_string().repeat(FILES));
            }
        });
    }

    #[test]
    fn memory_with_and_without_names_arrives_as_itself() {
        let (here, there): Pair = Socket::pair().unwrap();
        for strategy in [SharingStrategy::FileDescriptor, SharingStrategy::FileSystem] {
            let storage = StorageOptions::new().strategy(strategy).zeros(1 << 20).unwrap();
            let tensor = Tensor::<u8>::from_storage(&storage, &[1 << 20]).unwrap();
            send(&there, &(&tensor, Tensor::<u8>::zeros(&[3]).unwrap()));
            let (same, other) = receive::<(Tensor<u8>, Tensor<u8>)>(&here);
            assert!(same.storage().is_same(&storage));
            assert_eq!(other.to_vec(), [0; 3]);
        }
    }

    #[test]
    fn shard_is_gone_when_it_was_sent_and_comes_back_when_it_was_not() {
        let (here, there): Pair = Socket::pair().unwrap();
        let mut shard = Tensor::from_slice(&[1, 2], &[2]).unwrap().into_shards(1).unwrap().remove(0);
        let packet = Packet::load(codec::encode(&shard).unwrap()).unwrap();
        assert!(shard.as_mut_slice().is_err());
        drop(packet);
        assert_eq!(shard.as_mut_slice().unwrap(), [1, 2]);
        send(&there, &shard);
        assert!(shard.as_mut_slice().is_err());
        assert_eq!(receive::<Shard<i32>>(&here).as_mut_slice().unwrap(), [1, 2]);
    }

    fn fault_of(bytes: &[u8], descriptors: usize) -> Fault {
        let (here, there): Pair = Socket::pair().unwrap();
        let file = memfd::create("loose", 64).unwrap();
        there.send(bytes, &vec![file.as_fd(); descriptors], Some(Moment::now())).unwrap();
        let fault = try_receive(&here).unwrap_err();
        assert!(try_receive(&here).unwrap().is_none(), "it was left there");
        fault
    }

    #[test]
    fn lost_descriptors_are_an_error_with_its_numbers() {
        // As the kernel hands over a message for which there is no room.
        for (place, came) in [(IN_MESSAGE, 3), (IN_MEMFD, 0), (IN_MEMFD, 69)] {
            let Fault::Lost(reason) = fault_of(&[place, 70], came) else { panic!("{place} {came}") };
            assert!(reason.starts_with(&format!("only {came} of its 70 descriptors arrived: RLIMIT_NOFILE")));
        }
        let two = Freight::load(codec::encode(&[(); 2].map(|()| file_of(""))).unwrap().parcel).unwrap();
        let header = codec::with_header(two.manifest()).unwrap();
        let fault = fault_of(&[&[IN_MESSAGE, 1][..], &header].concat(), 1);
        assert!(matches!(fault, Fault::Lost(reason) if reason.starts_with("only 1 of its 2 ")));
    }

    #[test]
    fn damage_is_told_and_taken_away() {
        let large = vec![0; FRAME + INLINE + 1];
        for (bytes, descriptors) in [
            (&[0][..], 0),
            (&[7, 0], 0),
            (&[IN_MEMFD, 0], 0),
            (&[IN_MESSAGE, 0, 9], 0),
            (&[IN_MEMFD, 1], 1),
            (&large, 0),
        ] {
            let fault = fault_of(bytes, descriptors);
            assert!(matches!(fault, Fault::Damaged(_)), "{:?}: {fault:?}", &bytes[..bytes.len().min(4)]);
        }
    }

    proptest! {
        #[test]
        fn hostile_messages_never_panic(
            place in 0_u8..3,
            direct in 0_u8..4,
            came in 0_usize..4,
            length in prop_oneof![0_u64..32, any::<u64>()],
            rest: Vec<u8>,
        ) {
            let contents = [&length.to_le_bytes()[..], &rest].concat();
            let sealed = || memfd::sealed_with("hostile", &[&contents]).unwrap();
            let descriptors = (0..came).map(|_| sealed()).collect();
            let bytes = [&[place, direct][..], &contents].concat();
            if let Ok(arrived) = open(Message { bytes, descriptors }) {
                let _ = arrived.decode::<(Descriptor, Vec<Tensor<u8>>)>();
            }
        }

        #[test]
        fn hostile_manifests_never_panic(
            ways in proptest::collection::vec((any::<i32>(), any::<bool>()), 0..4),
            numbers in proptest::collection::vec(prop_oneof![0..4, any::<i32>()], 0..4),
            value: Vec<u8>,
        ) {
            let way = |(number, named)| {
                if named { Way::Name } else { Way::Descriptor { number } }
            };
            let manifest = Manifest { segments: ways.into_iter().map(way).collect(), grants: Vec::new(), descriptors: numbers };
            let loose = || memfd::create("hostile", 64).unwrap();
            let descriptors = (0..manifest.count()).map(|number| if number % 2 == 0 { loose() } else { memfd::sealed_with("hostile", &[&[0; 64]]).unwrap() });
            let bytes = [&[IN_MESSAGE, manifest.count() as u8][..], &codec::with_header(&manifest).unwrap(), &value].concat();
            if let Ok(arrived) = open(Message { bytes, descriptors: descriptors.collect() }) {
                let _ = arrived.decode::<(Vec<Descriptor>, Vec<Tensor<u8>>)>();
            }
        }
    }
}
