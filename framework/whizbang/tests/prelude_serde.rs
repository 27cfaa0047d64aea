//! The prelude's `Serialize` and `Deserialize` write and read the same bytes as serde's derives.

use std::collections::BTreeMap;
use std::fmt::Debug;

use whizbang::message::Codec;

/// The same types twice: once with the prelude's derives, once with serde's.
macro_rules! twins {
    ($($item:item)*) => {
        mod ours {
            #![allow(dead_code, reason = "both modules have all types")]
            use std::collections::BTreeMap;

            use whizbang::prelude::{Deserialize, Serialize};
            $(#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)] $item)*
        }
        mod serdes {
            #![allow(dead_code, reason = "both modules have all types")]
            use std::collections::BTreeMap;

            use serde::{Deserialize, Serialize};
            $(#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)] $item)*
        }
    };
}

twins! {
    /// Documented, so that the copy drops the attributes that are not serde's.
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Named {
        pub(super) plain_text: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub(super) maybe: Option<u32>,
        #[serde(rename = "n")]
        pub(super) number: i64,
        pub(super) map: BTreeMap<String, Vec<u8>>,
    }
    pub(super) struct Unit;
    pub(super) struct Pair(pub(super) u8, pub(super) String);
    #[serde(transparent)]
    pub(super) struct Newtype(pub(super) String);
    pub(super) enum Choice {
        #[default]
        Nothing,
        One(u64),
        Two(u8, u8),
        Fields { a: bool, b: Box<Named> },
        Again(Vec<Self>),
    }
    #[serde(tag = "type", content = "value", rename_all = "kebab-case")]
    pub(super) enum Tagged {
        #[default]
        FirstCase,
        SecondCase(u64),
    }
    pub(super) struct Page<T> {
        pub(super) items: Vec<T>,
        pub(super) next: Option<Box<Self>>,
    }
    pub(super) struct Matrix<T, const N: usize>
    where
        T: Clone,
    {
        pub(super) rows: Vec<T>,
        #[serde(skip)]
        pub(super) cached: Option<[u8; N]>,
    }
    #[serde(rename = "other", default)]
    pub(super) struct Defaulted {
        pub(super) r#type: String,
        pub(super) count: u32,
    }
}

fn named_ours() -> ours::Named {
    ours::Named { plain_text: "é".into(), maybe: None, number: -3, map: BTreeMap::from([("k".into(), vec![1, 2])]) }
}

fn named_serdes() -> serdes::Named {
    serdes::Named { plain_text: "é".into(), maybe: None, number: -3, map: BTreeMap::from([("k".into(), vec![1, 2])]) }
}

/// Asserts that both write the same bytes, and read them back as the same value.
fn agree<O, S>(ours: O, serdes: S)
where
    O: serde::Serialize + serde::de::DeserializeOwned + Debug + PartialEq,
    S: serde::Serialize + serde::de::DeserializeOwned + Debug + PartialEq,
{
    let text = serde_json::to_string(&ours).unwrap();
    assert_eq!(text, serde_json::to_string(&serdes).unwrap());
    assert_eq!(serde_json::from_str::<O>(&text).unwrap(), ours);
    assert_eq!(serde_json::from_str::<S>(&text).unwrap(), serdes);
}

/// The same for bincode, which does not support names, tags and skipped fields.
fn agree_in_bincode<O, S>(ours: O, serdes: S)
where
    O: serde::Serialize + serde::de::DeserializeOwned + Debug + PartialEq,
    S: serde::Serialize,
{
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    Codec::Bincode.encode(&ours, &mut bytes).unwrap();
    Codec::Bincode.encode(&serdes, &mut expected).unwrap();
    assert_eq!(bytes, expected);
    assert_eq!(Codec::Bincode.decode::<O>(&bytes).unwrap(), ours);
}

#[test]
fn structs_of_every_form_are_the_same_bytes() {
    agree(named_ours(), named_serdes());
    agree(ours::Named { maybe: Some(7), ..named_ours() }, serdes::Named { maybe: Some(7), ..named_serdes() });
    agree(ours::Unit, serdes::Unit);
    agree_in_bincode(ours::Unit, serdes::Unit);
    agree(ours::Pair(1, "x".into()), serdes::Pair(1, "x".into()));
    agree_in_bincode(ours::Pair(1, "x".into()), serdes::Pair(1, "x".into()));
    agree(ours::Newtype("x".into()), serdes::Newtype("x".into()));
    agree_in_bincode(ours::Newtype("x".into()), serdes::Newtype("x".into()));
    agree(ours::Defaulted { r#type: "t".into(), count: 2 }, serdes::Defaulted { r#type: "t".into(), count: 2 });
    assert_eq!(serde_json::from_str::<ours::Defaulted>("{}").unwrap(), ours::Defaulted::default());
}

#[test]
fn enums_of_every_form_are_the_same_bytes() {
    agree(ours::Choice::Nothing, serdes::Choice::Nothing);
    agree(ours::Choice::One(1), serdes::Choice::One(1));
    agree_in_bincode(ours::Choice::Two(1, 2), serdes::Choice::Two(1, 2));
    agree(
        ours::Choice::Fields { a: true, b: Box::new(named_ours()) },
        serdes::Choice::Fields { a: true, b: Box::new(named_serdes()) },
    );
    agree(
        ours::Choice::Again(vec![ours::Choice::One(1), ours::Choice::Nothing]),
        serdes::Choice::Again(vec![serdes::Choice::One(1), serdes::Choice::Nothing]),
    );
    agree(ours::Tagged::FirstCase, serdes::Tagged::FirstCase);
    agree(ours::Tagged::SecondCase(9), serdes::Tagged::SecondCase(9));
}

#[test]
fn generic_types_are_the_same_bytes() {
    agree(
        ours::Page { items: vec![1u8], next: Some(Box::new(ours::Page { items: vec![2], next: None })) },
        serdes::Page { items: vec![1u8], next: Some(Box::new(serdes::Page { items: vec![2], next: None })) },
    );
    agree(
        ours::Matrix::<_, 3> { rows: vec!["a".to_owned()], cached: None },
        serdes::Matrix::<_, 3> { rows: vec!["a".to_owned()], cached: None },
    );
}

/// A type without serde's traits and without `Default`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bare;

trait Money {
    type Amount;
}

impl Money for Bare {
    type Amount = u64;
}

mod bounds {
    use std::marker::PhantomData;

    use super::Money;
    use whizbang::prelude::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    pub(super) struct Id<T> {
        pub(super) n: u64,
        pub(super) of: PhantomData<T>,
    }

    #[derive(Serialize, Deserialize)]
    pub(super) enum Price<M: Money> {
        One(M::Amount),
        Many { amounts: Vec<M::Amount>, of: PhantomData<fn(M)> },
    }

    #[derive(Serialize, Deserialize)]
    #[serde(bound = "")]
    pub(super) struct Named<T> {
        pub(super) id: Id<T>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(bound(serialize = "T: Copy + Into<u64>", deserialize = "T: From<u64>"))]
    pub(super) struct AsNumber<T> {
        #[serde(with = "number")]
        pub(super) value: T,
    }

    mod number {
        use whizbang::derive::serde::{Deserialize, Deserializer, Serializer};

        pub(super) fn serialize<T: Copy + Into<u64>, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
            to.serialize_u64((*value).into())
        }

        pub(super) fn deserialize<'de, T: From<u64>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
            u64::deserialize(from).map(T::from)
        }
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct Cached<T> {
        pub(super) n: u64,
        #[serde(skip)]
        pub(super) cache: Option<T>,
    }
}

#[test]
fn type_parameters_get_the_bounds_of_serde() {
    let id = || bounds::Id::<Bare> { n: 3, of: std::marker::PhantomData };
    assert_eq!(serde_json::to_string(&id()).unwrap(), r#"{"n":3,"of":null}"#);
    assert_eq!(serde_json::from_str::<bounds::Id<Bare>>(r#"{"n":3,"of":null}"#).unwrap().n, 3);
    let named = serde_json::to_string(&bounds::Named { id: id() }).unwrap();
    assert_eq!(serde_json::from_str::<bounds::Named<Bare>>(&named).unwrap().id.n, 3);
    let one = serde_json::to_string(&bounds::Price::<Bare>::One(3)).unwrap();
    assert!(matches!(serde_json::from_str(&one), Ok(bounds::Price::<Bare>::One(3))));
    let many = bounds::Price::<Bare>::Many { amounts: vec![3], of: std::marker::PhantomData };
    let many = serde_json::to_string(&many).unwrap();
    let read = serde_json::from_str(&many);
    assert!(matches!(read, Ok(bounds::Price::<Bare>::Many { amounts, .. }) if amounts == [3]));
    assert_eq!(serde_json::to_string(&bounds::AsNumber { value: 3u8 }).unwrap(), r#"{"value":3}"#);
    assert_eq!(serde_json::from_str::<bounds::AsNumber<u128>>(r#"{"value":3}"#).unwrap().value, 3);
    // serde requires `Default` for skipped fields, and nothing else.
    let cached = serde_json::to_string(&bounds::Cached::<String> { n: 3, cache: Some("x".into()) }).unwrap();
    assert!(matches!(serde_json::from_str(&cached), Ok(bounds::Cached::<String> { n: 3, cache: None })));
}

#[test]
fn paths_in_attributes_may_begin_with_self() {
    #[derive(Debug, PartialEq, whizbang::prelude::Serialize, whizbang::prelude::Deserialize)]
    struct Line<T> {
        #[serde(default, skip_serializing_if = "Self::is_zero")]
        off: u8,
        #[serde(default = "Self::one")]
        count: u8,
        of: T,
    }

    impl<T> Line<T> {
        fn is_zero(off: &u8) -> bool {
            *off == 0
        }

        fn one() -> u8 {
            1
        }
    }

    assert_eq!(serde_json::to_string(&Line { off: 0, count: 2, of: 3 }).unwrap(), r#"{"count":2,"of":3}"#);
    assert_eq!(serde_json::from_str::<Line<u8>>(r#"{"of":3}"#).unwrap(), Line { off: 0, count: 1, of: 3 });
}

#[test]
fn packed_type_is_written_and_read() {
    #[derive(whizbang::prelude::Serialize, whizbang::prelude::Deserialize)]
    #[repr(C, packed)]
    struct Packed {
        small: u8,
        large: u32,
    }
    let text = serde_json::to_string(&Packed { small: 1, large: 2 }).unwrap();
    assert_eq!(text, r#"{"small":1,"large":2}"#);
    let Packed { small, large } = serde_json::from_str(&text).unwrap();
    assert_eq!((small, large), (1, 2));
}

#[test]
fn inputs_invalid_for_serde_fail_with_the_same_text() {
    let unknown = r#"{"plainText": "a", "n": 1, "map": {}, "more": 1}"#;
    let ours = serde_json::from_str::<ours::Named>(unknown).unwrap_err().to_string();
    assert_eq!(ours, serde_json::from_str::<serdes::Named>(unknown).unwrap_err().to_string());
    let wrong = "7";
    let ours = serde_json::from_str::<ours::Named>(wrong).unwrap_err().to_string();
    assert_eq!(ours, serde_json::from_str::<serdes::Named>(wrong).unwrap_err().to_string());
    assert!(ours.contains("struct Named"), "{ours}");
}

#[test]
fn borrowed_type_can_be_written() {
    #[derive(whizbang::prelude::Serialize)]
    struct Line<'a, T: ?Sized> {
        text: &'a T,
    }
    assert_eq!(serde_json::to_string(&Line { text: "a" }).unwrap(), r#"{"text":"a"}"#);
}
