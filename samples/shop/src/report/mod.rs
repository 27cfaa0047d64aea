//! The report: what has happened, counted from the stores' logs and not from what anybody believes.

mod history;
mod mails;
mod table;
mod tally;

pub use history::{ShardLog, each_event, shard_log};
pub use mails::mails_in;
pub use tally::tally;

use std::collections::BTreeMap;

use serde::Serialize;

/// What has happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The orders.
    pub orders: OrderCounts,
    /// How many were cancelled, by the code of the reason.
    pub cancelled_because: BTreeMap<String, u64>,
    /// The pieces.
    pub stock: StockSums,
    /// The money.
    pub money: MoneySums,
    /// E-mails written.
    pub emails: u64,
    /// What analytics believes.
    pub analytics: Analytics,
    /// Messages that nobody could handle.
    pub dead_letters: u64,
    /// Whether services were at work when their logs were read: what is not even may be under way.
    pub running: bool,
    /// Orders that ended, per second between the first placing and the last end.
    pub rate_orders_per_s: f64,
    /// From an order's placing to its end.
    pub latency_ms: Latency,
}

/// The orders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OrderCounts {
    /// Placed.
    pub placed: u64,
    /// Of these, confirmed.
    pub confirmed: u64,
    /// Of these, cancelled.
    pub cancelled: u64,
    /// The rest.
    pub open: u64,
}

/// The pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StockSums {
    /// Put on the shelves.
    pub initial: u64,
    /// Still there and free.
    pub on_hand: i64,
    /// Taken away by the carrier.
    pub shipped: u64,
    /// Set aside for orders that have not ended.
    pub reserved: i64,
    /// Whether nothing is missing, doubled or still set aside, and all services agree on what was shipped.
    pub conserved: bool,
}

/// The money.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MoneySums {
    /// Charged.
    pub charged_cents: u64,
    /// Given back.
    pub refunded_cents: u64,
    /// What the confirmed orders cost.
    pub revenue_cents: u64,
    /// Whether charged less refunded is the revenue, and the provider's ledger says the same.
    pub conserved: bool,
}

/// What analytics believes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Analytics {
    /// The revenue in its view.
    pub revenue_cents: u64,
    /// Whether that is what the log of orders says, in all and for each product and city.
    pub matches_log: bool,
}

/// From an order's placing to its end, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Half of the orders were faster.
    pub p50: u64,
    /// All but one of a hundred were faster.
    pub p99: u64,
    /// The slowest of all.
    pub max: u64,
    /// The slowest of those that were not given up because the payment provider said nothing.
    pub max_answered: u64,
}

impl Report {
    /// Whether services are at work and have not done everything yet. A dead letter does not go away by waiting.
    pub fn is_under_way(&self) -> bool {
        self.running && self.dead_letters == 0 && !self.faults().is_empty()
    }

    /// What is wrong, in words; empty if everything is as it should be.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut must = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let ended = self.orders.confirmed + self.orders.cancelled;
        must(self.orders.open == 0, format!("{} orders are open", self.orders.open));
        must(self.stock.conserved, "the stock is off".to_owned());
        must(self.money.conserved, "the money is off".to_owned());
        must(self.emails == ended, format!("{} e-mails for {ended} orders that ended", self.emails));
        must(self.analytics.matches_log, "analytics and the log of orders differ".to_owned());
        must(self.dead_letters == 0, format!("{} dead letters", self.dead_letters));
        faults
    }
}
