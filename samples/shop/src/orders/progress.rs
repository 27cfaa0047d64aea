//! Counts the orders that were placed and those that have ended.

use whizbang::prelude::*;

use super::{OrderCancelled, OrderConfirmed, OrderPlaced, Orders};

/// Asks for the counts of orders.
#[derive(Query, Debug, Serialize, Deserialize)]
#[query(domain = Orders, reply = Counts)]
pub struct AskProgress;

/// The numbers of orders in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Orders placed.
    pub placed: u64,
    /// The number of confirmed ones among these.
    pub confirmed: u64,
    /// The number of cancelled ones among these.
    pub cancelled: u64,
}

impl Counts {
    /// Returns the number of confirmed and cancelled orders.
    pub fn ended(&self) -> u64 {
        self.confirmed + self.cancelled
    }
}

/// The view behind [`AskProgress`].
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(OrderPlaced, OrderConfirmed, OrderCancelled), answers(AskProgress))]
pub struct Progress {
    counts: Counts,
}

impl Project<OrderPlaced> for Progress {
    fn project(&mut self, _: &OrderPlaced, _: &EventContext) {
        self.counts.placed += 1;
    }
}

impl Project<OrderConfirmed> for Progress {
    fn project(&mut self, _: &OrderConfirmed, _: &EventContext) {
        self.counts.confirmed += 1;
    }
}

impl Project<OrderCancelled> for Progress {
    fn project(&mut self, _: &OrderCancelled, _: &EventContext) {
        self.counts.cancelled += 1;
    }
}

impl Answer<AskProgress> for Progress {
    fn answer(&self, _: AskProgress) -> Counts {
        self.counts
    }
}
