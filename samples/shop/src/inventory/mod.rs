//! Inventory: what lies on the shelves.
//!
//! One [`Stock`] per product. Orders reserve from it and give back; what the carrier has taken leaves it for good.

mod stock;

pub use stock::Stock;

use whizbang::prelude::*;

/// The domain of stock.
#[derive(Domain)]
pub struct Inventory;

/// Puts more of a product on its shelf.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Inventory)]
pub struct Restock {
    /// The product.
    #[key]
    pub product: String,
    /// The delivery note: the same one again brings nothing.
    pub note: String,
    /// The number of pieces.
    pub quantity: u64,
}

/// Sets some of a product aside for a line of an order.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Inventory)]
pub struct Reserve {
    /// The product.
    #[key]
    pub product: String,
    /// The order.
    pub order: String,
    /// The number of its line.
    pub line: u32,
    /// The number of pieces.
    pub quantity: u32,
}

/// Puts back what was set aside.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Inventory)]
pub struct Release {
    /// The product.
    #[key]
    pub product: String,
    /// The order.
    pub order: String,
    /// The number of its line.
    pub line: u32,
}

/// More has come.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Inventory)]
pub struct Restocked {
    /// The delivery note.
    pub note: String,
    /// The number of pieces.
    pub quantity: u64,
}

/// Some is set aside.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Inventory)]
pub struct Reserved {
    /// The order.
    pub order: String,
    /// The number of its line.
    pub line: u32,
    /// The number of pieces.
    pub quantity: u32,
}

/// Some is put back.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Inventory)]
pub struct Released {
    /// The order.
    pub order: String,
    /// The number of its line.
    pub line: u32,
    /// The number of pieces.
    pub quantity: u32,
}

/// Some has left the house.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Inventory)]
pub struct TakenAway {
    /// The order.
    pub order: String,
    /// The number of its line.
    pub line: u32,
    /// The number of pieces.
    pub quantity: u32,
}
