//! What travels arrives as it was: each shape of type that serde has, in arguments, results, queues and pipes.

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use common::watched;
use phalanx::{Queue, Shard, Tensor, pipe, spawn};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

phalanx::auto_init!();

fn echo<T>(_rank: usize, value: T) -> anyhow::Result<T> {
    Ok(value)
}

/// What becomes of a value: in arguments and results, in a queue, and in a pipe.
fn travelled<T: Serialize + DeserializeOwned + Clone + 'static>(value: &T) -> [T; 3] {
    let by_worker = spawn(echo::<T>, value.clone(), 1).unwrap().remove(0);
    let queue = Queue::<T>::bounded(1).unwrap();
    queue.put(value).unwrap();
    let (one, other) = pipe::<T, T>().unwrap();
    one.send(value).unwrap();
    [by_worker, queue.get().unwrap(), other.recv().unwrap()]
}

trait Sent: Serialize + DeserializeOwned + Clone + Debug + PartialEq + 'static {}
impl<T: Serialize + DeserializeOwned + Clone + Debug + PartialEq + 'static> Sent for T {}

/// It comes back as itself. (What JSON makes of it may be another matter.)
fn exact(value: impl Sent) {
    for arrived in travelled(&value) {
        assert_eq!(arrived, value);
    }
}

/// It comes back as what JSON makes of it.
fn as_json(value: impl Sent) {
    fn through_json<T: Sent>(value: &T) -> T {
        serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
    }
    let expected = through_json(&value);
    for arrived in travelled(&value) {
        assert_eq!(arrived, expected);
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Point {
    x: f64,
    y: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SkipsFirst {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    a: Option<u8>,
    b: (u8, Vec<u8>),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Skips {
    id: u64,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    middle: Vec<String>,
    name: String,
    #[serde(skip_deserializing)]
    only_written: u32,
    #[serde(skip_serializing, default)]
    only_read: u32,
    #[serde(skip)]
    neither: u32,
    #[serde(rename = "other name", alias = "older name")]
    renamed: i8,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    last: Option<Point>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SkipsInTuple(u8, #[serde(skip_serializing_if = "Option::is_none", default)] Option<u8>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flat {
    id: u32,
    #[serde(flatten)]
    point: Point,
    #[serde(flatten)]
    kind: Internal,
    #[serde(flatten)]
    address: Address,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Address {
    address: IpAddr,
    since: SystemTime,
    levels: Option<Option<()>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct FlatNumbers {
    count: u16,
    #[serde(flatten)]
    by_name: HashMap<String, Vec<f32>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct FlatRest {
    point: Point,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum External {
    Unit,
    New(Point),
    NewOption(Option<Option<u8>>),
    Tuple(u8, String),
    Struct {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        a: Option<u8>,
        b: Vec<External>,
    },
    #[serde(skip)]
    #[expect(dead_code, reason = "it moves the numbers of those after it")]
    Skipped,
    #[serde(rename = "after the skipped one")]
    Renamed(u8),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
enum Internal {
    Unit,
    New(Point),
    Struct {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        speed: Option<u8>,
        wide: u64,
    },
    Map(BTreeMap<String, External>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", content = "c")]
enum Adjacent {
    Unit,
    New(Internal),
    Tuple(u8, Vec<u8>),
    Struct { a: Option<Box<Adjacent>> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Unit,
    Flag(bool),
    Number(i64),
    Float(f64),
    Text(String),
    Numbers(Vec<u32>),
    Point(Point),
    Pair(u8, String),
    List(Vec<Untagged>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
enum Key {
    One,
    Two,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct New(u64);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
struct Even(u8);

impl TryFrom<u8> for Even {
    type Error = String;
    fn try_from(number: u8) -> Result<Self, String> {
        if number.is_multiple_of(2) { Ok(Self(number)) } else { Err(format!("{number} is odd")) }
    }
}

impl From<Even> for u8 {
    fn from(even: Even) -> u8 {
        even.0
    }
}

#[test]
fn fields_that_are_skipped_or_renamed() {
    watched(|| {
        // In a format without names this arrived as `Some(2)` and `(9, [])`.
        as_json(SkipsFirst { a: None, b: (1, vec![9, 0]) });
        as_json(SkipsFirst { a: Some(3), b: (1, vec![9, 0]) });
        let skips =
            Skips { id: 1 << 40, only_written: 5, only_read: 6, neither: 7, renamed: -3, ..Skips::default() };
        as_json(skips.clone());
        as_json(vec![skips.clone(); 3]);
        as_json(Skips {
            middle: vec!["a".into()],
            name: "n".into(),
            last: Some(Point { x: 1.0, y: 2.5 }),
            ..skips.clone()
        });
        as_json(Some(Box::new(skips)));
        as_json(SkipsInTuple(1, None));
        as_json(SkipsInTuple(1, Some(2)));
    });
}

fn externals() -> Vec<External> {
    vec![
        External::Unit,
        External::New(Point { x: 0.1, y: -2.0 }),
        External::NewOption(Some(Some(4))),
        External::Tuple(7, "text".into()),
        External::Struct { a: None, b: vec![External::Unit, External::Renamed(3)] },
        External::Struct { a: Some(1), b: Vec::new() },
        External::Renamed(9),
    ]
}

fn internals() -> Vec<Internal> {
    vec![
        Internal::Unit,
        Internal::New(Point { x: 1.5, y: 2.0 }),
        Internal::Struct { speed: None, wide: 7 },
        Internal::Struct { speed: Some(3), wide: u64::MAX },
        Internal::Map(
            externals().into_iter().enumerate().map(|(n, value)| (format!("k{n}"), value)).collect(),
        ),
    ]
}

#[test]
fn enums_of_each_kind() {
    watched(|| {
        as_json(externals());
        as_json(internals());
        let adjacent = internals().into_iter().map(Adjacent::New).chain([
            Adjacent::Unit,
            Adjacent::Tuple(1, vec![2; 20]),
            Adjacent::Struct { a: None },
            Adjacent::Struct { a: Some(Box::new(Adjacent::Unit)) },
        ]);
        as_json(adjacent.collect::<Vec<_>>());
        let untagged = vec![
            Untagged::Unit,
            Untagged::Flag(true),
            Untagged::Number(-5),
            Untagged::Number(1 << 40),
            Untagged::Float(1.0),
            Untagged::Text("text".into()),
            Untagged::Numbers((0..20).collect()),
            Untagged::Point(Point { x: 1.0, y: 1e300 }),
            Untagged::Pair(3, "x".into()),
            Untagged::List(vec![Untagged::Unit, Untagged::Number(1 << 40), Untagged::List(Vec::new())]),
        ];
        as_json(untagged.clone());
        as_json(BTreeMap::from([("a", 0), ("b", 1)].map(|(key, at)| (key.to_owned(), untagged[at].clone()))));
    });
}

#[test]
fn flattened_structs_maps_and_enums() {
    watched(|| {
        let kinds =
            internals().into_iter().filter(|kind| !matches!(kind, Internal::New(_) | Internal::Map(_)));
        for (number, kind) in kinds.enumerate() {
            as_json(Flat {
                id: number as u32,
                point: Point { x: 0.5, y: -0.0 },
                kind,
                address: Address {
                    address: if number == 0 {
                        [127, 0, 0, 1].into()
                    } else {
                        [0, 0, 0, 0, 0, 0, 0, 1].into()
                    },
                    since: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5),
                    levels: None,
                },
            });
        }
        let rest = BTreeMap::from([("more".to_owned(), json!({ "a": [1, null, { "b": 2.5 }] }))]);
        as_json(FlatRest { point: Point::default(), rest });
        as_json(FlatNumbers {
            count: 2,
            by_name: HashMap::from([("a".to_owned(), vec![0.5; 100]), ("b".to_owned(), vec![])]),
        });
    });
}

#[test]
fn values_of_no_type() {
    watched(|| {
        as_json(json!(null));
        as_json(json!({
            "null": null, "flags": [true, false], "large": u64::MAX, "small": i64::MIN, "float": 1.0,
            "numbers": (0..300).collect::<Vec<_>>(), "mixed": [1, 2, 3, 4, 5, 6, 7, 8, -9, 1.5, "x"],
            "map": { "": {}, "é": [[], [[]]] },
        }));
        exact(vec![Some(json!(null)), None, Some(json!("x"))]);
    });
}

#[test]
fn plain_values_of_each_kind() {
    watched(|| {
        as_json((
            1_u8,
            -1_i8,
            300_u16,
            -300_i16,
            70_000_u32,
            -70_000_i32,
            u64::MAX,
            i64::MIN,
            usize::MAX,
            isize::MIN,
        ));
        as_json((0.1_f32, 0.1_f64, true, 'ß', "text".to_owned(), String::new(), (), Unit, New(5)));
        as_json((Box::new(5), [1_u8; 3], [String::new(), "é".into()], Duration::from_nanos(7)));
        as_json((vec![200_u8; 1000], vec![-200_i16; 9], vec![0.5_f32; 9], vec![vec![1_u64; 10]; 10]));
        as_json((HashSet::from([1, 2, 3]), BTreeMap::from([("a".to_owned(), 1)]), Vec::<u8>::new()));
        as_json((BTreeMap::from([(-5, 'a'), (70_000, 'b')]), HashMap::from([(Key::One, Key::Two)])));
        as_json((Ok::<u8, String>(1), Err::<u8, _>("x".to_owned()), Even(4), PathBuf::from("/tmp/x")));
        as_json("127.0.0.1:80".parse::<std::net::SocketAddr>().unwrap());
        as_json((1..5, std::ops::Bound::Included(3), std::num::NonZero::new(5_u8)));
    });
}

#[test]
fn what_json_cannot_tell_apart() {
    watched(|| {
        exact([None, Some(None), Some(Some(()))]);
        exact([None, Some(None), Some(Some(None)), Some(Some(Some(Unit)))]);
        exact((i128::MIN, u128::MAX, -1_i128, 5_u128));
        exact((f32::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE));
        exact(BTreeMap::from([((1, Some(Key::One)), "a".to_owned()), ((2, None), "b".to_owned())]));
        exact(BTreeMap::from([(vec![1_u8; 20], ()), (Vec::new(), ())]));
        exact(HashMap::from([(None, 1), (Some(()), 2)]));
        // Inside of what serde itself buffers, too.
        let address =
            |levels| Address { address: [1, 2, 3, 4].into(), since: SystemTime::UNIX_EPOCH, levels };
        for levels in [None, Some(None), Some(Some(()))] {
            exact(Flat { id: 1, point: Point::default(), kind: Internal::Unit, address: address(levels) });
        }
        for [arrived, ..] in [travelled(&f64::NAN), travelled(&-f64::NAN)] {
            assert!(arrived.is_nan());
        }
    });
}

/// Tensors in what serde buffers, and in what has no type.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct FlatTensor {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    scale: Option<f32>,
    #[serde(flatten)]
    part: Part,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Part {
    tensor: Tensor<f32>,
    others: BTreeMap<u8, MaybeTensor>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum MaybeTensor {
    Number(f32),
    Tensor(Tensor<f32>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type")]
enum TaggedTensor {
    Dense { weights: Tensor<f32>, bias: Option<Tensor<f32>> },
    Flat(FlatTensor),
}

#[test]
fn tensors_in_what_serde_buffers_are_the_same_memory() {
    watched(|| {
        let tensor = Tensor::<f32>::zeros(&[4]).unwrap();
        let flat = FlatTensor {
            scale: None,
            part: Part {
                tensor: tensor.clone(),
                others: BTreeMap::from([
                    (1, MaybeTensor::Number(0.5)),
                    (2, MaybeTensor::Tensor(tensor.narrow(0, 1, 2).unwrap())),
                ]),
            },
        };
        let dense = TaggedTensor::Dense { weights: tensor.clone(), bias: Some(tensor.clone()) };
        let model = vec![dense, TaggedTensor::Flat(flat)];
        let mut expected = 0.0;
        for layers in travelled(&model) {
            let [TaggedTensor::Dense { weights, bias: Some(bias) }, TaggedTensor::Flat(flat)] = &layers[..]
            else {
                panic!("{layers:?}")
            };
            let Some(MaybeTensor::Tensor(view)) = flat.part.others.get(&2) else { panic!("{flat:?}") };
            for (part, place) in [(weights, 1), (bias, 1), (&flat.part.tensor, 1), (view, 0)] {
                part.fetch_add(place, 1.0).unwrap();
                expected += 1.0;
                assert_eq!(tensor.get(1).unwrap(), expected);
            }
        }
    });
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type")]
enum Work {
    Fill { shard: Shard<u8>, with: u8 },
}

#[test]
fn shard_in_a_tagged_enum_is_still_one_process_alone() {
    let fill = |_, Work::Fill { mut shard, with }| {
        shard.as_mut_slice()?.fill(with);
        anyhow::Ok(Work::Fill { shard, with })
    };
    watched(move || {
        let shard = Tensor::<u8>::zeros(&[3]).unwrap().into_shards(1).unwrap().remove(0);
        let Work::Fill { mut shard, .. } = spawn(fill, Work::Fill { shard, with: 7 }, 1).unwrap().remove(0);
        assert_eq!(shard.as_mut_slice().unwrap(), [7; 3]);
    });
}
