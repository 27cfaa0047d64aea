//! Recounts the figures of the report from the raw logs. It shares only the message types with the shop, none of its counting.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use shop::inventory::{Inventory, Released, Reserved, Restocked, TakenAway};
use shop::orders::{OrderCancelled, OrderConfirmed, OrderPlaced, Orders};
use shop::payments::{PaymentRefunded, PaymentTaken, Payments};
use shop::shipping::{ParcelSent, Shipping};
use whizbang::message::{Name, ShardId};
use whizbang::prelude::*;
use whizbang::store::embedded::EmbeddedStore;
use whizbang::store::{CommitListener, Store, StoreError, StoredEvent, Ticket};

/// The figures in the raw logs, the e-mails and the ledger of the provider.
#[derive(Default)]
pub(crate) struct Recount {
    /// By order.
    pub(crate) orders: BTreeMap<String, OrderHistory>,
    /// By product: pieces restocked, reserved, released, collected.
    shelves: BTreeMap<String, [i64; 4]>,
    sent_pieces: i64,
    /// The amounts in the ledger, by order.
    pub(crate) ledger: BTreeMap<String, Vec<i64>>,
    mails: usize,
}

/// The history of an order.
#[derive(Default)]
pub(crate) struct OrderHistory {
    placed: u64,
    placed_at: u64,
    /// The time of its end.
    ended_at: u64,
    ends: u64,
    pub(crate) cancelled_because: Option<String>,
    cents: i64,
    pieces: i64,
    pub(crate) taken: Vec<i64>,
    pub(crate) refunded: Vec<i64>,
}

impl Recount {
    /// Counts the shop in a data folder. No process may use it.
    pub(crate) fn of(data: &Path) -> Self {
        let mut recount = Self::default();
        for event in events::<Orders>(data) {
            let at = event.time.as_millis();
            let order = recount.orders.entry(event.key.clone()).or_default();
            if let Some(OrderPlaced { .. }) = read(&event) {
                order.placed += 1;
                order.placed_at = at;
            } else if let Some(OrderConfirmed { cart, .. }) = read(&event) {
                order.ends += 1;
                order.ended_at = at;
                for line in cart.lines {
                    order.cents += i64::from(line.quantity) * i64::try_from(line.price_cents).unwrap();
                    order.pieces += i64::from(line.quantity);
                }
            } else if let Some(OrderCancelled { reason, .. }) = read(&event) {
                order.ends += 1;
                order.ended_at = at;
                order.cancelled_because = Some(reason.code().to_owned());
            }
        }
        for event in events::<Inventory>(data) {
            let shelf = recount.shelves.entry(event.key.clone()).or_default();
            if let Some(Restocked { quantity, .. }) = read(&event) {
                shelf[0] += i64::try_from(quantity).unwrap();
            } else if let Some(Reserved { quantity, .. }) = read(&event) {
                shelf[1] += i64::from(quantity);
            } else if let Some(Released { quantity, .. }) = read(&event) {
                shelf[2] += i64::from(quantity);
            } else if let Some(TakenAway { quantity, .. }) = read(&event) {
                shelf[3] += i64::from(quantity);
            }
        }
        for event in events::<Payments>(data) {
            let order = recount.orders.entry(event.key.clone()).or_default();
            if let Some(PaymentTaken { cents, .. }) = read(&event) {
                order.taken.push(i64::try_from(cents).unwrap());
            } else if let Some(PaymentRefunded { cents, .. }) = read(&event) {
                order.refunded.push(i64::try_from(cents).unwrap());
            }
        }
        for event in events::<Shipping>(data) {
            if let Some(ParcelSent { quantity, .. }) = read(&event) {
                recount.sent_pieces += i64::from(quantity);
            }
        }
        recount.read_ledger(&std::fs::read_to_string(data.join("provider.ledger")).unwrap());
        recount.read_mails(&data.join("mails"));
        recount
    }

    fn read_ledger(&mut self, ledger: &str) {
        let mut keys = BTreeSet::new();
        for line in ledger.lines() {
            // A killed process leaves a partial line, which it never answered.
            let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
            assert!(keys.insert(entry["key"].as_str().unwrap().to_owned()), "charged twice under one key: {line}");
            let order = entry["order"].as_str().unwrap().to_owned();
            self.ledger.entry(order).or_default().push(entry["cents"].as_i64().unwrap());
        }
    }

    /// Checks that every ended order has one e-mail with the right outcome.
    fn read_mails(&mut self, folder: &Path) {
        let mut mailed = BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "eml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let subject = text.lines().find_map(|line| line.strip_prefix("Subject: Order ")).expect("a subject");
            let (order, how) = subject.split_once(' ').unwrap();
            let history = self.orders.get(order).unwrap_or_else(|| panic!("mail for {order}, which was not placed"));
            let cancelled = history.cancelled_because.is_some();
            assert_eq!(how, if cancelled { "was cancelled" } else { "is on its way" }, "{order}");
            assert!(mailed.insert(order.to_owned()), "two e-mails for {order}");
            self.mails += 1;
        }
    }

    /// Checks the invariants that hold once no order is in progress.
    #[track_caller]
    pub(crate) fn assert_holds(&self) {
        for (order, history) in &self.orders {
            assert_eq!((history.placed, history.ends), (1, 1), "{order}: number of placings and ends");
            let (taken, refunded): (i64, i64) = (history.taken.iter().sum(), history.refunded.iter().sum());
            assert!(history.taken.len() <= 1 && history.refunded.len() <= 1, "{order}: {:?}", history.taken);
            assert_eq!(taken - refunded, history.cents, "{order}: paid by the customer");
            let ledger = self.ledger.get(order).map_or(0, |amounts| amounts.iter().sum());
            assert_eq!(ledger, history.cents, "{order}: charged by the provider");
        }
        for (product, [stocked, reserved, released, taken]) in &self.shelves {
            assert_eq!(reserved, &(released + taken), "{product}: reserved pieces were released or collected");
            assert!(taken <= stocked, "{product}: more pieces collected than restocked");
        }
        let taken: i64 = self.shelves.values().map(|shelf| shelf[3]).sum();
        let sold: i64 = self.orders.values().map(|history| history.pieces).sum();
        assert_eq!((taken, self.sent_pieces), (sold, sold), "pieces collected, sent and sold");
        assert_eq!(self.mails, self.orders.len(), "e-mails");
    }

    /// Checks that the report has the same figures.
    #[track_caller]
    pub(crate) fn assert_equals(&self, report: &Value) {
        let cancelled = self.orders.values().filter_map(|history| history.cancelled_because.clone());
        let mut because = BTreeMap::<String, u64>::new();
        cancelled.for_each(|code| *because.entry(code).or_default() += 1);
        let (placed, cancelled) = (self.orders.len() as u64, because.values().sum::<u64>());
        let sum = |figure: fn(&OrderHistory) -> i64| self.orders.values().map(figure).sum::<i64>();
        let shelf = |at: usize| self.shelves.values().map(|shelf| shelf[at]).sum::<i64>();
        let revenue = sum(|history| history.cents);
        let mut latencies: Vec<u64> =
            self.orders.values().map(|history| history.ended_at.saturating_sub(history.placed_at)).collect();
        latencies.sort_unstable();
        // The nearest rank: the smallest value that `part` percent of the orders do not exceed.
        let rank = |part: usize| latencies[(latencies.len() * part).div_ceil(100) - 1];
        let overdue = |history: &&OrderHistory| history.cancelled_because.as_deref() == Some("payments.overdue");
        let answered = self.orders.values().filter(|history| !overdue(history));
        let answered = answered.map(|history| history.ended_at.saturating_sub(history.placed_at)).max().unwrap_or(0);
        let begin = self.orders.values().map(|history| history.placed_at).min().unwrap();
        let end = self.orders.values().map(|history| history.ended_at).max().unwrap();
        let counted = json!({
            "orders": { "placed": placed, "confirmed": placed - cancelled, "cancelled": cancelled, "open": 0 },
            "cancelled_because": because,
            "stock": {
                "initial": shelf(0),
                "on_hand": shelf(0) - shelf(1) + shelf(2),
                "shipped": shelf(3),
                "reserved": shelf(1) - shelf(2) - shelf(3),
                "conserved": true,
            },
            "money": {
                "charged_cents": sum(|history| history.taken.iter().sum()),
                "refunded_cents": sum(|history| history.refunded.iter().sum()),
                "revenue_cents": revenue,
                "conserved": true,
            },
            "emails": self.mails,
            "analytics": { "revenue_cents": revenue, "matches_log": true },
            "dead_letters": 0,
            "running": false,
            "latency_ms": { "p50": rank(50), "p99": rank(99), "max": rank(100), "max_answered": answered },
        });
        let mut reported = report.clone();
        let rate = reported.as_object_mut().unwrap().remove("rate_orders_per_s").unwrap().as_f64().unwrap();
        assert_eq!(reported, counted);
        let expected = placed as f64 * 1000.0 / (end - begin).max(1) as f64;
        assert!((rate - expected).abs() <= 0.051, "{rate} orders per second, expected {expected}");
    }
}

/// Returns all events of a domain, shard by shard, from the store of its owner.
fn events<D: Domain>(data: &Path) -> Vec<StoredEvent> {
    let store = EmbeddedStore::open(data.join(D::NAME)).unwrap();
    let mut found = Vec::new();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
        for shard in 0..D::SHARDS {
            let id = ShardId::new(Name::new(D::NAME).unwrap(), shard);
            let reader = store.open(&id, D::SHARDS, Arc::new(NoCommits)).await.unwrap().reader;
            let all = usize::try_from(reader.position()).unwrap();
            found.extend(reader.events(0, all).await.unwrap());
        }
    });
    found
}

fn read<E: Event>(event: &StoredEvent) -> Option<E> {
    (event.name.as_str() == E::NAME).then(|| E::decode(event.version, event.codec, &event.payload).unwrap())
}

/// A listener for a store without commits.
struct NoCommits;

impl CommitListener for NoCommits {
    fn committed(&self, _: Ticket) {}

    fn failed(&self, error: StoreError) {
        panic!("{error}");
    }
}
