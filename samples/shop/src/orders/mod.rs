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
    /// Returns the sum of the lines, in cents. Intake limits quantities and prices, so the sum cannot overflow.
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
    /// The id of the document that contains the order. The same document again does not place a second order.
    pub document: String,
    /// The cart.
    pub cart: Cart,
}

/// The outcome of placing an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placing {
    /// The order was placed by this command.
    New,
    /// The order was placed before, by the same document.
    Known,
}

/// Confirms an order that is paid and shipped.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Orders)]
pub struct ConfirmOrder {
    /// The order.
    #[key]
    pub order: String,
    /// The tracking number of the shipment.
    pub tracking: String,
}

/// Cancels an order after all its steps are compensated.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Orders)]
pub struct CancelOrder {
    /// The order.
    #[key]
    pub order: String,
    /// The rejection that caused it.
    pub reason: Rejection,
}

/// An order was placed.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct OrderPlaced {
    /// The id of the document that contained it.
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
    /// The tracking number of the shipment.
    pub tracking: String,
}

/// An order was cancelled.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct OrderCancelled {
    /// The customer.
    pub customer: String,
    /// The rejection that caused it.
    pub reason: Rejection,
}
