//! Storages ride beside the bytes: while a value is serialised its storages are collected here, and the bytes
//! carry their numbers; whoever sends the bytes sends the descriptors too, and puts them here for the other side.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use super::storage::Storage;

enum Table {
    Sending(Vec<Storage>),
    Receiving(Vec<Arrival>),
}

enum Arrival {
    Descriptor(OwnedFd),
    Mapped(Storage),
    /// It could not be mapped, and was closed.
    Broken,
}

thread_local! {
    static TABLE: RefCell<Option<Table>> = const { RefCell::new(None) };
    /// Why the last arrival was refused: the format's own error may forget it.
    static REASON: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Why an arrival was refused since this was last asked.
pub(crate) fn take_reason() -> Option<String> {
    REASON.take()
}

/// An error for serde, whose text is kept for [`take_reason`] too.
pub(super) fn refuse<E: serde::de::Error>(reason: String) -> E {
    let error = E::custom(&reason);
    REASON.set(Some(reason));
    error
}

/// Runs `serialise`, and returns with its result the storages that it met, each once.
pub(crate) fn collect<T>(serialise: impl FnOnce() -> T) -> (T, Vec<Storage>) {
    let (result, table) = with_table(Table::Sending(Vec::new()), serialise);
    match table {
        Some(Table::Sending(storages)) => (result, storages),
        _ => (result, Vec::new()),
    }
}

/// Runs `deserialise`, which finds the storages of `descriptors` by their numbers.
pub(crate) fn provide<T>(descriptors: Vec<OwnedFd>, deserialise: impl FnOnce() -> T) -> T {
    REASON.take();
    let arrivals = descriptors.into_iter().map(Arrival::Descriptor).collect();
    with_table(Table::Receiving(arrivals), deserialise).0
}

fn with_table<T>(table: Table, run: impl FnOnce() -> T) -> (T, Option<Table>) {
    let mut before = Restore(TABLE.replace(Some(table)));
    let result = run();
    (result, TABLE.replace(before.0.take()))
}

/// Puts the table of an outer call back, also when the user's serde code panics.
struct Restore(Option<Table>);

impl Drop for Restore {
    fn drop(&mut self) {
        if std::thread::panicking() {
            TABLE.set(self.0.take());
        }
    }
}

/// Adds a storage to what is being sent; returns its number.
pub(super) fn send(storage: &Storage) -> Result<u32, &'static str> {
    TABLE.with_borrow_mut(|table| {
        let Some(Table::Sending(storages)) = table else {
            return Err("a tensor can be serialised only in the arguments of a worker: its memory travels as a descriptor, not as bytes");
        };
        let place = storages.iter().position(|known| known.is_same(storage)).unwrap_or_else(|| {
            storages.push(storage.clone());
            storages.len() - 1
        });
        u32::try_from(place).map_err(|_| "too many storages in one message")
    })
}

/// The storage of that number, mapped once.
pub(super) fn receive(number: u32) -> Result<Storage, String> {
    TABLE.with_borrow_mut(|table| {
        let Some(Table::Receiving(arrivals)) = table else {
            return Err("a tensor can be deserialised only from the arguments of a worker".to_owned());
        };
        let count = arrivals.len();
        let place = arrivals.get_mut(number as usize);
        let place = place.ok_or_else(|| format!("storage {number} of {count} does not exist"))?;
        let storage = match std::mem::replace(place, Arrival::Broken) {
            Arrival::Mapped(storage) => storage,
            Arrival::Descriptor(fd) => {
                Storage::receive(fd).map_err(|error| format!("storage {number}: {error}"))?
            }
            Arrival::Broken => return Err(format!("storage {number} could not be mapped")),
        };
        *place = Arrival::Mapped(storage.clone());
        Ok(storage)
    })
}
