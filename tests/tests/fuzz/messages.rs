//! Messages, names, ids and media types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use whizbang::Rejection;
use whizbang::message::{Codec, MAX_PAYLOAD_BYTES, MessageId, Name, shard_of};
use whizbang_tests::Fuzz;

/// A message with a field of every kind that codecs encode differently.
///
/// It omits the types that [`Codec::Bincode`] does not support: recursion, and lists of values without content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    number: u64,
    delta: i32,
    paid: bool,
    sign: char,
    city: Option<String>,
    lines: Vec<Line>,
    notes: BTreeMap<String, u16>,
    state: State,
    reply: Result<u8, Rejection>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Line(String, u32, [u8; 3]);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum State {
    Open,
    Shipped { at: u64 },
    Cancelled(String, bool),
}

fn orders() -> [Order; 3] {
    let plain = Order {
        number: 1,
        delta: -1,
        paid: true,
        sign: 'x',
        city: None,
        lines: Vec::new(),
        notes: BTreeMap::new(),
        state: State::Open,
        reply: Ok(7),
    };
    let full = Order {
        number: u64::MAX,
        delta: i32::MIN,
        sign: '\u{10FFFF}',
        city: Some("Zürich \"am\" \\ See".into()),
        lines: vec![Line("soap".into(), 3, [1, 2, 3]), Line(String::new(), u32::MAX, [0, 255, 128])],
        notes: BTreeMap::from([("gift".into(), 1), (String::new(), u16::MAX)]),
        state: State::Shipped { at: 1_700_000_000_000 },
        reply: Err(Rejection::new("shop.sold-out", "nothing is left")),
        ..plain.clone()
    };
    let cancelled = Order { state: State::Cancelled("late".into(), false), ..full.clone() };
    [plain, full, cancelled]
}

fn written<T: Serialize>(codec: Codec, value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec.encode(value, &mut bytes).expect("a sample is encodable");
    bytes
}

fn search(name: &'static str, codec: Codec) {
    Fuzz::new(name, orders().iter().map(|order| written(codec, order))).run(move |input| {
        let Ok(order) = codec.decode::<Order>(input) else { return false };
        // A decoded value round-trips.
        let again = written(codec, &order);
        assert!(again.len() <= MAX_PAYLOAD_BYTES);
        assert_eq!(codec.decode::<Order>(&again).expect("an encoded value is decodable"), order);
        true
    });
}

#[test]
fn corrupt_bincode_message_is_rejected_or_read() {
    search("message-bincode", Codec::Bincode);
}

#[test]
fn corrupt_json_message_is_rejected_or_read() {
    search("message-json", Codec::Json);
}

#[test]
fn deeply_nested_json_is_rejected() {
    for depth in [127, 128, 129, 10_000, MAX_PAYLOAD_BYTES / 2] {
        let nested = [vec![b'['; depth], vec![b']'; depth]].concat();
        assert_eq!(Codec::Json.decode::<serde_json::Value>(&nested).is_ok(), depth < 128, "{depth} levels");
    }
}

#[test]
fn corrupt_name_is_rejected_or_valid_in_a_subject() {
    let samples = ["bank", "a", "Order-Placed_2", &"x".repeat(64)].map(|name| name.as_bytes().to_vec());
    Fuzz::new("name", samples).run(|input| {
        let text = String::from_utf8_lossy(input);
        match Name::new(&text) {
            Ok(name) => {
                let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
                assert!(name.bytes().all(fits) && (1..=64).contains(&name.len()) && *name == *text);
                true
            }
            Err(error) => {
                // Errors go to logs and terminals, so they must contain no control characters and be short.
                let said = error.to_string();
                assert!(said.chars().all(|c| !c.is_control()) && said.len() < 1_500, "{said:?}");
                false
            }
        }
    });
}

#[test]
fn corrupt_id_is_rejected_or_round_trips() {
    let samples = [0, 1, u128::MAX, 0x018c_251e_f000_7abc_8def_0123_4567_89ab];
    let samples = samples.map(|id| MessageId::from_u128(id).to_string().into_bytes());
    Fuzz::new("message-id", samples).run(|input| {
        let Some(id) = MessageId::parse(&String::from_utf8_lossy(input)) else { return false };
        assert_eq!(MessageId::parse(&id.to_string()), Some(id));
        let _ = id.time();
        true
    });
}

#[test]
fn any_key_has_a_shard_of_its_domain() {
    Fuzz::new("key", ["ada", "", "Zürich"].map(|key| key.as_bytes().to_vec())).run(|input| {
        let Ok(key) = std::str::from_utf8(input) else { return false };
        assert!([1, 2, 16, 1_024, u16::MAX].into_iter().all(|shards| shard_of(key, shards) < shards));
        true
    });
}

#[test]
fn corrupt_media_type_is_rejected_or_is_a_codec() {
    let samples = [Codec::Bincode, Codec::Json].map(|codec| codec.media_type().as_bytes().to_vec());
    Fuzz::new("media-type", samples).run(|input| {
        let text = String::from_utf8_lossy(input);
        let Some(codec) = Codec::from_media_type(&text) else { return false };
        assert_eq!(Codec::from_media_type(codec.media_type()), Some(codec), "read from {text:?}");
        true
    });
}
