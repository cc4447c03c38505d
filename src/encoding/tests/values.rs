//! What the tests write and read: a value of everything that serde has, and one whose parts refuse.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::de::{self, DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;

use super::super::{read, write};

pub(super) fn back<T: Serialize + DeserializeOwned>(value: &T) -> T {
    read(&write(value).unwrap()).unwrap()
}

/// A value of everything that serde has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Any {
    Unit,
    Bool(bool),
    Numbers(u8, i16, u32, i64, u128, i128),
    Float { bits: u64, float: f64 },
    Text(String, char),
    Bytes(Bytes),
    Small(Vec<u8>),
    Large(Vec<i64>),
    Nested(Option<Option<Option<()>>>),
    Maybe(Option<Box<Any>>),
    List(Vec<Any>),
    Map(BTreeMap<i32, Any>),
    Loose(serde_json::Value),
    Struct { first: Box<Any>, second: (Box<Any>, Unit), third: New },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct New(pub(super) Vec<f32>);

/// Bytes as serde has them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Taken;
        impl Visitor<'_> for Taken {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Taken)
    }
}

pub(super) fn loose() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|value| json!(value)),
        any::<u64>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        (-1e300..1e300).prop_map(|value| json!(value)),
        ".*".prop_map(|value| json!(value)),
    ];
    leaf.prop_recursive(4, 64, 12, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..12).prop_map(|list| json!(list)),
            proptest::collection::btree_map(".*", inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}

pub(super) fn anything() -> impl Strategy<Value = Any> {
    let leaf = prop_oneof![
        Just(Any::Unit),
        any::<bool>().prop_map(Any::Bool),
        any::<(u8, i16, u32, i64, u128, i128)>()
            .prop_map(|(a, b, c, d, e, f)| Any::Numbers(a, b, c, d, e, f)),
        any::<i8>().prop_map(|small| Any::Numbers(0, small.into(), 0, small.into(), 7, small.into())),
        any::<f64>().prop_map(|float| Any::Float { bits: float.to_bits(), float }),
        any::<(String, char)>().prop_map(|(text, char)| Any::Text(text, char)),
        any::<Vec<u8>>().prop_map(|bytes| Any::Bytes(Bytes(bytes))),
        any::<Vec<u8>>().prop_map(Any::Small),
        any::<Vec<i64>>().prop_map(Any::Large),
        any::<Option<Option<Option<()>>>>().prop_map(Any::Nested),
        loose().prop_map(Any::Loose),
    ];
    leaf.prop_recursive(4, 48, 10, |inner| {
        prop_oneof![
            proptest::option::of(inner.clone().prop_map(Box::new)).prop_map(Any::Maybe),
            proptest::collection::vec(inner.clone(), 0..10).prop_map(Any::List),
            proptest::collection::btree_map(any::<i32>(), inner.clone(), 0..5).prop_map(Any::Map),
            (inner.clone(), inner, any::<Vec<i8>>()).prop_map(|(first, second, third)| Any::Struct {
                first: Box::new(first),
                second: (Box::new(second), Unit),
                third: New(third.into_iter().map(f32::from).collect()),
            }),
        ]
    })
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Args {
    pub(super) name: String,
    pub(super) config: Config,
    pub(super) layers: Vec<(Layer,)>,
    pub(super) table: BTreeMap<String, Layer>,
    pub(super) by_number: BTreeMap<i32, Layer>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Config {
    pub(super) learning_rate: Layer,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Layer {
    Fine,
    Unwritable,
    Unreadable,
}

impl Serialize for Layer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unwritable => Err(serde::ser::Error::custom("not on Mondays")),
            _ => serializer.serialize_bool(*self == Self::Fine),
        }
    }
}

impl<'de> Deserialize<'de> for Layer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fine = bool::deserialize(deserializer)?;
        if fine { Ok(Self::Fine) } else { Err(de::Error::custom("not on Tuesdays")) }
    }
}

pub(super) fn args_with(layer: Layer, place: usize) -> Args {
    let layer = |number| if number == place { layer } else { Layer::Fine };
    Args {
        name: "run".to_owned(),
        config: Config { learning_rate: layer(0) },
        layers: vec![(layer(9),), (layer(1),)],
        table: BTreeMap::from([("a".to_owned(), layer(9)), ("b".to_owned(), layer(2))]),
        by_number: BTreeMap::from([(-5, layer(3))]),
    }
}

/// What reads otherwise than it writes.
pub(super) fn as_read<T: Serialize + ?Sized, B: DeserializeOwned>(value: &T) -> B {
    read(&write(value).unwrap()).unwrap()
}
