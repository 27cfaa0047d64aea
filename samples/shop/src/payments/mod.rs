//! Payments: money that customers owe, have paid and get back.
//!
//! A [`Payment`] decides what is to be charged and returned; the [`Cashier`] talks to the [`Provider`], which has a mind of
//! its own.

mod cashier;
mod payment;
mod provider;

pub use cashier::Cashier;
pub use payment::Payment;
pub use provider::{Habits, Mood, Provider, balance_cents};

use whizbang::prelude::*;

/// Money that customers owe, have paid and get back.
#[derive(Domain)]
pub struct Payments;

/// Takes the payment for an order. What comes of it is an event: [`PaymentTaken`] or [`PaymentDeclined`].
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Payments)]
pub struct TakePayment {
    /// The order.
    #[key]
    pub order: String,
    /// The amount, in cents.
    pub cents: u64,
}

/// Gives back what was taken, or will turn out to have been taken.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Payments)]
pub struct RefundPayment {
    /// The order.
    #[key]
    pub order: String,
}

/// Tells the cashier to charge. The reply is the provider's receipt.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Payments, reply = String)]
pub struct Charge {
    /// The order.
    #[key]
    pub order: String,
    /// The amount, in cents.
    pub cents: u64,
}

/// Tells the cashier to return money. The reply is the provider's receipt.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Payments, reply = String)]
pub struct ReturnMoney {
    /// The order.
    #[key]
    pub order: String,
    /// The amount, in cents.
    pub cents: u64,
}

/// A payment is to be taken.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Payments)]
pub struct PaymentBegun {
    /// The amount, in cents.
    pub cents: u64,
}

/// The customer has paid.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Payments)]
pub struct PaymentTaken {
    /// The amount, in cents.
    pub cents: u64,
    /// The provider's receipt.
    pub receipt: String,
}

/// The provider has declined.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Payments)]
pub struct PaymentDeclined {
    /// Why.
    pub reason: Rejection,
}

/// The money is to go back, now or as soon as it is there.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Payments)]
pub struct RefundBegun {}

/// The customer has the money back.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Payments)]
pub struct PaymentRefunded {
    /// The amount, in cents.
    pub cents: u64,
    /// The provider's receipt.
    pub receipt: String,
}
