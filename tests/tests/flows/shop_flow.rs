//! The shop's fulfilment: reserved stock is released or shipped, charged money is kept or refunded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use shop::analytics::Revenue;
use shop::inventory::{Released, Reserved, Restock, Stock, TakenAway};
use shop::orders::{
    Cart, Fulfilment, Line, Order, OrderCancelled, OrderConfirmed, PaymentOverdue, PlaceOrder, Progress,
};
use shop::payments::{
    Cashier, Habits, Payment, PaymentDeclined, PaymentRefunded, PaymentTaken, Provider, balance_cents,
};
use shop::payments::{RefundPayment, TakePayment};
use shop::shipping::{ParcelSent, Ship, Shipment};
use tempfile::TempDir;
use whizbang::prelude::*;
use whizbang::testing::{Coverage, Flow, Sim, World};
use whizbang::{NodeBuilder, Retry};
use whizbang_tests::brief_or_long;

/// A provider that shows every problem of real providers, much more often.
const PROVIDER_HABITS: Habits = Habits {
    declines: 150,
    answers_late: 150,
    late: Duration::from_millis(300),
    loses_answers: 100,
    falls_silent: 150,
    silence: Duration::from_secs(3),
};

/// As in the shop: the provider may be down for a minute before a payment becomes a dead letter.
const PAYMENT_RETRY: Retry = Retry { attempts: 40, first: Duration::from_millis(100), longest: Duration::from_secs(2) };

/// An action of customers or suppliers.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Adds stock of a product.
    Restock { product: u8, quantity: u8 },
    /// Places an order. Some orders go to a country without a carrier.
    Order { order: u16, lines: Vec<(u8, u8)>, far: bool },
}

pub(crate) fn steps() -> impl Strategy<Value = Step> {
    let lines = prop::collection::vec((0u8..3, 1u8..4), 1..4);
    prop_oneof![
        1 => (0u8..3, 1u8..8).prop_map(|(product, quantity)| Step::Restock { product, quantity }),
        2 => (any::<u16>(), lines, prop::bool::weighted(0.1))
            .prop_map(|(order, lines, far)| Step::Order { order, lines, far }),
    ]
}

pub(crate) async fn perform(world: &World, step: Step) {
    match step {
        Step::Restock { product, quantity } => {
            let note = format!("note{}", world.below(u64::MAX));
            let restock = Restock { product: format!("product{product}"), note, quantity: quantity.into() };
            world.send(restock).await.expect("stock is always accepted");
        }
        Step::Order { order, lines, far } => {
            let lines = lines.into_iter().map(|(product, quantity)| Line {
                product: format!("product{product}"),
                quantity: quantity.into(),
                price_cents: 100,
            });
            let cart = Cart {
                customer: "ada".to_owned(),
                lines: lines.collect(),
                city: "Somewhere".to_owned(),
                country: if far { "AQ" } else { "CH" }.to_owned(),
            };
            let placed =
                world.send(PlaceOrder { order: format!("order{order}"), document: format!("{order}"), cart }).await;
            placed.expect("a repeated order is accepted once");
        }
    }
}

/// Adds the shop's services except subscribers.
pub(crate) fn services(sim: Sim, orders: impl Fn(NodeBuilder) -> NodeBuilder + 'static) -> Sim {
    sim.service("orders", orders)
        .service("inventory", |node| node.aggregate::<Stock>())
        .service("shipping", |node| node.aggregate::<Shipment>())
}

fn cluster(sim: Sim) -> Sim {
    let folder = TempDir::new().expect("a folder for the provider's ledger");
    // All nodes use the same provider, which handles each request once.
    let provider = Provider::open(&folder.path().join("ledger"), PROVIDER_HABITS).expect("a ledger");
    services(sim, |node| node.aggregate::<Order>().saga::<Fulfilment>().projection::<Progress>())
        .service("payments", move |node| {
            node.aggregate::<Payment>().worker(Cashier::new(provider.clone())).retry(PAYMENT_RETRY)
        })
        .service("analytics", |node| node.projection::<Revenue>())
        .at_end(move |world| {
            let sold: u64 = world.events::<OrderConfirmed>().iter().map(|(_, order)| order.cart.total_cents()).sum();
            match balance_cents(&folder.path().join("ledger")).map_err(|error| error.to_string())? {
                balance if balance == i64::try_from(sold).unwrap_or(i64::MAX) => Ok(()),
                balance => Err(format!("{sold} cents were sold and the provider holds {balance}")),
            }
        })
}

/// Checks that each order has ended in exactly one way.
pub(crate) fn orders_end(world: &World) -> Result<(), String> {
    for (order, _) in world.events::<shop::orders::OrderPlaced>() {
        let confirmed = world.events::<OrderConfirmed>().iter().filter(|(of, _)| *of == order).count();
        let cancelled = world.events::<OrderCancelled>().iter().filter(|(of, _)| *of == order).count();
        if confirmed + cancelled != 1 {
            return Err(format!("{order} was confirmed {confirmed} times and cancelled {cancelled} times"));
        }
    }
    Ok(())
}

/// Checks the stock: reserved quantities were shipped if the order was confirmed, and released otherwise.
pub(crate) fn stock_is_conserved(world: &World) -> Result<(), String> {
    let confirmed: BTreeSet<_> = world.events::<OrderConfirmed>().into_iter().map(|(order, _)| order).collect();
    let mut lines: BTreeMap<(String, u32), (u32, i64, i64)> = BTreeMap::new();
    for (_, Reserved { order, line, quantity }) in world.events() {
        lines.entry((order, line)).or_default().0 += quantity;
    }
    for (_, Released { order, line, quantity }) in world.events() {
        lines.entry((order, line)).or_default().1 += i64::from(quantity);
    }
    for (_, TakenAway { order, line, quantity }) in world.events() {
        lines.entry((order, line)).or_default().2 += i64::from(quantity);
    }
    for ((order, line), (reserved, released, taken)) in lines {
        let reserved = i64::from(reserved);
        let wanted = if confirmed.contains(&order) { (0, reserved) } else { (reserved, 0) };
        if (released, taken) != wanted {
            return Err(format!(
                "of {reserved} set aside for a line, {released} were given back and {taken} have left ({order}, line {line})"
            ));
        }
    }
    Ok(())
}

/// Checks the money: payments were kept if the order was confirmed, and refunded otherwise.
pub(crate) fn money_is_conserved(world: &World) -> Result<(), String> {
    let confirmed: BTreeSet<_> = world.events::<OrderConfirmed>().into_iter().map(|(order, _)| order).collect();
    let taken: Vec<_> = world.events::<PaymentTaken>();
    let refunded: Vec<_> = world.events::<PaymentRefunded>();
    let sent: BTreeSet<_> = world.events::<ParcelSent>().into_iter().map(|(order, _)| order).collect();
    for (order, _) in world.events::<shop::orders::OrderPlaced>() {
        let of = |orders: &mut dyn Iterator<Item = &String>| orders.filter(|of| **of == order).count();
        let taken = of(&mut taken.iter().map(|(order, _)| order));
        let refunded = of(&mut refunded.iter().map(|(order, _)| order));
        let kept = usize::from(confirmed.contains(&order));
        if taken.checked_sub(refunded) != Some(kept) {
            return Err(format!(
                "an order was paid {taken} times and refunded {refunded} times, {kept} are right ({order})"
            ));
        }
        if sent.contains(&order) && kept == 0 {
            return Err(format!("a cancelled order was sent ({order})"));
        }
    }
    Ok(())
}

/// Checks that the revenue view equals the confirmed orders.
fn revenue_is_right(world: &World) -> Result<(), String> {
    let sold: u64 = world.events::<OrderConfirmed>().iter().map(|(_, order)| order.cart.total_cents()).sum();
    match world.view::<Revenue>().answer(shop::analytics::AskRevenue {}).cents {
        cents if cents == sold => Ok(()),
        cents => Err(format!("{sold} cents were sold and the view says {cents}")),
    }
}

pub(crate) fn fulfilment() -> Flow<Step, impl AsyncFn(&World, Step)> {
    checked("fulfilment", cluster)
}

fn checked(name: &'static str, cluster: impl Fn(Sim) -> Sim + 'static) -> Flow<Step, impl AsyncFn(&World, Step)> {
    Flow::new(name, cluster, steps(), 1..10, perform)
        .at_end(|world, _| orders_end(world))
        .at_end(|world, _| stock_is_conserved(world))
        .at_end(|world, _| money_is_conserved(world))
        .at_end(|world, _| revenue_is_right(world))
}

fn is_reached(coverage: &Coverage) {
    let saga = coverage.of::<Fulfilment>();
    saga.rejection::<shop::inventory::Reserve>().while_open().at_least(20);
    saga.reply::<shop::inventory::Release>().while_compensating().at_least(20);
    saga.event::<PaymentDeclined>().while_open().at_least(5);
    saga.event::<PaymentTaken>().while_open().at_least(20);
    saga.rejection::<Ship>().while_open().at_least(1);
    saga.timer::<PaymentOverdue>().while_open().at_least(5);
    // The payment's reply arrives after the order was abandoned.
    saga.event::<PaymentTaken>().after_end().at_least(1);
    saga.reply::<RefundPayment>().while_compensating().at_least(5);
    coverage.of::<Payment>().command::<TakePayment>().at_least(50);
    assert!(saga.completed() >= 20 && saga.compensated() >= 20, "{saga}");
}

#[test]
fn two_hundred_seeds_of_fulfilment_conserve_stock_and_money() {
    let coverage = fulfilment().check(0..brief_or_long(200, 2000));
    println!("{coverage}");
    is_reached(&coverage);
}

#[test]
fn fulfilment_conserves_stock_and_money_on_lossy_disks() {
    checked("fulfilment-on-disk", |sim| cluster(sim).on_disk()).check(0..brief_or_long(50, 500));
}
