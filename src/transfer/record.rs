//! Records of atomics in shared memory, with room behind them: locks and queues are made of them.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize, Serializer, ser};

use super::context;
use super::grant::RECORD_UNIT;
use crate::error::MemoryError;
use crate::memory::options::StorageOptions;
use crate::memory::storage::Storage;
use crate::memory::strategy::SharingStrategy;
use crate::sys::atomic_record::AtomicRecord;
use crate::sys::held::HeldRef;
use crate::sys::map::SharedMap;
pub(crate) use crate::sys::robust::MapPin;

/// Bytes of the header, which has the type tag. The record begins at the next cache line.
const HEADER: usize = 64;

/// A record in shared memory, and bytes behind it. Clones, and what arrives in another process, are the same memory.
pub(crate) struct Record<C> {
    storage: Storage,
    fields: HeldRef<C>,
}

/// The type of a record, as a number in its header, so that a record is not read as one of another type. The number is the same in
/// all processes of one executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TypeTag(u64);

impl TypeTag {
    /// The tag of a kind of record that carries values of type `T`.
    pub(crate) fn of<T>(kind: &str) -> Self {
        let bytes = kind.bytes().chain([0]).chain(std::any::type_name::<T>().bytes());
        // FNV-1a is enough: the hash only tells the types of one program apart.
        Self(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }
}

impl<C: AtomicRecord> Record<C> {
    /// Makes a record of zeros with `room` bytes of zeros behind it. It is a memfd of sealed size, whatever the strategy: a named
    /// file could be truncated, and an access to a lock would raise SIGBUS.
    pub(crate) fn new(tag: TypeTag, room: usize) -> Result<Self, MemoryError> {
        let bytes = (HEADER + size_of::<C>()).checked_add(room);
        let bytes = bytes.ok_or(MemoryError::TooLarge { shape: vec![room], element: 1 })?;
        let storage = StorageOptions::new().strategy(SharingStrategy::FileDescriptor).zeros(bytes)?;
        storage.claim_unit(RECORD_UNIT.into())?;
        let record = Self::over(storage);
        let (map, at) = record.place();
        map.u64(at).store(tag.0, Relaxed);
        Ok(record)
    }

    /// The record in a storage that is long enough for it, aligned and writable.
    fn over(storage: Storage) -> Self {
        let fields = storage.hold(|(map, at)| map.record(at + HEADER));
        Self { storage, fields }
    }

    /// The map, and the offset of the header in it.
    #[inline]
    fn place(&self) -> (&SharedMap, usize) {
        self.storage.bytes().expect("a record has bytes")
    }

    #[inline]
    pub(crate) fn fields(&self) -> &C {
        self.fields.get()
    }

    /// The map, and the offset of the room behind the record in it.
    #[inline]
    pub(crate) fn room(&self) -> (&SharedMap, usize) {
        let (map, at) = self.place();
        (map, at + HEADER + size_of::<C>())
    }

    /// Bytes of the room behind the record.
    pub(crate) fn room_len(&self) -> usize {
        self.storage.len() - HEADER - size_of::<C>()
    }

    /// The room as records, as many as it has.
    #[inline]
    pub(crate) fn beside<D: AtomicRecord>(&self) -> &[D] {
        let (map, at) = self.room();
        map.records(at, self.room_len() / size_of::<D>())
    }

    /// Keeps the memory mapped.
    pub(crate) fn map_pin(&self) -> MapPin {
        MapPin::of(self.storage.map_pin())
    }

    /// Keeps the memory mapped, as [`map_pin`](Self::map_pin), for an owner that holds references into the room.
    pub(crate) fn lender_pin(&self) -> MapPin {
        MapPin::lender(self.storage.map_pin())
    }

    /// Receives a record that another process has sent.
    ///
    /// # Errors
    /// When it is a record of another type or no record, or has less room behind it.
    pub(crate) fn receive(Handle(grant): Handle, tag: TypeTag, room: usize) -> Result<Self, String> {
        let storage = context::receive(grant)?;
        storage.claim_unit(RECORD_UNIT.into()).map_err(|error| error.to_string())?;
        let fits = storage.len() >= HEADER + size_of::<C>() + room && storage.is_writable();
        let is_record = fits && storage.offset().is_multiple_of(HEADER) && tag_of(&storage) == tag;
        let other = || "what arrived is no such record, or one with a value of another type".to_owned();
        is_record.then(|| Self::over(storage)).ok_or_else(other)
    }
}

/// The tag in the header of a record.
fn tag_of(storage: &Storage) -> TypeTag {
    let (map, at) = storage.bytes().expect("a record has bytes");
    TypeTag(map.u64(at).load(Relaxed))
}

impl<C> Clone for Record<C> {
    fn clone(&self) -> Self {
        Self { storage: self.storage.clone(), fields: self.fields.clone() }
    }
}

impl<C> fmt::Debug for Record<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.storage.id().fmt(f)
    }
}

/// What crosses to another process in the place of a record.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Handle(u32);

impl<C> Serialize for Record<C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let grant = context::send(&self.storage).map_err(ser::Error::custom)?;
        Handle(grant).serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding;
    use crate::sys::robust::RobustWord;
    use crate::tensor::typed::Tensor;

    fn pass<T: Serialize>(value: &T, tag: TypeTag) -> Result<Record<RobustWord>, String> {
        let (bytes, attachments) = context::collect(|| encoding::write(value).unwrap());
        let receive = || Record::receive(encoding::read(&bytes).unwrap(), tag, 100);
        context::provide(context::arrive(&attachments), receive).0
    }

    #[test]
    fn record_arrives_as_the_same_memory() {
        let tag = TypeTag::of::<u8>("test");
        let record = Record::<RobustWord>::new(tag, 100).unwrap();
        let other = pass(&record, tag).unwrap();
        record.fields().word.store(7, Relaxed);
        other.room().0.u8(other.room().1 + 99).store(9, Relaxed);
        assert_eq!(other.fields().word.load(Relaxed), 7);
        assert_eq!(record.room().0.u8(record.room().1 + 99).load(Relaxed), 9);
        assert_eq!((record.room_len(), other.room_len()), (100, 100));
    }

    #[test]
    fn what_is_no_such_record_is_refused() {
        let tag = TypeTag::of::<u8>("test");
        let record = Record::<RobustWord>::new(tag, 100).unwrap();
        assert!(pass(&record, TypeTag::of::<u16>("test")).is_err());
        assert!(pass(&record, TypeTag::of::<u8>("other")).is_err());
        let tensor = Tensor::<u8>::zeros(&[256]).unwrap();
        let (_, attachments) = context::collect(|| encoding::write(&tensor).unwrap());
        let receive = || Record::<RobustWord>::receive(Handle(0), tag, 0);
        assert!(context::provide(context::arrive(&attachments), receive).0.is_err());
    }
}
