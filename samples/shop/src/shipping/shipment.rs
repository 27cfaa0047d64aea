//! The shipment of one order: a parcel for each line. Some countries are not served.

use whizbang::prelude::*;

use super::{ParcelSent, Ship, Shipped, Shipping};

/// Countries without a carrier: Antarctica, Bouvet Island.
const UNSERVED: [&str; 2] = ["AQ", "BV"];

/// The shipment of one order.
#[derive(Aggregate, Default)]
#[aggregate(domain = Shipping, handles(Ship), applies(Shipped), records(ParcelSent))]
pub struct Shipment {
    tracking: Option<String>,
}

impl Handle<Ship> for Shipment {
    fn handle(&self, ship: Ship, effects: &mut Effects<Self>) -> Result<String, Rejection> {
        if let Some(tracking) = &self.tracking {
            return Ok(tracking.clone());
        }
        let Ship { order, cart } = ship;
        if UNSERVED.contains(&cart.country.as_str()) {
            let text = format!("no carrier goes to {}, {}", cart.city, cart.country);
            return Err(Rejection::new("shipping.unserved", text));
        }
        let tracking = effects.new_id().to_string();
        effects.record(Shipped { tracking: tracking.clone(), city: cart.city });
        for (number, line) in (0..).zip(cart.lines) {
            let (product, quantity) = (line.product, line.quantity);
            effects.record(ParcelSent { order: order.clone(), line: number, product, quantity });
        }
        Ok(tracking)
    }
}

impl Apply<Shipped> for Shipment {
    fn apply(&mut self, shipped: &Shipped) {
        self.tracking = Some(shipped.tracking.clone());
    }
}
