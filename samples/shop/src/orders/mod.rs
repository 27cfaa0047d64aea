//! Orders: what customers want, and what becomes of it.
//!
//! An [`Order`] knows its own life: placed, then confirmed or cancelled. The saga [`Fulfilment`] gets everybody else to do
//! their part. [`Progress`] counts.

mod fulfilment;
mod order;
mod progress;

pub use fulfilment::{Fulfilment, OVERDUE, PAYMENT_PATIENCE, PaymentOverdue};
pub use order::Order;
pub use progress::{AskProgress, Counts, Progress};

use whizbang::prelude::*;

/// What customers want.
#[derive(Domain)]
pub struct Orders;

/// One product in an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The product.
    pub product: String,
    /// How many of it.
    pub quantity: u32,
    /// What one costs.
    pub price_cents: u64,
}

/// What somebody orders, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cart {
    /// Who orders.
    pub customer: String,
    /// What.
    pub lines: Vec<Line>,
    /// The city it goes to.
    pub city: String,
    /// The country, as two letters.
    pub country: String,
}

impl Cart {
    /// What it costs. Carts are checked when they come in, so the sum is far from its limit.
    pub fn total_cents(&self) -> u64 {
        self.lines.iter().map(|line| u64::from(line.quantity) * line.price_cents).sum()
    }
}

/// Places an order.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Orders, reply = Placing)]
pub struct PlaceOrder {
    /// The order.
    #[key]
    pub order: String,
    /// The document it came with: the same one again is no second order.
    pub document: String,
    /// What is ordered.
    pub cart: Cart,
}

/// What became of placing an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placing {
    /// It is placed now.
    New,
    /// It was placed before, by the same document.
    Known,
}

/// Confirms an order: everything is paid and on its way.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Orders)]
pub struct ConfirmOrder {
    /// The order.
    #[key]
    pub order: String,
    /// The number of the shipment.
    pub tracking: String,
}

/// Cancels an order: nothing of it is kept.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Orders)]
pub struct CancelOrder {
    /// The order.
    #[key]
    pub order: String,
    /// Why.
    pub reason: Rejection,
}

/// An order was placed.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct OrderPlaced {
    /// The document it came with.
    pub document: String,
    /// What was ordered.
    pub cart: Cart,
}

/// An order was confirmed.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct OrderConfirmed {
    /// What was ordered.
    pub cart: Cart,
    /// The number of the shipment.
    pub tracking: String,
}

/// An order was cancelled.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct OrderCancelled {
    /// Who had ordered.
    pub customer: String,
    /// Why.
    pub reason: Rejection,
}
