use std::collections::BTreeMap;
use std::fmt::Debug;

use proptest::prelude::*;
use serde::de::{self, IgnoredAny, Visitor};
use serde::ser::{SerializeMap, SerializeSeq, SerializeStruct};
use serde::{Deserialize, Deserializer, Serializer};
use serde_json::json;

use super::*;

fn back<T: Serialize + DeserializeOwned>(value: &T) -> T {
    read(&write(value).unwrap()).unwrap()
}

/// A value of everything that serde has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Any {
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
struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct New(Vec<f32>);

#[test]
fn bytes_are_those_that_the_documentation_shows() {
    #[derive(Serialize)]
    struct Point {
        x: u8,
        y: u16,
    }
    let point = [tag::STRUCT, 3, b'x', 5, 3, b'y', tag::U16, 0x2C, 0x01, 0];
    assert_eq!(write(&Point { x: 5, y: 300 }).unwrap(), point);
    let head = [&[tag::SEQ, 0xE8, 7, tag::RUN, tag::F32][..], &1000_u64.to_le_bytes()].concat();
    let bytes = write(&vec![1.5_f32; 1000]).unwrap();
    assert!(bytes.starts_with(&head) && bytes.len() == 4014, "{bytes:?}");
    // What does not continue the run ends it, and later numbers stand alone.
    let mut mixed = vec![tag::SEQ, 9, tag::RUN, tag::U8, 8, 0, 0, 0, 0, 0, 0, 0];
    mixed.extend([7; 8]);
    mixed.extend([1, tag::END]);
    assert_eq!(write(&(7_u8, 7_u8, 7_u8, 7_u8, 7_u8, 7_u8, 7_u8, 7_u8, 1_u16)).unwrap(), mixed);
}

/// Bytes as serde has them.
#[derive(Clone, Debug, PartialEq)]
struct Bytes(Vec<u8>);

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

fn loose() -> impl Strategy<Value = serde_json::Value> {
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

fn anything() -> impl Strategy<Value = Any> {
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

proptest! {
    #[test]
    fn any_value_comes_back(value in anything()) {
        prop_assert_eq!(back(&value), value);
    }

    #[test]
    fn any_json_comes_back(value in loose()) {
        prop_assert_eq!(back(&value), value);
    }

    #[test]
    fn any_bytes_are_an_error_at_worst(bytes: Vec<u8>) {
        let _ = read::<Any>(&bytes).map(drop);
        let _ = read::<serde_json::Value>(&bytes).map(drop);
        let _ = read::<Vec<IgnoredAny>>(&bytes).map(drop);
    }

    #[test]
    fn any_damage_is_an_error_at_worst(value in anything(), flips in proptest::collection::vec(any::<(usize, u8)>(), 1..4)) {
        let mut bytes = write(&value).unwrap();
        for (place, flip) in flips {
            let place = place % bytes.len();
            bytes[place] ^= flip;
        }
        let _ = read::<Any>(&bytes).map(drop);
        let _ = read::<serde_json::Value>(&bytes).map(drop);
        let _ = read::<IgnoredAny>(&bytes).map(drop);
    }

    #[test]
    fn any_beginning_is_an_error(value in anything(), cut: usize) {
        let bytes = write(&value).unwrap();
        prop_assert!(read::<Any>(&bytes[..cut % bytes.len()]).is_err());
    }
}

#[test]
fn small_values_have_few_bytes() {
    #[derive(Serialize)]
    struct Point {
        x: u8,
        y: i32,
    }
    assert_eq!(write(&5_u64).unwrap(), [5]);
    assert_eq!(write(&200_u64).unwrap(), [tag::U8, 200]);
    assert_eq!(write(&-1_i64).unwrap(), [tag::I8, 255]);
    assert_eq!(write(&Some(7_u128)).unwrap(), [tag::SOME, 7]);
    assert_eq!(write(&(1, "a")).unwrap(), [tag::SEQ, 2, 1, tag::STR, 1, b'a', tag::END]);
    // A name is there once.
    let points = [Point { x: 1, y: 2 }, Point { x: 3, y: 4 }];
    let first = [tag::SEQ, 2, tag::STRUCT, 3, b'x', 1, 3, b'y', 2, 0];
    assert_eq!(
        write(&points).unwrap(),
        [&first[..], &[tag::STRUCT, 2 * 3, 3, 2 * 6, 4, 0, tag::END]].concat()
    );
    assert_eq!(write(&vec![7_u16; 1000]).unwrap().len(), 1 + 2 + 2 + 8 + 2000 + 1);
}

/// Numbers, of which some may be of another kind.
#[test]
fn runs_end_where_another_kind_begins() {
    let numbers = |from: u64| (from..from + 9).map(|number| json!(number)).collect::<Vec<_>>();
    let others =
        [json!(-1), json!(1.5), json!("text"), json!(null), json!([1, 2, 3, 4, 5, 6, 7, 8, 9]), json!({})];
    for other in others {
        for place in 0..=9 {
            let mut list = numbers(250);
            list.insert(place, other.clone());
            assert_eq!(back(&list), list);
        }
    }
    assert_eq!(back(&[[3_u8; 9]; 9]), [[3; 9]; 9]);
    let maybe = (0..20_u8).map(|number| (number % 3 > 0).then_some(number)).collect::<Vec<_>>();
    assert_eq!(back(&maybe), maybe);
    assert_eq!(back(&(0..20).map(|number| (number, "x".to_owned())).collect::<Vec<_>>()).len(), 20);
}

/// Says that it has other numbers of parts than it has.
struct Liar(usize);

impl Serialize for Liar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.0))?;
        (0..3).try_for_each(|number| seq.serialize_element(&number))?;
        seq.end()
    }
}

#[test]
fn lengths_that_a_type_states_are_no_more_than_hints() {
    for said in [0, 2, 3, 9, 1 << 40] {
        assert_eq!(read::<Vec<u8>>(&write(&Liar(said)).unwrap()).unwrap(), [0, 1, 2], "{said}");
    }
    // Nor may bytes make this process reserve memory.
    let huge = [&[tag::SEQ][..], &[255; 9], &[1]].concat();
    assert!(read::<Vec<u64>>(&huge).is_err());
    let run = [&[tag::SEQ, 8, tag::RUN, tag::U64][..], &(u64::MAX / 8).to_le_bytes()].concat();
    assert!(read::<Vec<u64>>(&run).unwrap_err().to_string().contains("a run of numbers"));
}

#[test]
fn hostile_depth_is_an_error() {
    for open in [
        &[tag::SEQ, 0][..],
        &[tag::MAP, 0, tag::STR, 1, b'a'],
        &[tag::STRUCT, 3, b'a'],
        &[tag::VARIANT, 3, b'a'],
    ] {
        let bytes = open.repeat(100_000);
        assert!(read::<serde_json::Value>(&bytes).unwrap_err().to_string().contains("128 deep"), "{open:?}");
        assert!(read::<IgnoredAny>(&bytes).unwrap_err().to_string().contains("128 deep"));
    }
    let mut some = vec![tag::SOME; 100_000];
    some.push(tag::UNIT);
    assert!(read::<IgnoredAny>(&some).unwrap_err().to_string().contains("128 deep"));
    // What the type itself says may be deeper.
    #[derive(Serialize, Deserialize)]
    struct Node(Option<Box<Node>>);
    let list = (0..1000).fold(Node(None), |list, _| Node(Some(Box::new(list))));
    let (list, mut depth) = (back(&list), 0);
    let mut node = &list;
    while let Some(next) = &node.0 {
        (node, depth) = (next, depth + 1);
    }
    assert_eq!(depth, 1000);
}

#[test]
fn many_names_are_told_apart() {
    let name = |number: usize| -> &'static str { Box::leak(format!("field{number}").into_boxed_str()) };
    struct Wide(Vec<&'static str>);
    impl Serialize for Wide {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut fields = serializer.serialize_struct("Wide", self.0.len())?;
            self.0.iter().try_for_each(|name| fields.serialize_field(name, name))?;
            fields.end()
        }
    }
    const MOST: usize = 1024;
    let wide = || Wide((0..MOST + 100).map(name).collect());
    let (one, other) = (wide(), wide());
    for fields in read::<[BTreeMap<String, String>; 4]>(&write(&(&one, &one, &other, &one)).unwrap()).unwrap()
    {
        assert_eq!(fields.len(), MOST + 100);
        assert!(fields.iter().all(|(name, value)| name == value));
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Args {
    name: String,
    config: Config,
    layers: Vec<(Layer,)>,
    table: BTreeMap<String, Layer>,
    by_number: BTreeMap<i32, Layer>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Config {
    learning_rate: Layer,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layer {
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

fn args_with(layer: Layer, place: usize) -> Args {
    let layer = |number| if number == place { layer } else { Layer::Fine };
    Args {
        name: "run".to_owned(),
        config: Config { learning_rate: layer(0) },
        layers: vec![(layer(9),), (layer(1),)],
        table: BTreeMap::from([("a".to_owned(), layer(9)), ("b".to_owned(), layer(2))]),
        by_number: BTreeMap::from([(-5, layer(3))]),
    }
}

#[test]
fn errors_name_type_and_field_and_keep_the_types_words() {
    let name = std::any::type_name::<Args>();
    for (place, field) in
        ["config.learning_rate", "layers[1][0]", r#"table["b"]"#, "by_number[-5]"].iter().enumerate()
    {
        let error = write(&args_with(Layer::Unwritable, place)).unwrap_err();
        assert_eq!(error.of_type::<Args>(), format!("`{field}` of {name}: not on Mondays"));
        let bytes = write(&args_with(Layer::Unreadable, place)).unwrap();
        let error = read::<Args>(&bytes).unwrap_err();
        assert_eq!(error.of_type::<Args>(), format!("`{field}` of {name}: not on Tuesdays"));
    }
    let error = read::<u8>(&write(&300).unwrap()).unwrap_err();
    assert!(error.of_type::<u8>().starts_with("u8: invalid value: integer `300`, expected"), "{error}");
    let bytes = write(&Any::List(vec![Any::Bool(true), Any::Maybe(Some(Box::new(Any::Unit)))])).unwrap();
    let error = read::<Any>(&[&bytes[..bytes.len() - 3], b"\xfe\xff\xff"].concat()).unwrap_err();
    assert!(error.to_string().starts_with("`List[1].Maybe`: "), "{error}");
    assert!(read::<u8>(&[1, 2]).unwrap_err().to_string().contains("1 of 2 bytes were left over"));
}

/// What reads otherwise than it writes.
fn as_read<T: Serialize + ?Sized, B: DeserializeOwned>(value: &T) -> B {
    read(&write(value).unwrap()).unwrap()
}

#[test]
fn types_that_read_another_form_than_they_write_are_read_as_json_reads_them() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        One,
        Two(u8),
    }
    assert_eq!(as_read::<_, Option<u8>>(&5_u8), Some(5));
    assert_eq!(as_read::<_, u8>(&Some(5_u8)), 5);
    assert_eq!(as_read::<_, Option<u8>>(&()), None);
    assert_eq!(as_read::<_, ()>(&None::<u8>), ());
    assert_eq!(as_read::<_, Kind>("One"), Kind::One);
    assert_eq!(as_read::<_, String>(&Kind::One), "One");
    assert_eq!(as_read::<_, Kind>(&json!({ "Two": 7 })), Kind::Two(7));
    assert_eq!(as_read::<_, BTreeMap<String, u8>>(&Kind::Two(7)), BTreeMap::from([("Two".to_owned(), 7)]));
    assert_eq!(as_read::<_, serde_json::Value>(&(Kind::One, Kind::Two(1))), json!(["One", { "Two": 1 }]));
    assert_eq!(as_read::<_, Vec<u8>>(&Bytes(vec![1, 2])), [1, 2]);
    assert_eq!(as_read::<_, Bytes>("text"), Bytes(b"text".to_vec()));
    assert_eq!(as_read::<_, (f64, f64)>(&(1.5_f32, -3)), (1.5, -3.0));
    assert_eq!(as_read::<_, char>("x"), 'x');
    assert_eq!(as_read::<_, String>(&'x'), "x");
    assert_eq!(as_read::<_, Vec<Option<u16>>>(&[7_u16; 9]), [Some(7); 9]);
    let args: Args = as_read(&("run", (true,), [(); 0], json!({}), json!({})));
    assert_eq!(args.name, "run");
}

/// A visitor that stops early, and one that knows one width only.
#[test]
fn what_is_left_unread_is_an_error_and_narrow_visitors_are_served() {
    struct First;
    impl<'de> Visitor<'de> for First {
        type Value = u8;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("anything")
        }
        fn visit_u8<E>(self, number: u8) -> Result<u8, E> {
            Ok(number)
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<u8, A::Error> {
            Ok(seq.next_element()?.unwrap_or(0))
        }
        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<u8, A::Error> {
            Ok(map.next_entry::<IgnoredAny, _>()?.map_or(0, |(_, value)| value))
        }
    }
    let first = |bytes: &[u8]| input::Reader::new(bytes).deserialize_seq(First);
    assert_eq!(first(&write(&[1_u8]).unwrap()).unwrap(), 1);
    for more in [write(&[1, 2]), write(&[1; 20]), write(&json!({ "a": 1, "b": 2 }))] {
        let error = first(&more.unwrap()).unwrap_err().to_string();
        assert!(error.contains("there are more") || error.contains("not all"), "{error}");
    }
    assert_eq!(input::Reader::new(&[7]).deserialize_u8(First).unwrap(), 7);
}

#[test]
fn maps_of_unknown_length_and_keys_of_any_kind() {
    struct Entries(Vec<(Any, u8)>);
    impl Serialize for Entries {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(None)?;
            self.0.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
            map.end()
        }
    }
    let entries = Entries(vec![(Any::Unit, 1), (Any::Bool(true), 2), (Any::Small(vec![1; 9]), 3)]);
    struct Pairs(Vec<(Any, u8)>);
    impl<'de> Deserialize<'de> for Pairs {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Read;
            impl<'de> Visitor<'de> for Read {
                type Value = Pairs;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("a map")
                }
                fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                    let mut pairs = Vec::new();
                    while let Some(pair) = map.next_entry()? {
                        pairs.push(pair);
                    }
                    Ok(Pairs(pairs))
                }
            }
            deserializer.deserialize_map(Read)
        }
    }
    assert_eq!(as_read::<_, Pairs>(&entries).0, entries.0);
}

#[test]
fn struct_is_written_while_the_threads_own_things_are_destroyed() {
    struct Last;
    impl Drop for Last {
        fn drop(&mut self) {
            assert!(!write(&Mixed { a: 1, b: true }).unwrap().is_empty());
        }
    }
    #[derive(Serialize)]
    struct Mixed {
        a: u8,
        b: bool,
    }
    thread_local! {
        static LAST: Last = const { Last };
    }
    let thread = std::thread::spawn(|| {
        // Registered first, so destroyed last: after what the writer keeps for the thread.
        LAST.with(|_| ());
        write(&Mixed { a: 2, b: false }).unwrap();
    });
    thread.join().unwrap();
}
