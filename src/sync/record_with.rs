//! Records of atomics with a value behind them, which they guard.

use std::fmt;
use std::marker::PhantomData;

use bytemuck::Pod;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::MemoryError;
use crate::sys::atomic_record::AtomicRecord;
use crate::transfer::record::{Handle, MapPin, Record, TypeTag};

/// A record of atomics and a value, which may be reached as the record says.
pub(super) struct RecordWith<C, T> {
    shared: Record<C>,
    value: PhantomData<T>,
}

impl<C: AtomicRecord, T: Pod> RecordWith<C, T> {
    pub(super) fn new(kind: &str, value: T) -> Result<Self, MemoryError> {
        // Found by the compiler, for each type that is used.
        const { assert!(align_of::<T>() <= 64, "the value lies at a cache line, and is aligned to no more") }
        let shared = Record::new(TypeTag::of::<T>(kind), size_of::<T>())?;
        let (map, at) = shared.room();
        // Plain bytes: no other process has the memory yet.
        map.write(at, bytemuck::bytes_of(&value), 1);
        Ok(Self { shared, value: PhantomData })
    }

    #[inline]
    pub(super) fn fields(&self) -> &C {
        self.shared.fields()
    }

    pub(super) fn map_pin(&self) -> MapPin {
        // A guard is a reference to the value, so a leaked one keeps the lock taken after its thread has ended: see
        // `MapPin::lender`.
        self.shared.lender_pin()
    }

    /// Where the value lies, aligned, as long as this lives.
    #[inline]
    pub(super) fn value(&self) -> *mut T {
        let (map, at) = self.shared.room();
        // A pointer, not a reference: only a guard knows for how long nobody else writes there.
        map.at(at, size_of::<T>(), align_of::<T>()).cast()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        kind: &str,
        deserializer: D,
    ) -> Result<Self, D::Error> {
        let handle = Handle::deserialize(deserializer)?;
        // The tag has the value's type in it, so that no process looks at the bytes as another one.
        let shared = Record::receive(handle, TypeTag::of::<T>(kind), size_of::<T>());
        Ok(Self { shared: shared.map_err(D::Error::custom)?, value: PhantomData })
    }
}

/// A record with nothing behind it that would have a type, as it arrives.
pub(super) fn receive<'de, C: AtomicRecord, D: Deserializer<'de>>(
    kind: &str,
    deserializer: D,
) -> Result<Record<C>, D::Error> {
    // What lies behind the record is counted from its length (`Record::beside`), so that any length will do.
    let handle = Handle::deserialize(deserializer)?;
    Record::receive(handle, TypeTag::of::<()>(kind), 0).map_err(D::Error::custom)
}

// Not derived: that would ask for `C: Clone`, and the fields of a record are atomics, which are shared and not copied.
impl<C, T> Clone for RecordWith<C, T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), value: PhantomData }
    }
}

impl<C, T> fmt::Debug for RecordWith<C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl<C, T> Serialize for RecordWith<C, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.shared.serialize(serializer)
    }
}
