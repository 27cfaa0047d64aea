//! Messages of users in both codecs; the first byte selects the codec.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use serde::{Deserialize, Serialize};
use whizbang::message::Codec;

/// A message with a field of every kind that codecs encode differently.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    number: u64,
    delta: i32,
    paid: bool,
    sign: char,
    city: Option<String>,
    lines: Vec<(String, u32, [u8; 3])>,
    notes: BTreeMap<String, u16>,
    state: State,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum State {
    Open,
    Shipped { at: u64 },
    Cancelled(String, bool),
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, payload)) = input.split_first() else { return };
    let codec = if kind % 2 == 0 { Codec::Bincode } else { Codec::Json };
    let Ok(order) = codec.decode::<Order>(payload) else { return };
    let mut again = Vec::new();
    codec.encode(&order, &mut again).expect("a decoded value is encodable");
    assert_eq!(codec.decode::<Order>(&again).expect("an encoded value is decodable"), order);
});
