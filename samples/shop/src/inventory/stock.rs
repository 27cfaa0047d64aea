//! The stock of one product. It never reserves more than is free.

use std::collections::{BTreeMap, BTreeSet};

use whizbang::prelude::*;

use super::{Inventory, Release, Released, Reserve, Reserved, Restock, Restocked, TakenAway};
use crate::shipping::ParcelSent;

/// The stock of one product.
#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(
    domain = Inventory,
    handles(Restock, Reserve, Release),
    reacts(ParcelSent),
    applies(Restocked, Reserved, Released, TakenAway),
    snapshot(every = 500)
)]
pub struct Stock {
    free: u64,
    reserved: BTreeMap<(String, u32), u32>,
    notes: BTreeSet<String>,
}

impl Handle<Restock> for Stock {
    fn handle(&self, restock: Restock, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if !self.notes.contains(&restock.note) {
            effects.record(Restocked { note: restock.note, quantity: restock.quantity });
        }
        Ok(())
    }
}

impl Handle<Reserve> for Stock {
    fn handle(&self, reserve: Reserve, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let Reserve { product, order, line, quantity } = reserve;
        if self.notes.is_empty() {
            return Err(Rejection::new("inventory.unknown-product", format!("there is no product {product}")));
        }
        if self.free < u64::from(quantity) {
            let text = format!("{product} is sold out: {quantity} wanted, {} left", self.free);
            return Err(Rejection::new("inventory.sold-out", text));
        }
        effects.record(Reserved { order, line, quantity });
        Ok(())
    }
}

impl Handle<Release> for Stock {
    fn handle(&self, release: Release, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let Release { order, line, .. } = release;
        if let Some(quantity) = self.reserved.get(&(order.clone(), line)).copied() {
            effects.record(Released { order, line, quantity });
        }
        Ok(())
    }
}

/// No command reports collected pieces: the stock subscribes to the events of shipping.
impl React<ParcelSent> for Stock {
    fn key(parcel: &ParcelSent, _: &EventContext) -> Option<String> {
        Some(parcel.product.clone())
    }

    fn react(&self, parcel: ParcelSent, effects: &mut Effects<Self>) {
        let ParcelSent { order, line, quantity, .. } = parcel;
        effects.record(TakenAway { order, line, quantity });
    }
}

impl Apply<Restocked> for Stock {
    fn apply(&mut self, restocked: &Restocked) {
        self.free += restocked.quantity;
        self.notes.insert(restocked.note.clone());
    }
}

impl Apply<Reserved> for Stock {
    fn apply(&mut self, reserved: &Reserved) {
        self.free -= u64::from(reserved.quantity);
        self.reserved.insert((reserved.order.clone(), reserved.line), reserved.quantity);
    }
}

impl Apply<Released> for Stock {
    fn apply(&mut self, released: &Released) {
        self.free += u64::from(released.quantity);
        self.reserved.remove(&(released.order.clone(), released.line));
    }
}

impl Apply<TakenAway> for Stock {
    fn apply(&mut self, taken: &TakenAway) {
        self.reserved.remove(&(taken.order.clone(), taken.line));
    }
}
