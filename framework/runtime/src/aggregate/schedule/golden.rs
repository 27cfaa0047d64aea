//! Schedules and delayed messages have the bytes in `golden.txt`, which never change: they are events and timers in the log, and
//! commands on the wire.
//!
//! The file has a line for each value: its name and its bytes in hexadecimal digits. A value that is encoded with the codec of its
//! domain has a line for each codec.

use serde::Serialize;

use super::*;
use crate::router::DelayedMessage;
use crate::schedule::{Cron, Missed};
use whizbang_core::message::{Fingerprint, Kind, Name, ShardId};

const CODECS: [Codec; 2] = [Codec::Bincode, Codec::Json];

fn crons() -> [Cron; 3] {
    let daily = || Cron::new("30 2 * * *").unwrap().zone("Europe/Berlin").unwrap();
    [
        daily().missed(Missed::Skip).overlap(Overlap::Allow),
        daily().missed(Missed::Once).overlap(Overlap::Skip),
        daily().missed(Missed::All { most: 300 }).overlap(Overlap::Wait),
    ]
}

fn id(number: u128) -> MessageId {
    MessageId::from_u128(0x0193_6b2c_5a00_7000_8000_0000_0000_0000 + number)
}

/// The command that is sent later.
fn command() -> Envelope {
    let name = |text: &'static str| Name::from_static(text).unwrap();
    let time = Timestamp::from_millis(1_732_900_000_123);
    let mut command = Envelope::new(id(1), Kind::Command, name("bank"), name("Deposit"), time);
    command.to = Some(ShardId::new(name("bank"), 300));
    command.key = "order 7/ü".to_owned();
    command.version = 3;
    command.shape = Some(Fingerprint::from_u64(7));
    command.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    command.headers = vec![("x-tenant".to_owned(), "acme".to_owned())];
    command.codec = Codec::Json;
    command.payload = "{}".into();
    command
}

fn set(cron: &Cron) -> SetSchedule {
    SetSchedule::new(cron.clone(), &command())
}

fn changes() -> Vec<(&'static str, Change)> {
    let next = 1_732_900_000_000;
    let [_, _, cron] = crons();
    vec![
        ("change: set", Change::Set { set: set(&cron), next }),
        ("change: removed", Change::Removed),
        ("change: ran", Change::Ran { running: Some(id(2)), waiting: Some(next), next: Some(next + 1) }),
        ("change: ran the last time", Change::Ran { running: None, waiting: None, next: None }),
    ]
}

fn line(name: &str, codec: Codec, value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    codec.encode(value, &mut bytes).unwrap();
    hex_line(name, codec, &bytes)
}

fn hex_line(name: &str, codec: Codec, bytes: &[u8]) -> String {
    format!("{name}, {codec:?}: {}\n", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn lines() -> String {
    let mut lines = String::new();
    for codec in CODECS {
        for (at, cron) in crons().iter().enumerate() {
            lines += &line(&format!("command to set schedule {at}"), codec, &set(cron));
        }
        for (name, change) in changes() {
            lines += &line(name, codec, &change);
        }
        let domain = Name::from_static("bank").unwrap();
        let due = Timestamp::from_millis(1_732_900_030_123);
        let (_, delayed) = DelayedMessage::schedule((&domain, 512), &command(), due, codec).unwrap();
        lines += &hex_line("delayed message", codec, &delayed.payload);
    }
    let timer = ActiveSchedule::stored(&set(&crons()[0]), Timestamp::from_millis(1_732_900_000_000));
    lines + &line("timer of a schedule", Codec::Bincode, &timer)
}

/// The content of the file.
const GOLDEN: &str = include_str!("golden.txt");

#[test]
fn schedules_have_the_bytes_of_the_golden_file() {
    assert_eq!(lines(), GOLDEN);
}

#[test]
fn golden_schedules_are_read_as_their_values() {
    let golden = |name: &str, codec: Codec| -> Vec<u8> {
        let start = format!("{name}, {codec:?}: ");
        let digits = GOLDEN.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
        digits
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    };
    for codec in CODECS {
        for (at, cron) in crons().iter().enumerate() {
            let read: SetSchedule = codec.decode(&golden(&format!("command to set schedule {at}"), codec)).unwrap();
            assert_eq!(read, set(cron));
        }
        for (name, change) in changes() {
            assert_eq!(codec.decode::<Change>(&golden(name, codec)).unwrap(), change);
        }
        let delayed = DelayedMessage::read(codec, &golden("delayed message", codec)).unwrap();
        let mut again = Vec::new();
        codec.encode(&delayed, &mut again).unwrap();
        assert_eq!(again, golden("delayed message", codec));
    }
    let timer = golden("timer of a schedule", Codec::Bincode);
    let active = ActiveSchedule::read("bank", "nightly".to_owned(), &timer).unwrap();
    assert_eq!((active.next.as_millis(), &*active.command), (1_732_900_000_000, "Deposit"));
}
