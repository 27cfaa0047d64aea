//! One order: placed once, then either confirmed or cancelled.

use whizbang::prelude::*;

use super::{
    CancelOrder, Cart, ConfirmOrder, OrderCancelled, OrderConfirmed, OrderPlaced, Orders, PlaceOrder, Placing,
};

/// One order.
#[derive(Aggregate, Default)]
#[aggregate(
    domain = Orders,
    handles(PlaceOrder, ConfirmOrder, CancelOrder),
    applies(OrderPlaced, OrderConfirmed, OrderCancelled)
)]
pub struct Order {
    placed: Option<(String, Cart)>,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Confirmed,
    Cancelled,
}

impl Handle<PlaceOrder> for Order {
    fn handle(&self, place: PlaceOrder, effects: &mut Effects<Self>) -> Result<Placing, Rejection> {
        match &self.placed {
            None => {
                effects.record(OrderPlaced { document: place.document, cart: place.cart });
                Ok(Placing::New)
            }
            Some((document, _)) if *document == place.document => Ok(Placing::Known),
            Some((document, _)) => {
                let text = format!("document {document} has already placed an order {}", place.order);
                Err(Rejection::new("orders.doubled-id", text))
            }
        }
    }
}

impl Handle<ConfirmOrder> for Order {
    fn handle(&self, confirm: ConfirmOrder, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let cart = self.open_cart(End::Confirmed)?;
        effects.record(OrderConfirmed { cart: cart.clone(), tracking: confirm.tracking });
        Ok(())
    }
}

impl Handle<CancelOrder> for Order {
    fn handle(&self, cancel: CancelOrder, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let customer = self.open_cart(End::Cancelled)?.customer.clone();
        effects.record(OrderCancelled { customer, reason: cancel.reason });
        Ok(())
    }
}

impl Order {
    /// Returns the cart of an open order; rejects if the order is not open.
    fn open_cart(&self, end: End) -> Result<&Cart, Rejection> {
        match (&self.placed, self.end) {
            (Some((_, cart)), None) => Ok(cart),
            (None, _) => Err(Rejection::new("orders.unknown", "the order does not exist")),
            (_, Some(before)) if before == end => {
                Err(Rejection::new("orders.ended", "the order has ended this way before"))
            }
            (_, Some(_)) => Err(Rejection::new("orders.ended-otherwise", "the order has ended the other way")),
        }
    }
}

impl Apply<OrderPlaced> for Order {
    fn apply(&mut self, placed: &OrderPlaced) {
        self.placed = Some((placed.document.clone(), placed.cart.clone()));
    }
}

impl Apply<OrderConfirmed> for Order {
    fn apply(&mut self, _: &OrderConfirmed) {
        self.end = Some(End::Confirmed);
    }
}

impl Apply<OrderCancelled> for Order {
    fn apply(&mut self, _: &OrderCancelled) {
        self.end = Some(End::Cancelled);
    }
}
