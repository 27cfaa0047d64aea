//! Shipping: parcels and the carrier who takes them.

mod shipment;

pub use shipment::Shipment;

use whizbang::prelude::*;

use crate::orders::Cart;

/// Parcels and the carrier who takes them.
#[derive(Domain)]
pub struct Shipping;

/// Ships an order. The reply is the tracking number.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Shipping, reply = String)]
pub struct Ship {
    /// The order.
    #[key]
    pub order: String,
    /// What is in it, and where it goes.
    pub cart: Cart,
}

/// An order is on its way.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Shipping)]
pub struct Shipped {
    /// The number to follow it by.
    pub tracking: String,
    /// The city it goes to.
    pub city: String,
}

/// One product of an order is on its way.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Shipping)]
pub struct ParcelSent {
    /// The order.
    pub order: String,
    /// The number of the order's line.
    pub line: u32,
    /// The product.
    pub product: String,
    /// How many.
    pub quantity: u32,
}
