//! Shapes of types of every form, and the changes that are detected.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

use super::*;

fn bincode<T: DeserializeOwned + 'static>() -> String {
    Shape::of::<T>(Codec::Bincode).to_string()
}

fn difference<Old: DeserializeOwned + 'static, New: DeserializeOwned + 'static>(codec: Codec) -> Option<Difference> {
    // The stored shape has been written to and read from the store.
    let stored = Shape::from_text(&Shape::of::<Old>(codec).to_text());
    assert_eq!(stored, *Shape::of::<Old>(codec));
    stored.difference(&Shape::of::<New>(codec), codec)
}

macro_rules! types {
    ($($(#[$attribute:meta])* $name:ident $body:tt)*) => {
        $($(#[$attribute])* #[derive(Deserialize)] #[allow(dead_code)] struct $name $body)*
    };
}

#[derive(Deserialize)]
#[allow(dead_code)]
enum Kinds {
    Nothing,
    One(u64),
    Two(u8, String),
    Named { at: i64, inner: Inner },
}

#[derive(Deserialize)]
#[allow(dead_code)]
enum Inner {
    First(NonZeroU32),
    Second,
}

/// An id that is text in readable formats and bytes otherwise, like a UUID.
struct Id;

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        struct Sixteen;
        impl serde::de::Visitor<'_> for Sixteen {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a UUID")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id, E> {
                text.parse::<uuid::Uuid>().map(|_| Id).map_err(E::custom)
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Id, E> {
                if bytes.len() == 16 { Ok(Id) } else { Err(E::invalid_length(bytes.len(), &self)) }
            }
        }
        let human = from.is_human_readable();
        let read = if human { from.deserialize_str(Sixteen) } else { from.deserialize_bytes(Sixteen) };
        read.map_err(D::Error::custom)
    }
}

types! {
    Rich {
        flag: bool,
        kinds: Kinds,
        list: Vec<Option<u32>>,
        map: BTreeMap<String, HashMap<u16, ()>>,
        row: (u8, f64, char),
        bytes: [u8; 32],
        id: Id,
        wait: Duration,
        last: i8,
    }
}

#[test]
fn shape_shows_every_part_of_a_type() {
    assert_eq!(
        bincode::<Rich>(),
        "{flag: bool, kinds: <Nothing (), One u64, Two (u8, text), Named {at: i64, inner: <First u32, Second ()>}>, \
         list: [optional u32], map: {text => {u16 => ()}}, row: (u8, f64, char), bytes: [u8; 32], id: bytes, \
         wait: {secs: u64, nanos: u32}, last: i8}"
    );
    assert!(Shape::of::<Rich>(Codec::Json).to_string().contains("id: text"));
}

/// A type that accepts none of the samples.
#[derive(Deserialize)]
#[serde(try_from = "String")]
#[allow(dead_code)]
struct Strict(String);

impl TryFrom<String> for Strict {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text == "the one word" { Ok(Self(text)) } else { Err(text) }
    }
}

#[derive(Deserialize)]
#[serde(tag = "kind")]
#[allow(dead_code)]
enum Tagged {
    A { n: u64 },
    B,
}

#[derive(Deserialize)]
#[allow(dead_code)]
enum Tree {
    Node(Box<Tree>, Box<Tree>),
    Leaf(u8),
}

types! {
    Guarded { strict: Strict, next: u64, tagged: Tagged, last: bool }
    Forest { trees: Vec<Tree>, last: u8 }
    Chain { next: Option<Box<Chain>>, last: u8 }
    Flat { #[serde(flatten)] rest: HashMap<String, u64>, n: u64 }
}

#[test]
fn refusing_field_hides_only_itself() {
    assert_eq!(Shape::of::<Guarded>(Codec::Json).to_string(), "{strict: text, next: u64, tagged: ?, last: bool}");
    assert_eq!(bincode::<Guarded>(), "{strict: text, next: u64, tagged: ?, last: bool}");
}

#[test]
fn unsupported_types_are_opaque() {
    assert_eq!(Shape::of::<serde_json::Value>(Codec::Json).to_string(), "?");
    // The shape may be incomplete, but it is the same each time.
    assert!(difference::<Flat, Flat>(Codec::Json).is_none());
}

#[test]
fn recursive_types_have_an_end() {
    for shape in [bincode::<Forest>(), bincode::<Chain>()] {
        assert!(shape.contains("itself") && shape.ends_with("last: u8}"), "{shape}");
    }
    assert!(difference::<Forest, Forest>(Codec::Bincode).is_none());
}

types! {
    FromTo { from: u64, to: u64 }
    ToFrom { to: u64, from: u64 }
    Signed { from: i64, to: u64 }
    Float { from: f64, to: u64 }
    Text { from: String, to: u64 }
    Shorter { from: u64 }
    Longer { from: u64, to: u64, memo: String }
    WithOption { from: u64, to: u64, memo: Option<String> }
    WithDefault { from: u64, to: u64, #[serde(default)] memo: String }
    WithOther { from: u64, to: u64, memo: Option<u64> }
    Alias { #[serde(alias = "from")] sender: u64, to: u64 }
    Renamed { #[serde(rename = "from")] sender: u64, to: u64 }
    Nested { inner: FromTo }
    NestedSigned { inner: Signed }
}

#[test]
fn bincode_notices_order_number_and_kinds() {
    let changes = [
        difference::<FromTo, ToFrom>(Codec::Bincode),
        difference::<FromTo, Signed>(Codec::Bincode),
        difference::<FromTo, Shorter>(Codec::Bincode),
        difference::<FromTo, Longer>(Codec::Bincode),
        difference::<FromTo, WithDefault>(Codec::Bincode),
        difference::<FromTo, WithOption>(Codec::Bincode),
    ];
    assert!(changes.iter().all(Option::is_some), "{changes:?}");
    let deep = difference::<Nested, NestedSigned>(Codec::Bincode).unwrap();
    assert_eq!((&*deep.field, &*deep.stored, &*deep.found), ("inner.from", "u64", "i64"));
    assert!(difference::<FromTo, Renamed>(Codec::Bincode).is_none());
}

#[test]
fn json_notices_names_and_kinds_alone() {
    let same = [
        difference::<FromTo, ToFrom>(Codec::Json),
        difference::<FromTo, Signed>(Codec::Json),
        difference::<FromTo, Float>(Codec::Json),
        difference::<FromTo, WithOption>(Codec::Json),
        difference::<FromTo, WithDefault>(Codec::Json),
        difference::<WithOption, FromTo>(Codec::Json),
        difference::<FromTo, Alias>(Codec::Json),
        difference::<FromTo, Renamed>(Codec::Json),
    ];
    assert!(same.iter().all(Option::is_none), "{same:?}");
    let changes = [
        difference::<FromTo, Text>(Codec::Json),
        difference::<FromTo, Shorter>(Codec::Json),
        difference::<FromTo, Longer>(Codec::Json),
        difference::<WithOption, WithOther>(Codec::Json),
        difference::<Float, FromTo>(Codec::Json),
    ];
    assert!(changes.iter().all(Option::is_some), "{changes:?}");
}

macro_rules! enums {
    ($($name:ident { $($variant:tt)* })*) => {
        $(#[derive(Deserialize)] #[allow(dead_code)] enum $name { $($variant)* })*
    };
}

enums! {
    UpDown { Up(u64), Down(u64) }
    JumpUpDown { Jump(u64), Up(u64), Down(u64) }
    UpDownJump { Up(u64), Down(u64), Jump(u64) }
    UpSink { Up(u64), Sink(u64) }
    UpDownText { Up(u64), Down(String) }
}

#[test]
fn variants_may_be_added_at_the_end_only() {
    assert!(difference::<UpDown, JumpUpDown>(Codec::Bincode).is_some());
    assert!(difference::<UpDown, UpSink>(Codec::Bincode).is_some());
    assert!(difference::<UpDown, UpDownText>(Codec::Bincode).is_some());
    assert!(difference::<UpDown, UpDownJump>(Codec::Bincode).is_none());
    // A program that is rolled back.
    assert!(difference::<UpDownJump, UpDown>(Codec::Bincode).is_none());
    assert!(difference::<UpDown, JumpUpDown>(Codec::Json).is_none());
    assert!(difference::<UpDown, UpSink>(Codec::Json).is_some());
}

#[test]
fn merged_shape_keeps_parts_of_both() {
    let (old, new) = (Shape::of::<FromTo>(Codec::Json), Shape::of::<WithOption>(Codec::Json));
    assert_eq!(old.merged(&new), *new);
    assert_eq!(new.merged(&old), *new, "a field that may be absent is not forgotten");
    let other = Shape::of::<WithOther>(Codec::Json);
    assert!(new.merged(&old).difference(&other, Codec::Json).is_some());
    let (old, new) = (Shape::of::<UpDown>(Codec::Bincode), Shape::of::<UpDownJump>(Codec::Bincode));
    assert_eq!(new.merged(&old), *new);
}
