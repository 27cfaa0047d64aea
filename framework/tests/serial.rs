//! The prelude's `Serialize` and `Deserialize` write and read what serde's own derives do.

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
    /// Documented, so that the copy drops what is not serde's.
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

/// Both write the same bytes, and read them back as the same.
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

/// The same for bincode, which knows no names, tags and left out fields.
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

#[test]
fn what_serde_refuses_is_refused_with_the_same_words() {
    let unknown = r#"{"plainText": "a", "n": 1, "map": {}, "more": 1}"#;
    let ours = serde_json::from_str::<ours::Named>(unknown).unwrap_err().to_string();
    assert_eq!(ours, serde_json::from_str::<serdes::Named>(unknown).unwrap_err().to_string());
    let wrong = "7";
    let ours = serde_json::from_str::<ours::Named>(wrong).unwrap_err().to_string();
    assert_eq!(ours, serde_json::from_str::<serdes::Named>(wrong).unwrap_err().to_string());
    assert!(ours.contains("struct Named"), "{ours}");
}

#[test]
fn a_borrowed_type_can_be_written() {
    #[derive(whizbang::prelude::Serialize)]
    struct Line<'a, T: ?Sized> {
        text: &'a T,
    }
    assert_eq!(serde_json::to_string(&Line { text: "a" }).unwrap(), r#"{"text":"a"}"#);
}
