//! Payments: money that customers owe, have paid and get back.
//!
//! A [`Payment`] decides the amounts to charge and refund; the [`Cashier`] calls the [`Provider`], which stands for an external
//! company.

mod cashier;
mod payment;
mod provider;

pub use cashier::Cashier;
pub use payment::Payment;
pub use provider::{Behavior, Habits, Provider, balance_cents};

use whizbang::prelude::*;

/// Money that customers owe, have paid and get back.
#[derive(Domain)]
pub struct Payments;

/// Takes the payment for an order. The outcome is an event: [`PaymentTaken`] or [`PaymentDeclined`].
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Payments)]
pub struct TakePayment {
    /// The order.
    #[key]
    pub order: String,
    /// The amount, in cents.
    pub cents: u64,
}

/// Refunds a payment, including one whose charge is still in progress.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Payments)]
pub struct RefundPayment {
    /// The order.
    #[key]
    pub order: String,
}

/// A job for the cashier: charge an order. The reply is the receipt of the provider.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Payments, reply = String)]
pub struct Charge {
    /// The order.
    #[key]
    pub order: String,
    /// The amount, in cents.
    pub cents: u64,
}

/// A job for the cashier: return money. The reply is the receipt of the provider.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Payments, reply = String)]
pub struct ReturnMoney {
    /// The order.
    #[key]
    pub order: String,
    /// The amount, in cents.
    pub cents: u64,
}

/// A payment was requested.
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
    /// The rejection of the provider.
    pub reason: Rejection,
}

/// A refund was requested. It starts once the charge has succeeded.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Payments)]
pub struct RefundBegun;

/// The customer was refunded.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Payments)]
pub struct PaymentRefunded {
    /// The amount, in cents.
    pub cents: u64,
    /// The provider's receipt.
    pub receipt: String,
}
