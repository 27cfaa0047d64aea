//! The saga of an order: reserve each line, take the payment, ship, confirm. After a rejection it compensates the completed
//! steps in reverse order and cancels the order.

use std::time::Duration;

use whizbang::prelude::*;

use super::{CancelOrder, Cart, ConfirmOrder, OrderPlaced, Orders};
use crate::inventory::{Release, Reserve};
use crate::payments::{PaymentDeclined, PaymentTaken, RefundPayment, TakePayment};
use crate::shipping::Ship;

/// The time limit of a payment, after which the order is cancelled.
pub const PAYMENT_PATIENCE: Duration = Duration::from_secs(2);

/// The code of the rejection after that time.
pub const OVERDUE: &str = "payments.overdue";

/// The saga of one order; its key is the order's.
#[derive(Saga, Default)]
#[saga(
    domain = Orders,
    reacts(OrderPlaced, PaymentTaken, PaymentDeclined),
    replies(Reserve, Ship),
    timers(PaymentOverdue),
    applies(FulfilmentBegun, LineReserved),
    records(FulfilmentPaid, FulfilmentGivenUp)
)]
pub struct Fulfilment {
    cart: Option<Cart>,
    reserved: usize,
}

/// Fulfilment has begun.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct FulfilmentBegun {
    /// The cart.
    pub cart: Cart,
}

/// One line of the order is reserved.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct LineReserved;

/// The order is paid.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct FulfilmentPaid;

/// A service has rejected a step.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct FulfilmentGivenUp {
    /// The rejection.
    pub reason: Rejection,
}

/// The payment has taken too long.
#[derive(Document, Debug, Serialize, Deserialize)]
#[document(domain = Orders)]
pub struct PaymentOverdue;

impl React<OrderPlaced> for Fulfilment {
    fn react(&self, placed: OrderPlaced, effects: &mut Effects<Self>) {
        let order = effects.key().to_owned();
        for (number, line) in (0..).zip(&placed.cart.lines) {
            let (product, order) = (line.product.clone(), order.clone());
            effects
                .send(Reserve { product: product.clone(), order: order.clone(), line: number, quantity: line.quantity })
                .compensate_with(Release { product, order, line: number });
        }
        effects.record(FulfilmentBegun { cart: placed.cart });
    }
}

impl OnReply<Reserve> for Fulfilment {
    fn on_reply(&self, reply: Result<(), Rejection>, effects: &mut Effects<Self>) {
        if let Err(rejection) = reply {
            return self.give_up(rejection, effects);
        }
        effects.record(LineReserved);
        let Some(cart) = &self.cart else { return };
        if self.reserved + 1 == cart.lines.len() {
            let order = effects.key().to_owned();
            effects
                .send(TakePayment { order: order.clone(), cents: cart.total_cents() })
                .compensate_with(RefundPayment { order });
            effects.set_timer(&PaymentOverdue, PAYMENT_PATIENCE);
        }
    }
}

impl React<PaymentTaken> for Fulfilment {
    fn react(&self, _: PaymentTaken, effects: &mut Effects<Self>) {
        let Some(cart) = self.cart.clone() else { return };
        effects.clear_timer::<PaymentOverdue>();
        effects.record(FulfilmentPaid);
        let order = effects.key().to_owned();
        effects.send(Ship { order, cart });
    }
}

impl React<PaymentDeclined> for Fulfilment {
    fn react(&self, declined: PaymentDeclined, effects: &mut Effects<Self>) {
        effects.clear_timer::<PaymentOverdue>();
        self.give_up(declined.reason, effects);
    }
}

impl OnTimer<PaymentOverdue> for Fulfilment {
    fn on_timer(&self, _: PaymentOverdue, effects: &mut Effects<Self>) {
        self.give_up(Rejection::new(OVERDUE, "the payment took too long"), effects);
    }
}

impl OnReply<Ship> for Fulfilment {
    fn on_reply(&self, reply: Result<String, Rejection>, effects: &mut Effects<Self>) {
        match reply {
            Ok(tracking) => {
                effects.send(ConfirmOrder { order: effects.key().to_owned(), tracking });
                effects.complete();
            }
            Err(rejection) => self.give_up(rejection, effects),
        }
    }
}

impl Fulfilment {
    /// Compensates all steps, then cancels the order.
    fn give_up(&self, reason: Rejection, effects: &mut Effects<Self>) {
        let order = effects.key().to_owned();
        effects.record(FulfilmentGivenUp { reason: reason.clone() });
        effects.compensate().then(CancelOrder { order, reason });
    }
}

impl Apply<FulfilmentBegun> for Fulfilment {
    fn apply(&mut self, begun: &FulfilmentBegun) {
        self.cart = Some(begun.cart.clone());
    }
}

impl Apply<LineReserved> for Fulfilment {
    fn apply(&mut self, _: &LineReserved) {
        self.reserved += 1;
    }
}
