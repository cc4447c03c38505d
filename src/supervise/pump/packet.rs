//! Pure: what a follower is sent: a channel, how many of its bytes were skipped, and those that follow.

use super::Channel;

/// The first byte, by which whoever has other messages on the same socket tells them apart.
const MARK: u8 = 1;
/// How many bytes of a channel one has, at most: a socket takes several of these.
pub(super) const PIECE: usize = 32 * 1024;
const HEADER: usize = 1 + 8 + 8;

/// A piece of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) channel: Channel,
    /// How many bytes before these were not sent, since the follower was too slow.
    pub(crate) skipped: u64,
    pub(crate) bytes: &'a [u8],
}

pub(super) fn encoded(channel: Channel, skipped: u64, bytes: &[u8]) -> Vec<u8> {
    [&[MARK][..], &channel.to_le_bytes(), &skipped.to_le_bytes(), bytes].concat()
}

impl<'a> Packet<'a> {
    /// The most bytes that one has.
    pub(crate) const LONGEST: usize = HEADER + PIECE;

    /// Takes a message apart; `None`: it is another one.
    pub(crate) fn decode(message: &'a [u8]) -> Option<Self> {
        let (&[mark], rest) = message.split_first_chunk()?;
        let (channel, rest) = rest.split_first_chunk()?;
        let (skipped, bytes) = rest.split_first_chunk()?;
        let (channel, skipped) = (u64::from_le_bytes(*channel), u64::from_le_bytes(*skipped));
        (mark == MARK).then_some(Self { channel, skipped, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_is_what_it_was_and_nothing_else_is_one() {
        let bytes = encoded(7, 1 << 40, b"text");
        let packet = Packet { channel: 7, skipped: 1 << 40, bytes: b"text" };
        assert_eq!(Packet::decode(&bytes), Some(packet));
        assert_eq!(Packet::decode(&bytes[..HEADER - 1]), None);
        assert_eq!(Packet::decode(b"{\"an answer\": \"of more than 17 bytes\"}"), None);
    }
}
