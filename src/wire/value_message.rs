//! An encoded value with its attachments as one message. Its contents are the manifest, with its length, and the bytes of the
//! value.

use std::io;
use std::os::fd::AsFd;

use serde::de::DeserializeOwned;

use super::codec;
use super::framed::{self, Frame, Framed, ReceiveFault};
use super::manifest::{self, Manifest, OutgoingAttachments};
use crate::memory::descriptor::Descriptor;
use crate::sys::socket::{Attempt, Socket};
use crate::transfer::attachments::Attachments;
use crate::transfer::received::Received;

/// A value ready to be sent.
#[derive(Debug)]
pub(crate) struct ValueMessage {
    message: Framed<Descriptor>,
    attachments: Attachments,
}

impl ValueMessage {
    /// Does all of the work that needs no room in the socket.
    ///
    /// # Errors
    /// When there is no memory for large contents, or no descriptor.
    pub(crate) fn new(value: &[u8], attachments: Attachments) -> io::Result<Self> {
        let (manifest, descriptors, attachments) = OutgoingAttachments::new(attachments)?.into_parts();
        let header = codec::with_header(&manifest).map_err(io::Error::other)?;
        Ok(Self { message: Framed::new([&header, value], descriptors)?, attachments })
    }

    /// Sends the message, if the socket has room for it now.
    pub(crate) fn try_send(&mut self, socket: &Socket<impl AsFd>) -> io::Result<Attempt> {
        self.message.try_send(socket)
    }

    /// Notes that the message was sent. There are no loans: this process does not learn when the receiver ends.
    pub(crate) fn deliver(mut self) {
        let _lent = self.attachments.deliver();
    }
}

/// A message that arrived.
#[derive(Debug)]
pub(crate) struct ReceivedMessage {
    frame: Frame,
    /// Where the bytes of the value begin.
    value_at: usize,
    received: Received,
}

/// Receives the next message, if one is in the socket. Does not wait.
pub(crate) fn try_receive(socket: &Socket<impl AsFd>) -> Result<Option<ReceivedMessage>, ReceiveFault> {
    framed::try_receive(socket)?.map(open).transpose()
}

fn open(mut frame: Frame) -> Result<ReceivedMessage, ReceiveFault> {
    let header = codec::read_header::<Manifest>(frame.contents());
    let (manifest, value_at) =
        header.map_err(|error| ReceiveFault::Damaged(format!("the manifest of a message: {error}")))?;
    let descriptors = std::mem::take(&mut frame.descriptors);
    let received = manifest::receive_unpacked(&manifest, descriptors).map_err(ReceiveFault::Lost)?;
    Ok(ReceivedMessage { frame, value_at, received })
}

impl ReceivedMessage {
    /// Decodes the value, which finds its attachments among what came beside it.
    pub(crate) fn decode<T: DeserializeOwned>(self) -> Result<T, String> {
        let bytes = self.frame.contents().get(self.value_at..).unwrap_or_default();
        codec::decode(bytes, self.received).0
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;

    use proptest::prelude::*;

    use super::*;
    use crate::shm::StorageOptions;
    use crate::sys::clock::Moment;
    use crate::sys::epoll::wait_readable;
    use crate::sys::socket::Message;
    use crate::sys::{limits, memfd};
    use crate::wire::codec::Encoded;
    use crate::wire::framed::{FRAME, IN_MEMFD, IN_PACKET, INLINE};
    use crate::wire::manifest::{Manifest, Source};
    use crate::{Descriptor, Shard, SharingStrategy, Tensor};

    type Pair = (Socket, Socket);

    fn made<T: serde::Serialize>(value: &T) -> ValueMessage {
        let Encoded { bytes, attachments } = codec::encode(value).unwrap();
        ValueMessage::new(&bytes, attachments).unwrap()
    }

    fn send<T: serde::Serialize>(socket: &Socket, value: &T) {
        let mut value_message = made(value);
        assert_eq!(value_message.try_send(socket).unwrap(), Attempt::Sent);
        value_message.deliver();
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
        assert!(matches!(try_receive(&here), Err(ReceiveFault::Ended)));
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
        let value_message = made(&shard);
        assert!(shard.as_mut_slice().is_err());
        drop(value_message);
        assert_eq!(shard.as_mut_slice().unwrap(), [1, 2]);
        send(&there, &shard);
        assert!(shard.as_mut_slice().is_err());
        assert_eq!(receive::<Shard<i32>>(&here).as_mut_slice().unwrap(), [1, 2]);
    }

    fn fault_of(bytes: &[u8], descriptors: usize) -> ReceiveFault {
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
        for (place, count, came) in [(IN_PACKET, 70, 3), (IN_MEMFD, 69, 0), (IN_MEMFD, 69, 69)] {
            let ReceiveFault::Lost(reason) = fault_of(&[place, count, 0, 0, 0], came) else {
                panic!("{place} {came}")
            };
            assert!(reason.starts_with(&format!("only {came} of its 70 descriptors arrived: RLIMIT_NOFILE")));
        }
        let two =
            OutgoingAttachments::new(codec::encode(&[(); 2].map(|()| file_of(""))).unwrap().attachments)
                .unwrap();
        let header = codec::with_header(two.manifest()).unwrap();
        let fault = fault_of(&[&[IN_PACKET, 1, 0, 0, 0][..], &header].concat(), 1);
        assert!(matches!(fault, ReceiveFault::Lost(reason) if reason.starts_with("only 1 of its 2 ")));
    }

    #[test]
    fn damage_is_told_and_taken_away() {
        let large = vec![0; FRAME + INLINE + 1];
        for (bytes, descriptors) in [
            (&[0][..], 0),
            (&[7, 0, 0, 0, 0], 0),
            (&[IN_PACKET, 0, 0, 0, 0, 9], 0),
            (&[IN_MEMFD, 0, 0, 0, 0], 1),
            (&large, 0),
        ] {
            let fault = fault_of(bytes, descriptors);
            assert!(
                matches!(fault, ReceiveFault::Damaged(_)),
                "{:?}: {fault:?}",
                &bytes[..bytes.len().min(4)]
            );
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
            let bytes = [&[place, direct, 0, 0, 0][..], &contents].concat();
            if let Ok(arrived) = framed::open(Message { bytes, descriptors }).and_then(open) {
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
                if named { Source::Name } else { Source::Descriptor { number } }
            };
            let manifest = Manifest { segments: ways.into_iter().map(way).collect(), grants: Vec::new(), descriptors: numbers };
            let loose = || memfd::create("hostile", 64).unwrap();
            let descriptors = (0..manifest.count()).map(|number| if number % 2 == 0 { loose() } else { memfd::sealed_with("hostile", &[&[0; 64]]).unwrap() });
            let bytes = [&[IN_PACKET, manifest.count() as u8, 0, 0, 0][..], &codec::with_header(&manifest).unwrap(), &value].concat();
            let descriptors = descriptors.collect();
            if let Ok(arrived) = framed::open(Message { bytes, descriptors }).and_then(open) {
                let _ = arrived.decode::<(Vec<Descriptor>, Vec<Tensor<u8>>)>();
            }
        }
    }
}
