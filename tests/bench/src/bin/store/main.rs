//! Measures the stores alone: an append in memory (`store [KEYS/SENDS]`), durable appends against a raw append and flush
//! (`store durable`), and opening (`store recovery`).

mod durable;

use std::sync::Arc;

use bytes::Bytes;
use whizbang::MemoryStore;
use whizbang::clock::Timestamp;
use whizbang::message::{Codec, Envelope, Kind, MessageId, Name, ReplyMode, ShardId};
use whizbang::store::{CommitListener, EventWrite, Mark, OutboxWrite, Store, StoreError, StreamHint, Ticket, Turn};

struct Deaf;

impl CommitListener for Deaf {
    fn committed(&self, _: Ticket) {}
    fn failed(&self, _: StoreError) {}
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("durable") => durable::appends(),
        Some("recovery") => durable::recovery(),
        _ => memory(),
    }
}

/// Measures a turn with one event of 32 bytes, a dedup entry and a reply, with and without an outbox entry.
fn memory() {
    let only = std::env::args().nth(1);
    for keys in [1usize, 10_000, 1_000_000] {
        for sends in [false, true] {
            if only.as_ref().is_some_and(|only| *only != format!("{keys}/{sends}")) {
                continue;
            }
            let mut costs: Vec<f64> = (0..5).map(|_| memory_run(keys, sends)).collect();
            costs.sort_by(f64::total_cmp);
            println!("memory append, {keys} keys, sends {sends}: {:.0} ns [{:.0}-{:.0}]", costs[2], costs[0], costs[4]);
        }
    }
}

fn memory_run(keys: usize, sends: bool) -> f64 {
    let turns: usize = std::env::var("TURNS").map_or(2_000_000, |text| text.parse().unwrap());
    let store = MemoryStore::new();
    let (bank, shop) = (ShardId::new(Name::new("bank").unwrap(), 0), ShardId::new(Name::new("shop").unwrap(), 0));
    let listener: Arc<dyn CommitListener> = Arc::new(Deaf);
    let opened = futures::block_on(store.open(&bank, 1, listener)).unwrap();
    let mut writer = opened.writer;
    let actor = Name::new("Account").unwrap();
    let names: Vec<String> = (0..keys).map(|key| format!("account-{key}")).collect();
    let mut numbers = vec![0u64; keys];
    let envelope = Envelope {
        id: MessageId::from_u128(5),
        kind: Kind::Command,
        name: Name::new("Reserve").unwrap(),
        version: 1,
        shape: None,
        domain: shop.domain.clone(),
        to: Some(shop.clone()),
        key: "product-1".to_owned(),
        actor: None,
        origin: None,
        correlation: MessageId::from_u128(9),
        causation: None,
        time: Timestamp::from_millis(1_700_000_000_000),
        deadline: None,
        wants: ReplyMode::Nothing,
        traceparent: None,
        headers: Vec::new(),
        codec: Codec::Bincode,
        payload: Bytes::from_static(&[7; 24]),
    };
    let outbox = [OutboxWrite { to: &shop, envelope: &envelope }];
    let start = on_cpu();
    for turn in 0..turns {
        let key = turn.wrapping_mul(7_919) % keys;
        numbers[key] += 1;
        let events = [EventWrite { name: "Deposited", version: 1, codec: Codec::Bincode, payload: &[1; 32] }];
        writer
            .append(&Turn {
                actor: &actor,
                key: &names[key],
                stream: StreamHint::default(),
                number: numbers[key],
                version: numbers[key] - 1,
                time: Timestamp::from_millis(1_700_000_000_000),
                id: MessageId::from_u128(turn as u128),
                correlation: MessageId::from_u128(turn as u128),
                traceparent: None,
                headers: &[],
                mark: Mark::Outside { digest: turn as u64 },
                reply: &[0, 5],
                reply_codec: Codec::Bincode,
                events: &events,
                outbox: if sends { &outbox } else { &[] },
                timers: &[],
                notes: &[],
            })
            .unwrap();
    }
    (on_cpu() - start) as f64 / turns as f64
}

/// Returns the CPU time of this thread in nanoseconds, which excludes other programs.
fn on_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

mod futures {
    /// The futures of a store in memory are ready at once.
    pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(value) => value,
            std::task::Poll::Pending => panic!("not ready"),
        }
    }
}
