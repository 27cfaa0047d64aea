//! The report: figures counted from the logs of the stores, independently of the state of the services.

mod history;
mod mails;
mod table;
mod tally;

pub use history::{ShardLog, each_event, shard_log};
pub use mails::mails_in;
pub use tally::tally;

use std::collections::BTreeMap;

use serde::Serialize;

/// The figures of a run, counted from the logs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The orders.
    pub orders: OrderCounts,
    /// The number of cancelled orders, by the code of the reason.
    pub cancelled_because: BTreeMap<String, u64>,
    /// The pieces.
    pub stock: StockSums,
    /// The money.
    pub money: MoneySums,
    /// E-mails written.
    pub emails: u64,
    /// The figures of analytics.
    pub analytics: Analytics,
    /// Messages that could not be handled.
    pub dead_letters: u64,
    /// Services were running when their logs were read: sums that are not balanced may be in progress.
    pub running: bool,
    /// Orders that ended, per second between the first placing and the last end.
    pub rate_orders_per_s: f64,
    /// The time from placing an order to its end.
    pub latency_ms: Latency,
}

/// The orders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OrderCounts {
    /// Placed.
    pub placed: u64,
    /// The number of confirmed ones among these.
    pub confirmed: u64,
    /// The number of cancelled ones among these.
    pub cancelled: u64,
    /// The rest.
    pub open: u64,
}

/// The pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StockSums {
    /// Added to the stock.
    pub initial: u64,
    /// In stock and not reserved.
    pub on_hand: i64,
    /// Collected by the carrier.
    pub shipped: u64,
    /// Reserved for orders that have not ended.
    pub reserved: i64,
    /// No piece is missing, duplicated or still reserved, and all services agree on the shipped pieces.
    pub conserved: bool,
}

/// The money.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MoneySums {
    /// Charged.
    pub charged_cents: u64,
    /// Refunded.
    pub refunded_cents: u64,
    /// The sum of the confirmed orders.
    pub revenue_cents: u64,
    /// Charges less refunds equal the revenue, and the provider's ledger agrees.
    pub conserved: bool,
}

/// The figures of analytics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Analytics {
    /// The revenue in its view.
    pub revenue_cents: u64,
    /// The view equals the log of orders, in total and for each product and city.
    pub matches_log: bool,
}

/// The time from placing an order to its end, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The maximum.
    pub max: u64,
    /// The maximum without the orders that were cancelled because the payment provider did not answer.
    pub max_answered: u64,
}

impl Report {
    /// Returns true while services are running and have work left. A dead letter does not go away by waiting.
    pub fn is_in_progress(&self) -> bool {
        self.running && self.dead_letters == 0 && !self.faults().is_empty()
    }

    /// Describes each imbalance in words; empty if everything is balanced.
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
