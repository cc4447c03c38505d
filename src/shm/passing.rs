//! How memory leaves and enters a process beside serialised bytes.
//!
//! While a value is serialised its storages are collected in a table, and the bytes carry the numbers of *grants*: parts
//! of segments. The segments and the grants travel beside the bytes, in the library's own records, and are put into a
//! table on the other side. So a value's own `Deserialize` can name a grant, but not make one: that no part of a shard
//! is reached twice does not hang on what it reads.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::segment::Segment;
use super::shard::{Claim, Cut};
pub(crate) use super::storage::Loan;
use super::storage::Storage;
use crate::error::with_hint;

/// A part of a segment of the same message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Which segment. `None`: no bytes.
    segment: Option<u32>,
    offset: usize,
    len: usize,
    /// Bytes of an element of the tensors over it.
    unit: u8,
}

/// What may be done with a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Grant {
    /// Everybody who has it may read and write.
    Shared(Part),
    /// Only who takes it may.
    Exclusive(Part, Cut),
}

/// What travels beside the bytes of a value.
#[derive(Debug, Default)]
pub(crate) struct Parcel {
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) grants: Vec<Grant>,
    /// The shards in it. Until it is [delivered](Self::deliver) they can come back.
    claims: Vec<Claim>,
    /// What its receivers may write to as long as they live.
    loans: Vec<Loan>,
}

impl Parcel {
    /// How many shards it has, which only one process may get.
    pub(crate) fn shards(&self) -> usize {
        self.claims.len()
    }

    /// Says that it has arrived, or may have: its shards are gone from here. Returns what is lent until the receivers
    /// have ended.
    pub(crate) fn deliver(&mut self) -> Vec<Loan> {
        self.claims.drain(..).for_each(Claim::keep);
        std::mem::take(&mut self.loans)
    }
}

/// A segment on its way in.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// `sealed`: it must be a memfd of fixed size.
    Descriptor {
        fd: OwnedFd,
        sealed: bool,
    },
    /// A name in the tree.
    Name(String),
    Mapped(Arc<Segment>),
    /// It could not be mapped, or did not arrive.
    Broken(String),
}

/// To what a storage is aligned at the least, so that it fits any element.
pub(super) const MAX_ALIGN: usize = 8;

/// What has arrived beside the bytes of a value.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    segments: Vec<Arrival>,
    grants: Vec<Incoming>,
}

/// A grant, and what has become of it.
#[derive(Debug)]
struct Incoming {
    grant: Grant,
    /// The same tensor twice is the same storage.
    opened: Option<Storage>,
    /// An exclusive one is there once.
    taken: bool,
}

impl Arrivals {
    pub(crate) fn new(segments: Vec<Arrival>, grants: Vec<Grant>) -> Self {
        let incoming = |grant| Incoming { grant, opened: None, taken: false };
        Self { segments, grants: grants.into_iter().map(incoming).collect() }
    }

    fn segment(&mut self, number: u32) -> Result<Arc<Segment>, String> {
        let count = self.segments.len();
        let place = self.segments.get_mut(number as usize);
        let place = place.ok_or_else(|| format!("segment {number} of {count} does not exist"))?;
        let failed =
            |error: std::io::Error| format!("segment {number} cannot be mapped: {}", with_hint(&error));
        let mapped = match mem::replace(place, Arrival::Broken(String::new())) {
            Arrival::Mapped(segment) => Ok(segment),
            Arrival::Descriptor { fd, sealed } => Segment::receive(fd, sealed).map_err(failed),
            Arrival::Name(path) => Segment::receive_named(&path).map_err(failed),
            Arrival::Broken(why) => Err(why),
        };
        match mapped {
            Ok(segment) => {
                *place = Arrival::Mapped(segment.clone());
                Ok(segment)
            }
            Err(why) => {
                *place = Arrival::Broken(why.clone());
                Err(why)
            }
        }
    }

    /// The memory of a part, which is held against the size of its segment.
    fn storage(&mut self, part: Part, align: usize, shared: bool) -> Result<Storage, String> {
        let Part { segment, offset, len, unit } = part;
        if !matches!(unit, 1 | 2 | 4 | 8) {
            return Err(format!("there are no elements of {unit} bytes"));
        }
        let segment = segment.map(|number| self.segment(number)).transpose()?;
        let size = segment.as_ref().map_or(0, |segment| segment.len());
        let storage = Storage::checked(segment, (offset, len), align, shared).ok_or_else(|| {
            format!("{len} bytes at {offset} do not lie in a segment of {size} bytes, or askew")
        })?;
        storage.claim_unit(unit.into()).map_err(|error| error.to_string())?;
        Ok(storage)
    }

    fn open_shared(&mut self, number: u32) -> Result<Storage, String> {
        let incoming = self.grant(number)?;
        if let Some(storage) = &incoming.opened {
            return Ok(storage.clone());
        }
        let part = match incoming.grant {
            Grant::Shared(part) => part,
            Grant::Exclusive(..) => return Err(format!("grant {number} is a shard's")),
        };
        let storage = self.storage(part, MAX_ALIGN, true)?;
        self.grant(number)?.opened = Some(storage.clone());
        Ok(storage)
    }

    fn take_exclusive(&mut self, number: u32) -> Result<(Cut, Storage), String> {
        let incoming = self.grant(number)?;
        let (part, cut) = match &incoming.grant {
            Grant::Exclusive(part, cut) => (*part, cut.clone()),
            Grant::Shared(_) => return Err(format!("grant {number} is no shard's")),
        };
        if incoming.taken {
            return Err("it was taken already: a shard can be read out of a message only once".to_owned());
        }
        let storage = self.storage(part, cut.align(), false)?;
        self.grant(number)?.taken = true;
        Ok((cut, storage))
    }

    fn grant(&mut self, number: u32) -> Result<&mut Incoming, String> {
        let count = self.grants.len();
        let incoming = self.grants.get_mut(number as usize);
        incoming.ok_or_else(|| format!("grant {number} of {count} does not exist"))
    }
}

/// What is being sent.
#[derive(Default)]
struct Outgoing {
    parcel: Parcel,
    /// Where in the parcel a segment is, by its address: the parcel keeps it there.
    segments: HashMap<*const Segment, u32>,
    parts: HashMap<Part, u32>,
}

impl Outgoing {
    fn part(&mut self, storage: &Storage) -> Part {
        let segment = storage.segment().map(|segment| {
            *self.segments.entry(Arc::as_ptr(segment)).or_insert_with(|| {
                self.parcel.segments.push(segment.clone());
                self.parcel.segments.len() as u32 - 1
            })
        });
        Part { segment, offset: storage.offset(), len: storage.len(), unit: storage.unit() }
    }

    fn grant(&mut self, grant: Grant) -> Result<u32, &'static str> {
        let number =
            u32::try_from(self.parcel.grants.len()).map_err(|_| "too many tensors in one message")?;
        self.parcel.grants.push(grant);
        Ok(number)
    }
}

enum Table {
    Sending(Outgoing),
    Receiving(Arrivals),
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

/// Runs `serialise`, and returns with its result what is to travel beside it.
pub(crate) fn collect<T>(serialise: impl FnOnce() -> T) -> (T, Parcel) {
    let (result, table) = with_table(Table::Sending(Outgoing::default()), serialise);
    match table {
        Some(Table::Sending(outgoing)) => (result, outgoing.parcel),
        _ => (result, Parcel::default()),
    }
}

/// Runs `deserialise`, which finds what has arrived beside its bytes. What is left of that comes back.
pub(crate) fn provide<T>(arrivals: Arrivals, deserialise: impl FnOnce() -> T) -> (T, Arrivals) {
    REASON.take();
    let (result, table) = with_table(Table::Receiving(arrivals), deserialise);
    match table {
        Some(Table::Receiving(arrivals)) => (result, arrivals),
        _ => (result, Arrivals::default()),
    }
}

fn with_table<T>(table: Table, run: impl FnOnce() -> T) -> (T, Option<Table>) {
    let mut before = Restore(Some(TABLE.replace(Some(table))));
    let result = run();
    (result, TABLE.replace(before.0.take().flatten()))
}

/// Puts the table of an outer call back when the user's serde code panics.
struct Restore(Option<Option<Table>>);

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(before) = self.0.take() {
            TABLE.set(before);
        }
    }
}

const ONLY_HERE: &str = "a tensor or shard can be serialised only in the arguments or the result of a worker: its memory travels \
                         beside the bytes, not in them";

const CUT_OFF: &str = "this tensor came into the worker by its fork, which closed its descriptor: it can be used, but not \
                       be sent; give it to the worker in its arguments";

/// Adds a storage to what is being sent; returns the number of its grant.
pub(super) fn send(storage: &Storage) -> Result<u32, &'static str> {
    TABLE.with_borrow_mut(|table| {
        let Some(Table::Sending(outgoing)) = table else { return Err(ONLY_HERE) };
        if storage.segment().is_some_and(|segment| segment.is_cut_off()) {
            return Err(CUT_OFF);
        }
        outgoing.parcel.loans.push(storage.lend());
        let part = outgoing.part(storage);
        if let Some(&number) = outgoing.parts.get(&part) {
            return Ok(number);
        }
        let number = outgoing.grant(Grant::Shared(part))?;
        outgoing.parts.insert(part, number);
        Ok(number)
    })
}

/// Adds a shard to what is being sent; returns the number of its grant.
pub(super) fn send_shard(storage: &Storage, claim: Claim, cut: Cut) -> Result<u32, &'static str> {
    TABLE.with_borrow_mut(|table| {
        let Some(Table::Sending(outgoing)) = table else { return Err(ONLY_HERE) };
        let part = outgoing.part(storage);
        let number = outgoing.grant(Grant::Exclusive(part, cut))?;
        outgoing.parcel.claims.push(claim);
        Ok(number)
    })
}

/// Whether a message is being read: what a handle would be taken for outside of one makes no sense to anybody.
pub(super) fn check_receiving() -> Result<(), String> {
    receiving(|_| Ok(()))
}

/// The storage of that grant.
pub(super) fn receive(number: u32) -> Result<Storage, String> {
    receiving(|arrivals| arrivals.open_shared(number))
}

/// The shard of that grant, once.
pub(super) fn receive_shard(number: u32) -> Result<(Cut, Storage), String> {
    receiving(|arrivals| arrivals.take_exclusive(number))
}

fn receiving<T>(take: impl FnOnce(&mut Arrivals) -> Result<T, String>) -> Result<T, String> {
    TABLE.with_borrow_mut(|table| match table {
        Some(Table::Receiving(arrivals)) => take(arrivals),
        _ => Err("a tensor or shard can be deserialised only from the arguments or the result of a worker"
            .to_owned()),
    })
}

/// What a parcel is on the other side, when it did not have to travel.
#[cfg(test)]
pub(super) fn arrive(parcel: &Parcel) -> Arrivals {
    let open = |segment: &Arc<Segment>| Arrival::Descriptor { fd: segment.open().unwrap(), sealed: false };
    let segments = parcel.segments.iter().map(open);
    Arrivals::new(segments.collect(), parcel.grants.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::shm::{DType, DynTensor, FrozenTensor, Shard, Tensor};

    fn through<A: Serialize, B: DeserializeOwned>(value: &A) -> Result<B, postcard::Error> {
        let (bytes, parcel) = collect(|| postcard::to_stdvec(value).unwrap());
        provide(arrive(&parcel), || postcard::from_bytes(&bytes)).0
    }

    #[test]
    fn same_storage_twice_travels_as_one_and_arrives_as_one() {
        let tensor = Tensor::<i32>::zeros(&[4]).unwrap();
        let view = tensor.narrow(0, 1, 3).unwrap();
        let (bytes, parcel) = collect(|| postcard::to_stdvec(&(&tensor, &tensor, &view)).unwrap());
        assert_eq!((parcel.segments.len(), parcel.grants.len()), (1, 1));
        let arrived = provide(arrive(&parcel), || postcard::from_bytes::<[Tensor<i32>; 3]>(&bytes)).0;
        let [one, two, view] = arrived.unwrap();
        one.set(3, 7).unwrap();
        assert_eq!((two.get(3).unwrap(), view.get(2).unwrap(), tensor.get(3).unwrap()), (7, 7, 7));
        assert!(one.storage().is_same(two.storage()) && one.storage().is_same(tensor.storage()));
    }

    #[test]
    fn views_arrive_as_they_are() {
        let matrix = Tensor::<u16>::from_slice(&[1, 2, 3, 4, 5, 6], &[2, 3]).unwrap();
        for view in [
            matrix.transpose(0, 1).unwrap(),
            matrix.select(1, 2).unwrap(),
            matrix.slice(1, .., 2).unwrap(),
            matrix.narrow(0, 2, 0).unwrap(),
            Tensor::zeros(&[]).unwrap(),
        ] {
            let arrived: Tensor<u16> = through(&view).unwrap();
            assert_eq!((arrived.shape(), arrived.strides()), (view.shape(), view.strides()));
            assert_eq!(arrived.to_vec(), view.to_vec());
        }
    }

    #[test]
    fn wrong_element_type_is_an_error() {
        assert!(through::<_, Tensor<f32>>(&Tensor::<i32>::zeros(&[4]).unwrap()).is_err());
        assert!(through::<_, FrozenTensor<i32>>(&Tensor::<i32>::zeros(&[4]).unwrap()).is_err());
        let shard = Tensor::<i32>::zeros(&[4]).unwrap().into_shards(1).unwrap().remove(0);
        assert!(through::<_, Shard<f32>>(&shard).is_err());
    }

    #[test]
    fn serialising_outside_is_an_error_with_a_sentence() {
        let tensor = Tensor::<u8>::zeros(&[1]).unwrap();
        let error = serde_json::to_string(&tensor).unwrap_err().to_string();
        assert!(error.contains("only in the arguments or the result of a worker"), "{error}");
        let frozen = tensor.freeze().unwrap();
        assert!(serde_json::to_string(&frozen).is_err());
        let error = serde_json::from_str::<DynTensor>(
            r#"{"grant":0,"dtype":"U8","shape":[1],"strides":null,"offset":0}"#,
        );
        assert!(error.unwrap_err().to_string().contains("deserialised only from"));
    }

    fn grants() -> impl proptest::strategy::Strategy<Value = Vec<Grant>> {
        let number = || prop_oneof![0_usize..200, Just(64), Just(usize::MAX), any::<usize>()];
        let part = (
            proptest::option::of(0_u32..3),
            number(),
            number(),
            prop_oneof![Just(1_u8), Just(8), any::<u8>()],
        )
            .prop_map(|(segment, offset, len, unit)| Part { segment, offset, len, unit });
        proptest::collection::vec(part.prop_map(Grant::Shared), 0..4)
    }

    proptest! {
        #[test]
        fn hostile_handles_and_grants_never_leave_their_memory(
            grants in grants(),
            grant in 0_u32..5,
            shape in proptest::collection::vec(prop_oneof![0_usize..9, any::<usize>()], 0..4),
            strides in proptest::option::of(proptest::collection::vec(prop_oneof![0_usize..9, any::<usize>()], 0..4)),
            offset in prop_oneof![0_usize..70, any::<usize>()],
            wide: bool,
        ) {
            let dtype = if wide { DType::F64 } else { DType::U8 };
            let bytes = postcard::to_stdvec(&(grant, dtype, shape, strides, offset)).unwrap();
            let segment = Storage::sealable(64).unwrap();
            let open = || segment.segment().unwrap().open().unwrap();
            let arrivals = (0..2).map(|_| Arrival::Descriptor { fd: open(), sealed: true }).collect();
            let (tensor, _) = provide(Arrivals::new(arrivals, grants), || postcard::from_bytes::<DynTensor>(&bytes));
            if let Ok(tensor) = tensor {
                prop_assert!(tensor.len() * dtype.size() <= 64);
                tensor.write_bytes(&vec![1; tensor.len() * dtype.size()]).unwrap();
                prop_assert!(tensor.to_bytes().iter().all(|&byte| byte == 1));
                if let Ok(tensor) = tensor.typed::<u8>() {
                    (0..tensor.len()).for_each(|place| { tensor.fetch_add(place, 1).unwrap(); });
                }
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>, grants in grants()) {
            let arrivals = || {
                let segment = Storage::sealable(64).unwrap();
                let fd = segment.segment().unwrap().open().unwrap();
                Arrivals::new(vec![Arrival::Descriptor { fd, sealed: true }], grants.clone())
            };
            let _ = provide(arrivals(), || postcard::from_bytes::<Vec<DynTensor>>(&bytes).map(drop));
            let _ = provide(arrivals(), || postcard::from_bytes::<Vec<Shard<u8>>>(&bytes).map(drop));
            let _ = provide(arrivals(), || postcard::from_bytes::<Vec<FrozenTensor<u8>>>(&bytes).map(drop));
            let _ = provide(Arrivals::default(), || postcard::from_bytes::<(Part, Vec<Grant>)>(&bytes).map(drop));
        }
    }
}
