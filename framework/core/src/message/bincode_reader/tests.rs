//! The decoder accepts the output of the `bincode` crate, and accepted values decode to equal ones.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;

use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::EMPTY_ELEMENTS;
use crate::message::{Codec, CodecError, Coded, MAX_PAYLOAD_BYTES, encode_reply_verified};

fn theirs<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).unwrap()
}

fn ours<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    Codec::Bincode.encode(value, &mut bytes).unwrap();
    bytes
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    Codec::Bincode.decode(bytes)
}

/// Returns the decoded value if it is accepted as a reply.
fn settled<T: Clone + Serialize + DeserializeOwned + 'static>(codec: Codec, value: &T) -> Result<T, CodecError> {
    encode_reply_verified(Ok(value.clone()), codec, &mut Vec::new()).map(|reply| reply.expect("not a rejection"))
}

/// A value of every form that serde supports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Every {
    unsigned: (u8, u16, u32, u64, u128),
    signed: (i8, i16, i32, i64, i128),
    floats: (f32, f64),
    sign: char,
    text: String,
    flag: bool,
    unit: (),
    nothing: Nothing,
    option: Option<u32>,
    newtype: Newtype,
    choices: Vec<Choice>,
    map: BTreeMap<String, Vec<u16>>,
    array: [u16; 3],
    units: Vec<()>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Nothing;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Newtype(i64);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Choice {
    Unit,
    Newtype(String),
    Tuple(u8, i32),
    Struct { a: bool, b: Option<Box<Choice>> },
}

fn choice() -> impl Strategy<Value = Choice> {
    let leaf = prop_oneof![
        Just(Choice::Unit),
        any::<String>().prop_map(Choice::Newtype),
        any::<(u8, i32)>().prop_map(|(a, b)| Choice::Tuple(a, b)),
    ];
    leaf.prop_recursive(8, 16, 1, |inner| {
        (any::<bool>(), proptest::option::of(inner)).prop_map(|(a, b)| Choice::Struct { a, b: b.map(Box::new) })
    })
}

fn every() -> impl Strategy<Value = Every> {
    let numbers = (any::<(u8, u16, u32, u64, u128)>(), any::<(i8, i16, i32, i64, i128)>());
    let small = (-300i64..300, 0u64..70_000);
    let floats = (any::<f32>(), any::<f64>());
    let rest = (any::<char>(), any::<String>(), any::<bool>(), any::<Option<u32>>(), any::<[u16; 3]>());
    let lists = (
        proptest::collection::vec(choice(), 0..5),
        proptest::collection::btree_map(any::<String>(), proptest::collection::vec(any::<u16>(), 0..5), 0..5),
        0usize..9,
    );
    (numbers, small, floats, rest, lists).prop_map(
        |((unsigned, signed), (newtype, small), floats, (sign, text, flag, option, array), (choices, map, units))| {
            Every {
                unsigned: (unsigned.0, unsigned.1, unsigned.2, if flag { small } else { unsigned.3 }, unsigned.4),
                signed,
                floats,
                sign,
                text,
                flag,
                unit: (),
                nothing: Nothing,
                option,
                newtype: Newtype(newtype),
                choices,
                map,
                array,
                units: vec![(); units],
            }
        },
    )
}

proptest! {
    #[test]
    fn bytes_are_those_of_the_bincode_crate(value in every()) {
        let bytes = ours(&value);
        prop_assert_eq!(&bytes, &theirs(&value));
        prop_assert_eq!(decode::<Every>(&bytes).unwrap(), value);
    }

    /// Values that a codec accepts decode to equal values.
    #[test]
    fn accepted_values_decode_to_equal_ones(value in every()) {
        for codec in [Codec::Bincode, Codec::Json] {
            let mut bytes = Vec::new();
            match codec.encode(&value, &mut bytes) {
                Ok(()) => prop_assert_eq!(&codec.decode::<Every>(&bytes).unwrap(), &value),
                Err(error) => prop_assert_eq!(codec, Codec::Json, "{}", error),
            }
            if let Ok(read) = settled(codec, &value) {
                prop_assert_eq!(&read, &value);
            }
        }
    }

    /// Arbitrary bytes are rejected, or decode to a value whose encoding is not larger.
    #[test]
    fn hostile_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(value) = decode::<Every>(&bytes) {
            // Integers in hostile bytes may be longer than necessary.
            prop_assert!(ours(&value).len() <= bytes.len());
        }
    }

    /// The same with hostile lengths and marks.
    #[test]
    fn hostile_lengths_are_refused_or_read(
        length in prop_oneof![any::<u64>(), 0u64..1_000_000],
        tail in proptest::collection::vec(0u8..4, 0..100),
    ) {
        let bytes = [ours(&length), tail].concat();
        let bounded = bytes.len();
        prop_assert!(decode::<Vec<u64>>(&bytes).is_ok_and(|list| list.len() < bounded) || decode::<Vec<u64>>(&bytes).is_err());
        let units = decode::<Vec<()>>(&bytes);
        prop_assert!(units.map_or(true, |list| list.len() <= EMPTY_ELEMENTS));
        let sets = decode::<HashMap<u8, ()>>(&bytes);
        prop_assert!(sets.map_or(true, |map| map.len() < bounded));
        let _ = decode::<String>(&bytes);
        let _ = decode::<Tree>(&bytes);
        let _ = decode::<Chain>(&bytes);
    }
}

/// A recursive type that the derives' check does not detect.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Tree {
    kids: Vec<(std::marker::PhantomData<u8>, Tree)>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Chain(Option<Box<Chain>>);

/// A type that nests without using a byte.
#[derive(Debug, Serialize, Deserialize)]
struct Endless(Box<Endless>);

fn chain(depth: usize) -> Chain {
    (1..depth).fold(Chain(None), |inner, _| Chain(Some(Box::new(inner))))
}

fn tree(depth: usize) -> Tree {
    (1..depth).fold(Tree { kids: Vec::new() }, |inner, _| Tree { kids: vec![(std::marker::PhantomData, inner)] })
}

/// Asserts that every depth that is encoded is decoded, and that the depth is bounded.
fn assert_round_trips<T: Serialize + DeserializeOwned + PartialEq + Debug>(codec: Codec, make: impl Fn(usize) -> T) {
    let mut deepest = 0;
    for depth in 1..200 {
        let mut bytes = Vec::new();
        if codec.encode(&make(depth), &mut bytes).is_ok() {
            assert_eq!(codec.decode::<T>(&bytes).unwrap(), make(depth), "{codec:?}, {depth} levels");
            assert_eq!(deepest + 1, depth, "{codec:?}: a deeper value is accepted than one that is not");
            deepest = depth;
        }
    }
    assert!((30..150).contains(&deepest), "{codec:?}: {deepest} levels");
}

#[test]
fn nesting_that_is_written_is_read() {
    for codec in [Codec::Bincode, Codec::Json] {
        assert_round_trips(codec, tree);
    }
    assert_round_trips(Codec::Bincode, chain);
}

#[test]
fn bytes_that_nest_without_end_are_refused() {
    let bytes = vec![1; MAX_PAYLOAD_BYTES];
    assert!(Codec::Bincode.decode::<Tree>(&bytes).is_err());
    assert!(Codec::Bincode.decode::<Chain>(&bytes).is_err());
    assert!(Codec::Bincode.decode::<Endless>(&[]).is_err());
    assert!(Codec::Json.decode::<Tree>(&b"{\"kids\":[[null,".repeat(9_000)).is_err());
}

#[test]
fn values_that_nest_too_deep_are_refused() {
    // Not deeper: dropping such a value uses the stack as well.
    for depth in [200, 5_000] {
        for codec in [Codec::Bincode, Codec::Json] {
            let mut bytes = vec![7];
            assert!(matches!(codec.encode(&tree(depth), &mut bytes), Err(CodecError::Encode { .. })));
            assert!(matches!(codec.encode(&chain(depth), &mut bytes), Err(CodecError::Encode { .. })));
            assert_eq!(bytes, [7]);
        }
    }
}

#[test]
fn long_lists_of_small_numbers_decode() {
    for count in [131_000, 132_000, 263_000, 300_000, 524_000] {
        let (small, wide) = (vec![Some(7u64); count / 2], vec![7u128; count]);
        assert_eq!(settled(Codec::Bincode, &small).unwrap(), small);
        assert_eq!(settled(Codec::Bincode, &wide).unwrap(), wide);
        assert_eq!(Coded::save(&wide).map(|bytes| <Vec<u128> as Coded>::restore(&bytes)), Ok(Ok(wide)));
    }
}

#[test]
fn elements_without_bytes_are_counted_in_both_directions() {
    let most = vec![(); EMPTY_ELEMENTS];
    assert_eq!(settled(Codec::Bincode, &most).unwrap(), most);
    let more = vec![(); most.len() + 1];
    assert!(settled(Codec::Bincode, &more).is_err());
    assert!(decode::<Vec<()>>(&theirs(&more)).is_err());
    // Splitting them into several lists does not avoid the limit.
    let pieces = vec![vec![(); most.len() / 2]; 3];
    assert!(settled(Codec::Bincode, &pieces).is_err());
    assert!(decode::<Vec<Vec<()>>>(&theirs(&pieces)).is_err());
    assert!(decode::<Vec<()>>(&theirs(&u64::MAX)).is_err());
}

#[test]
fn fields_without_bytes_are_not_counted() {
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Marked(Nothing, std::marker::PhantomData<u64>, (), u8);
    let list: Vec<Marked> = (0..EMPTY_ELEMENTS).map(|n| Marked(Nothing, Default::default(), (), n as u8)).collect();
    assert_eq!(settled(Codec::Bincode, &list).unwrap(), list);
}

/// A type for each serde attribute or value that could once be stored but not decoded, or decoded as another value.
mod attributes {
    use super::*;

    pub(super) const PADDING: &str = "Azzzzzzzzzzz";

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct SkipIf {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        pub(super) coupon: Option<u32>,
        pub(super) paid: u64,
        pub(super) memo: String,
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct SkipIfLast {
        pub(super) paid: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) coupon: Option<u32>,
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct SkipSerializing {
        #[serde(skip_serializing, default)]
        pub(super) a: u8,
        pub(super) b: u64,
        pub(super) c: String,
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    pub(super) enum Tagged {
        A { n: u64 },
        B,
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind", content = "value")]
    pub(super) enum Adjacent {
        A(u64),
        B,
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Untagged {
        A { a: u8 },
        B { a: u8, b: u8 },
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) enum SkippedVariant {
        A,
        #[serde(skip)]
        B,
        C(u64),
        D(u64),
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Flattened {
        pub(super) id: u64,
        #[serde(flatten)]
        pub(super) rest: BTreeMap<String, u64>,
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Any {
        pub(super) any: serde_json::Value,
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Renamed {
        #[serde(rename(serialize = "b", deserialize = "c"), default)]
        pub(super) a: u64,
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Tenfold(#[serde(with = "tenfold")] pub(super) u64);

    mod tenfold {
        pub(super) fn serialize<S: serde::Serializer>(n: &u64, to: S) -> Result<S::Ok, S::Error> {
            to.serialize_u64(n * 10)
        }

        pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
            serde::Deserialize::deserialize(from)
        }
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Keyed {
        pub(super) map: BTreeMap<(u8, u8), u8>,
    }
}

/// Returns whether a reply with the value is accepted; an accepted value must decode to an equal one.
fn accepts<T: Clone + Serialize + DeserializeOwned + PartialEq + Debug + 'static>(codec: Codec, value: &T) -> bool {
    let mut bytes = vec![9];
    match encode_reply_verified(Ok(value.clone()), codec, &mut bytes) {
        Ok(read) => {
            assert_eq!(read.as_ref(), Ok(value), "{codec:?}");
            assert_eq!(T::read_reply(codec, &bytes[1..]).unwrap().as_ref(), Ok(value), "{codec:?}");
            true
        }
        Err(error) => {
            assert_eq!(bytes, [9], "{codec:?}: {error}");
            assert!(matches!(error, CodecError::Encode { .. }), "{error}");
            false
        }
    }
}

/// Returns the same for both codecs, and for a state.
fn accepted<T: Clone + Serialize + DeserializeOwned + PartialEq + Debug + 'static>(value: T) -> (bool, bool) {
    let both = [Codec::Bincode, Codec::Json].map(|codec| accepts(codec, &value));
    assert_eq!(value.save().is_ok(), both[0], "a state is a value in bincode");
    both.into()
}

#[test]
fn attributes_are_refused_or_decode_to_equal_values() {
    use attributes::*;
    let memo = || PADDING.to_owned();
    // The first of each pair is bincode, the second JSON.
    assert_eq!(accepted(SkipIf { coupon: None, paid: 0, memo: memo() }), (false, true));
    assert_eq!(accepted(SkipIf { coupon: Some(1), paid: 0, memo: memo() }), (true, true));
    assert_eq!(accepted(SkipIfLast { paid: 1, coupon: None }), (false, true));
    assert_eq!(accepted(SkipSerializing { a: 0, b: 0, c: memo() }), (false, true));
    assert_eq!(accepted(SkipSerializing { a: 0, b: 1, c: String::new() }), (false, true));
    assert_eq!(accepted(Tagged::A { n: 1 }), (false, true));
    assert_eq!(accepted(Tagged::B), (false, true));
    assert!(accepted(Adjacent::A(1)).1);
    assert!(accepted(Adjacent::B).1);
    assert_eq!(accepted(Untagged::A { a: 1 }), (false, true));
    assert_eq!(accepted(Untagged::B { a: 1, b: 2 }), (false, false));
    assert_eq!(accepted(SkippedVariant::A), (true, true));
    assert_eq!(accepted(SkippedVariant::B), (false, false));
    assert_eq!(accepted(SkippedVariant::C(5)), (false, true));
    assert_eq!(accepted(SkippedVariant::D(5)), (false, true));
    assert_eq!(accepted(Flattened { id: 1, rest: BTreeMap::from([("a".to_owned(), 2)]) }), (false, true));
    assert_eq!(accepted(Any { any: serde_json::json!({"a": [1, null]}) }), (false, true));
    assert_eq!(accepted(Renamed { a: 1 }), (true, false));
    assert_eq!(accepted(Tenfold(7)), (false, false));
    assert_eq!(accepted(Keyed { map: BTreeMap::from([((1, 2), 3)]) }), (true, false));
}

#[test]
fn numbers_and_nulls_that_json_lacks_are_refused() {
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(!accepts(Codec::Json, &number));
        assert!(!accepts(Codec::Json, &(number as f32)));
        assert!(!accepts(Codec::Json, &vec![Some(number)]));
        assert!(Codec::Json.encode(&Some(number), &mut Vec::new()).is_err());
    }
    assert!(accepts(Codec::Bincode, &f64::INFINITY));
    assert_eq!(accepted(Some(None::<u8>)), (true, false));
    assert_eq!(accepted(Some(())), (true, false));
    assert_eq!(accepted(Some(serde_json::Value::Null)), (false, false));
    assert_eq!(accepted(Some(vec![None::<u8>])), (true, true));
    assert_eq!(accepted(Some(Some(1))), (true, true));
    for number in [907.303_832_202_868_9, f64::MIN_POSITIVE, f64::MAX, -0.0, 0.1 + 0.2] {
        assert_eq!(accepted(number), (true, true));
    }
    assert_eq!(accepted(u128::MAX), (true, true));
}
