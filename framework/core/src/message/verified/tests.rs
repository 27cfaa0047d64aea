//! Accepted values read back as equal ones in any order of their maps and sets, and swapped parts are detected.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;

use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Trust, encode_command_verified, encode_reply_verified};
use crate::message::{Codec, CodecError, Coded, Command, Domain, Key, Kind, Message};

/// Swaps two parts of a value, as a wrong `Deserialize` might.
trait Swap: Sized {
    fn swap(self) -> Self;
}

/// A value that decodes as the swapped one.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Swapped<T>(T);

impl<'de, T: Deserialize<'de> + Swap> Deserialize<'de> for Swapped<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::deserialize(from).map(|value| Self(value.swap()))
    }
}

impl<A> Swap for (A, A) {
    fn swap(self) -> Self {
        (self.1, self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pair {
    debit: u32,
    credit: u32,
}

impl Swap for Pair {
    fn swap(self) -> Self {
        Self { debit: self.credit, credit: self.debit }
    }
}

/// The values of the smallest and the largest key are swapped.
impl<K: Clone + Ord + std::hash::Hash, V: Clone> Swap for HashMap<K, V> {
    fn swap(mut self) -> Self {
        let ends = self.keys().min().cloned().zip(self.keys().max().cloned());
        if let Some((low, high)) = ends
            && let Some((one, other)) = self.get(&low).cloned().zip(self.get(&high).cloned())
        {
            self.insert(low, other);
            self.insert(high, one);
        }
        self
    }
}

impl<K: Clone + Ord, V: Clone> Swap for BTreeMap<K, V> {
    fn swap(self) -> Self {
        let (keys, mut values): (Vec<_>, Vec<_>) = self.into_iter().unzip();
        let step = values.len().min(1);
        values.rotate_right(step);
        keys.into_iter().zip(values).collect()
    }
}

/// Returns whether the value is accepted as a reply and, in bincode, as a state; an accepted value must decode to an
/// equal one.
fn accepts<T: Clone + PartialEq + Debug + Serialize + DeserializeOwned + 'static>(codec: Codec, value: &T) -> bool {
    let settled = encode_reply_verified(Ok(value.clone()), codec, &mut Vec::new());
    let is_accepted = settled.is_ok();
    if codec == Codec::Bincode {
        assert_eq!(value.save().is_ok(), is_accepted, "as a state: {value:?}");
    }
    if let Ok(read) = settled {
        assert_eq!(read.as_ref(), Ok(value));
    }
    is_accepted
}

/// A value with nested maps, sets, lists and tuples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Held {
    maps: HashMap<String, HashMap<u16, (i64, Option<bool>)>>,
    sets: Vec<HashSet<u32>>,
    ordered: BTreeMap<u8, Vec<HashSet<String>>>,
    choice: Option<Box<Choice>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Choice {
    Unit,
    Map(HashMap<u32, Choice>),
    Both { left: HashSet<u8>, right: HashSet<u8> },
}

fn choice() -> impl Strategy<Value = Choice> {
    let set = || proptest::collection::hash_set(any::<u8>(), 0..6);
    let leaf = prop_oneof![Just(Choice::Unit), (set(), set()).prop_map(|(left, right)| Choice::Both { left, right })];
    leaf.prop_recursive(4, 24, 4, |inner| {
        proptest::collection::hash_map(any::<u32>(), inner, 0..4).prop_map(Choice::Map)
    })
}

fn held() -> impl Strategy<Value = Held> {
    use proptest::collection::{btree_map, hash_map, hash_set, vec};
    let inner = hash_map(any::<u16>(), any::<(i64, Option<bool>)>(), 0..6);
    let parts = (
        hash_map("[a-c\"\\\\]{0,3}", inner, 0..5),
        vec(hash_set(any::<u32>(), 0..8), 0..4),
        btree_map(any::<u8>(), vec(hash_set("[x-z]{0,2}", 0..4), 0..3), 0..4),
        proptest::option::of(choice().prop_map(Box::new)),
    );
    parts.prop_map(|(maps, sets, ordered, choice)| Held { maps, sets, ordered, choice })
}

proptest! {
    #[test]
    fn maps_and_sets_read_back_in_any_order(value in held()) {
        for codec in [Codec::Bincode, Codec::Json] {
            prop_assert!(accepts(codec, &value), "{:?}", codec);
        }
    }

    #[test]
    fn swapped_values_of_maps_are_refused(
        map in proptest::collection::hash_map(any::<u32>(), any::<u16>(), 0..6),
        texts in proptest::collection::btree_map("[a-c]{1,2}", "[a-c]{0,2}", 0..4),
    ) {
        for codec in [Codec::Bincode, Codec::Json] {
            prop_assert_eq!(accepts(codec, &Swapped(map.clone())), map == map.clone().swap());
            prop_assert_eq!(accepts(codec, &Swapped(texts.clone())), texts == texts.clone().swap());
        }
    }

    #[test]
    fn swapped_fields_are_refused(debit in 0u32..300, credit in 0u32..300, beside in proptest::collection::hash_set(0u8..9, 0..9)) {
        let pair = Pair { debit, credit };
        for codec in [Codec::Bincode, Codec::Json] {
            let is_same = debit == credit;
            prop_assert_eq!(accepts(codec, &(beside.clone(), Swapped(pair.clone()))), is_same);
            prop_assert_eq!(accepts(codec, &vec![Swapped((debit, credit))]), is_same);
        }
    }
}

struct Bank;

impl Domain for Bank {
    const NAME: &'static str = "bank";
}

/// A command whose account decodes differently.
#[derive(Debug, Serialize, Deserialize)]
struct Pay {
    #[serde(deserialize_with = "lower_case")]
    account: String,
}

fn lower_case<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|text| text.to_lowercase())
}

/// A command whose key is not encoded.
#[derive(Debug, Serialize, Deserialize)]
struct Lost {
    #[serde(skip)]
    account: String,
}

macro_rules! command {
    ($type:ident) => {
        impl Message for $type {
            type Domain = Bank;
            const NAME: &'static str = stringify!($type);
            const KIND: Kind = Kind::Command;

            fn encode(&self, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError> {
                codec.encode(self, into)
            }

            fn decode(_: u32, codec: Codec, bytes: &[u8]) -> Result<Self, CodecError> {
                codec.decode(bytes)
            }
        }

        impl Command for $type {
            type Reply = ();

            fn key(&self) -> Key<'_> {
                Key::from(&self.account)
            }
        }
    };
}

command!(Pay);
command!(Lost);

#[test]
fn command_that_reads_back_with_another_key_is_refused() {
    for codec in [Codec::Bincode, Codec::Json] {
        let mut bytes = vec![7];
        let text = |refused: Result<_, CodecError>| refused.map(|_: Option<Lost>| ()).unwrap_err().to_string();
        let lost = encode_command_verified(&Lost { account: "ada".into() }, codec, &mut bytes);
        assert!(text(lost).contains("its key `ada` reads as ``"));
        assert!(encode_command_verified(&Pay { account: "Ada".into() }, codec, &mut bytes).is_err());
        assert_eq!(bytes, [7]);
        assert!(encode_command_verified(&Pay { account: "ada".into() }, codec, &mut bytes).is_ok());
    }
}

#[test]
fn trusted_type_is_checked_once() {
    let trust = Trust::new();
    assert!(!trust.is_complete());
    assert!(trust.is_complete() && trust.is_complete());
}
