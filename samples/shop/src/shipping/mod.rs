//! Shipping: parcels and their carrier.

mod shipment;

pub use shipment::Shipment;

use whizbang::prelude::*;

use crate::orders::Cart;

/// The domain of parcels and their carrier.
#[derive(Domain)]
pub struct Shipping;

/// Ships an order. The reply is the tracking number.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Shipping, reply = String)]
pub struct Ship {
    /// The order.
    #[key]
    pub order: String,
    /// The contents and the destination.
    pub cart: Cart,
}

/// An order is on its way.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Shipping)]
pub struct Shipped {
    /// The tracking number.
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
    /// The number of pieces.
    pub quantity: u32,
}
