//! Orders: from placing to confirmation or cancellation.
//!
//! An [`Order`] is placed, then confirmed or cancelled. The saga [`Fulfilment`] drives the other services.
//! [`Progress`] counts orders.

mod fulfilment;
mod order;
mod progress;

pub use fulfilment::{Fulfilment, OVERDUE, PAYMENT_PATIENCE, PaymentOverdue};
pub use order::Order;
pub use progress::{AskProgress, Counts, Progress};

use whizbang::prelude::*;

/// The domain of orders.
#[derive(Domain)]
pub struct Orders;

/// One product in an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The product.
    pub product: String,
    /// The number of pieces.
    pub quantity: u32,
    /// The price of one piece, in cents.
    pub price_cents: u64,
}

/// The lines of an order, its customer and its destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cart {
    /// The customer.
    pub customer: String,
    /// The lines.
    pub lines: Vec<Line>,
    /// The city it goes to.
    pub city: String,
    /// The country, as two letters.
    pub country: String,
}

impl Cart {
    /// The sum of the lines, in cents. Carts are checked when they come in, so the sum is far from its limit.
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
    /// The id of the document with the order: the same document again is not a second order.
    pub document: String,
    /// The cart.
    pub cart: Cart,
}

/// The outcome of placing an order.
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
    /// The cart.
    pub cart: Cart,
}

/// An order was confirmed.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct OrderConfirmed {
    /// The cart.
    pub cart: Cart,
    /// The number of the shipment.
    pub tracking: String,
}

/// An order was cancelled.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct OrderCancelled {
    /// The customer.
    pub customer: String,
    /// Why.
    pub reason: Rejection,
}
