//! Cells with a value behind them, that they guard.

use std::fmt;
use std::marker::PhantomData;

use bytemuck::Pod;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::MemoryError;
use crate::sys::cells::Cells;
use crate::transfer::record::{Handle, Keeper, Record, TypeTag};

/// A record of cells, and a value that only some may reach, as the cells say.
pub(super) struct Guarded<C, T> {
    shared: Record<C>,
    value: PhantomData<T>,
}

impl<C: Cells, T: Pod> Guarded<C, T> {
    pub(super) fn new(kind: &str, value: T) -> Result<Self, MemoryError> {
        const { assert!(align_of::<T>() <= 64, "the value lies at a cache line, and is aligned to no more") }
        let shared = Record::new(TypeTag::of::<T>(kind), size_of::<T>())?;
        let (map, at) = shared.room();
        map.write(at, bytemuck::bytes_of(&value), 1);
        Ok(Self { shared, value: PhantomData })
    }

    #[inline]
    pub(super) fn cells(&self) -> &C {
        self.shared.cells()
    }

    pub(super) fn keeper(&self) -> Keeper {
        self.shared.lender()
    }

    /// Where the value lies, aligned, as long as this lives.
    #[inline]
    pub(super) fn value(&self) -> *mut T {
        let (map, at) = self.shared.room();
        map.at(at, size_of::<T>(), align_of::<T>()).cast()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        kind: &str,
        deserializer: D,
    ) -> Result<Self, D::Error> {
        let handle = Handle::deserialize(deserializer)?;
        let shared = Record::receive(handle, TypeTag::of::<T>(kind), size_of::<T>());
        Ok(Self { shared: shared.map_err(D::Error::custom)?, value: PhantomData })
    }
}

/// Cells with nothing behind them that would have a type, as they arrive.
pub(super) fn receive<'de, C: Cells, D: Deserializer<'de>>(
    kind: &str,
    deserializer: D,
) -> Result<Record<C>, D::Error> {
    let handle = Handle::deserialize(deserializer)?;
    Record::receive(handle, TypeTag::of::<()>(kind), 0).map_err(D::Error::custom)
}

impl<C, T> Clone for Guarded<C, T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), value: PhantomData }
    }
}

impl<C, T> fmt::Debug for Guarded<C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl<C, T> Serialize for Guarded<C, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.shared.serialize(serializer)
    }
}
