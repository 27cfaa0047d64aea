//! Fulfilments and payments with one bug each. All of them must be found.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shop::inventory::{Release, Reserve};
use shop::orders::{CancelOrder, Cart, ConfirmOrder, Order, OrderConfirmed, OrderPlaced, Orders, PAYMENT_PATIENCE};
use shop::payments::{
    Charge, Payment, PaymentDeclined, PaymentTaken, Payments, RefundPayment, ReturnMoney, TakePayment,
};
use shop::shipping::Ship;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};
use whizbang::{NodeBuilder, Retry};

use crate::assert_found_and_short;
use crate::early_refund::EarlyRefund;
use crate::shop_flow::{Step, money_is_conserved, orders_end, perform, services, steps, stock_is_conserved};

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
struct Begun {
    cart: Cart,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
struct LineReserved {}

#[derive(Document, Debug, Serialize, Deserialize)]
#[document(domain = Orders)]
struct Overdue {}

/// A bug in the fulfilment.
#[derive(Clone, Copy, PartialEq)]
enum Bug {
    None,
    /// Reserved stock is not released.
    ReleaseForgotten,
    /// The payment timer is not cleared after the payment.
    TimerAfterTheEnd,
}

/// The shop's fulfilment, with a bug.
#[rustfmt::skip] // rustfmt would indent the attribute further on each run.
macro_rules! fulfilment {
    ($saga:ident, $bug:expr) => {
        #[derive(Saga, Default)]
        #[saga(
            domain = Orders,
            reacts(OrderPlaced, PaymentTaken, PaymentDeclined),
            replies(Reserve, Ship),
            timers(Overdue),
            applies(Begun, LineReserved)
        )]
        struct $saga {
            cart: Option<Cart>,
            reserved: usize,
        }

        impl React<OrderPlaced> for $saga {
            fn react(&self, placed: OrderPlaced, effects: &mut Effects<Self>) {
                let order = effects.key().to_owned();
                for (number, line) in (0..).zip(&placed.cart.lines) {
                    let (product, order, quantity) = (line.product.clone(), order.clone(), line.quantity);
                    let reserve = Reserve { product: product.clone(), order: order.clone(), line: number, quantity };
                    let sent = effects.send(reserve);
                    if $bug != Bug::ReleaseForgotten {
                        sent.compensate_with(Release { product, order, line: number });
                    }
                }
                effects.record(Begun { cart: placed.cart });
            }
        }

        impl OnReply<Reserve> for $saga {
            fn on_reply(&self, reply: Result<(), Rejection>, effects: &mut Effects<Self>) {
                if let Err(no) = reply {
                    return self.give_up(no, effects);
                }
                effects.record(LineReserved {});
                let Some(cart) = &self.cart else { return };
                if self.reserved + 1 == cart.lines.len() {
                    let order = effects.key().to_owned();
                    effects
                        .send(TakePayment { order: order.clone(), cents: cart.total_cents() })
                        .compensate_with(RefundPayment { order });
                    effects.set_timer(&Overdue {}, PAYMENT_PATIENCE);
                }
            }
        }

        impl React<PaymentTaken> for $saga {
            fn react(&self, _: PaymentTaken, effects: &mut Effects<Self>) {
                let Some(cart) = self.cart.clone() else { return };
                if $bug != Bug::TimerAfterTheEnd {
                    effects.clear_timer::<Overdue>();
                }
                let order = effects.key().to_owned();
                effects.send(Ship { order, cart });
            }
        }

        impl React<PaymentDeclined> for $saga {
            fn react(&self, declined: PaymentDeclined, effects: &mut Effects<Self>) {
                effects.clear_timer::<Overdue>();
                self.give_up(declined.reason, effects);
            }
        }

        impl OnTimer<Overdue> for $saga {
            fn on_timer(&self, _: Overdue, effects: &mut Effects<Self>) {
                self.give_up(Rejection::new("payments.overdue", "the payment took too long"), effects);
            }
        }

        impl OnReply<Ship> for $saga {
            fn on_reply(&self, reply: Result<String, Rejection>, effects: &mut Effects<Self>) {
                match reply {
                    Ok(tracking) => {
                        effects.send(ConfirmOrder { order: effects.key().to_owned(), tracking });
                        effects.complete();
                    }
                    Err(no) => self.give_up(no, effects),
                }
            }
        }

        impl $saga {
            fn give_up(&self, reason: Rejection, effects: &mut Effects<Self>) {
                let order = effects.key().to_owned();
                effects.compensate().then(CancelOrder { order, reason });
            }
        }

        impl Apply<Begun> for $saga {
            fn apply(&mut self, begun: &Begun) {
                self.cart = Some(begun.cart.clone());
            }
        }

        impl Apply<LineReserved> for $saga {
            fn apply(&mut self, _: &LineReserved) {
                self.reserved += 1;
            }
        }
    };
}

fulfilment!(Right, Bug::None);
fulfilment!(Forgetful, Bug::ReleaseForgotten);
fulfilment!(Alarmed, Bug::TimerAfterTheEnd);

/// The books of a provider: cents by key.
type Books = Arc<Mutex<BTreeMap<String, i64>>>;

/// A cashier with a slow provider that declines some charges.
#[derive(Worker)]
#[worker(domain = Payments, performs(Charge, ReturnMoney))]
struct FakeCashier {
    books: Books,
    /// True if the provider receives the same key in each attempt.
    derives_keys: bool,
}

impl FakeCashier {
    fn enter(&self, job: &Job, cents: i64) -> String {
        let mut books = self.books.lock().unwrap();
        let key = if self.derives_keys { job.idempotency_key.to_string() } else { format!("{}", books.len()) };
        books.insert(key.clone(), cents);
        key
    }
}

impl Perform<Charge> for FakeCashier {
    async fn perform(&self, charge: Charge, job: Job) -> Result<String, WorkError> {
        let slow = charge.order.ends_with(['1', '3', '5', '7']);
        let declined = charge.order.ends_with('7');
        let answer = if declined {
            Err(Rejection::new("payments.declined", "the card is not covered").into())
        } else {
            Ok(self.enter(&job, charge.cents.try_into().unwrap()))
        };
        let silence = Duration::from_millis(if slow { 3000 } else { 20 });
        // The provider is slow, in virtual time.
        let _ = tokio::time::timeout(silence, std::future::pending::<()>()).await;
        answer
    }
}

impl Perform<ReturnMoney> for FakeCashier {
    async fn perform(&self, money: ReturnMoney, job: Job) -> Result<String, WorkError> {
        let cents: i64 = money.cents.try_into().unwrap();
        Ok(self.enter(&job, -cents))
    }
}

fn flow(
    name: &'static str,
    orders: fn(NodeBuilder) -> NodeBuilder,
    payments: fn(NodeBuilder) -> NodeBuilder,
    derives_keys: bool,
) -> Flow<Step, impl AsyncFn(&World, Step)> {
    let cluster = move |sim: Sim| {
        let books = Books::default();
        let of_node = Arc::clone(&books);
        services(sim, orders)
            .service("payments", move |node| {
                let cashier = FakeCashier { books: Arc::clone(&of_node), derives_keys };
                payments(node).worker(cashier).retry(Retry { attempts: 40, ..Retry::default() })
            })
            .at_end(move |world| {
                let sold: u64 = world.events::<OrderConfirmed>().iter().map(|(_, sold)| sold.cart.total_cents()).sum();
                match books.lock().unwrap().values().sum::<i64>() {
                    balance if balance == i64::try_from(sold).unwrap() => Ok(()),
                    balance => Err(format!("{sold} cents were sold and the provider holds {balance}")),
                }
            })
    };
    Flow::new(name, cluster, steps(), 1..10, perform)
        .no_regressions()
        .at_end(|world, _| stock_is_conserved(world))
        .at_end(|world, _| money_is_conserved(world))
        .at_end(|world, _| orders_end(world))
}

#[test]
fn flow_without_a_bug_holds() {
    flow("right", |node| node.aggregate::<Order>().saga::<Right>(), |node| node.aggregate::<Payment>(), true)
        .check(0..100);
}

#[test]
fn forgotten_release_is_found() {
    let flow = flow(
        "forgetful",
        |node| node.aggregate::<Order>().saga::<Forgetful>(),
        |node| node.aggregate::<Payment>(),
        true,
    );
    assert_found_and_short(&flow, "set aside for a line");
}

#[test]
fn timer_after_the_end_is_found() {
    let flow =
        flow("alarmed", |node| node.aggregate::<Order>().saga::<Alarmed>(), |node| node.aggregate::<Payment>(), true);
    assert_found_and_short(&flow, "of");
}

#[test]
fn refund_before_known_charge_is_found() {
    let flow = flow(
        "early-refund",
        |node| node.aggregate::<Order>().saga::<Right>(),
        |node| node.aggregate::<EarlyRefund>(),
        true,
    );
    assert_found_and_short(&flow, "cents were sold and the provider holds");
}

#[test]
fn key_not_derived_from_command_is_found() {
    let flow =
        flow("keyless", |node| node.aggregate::<Order>().saga::<Right>(), |node| node.aggregate::<Payment>(), false);
    assert_found_and_short(&flow, "cents were sold and the provider holds");
}
