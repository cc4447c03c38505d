//! The context of a value that is being serialised or deserialised: its attachments, in a table of the thread.
//!
//! While a value is serialised its storages are collected in the table, and the bytes carry the numbers of *grants*: parts
//! of segments. Segments and grants travel beside the bytes, in the library's own records, and fill the table of the
//! receiver. A type's own `Deserialize` can name a grant, but cannot make one: whatever bytes it reads, it gets no shard twice, and
//! no memory that was not sent.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use super::attachments::{Attachments, Claim};
use super::grant::{Cut, Grant, Part};
use super::received::Received;
#[cfg(test)]
use super::received::ReceivedSegment;
use crate::memory::descriptor::Descriptor;
use crate::memory::segment::Segment;
use crate::memory::storage::Storage;
use crate::sys::fd::Owner;

/// The attachments of the value that is being serialised.
#[derive(Default)]
struct Sending {
    attachments: Attachments,
    /// The number of each segment in the attachments, by its address: they hold it, so that no other gets that address.
    segments: HashMap<*const Segment, u32>,
    /// The number of each descriptor, in the same way.
    descriptors: HashMap<*const Owner, u32>,
    parts: HashMap<Part, u32>,
}

impl Sending {
    fn part(&mut self, storage: &Storage) -> Part {
        let segment = storage.segment().map(|segment| {
            *self.segments.entry(Arc::as_ptr(segment)).or_insert_with(|| {
                self.attachments.segments.push(segment.clone());
                self.attachments.segments.len() as u32 - 1
            })
        });
        Part { segment, offset: storage.offset(), len: storage.len(), unit: storage.unit() }
    }

    fn grant(&mut self, grant: Grant) -> Result<u32, &'static str> {
        let number =
            u32::try_from(self.attachments.grants.len()).map_err(|_| "too many tensors in one message")?;
        self.attachments.grants.push(grant);
        Ok(number)
    }

    fn descriptor(&mut self, descriptor: &Descriptor) -> Result<u32, &'static str> {
        if let Some(&number) = self.descriptors.get(&descriptor.address()) {
            return Ok(number);
        }
        let number = u32::try_from(self.attachments.descriptors.len())
            .map_err(|_| "too many descriptors in one message")?;
        self.attachments.descriptors.push(descriptor.clone());
        self.descriptors.insert(descriptor.address(), number);
        Ok(number)
    }
}

/// The table of the present message. Each message needs one and most have no attachments, so what it has is allocated when it is
/// first used.
enum Table {
    Sending(Option<Box<Sending>>),
    Receiving(Option<Box<Received>>),
}

thread_local! {
    /// Outside of [`with_table`] it holds nothing, so that it needs no destructor: a value can be serialised in the destructor of
    /// another thread-local too, and the thread's end has nothing to free.
    static TABLE: RefCell<ManuallyDrop<Option<Table>>> = const { RefCell::new(ManuallyDrop::new(None)) };
}

/// Runs `serialise`; returns its result, and the attachments of what it has serialised.
pub(crate) fn collect<T>(serialise: impl FnOnce() -> T) -> (T, Attachments) {
    let (result, table) = with_table(Table::Sending(None), serialise);
    match table {
        Some(Table::Sending(Some(sending))) => (result, sending.attachments),
        _ => (result, Attachments::default()),
    }
}

/// Runs `deserialise`, which finds `received`; returns its result, and what is left.
pub(crate) fn provide<T>(received: Received, deserialise: impl FnOnce() -> T) -> (T, Received) {
    let received = (!received.is_empty()).then(|| Box::new(received));
    let (result, table) = with_table(Table::Receiving(received), deserialise);
    match table {
        Some(Table::Receiving(Some(received))) => (result, *received),
        _ => (result, Received::default()),
    }
}

/// As [`provide`], for a value that came without attachments.
pub(crate) fn provide_nothing<T>(deserialise: impl FnOnce() -> T) -> T {
    with_table(Table::Receiving(None), deserialise).0
}

#[inline]
fn with_table<T>(table: Table, run: impl FnOnce() -> T) -> (T, Option<Table>) {
    let mut before = Restore(Some(replace(Some(table))));
    let result = run();
    (result, replace(before.0.take().flatten()))
}

fn replace(table: Option<Table>) -> Option<Table> {
    ManuallyDrop::into_inner(TABLE.replace(ManuallyDrop::new(table)))
}

/// Puts the table of an outer call back, also when a type's own serde code panics. (A type may serialise another value while it is
/// serialised itself.)
struct Restore(Option<Option<Table>>);

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(before) = self.0.take() {
            drop(replace(before));
        }
    }
}

const ONLY_HERE: &str = "a tensor, shard, descriptor or connection can be serialised only in the arguments or the result of a \
                         worker, or in a message of a pipe or queue: what it stands for travels beside the bytes, not \
                         in them";

const ONLY_FROM: &str = "a tensor, shard, descriptor or connection can be deserialised only from the arguments or the result of a \
                         worker, or from a message of a pipe or queue";

const CUT_OFF: &str = "this tensor came into the worker by its fork, which closed its descriptor: it can be used, but not \
                       be sent; give it to the worker in its arguments";

const CLOSED: &str = "this descriptor came into the worker by its fork, which closed it: it cannot be sent; give it to the \
                      worker in its arguments";

/// Adds a storage to what is being sent; returns the number of its grant.
pub(crate) fn send(storage: &Storage) -> Result<u32, &'static str> {
    sending(|sending| {
        if storage.segment().is_some_and(|segment| segment.is_cut_off()) {
            return Err(CUT_OFF);
        }
        sending.attachments.loans.push(storage.lend());
        let part = sending.part(storage);
        if let Some(&number) = sending.parts.get(&part) {
            return Ok(number);
        }
        let number = sending.grant(Grant::Shared(part))?;
        sending.parts.insert(part, number);
        Ok(number)
    })
}

/// Adds a shard to what is being sent; returns the number of its grant.
pub(crate) fn send_shard(
    storage: &Storage,
    claim: impl Claim + 'static,
    cut: Cut,
) -> Result<u32, &'static str> {
    sending(|sending| {
        let part = sending.part(storage);
        let number = sending.grant(Grant::Exclusive(part, cut))?;
        sending.attachments.claims.push(Box::new(claim));
        Ok(number)
    })
}

/// Adds a descriptor to what is being sent, of which the receiver gets a duplicate; returns its number.
pub(super) fn send_descriptor(descriptor: &Descriptor) -> Result<u32, &'static str> {
    sending(|sending| {
        if descriptor.is_cut_off() {
            return Err(CLOSED);
        }
        sending.descriptor(descriptor)
    })
}

/// As [`send_descriptor`], for a descriptor that only one process can have.
pub(crate) fn send_sole_descriptor(
    descriptor: &Descriptor,
    claim: impl Claim + 'static,
) -> Result<u32, &'static str> {
    let number = send_descriptor(descriptor)?;
    sending(|sending| {
        sending.attachments.claims.push(Box::new(claim));
        Ok(number)
    })
}

fn sending<T>(put: impl FnOnce(&mut Sending) -> Result<T, &'static str>) -> Result<T, &'static str> {
    TABLE.with_borrow_mut(|table| match &mut **table {
        Some(Table::Sending(sending)) => put(sending.get_or_insert_default()),
        _ => Err(ONLY_HERE),
    })
}

/// An error outside of a message. Called before a handle is read, so that the error names this reason and not a field.
pub(crate) fn check_receiving() -> Result<(), String> {
    receiving(|_| Ok(()))
}

/// The storage of a grant.
pub(crate) fn receive(number: u32) -> Result<Storage, String> {
    receiving(|received| received.open_shared(number))
}

/// The shard of a grant, once.
pub(crate) fn receive_shard(number: u32) -> Result<(Cut, Storage), String> {
    receiving(|received| received.take_exclusive(number))
}

/// The descriptor of a number; the same one at each call.
pub(super) fn receive_descriptor(number: u32) -> Result<Descriptor, String> {
    receiving(|received| received.share_descriptor(number))
}

/// The descriptor of a number, once, and only if [`receive_descriptor`] has not returned it.
pub(crate) fn receive_sole_descriptor(number: u32) -> Result<Descriptor, String> {
    receiving(|received| received.take_descriptor(number))
}

fn receiving<T>(take: impl FnOnce(&mut Received) -> Result<T, String>) -> Result<T, String> {
    TABLE.with_borrow_mut(|table| match &mut **table {
        Some(Table::Receiving(received)) => take(received.get_or_insert_default()),
        _ => Err(ONLY_FROM.to_owned()),
    })
}

/// For tests: attachments as they would arrive in another process.
#[cfg(test)]
pub(crate) fn arrive(attachments: &Attachments) -> Received {
    let open = |segment: &Arc<Segment>| ReceivedSegment::Descriptor(segment.open().unwrap());
    let segments = attachments.segments.iter().map(open);
    let copy = |descriptor: &Descriptor| Ok(descriptor.clone().into_owned().unwrap());
    let descriptors = attachments.descriptors.iter().map(copy);
    Received::new(segments.collect(), attachments.grants.clone(), descriptors.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::encoding;
    use crate::shm::DType;
    use crate::{DynTensor, FrozenTensor, Shard, Tensor};

    fn through<A: Serialize, B: DeserializeOwned>(value: &A) -> Result<B, encoding::Error> {
        let (bytes, attachments) = collect(|| encoding::write(value).unwrap());
        provide(arrive(&attachments), || encoding::read(&bytes)).0
    }

    #[test]
    fn same_storage_twice_travels_as_one_and_arrives_as_one() {
        let tensor = Tensor::<i32>::zeros(&[4]).unwrap();
        let view = tensor.narrow(0, 1, 3).unwrap();
        let (bytes, attachments) = collect(|| encoding::write(&(&tensor, &tensor, &view)).unwrap());
        assert_eq!((attachments.segments.len(), attachments.grants.len()), (1, 1));
        let arrived = provide(arrive(&attachments), || encoding::read::<[Tensor<i32>; 3]>(&bytes)).0;
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
            let bytes = encoding::write(&(grant, dtype, shape, strides, offset)).unwrap();
            let segment = Storage::sealable(64).unwrap();
            let open = || segment.segment().unwrap().open().unwrap();
            let received = (0..2).map(|_| ReceivedSegment::Descriptor(open())).collect();
            let received = Received::new(received, grants, Vec::new());
            let (tensor, _) = provide(received, || encoding::read::<DynTensor>(&bytes));
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
            let received = || {
                let segment = Storage::sealable(64).unwrap();
                let fd = segment.segment().unwrap().open().unwrap();
                let descriptors = vec![Ok(fd.try_clone().unwrap()), Err("lost".to_owned())];
                Received::new(vec![ReceivedSegment::Descriptor(fd)], grants.clone(), descriptors)
            };
            let _ = provide(received(), || encoding::read::<Vec<Descriptor>>(&bytes).map(drop));
            let _ = provide(received(), || encoding::read::<Vec<DynTensor>>(&bytes).map(drop));
            let _ = provide(received(), || encoding::read::<Vec<Shard<u8>>>(&bytes).map(drop));
            let _ = provide(received(), || encoding::read::<Vec<FrozenTensor<u8>>>(&bytes).map(drop));
            let _ = provide(Received::default(), || encoding::read::<(Part, Vec<Grant>)>(&bytes).map(drop));
        }
    }
}
