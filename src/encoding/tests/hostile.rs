//! Bytes that no writer has written, types that state wrong lengths or refuse, and the words of the errors.

use proptest::prelude::*;
use serde::de::{self, IgnoredAny, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;

use super::super::{input, read, tag, write};
use super::values::{Any, Args, Layer, anything, args_with, back};

proptest! {
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
    assert!(read::<Vec<u64>>(&run).unwrap_err().to_string().contains("numbers of tag"));
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
    assert!(read::<u8>(&[1, 2]).unwrap_err().to_string().contains("1 of 2 bytes were not read"));
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
        assert!(error.contains("has not read all parts"), "{error}");
    }
    assert_eq!(input::Reader::new(&[7]).deserialize_u8(First).unwrap(), 7);
}
