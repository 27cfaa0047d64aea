//! Inventory: the stock of each product.
//!
//! One [`Stock`] per product. Orders reserve and release pieces; pieces that the carrier has collected leave the stock.

mod stock;

pub use stock::Stock;

use whizbang::prelude::*;

/// The domain of stock.
#[derive(Domain)]
pub struct Inventory;

/// Adds pieces to the stock of a product.
#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Inventory)]
pub struct Restock {
    /// The product.
    #[key]
    pub product: String,
    /// The delivery note. A repeated note has no effect.
    pub note: String,
    /// The number of pieces.
    pub quantity: u64,
}

/// Reserves pieces of a product for a line of an order.
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

/// Releases the reservation of a line.
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

/// Pieces were added.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Inventory)]
pub struct Restocked {
    /// The delivery note.
    pub note: String,
    /// The number of pieces.
    pub quantity: u64,
}

/// Pieces were reserved.
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

/// Reserved pieces were released.
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

/// Reserved pieces were collected by the carrier.
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
