//! Sums over all services that are zero once no order is in progress.

use whizbang::prelude::*;

use super::Analytics;
use crate::inventory::{Released, Reserved, TakenAway};
use crate::orders::{OrderCancelled, OrderConfirmed, OrderPlaced};
use crate::payments::{PaymentBegun, PaymentDeclined, PaymentRefunded, PaymentTaken};

/// Asks for the sums.
#[derive(Query, Debug, Serialize, Deserialize)]
#[query(domain = Analytics, reply = Sums)]
pub struct AskBooks;

/// The sums over all services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Orders placed.
    pub placed: u64,
    /// Orders placed and neither confirmed nor cancelled.
    pub open: i64,
    /// Pieces in confirmed orders that the carrier has not collected.
    pub unsent: i64,
    /// Pieces reserved that were neither released nor collected.
    pub reserved: i64,
    /// Payments begun that were neither taken nor declined.
    pub unpaid: i64,
    /// Charges less refunds less revenue, in cents.
    pub owed_cents: i64,
}

impl Sums {
    /// Returns true if nothing is in progress.
    pub fn are_even(&self) -> bool {
        *self == Self { placed: self.placed, ..Self::default() }
    }
}

/// The view behind [`AskBooks`]. Events of different services arrive in any order, so a sum may be above or below zero for a while.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(
    projects(
        OrderPlaced,
        OrderConfirmed,
        OrderCancelled,
        Reserved,
        Released,
        TakenAway,
        PaymentBegun,
        PaymentTaken,
        PaymentDeclined,
        PaymentRefunded
    ),
    answers(AskBooks)
)]
pub struct Books {
    sums: Sums,
}

impl Answer<AskBooks> for Books {
    fn answer(&self, _: AskBooks) -> Sums {
        self.sums
    }
}

fn signed(cents: u64) -> i64 {
    i64::try_from(cents).unwrap_or(i64::MAX)
}

impl Project<OrderPlaced> for Books {
    fn project(&mut self, _: &OrderPlaced, _: &EventContext) {
        self.sums.placed += 1;
        self.sums.open += 1;
    }
}

impl Project<OrderConfirmed> for Books {
    fn project(&mut self, confirmed: &OrderConfirmed, _: &EventContext) {
        self.sums.open -= 1;
        self.sums.unsent += confirmed.cart.lines.iter().map(|line| i64::from(line.quantity)).sum::<i64>();
        self.sums.owed_cents -= signed(confirmed.cart.total_cents());
    }
}

impl Project<OrderCancelled> for Books {
    fn project(&mut self, _: &OrderCancelled, _: &EventContext) {
        self.sums.open -= 1;
    }
}

impl Project<Reserved> for Books {
    fn project(&mut self, reserved: &Reserved, _: &EventContext) {
        self.sums.reserved += i64::from(reserved.quantity);
    }
}

impl Project<Released> for Books {
    fn project(&mut self, released: &Released, _: &EventContext) {
        self.sums.reserved -= i64::from(released.quantity);
    }
}

impl Project<TakenAway> for Books {
    fn project(&mut self, taken: &TakenAway, _: &EventContext) {
        self.sums.reserved -= i64::from(taken.quantity);
        self.sums.unsent -= i64::from(taken.quantity);
    }
}

impl Project<PaymentBegun> for Books {
    fn project(&mut self, _: &PaymentBegun, _: &EventContext) {
        self.sums.unpaid += 1;
    }
}

impl Project<PaymentTaken> for Books {
    fn project(&mut self, taken: &PaymentTaken, _: &EventContext) {
        self.sums.unpaid -= 1;
        self.sums.owed_cents += signed(taken.cents);
    }
}

impl Project<PaymentDeclined> for Books {
    fn project(&mut self, _: &PaymentDeclined, _: &EventContext) {
        self.sums.unpaid -= 1;
    }
}

impl Project<PaymentRefunded> for Books {
    fn project(&mut self, refunded: &PaymentRefunded, _: &EventContext) {
        self.sums.owed_cents -= signed(refunded.cents);
    }
}
