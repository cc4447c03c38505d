//! Values there and back, and the bytes between.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::de::{self, Visitor};
use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;

use super::super::{read, tag, write};
use super::values::{Any, Args, Bytes, anything, as_read, back, loose};

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

proptest! {
    #[test]
    fn any_value_comes_back(value in anything()) {
        prop_assert_eq!(back(&value), value);
    }

    #[test]
    fn any_json_comes_back(value in loose()) {
        prop_assert_eq!(back(&value), value);
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
