//! What lies in a ring, read as a message whatever it is: for the fuzzer, and for proptest.

use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use super::error::QueueError;
use super::message::Incoming;
use super::ring::{Position, Ring};
use crate::sys::map::SharedMap;
use crate::sys::memfd;
use crate::{Descriptor, DynTensor, Shard, Tensor};

/// A value of all that has to be checked when it arrives.
#[derive(Debug, Serialize, Deserialize)]
struct Anything {
    text: String,
    numbers: Vec<Option<u64>>,
    tensors: Vec<Tensor<f32>>,
    tensor: Option<DynTensor>,
    shard: Option<Shard<u8>>,
    descriptor: Option<Descriptor>,
}

const SIZE: usize = 4096;

#[cfg_attr(not(fuzzing), expect(unreachable_pub, reason = "only the fuzzer reaches it"))]
/// Takes the first 16 bytes for the positions of both sides, and the others for what is in the ring, again and again.
pub fn fuzz_message(data: &[u8]) {
    let Some((positions, bytes)) = data.split_first_chunk::<16>() else { return };
    let (head, tail) = positions.split_at(8);
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
    let (head, tail) = (Position::from_word(word(head)), Position::from_word(word(tail)));
    // A real map, and not a buffer: an offset outside of it is to fail as it would in a queue.
    let Ok(fd) = memfd::create("hostile", SIZE as u64) else { return };
    let Ok(map) = SharedMap::new(fd.as_fd(), SIZE) else { return };
    // Repeated to the end of the ring: wherever the positions lead, what stands there is from the fuzzer, not zeros.
    let mut filled =
        bytes.iter().copied().cycle().take(if bytes.is_empty() { 0 } else { SIZE }).collect::<Vec<_>>();
    filled.resize(SIZE, 0);
    map.write(0, &filled, 1);
    let _ = read(&Ring { map: &map, begin: 0, size: SIZE, most: 8 }, head, tail);
}

fn read(ring: &Ring<'_>, head: Position, tail: Position) -> Result<(), QueueError> {
    ring.check(head, tail)?;
    let header = ring.header(head, tail)?;
    let mut bytes = Vec::new();
    ring.read(head, header, &mut bytes);
    // With a sealed memfd of the same bytes, a message that says it is in a memfd is read to its end as well.
    let descriptors = memfd::sealed_with("hostile", &[&bytes]).map(|fd| vec![fd]);
    let descriptors = descriptors.map_err(|error| error.to_string());
    Incoming { place: header.place, bytes, descriptors }.decode::<Anything>().map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::codec;

    proptest! {
        #[test]
        fn hostile_bytes_in_a_ring_are_an_error_and_no_panic(
            head: u64,
            ahead in prop_oneof![0_u64..8192, any::<u64>()],
            kind in 0_u64..4,
            length in prop_oneof![0_u64..64, any::<u64>()],
            rest: Vec<u8>,
        ) {
            // Positions that pass the first check more often than not, so that the checks behind it are reached.
            let (head, tail) = (head & !7, (head & !7).wrapping_add((1 << 32) | ahead));
            let header = (kind << 32) | (length & 0xffff_ffff);
            fuzz_message(&[&head.to_ne_bytes()[..], &tail.to_ne_bytes(), &header.to_ne_bytes(), &rest].concat());
        }

        #[test]
        fn hostile_manifest_before_a_value_is_an_error_and_no_panic(flips in proptest::collection::vec((0_usize..200, any::<u8>()), 1..4)) {
            let value = Anything {
                text: "text".to_owned(),
                numbers: vec![Some(1), None],
                tensors: vec![Tensor::zeros(&[2, 3]).unwrap()],
                tensor: None,
                shard: None,
                descriptor: None,
            };
            let encoded = codec::encode(&value).unwrap();
            let attachments = crate::wire::manifest::OutgoingAttachments::new(encoded.attachments).unwrap();
            let manifest = codec::with_header(attachments.manifest()).unwrap();
            let mut bytes = [manifest, encoded.bytes].concat();
            for (place, flip) in flips {
                let place = place % bytes.len();
                bytes[place] ^= flip;
            }
            // As many descriptors as the manifest names, but other memory: of another size, and not sealed.
            let memory = memfd::create("hostile", 64).unwrap();
            let place = super::super::ring::Place::Beside;
            // Some flips do no harm.
            let _ = Incoming { place, bytes, descriptors: Ok(vec![memory]) }.decode::<Anything>();
        }
    }
}
