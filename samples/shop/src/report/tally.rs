//! Counts the report from the logs of the services.

use std::collections::HashMap;

use whizbang::prelude::*;
use whizbang::store::StoredEvent;

use super::history::each_event;
use super::{Analytics, Latency, MoneySums, OrderCounts, Report, StockSums};
use crate::analytics::Sales;
use crate::inventory::{Inventory, Released, Reserved, Restocked, TakenAway};
use crate::notifications;
use crate::orders::{OrderCancelled, OrderConfirmed, OrderPlaced, Orders};
use crate::payments::{PaymentRefunded, PaymentTaken, Payments};
use crate::service::{Home, Service, ShopError};
use crate::shipping::{ParcelSent, Shipping};

/// Counts the report. No node may work on the stores meanwhile; `believed` is what analytics has answered before.
///
/// # Errors
/// What reading a store can meet.
pub async fn tally(home: &Home, believed: &Sales) -> Result<Report, ShopError> {
    let mut sold = Sold::default();
    let mut dead = each_event::<Orders>(&home.store(Service::Orders).await?, |event| sold.count(event)).await?;

    let mut shelves = Shelves::default();
    dead += each_event::<Inventory>(&home.store(Service::Inventory).await?, |event| shelves.count(event)).await?;

    let mut sent = 0;
    dead += each_event::<Shipping>(&home.store(Service::Shipping).await?, |event| {
        sent += read::<ParcelSent>(event)?.map_or(0, |parcel| u64::from(parcel.quantity));
        Ok(())
    })
    .await?;

    let (mut charged_cents, mut refunded_cents) = (0, 0);
    dead += each_event::<Payments>(&home.store(Service::Payments).await?, |event| {
        charged_cents += read::<PaymentTaken>(event)?.map_or(0, |taken| taken.cents);
        refunded_cents += read::<PaymentRefunded>(event)?.map_or(0, |refunded| refunded.cents);
        Ok(())
    })
    .await?;

    let revenue_cents = sold.sales.cents;
    let ledger = home.provider()?.balance_cents();
    let even = charged_cents.checked_sub(refunded_cents) == Some(revenue_cents);
    let agreed = shelves.shipped == sent && sent == sold.pieces;
    let stock = shelves.sums(agreed);
    Ok(Report {
        stock,
        money: MoneySums {
            charged_cents,
            refunded_cents,
            revenue_cents,
            conserved: even && u64::try_from(ledger) == Ok(revenue_cents),
        },
        emails: notifications::count(&home.mails())?,
        analytics: Analytics { revenue_cents: believed.cents, matches_log: *believed == sold.sales },
        dead_letters: dead,
        ..sold.into_report()
    })
}

/// The event, if it is one of this type.
fn read<E: Event>(event: &StoredEvent) -> Result<Option<E>, ShopError> {
    if event.name.as_str() != E::NAME {
        return Ok(None);
    }
    E::decode(event.version, event.codec, &event.payload)
        .map(Some)
        .map_err(|error| ShopError::Log { service: E::Domain::NAME, reason: format!("{}: {error}", E::NAME) })
}

/// What the log of orders says.
#[derive(Default)]
struct Sold {
    counts: OrderCounts,
    because: std::collections::BTreeMap<String, u64>,
    sales: Sales,
    pieces: u64,
    /// When the orders that are still open were placed.
    open: HashMap<String, u64>,
    latencies: Vec<u64>,
    first: Option<u64>,
    last: u64,
}

impl Sold {
    fn count(&mut self, event: &StoredEvent) -> Result<(), ShopError> {
        let now = event.time.as_millis();
        if read::<OrderPlaced>(event)?.is_some() {
            self.counts.placed += 1;
            self.open.insert(event.key.clone(), now);
            self.first = Some(self.first.map_or(now, |first| first.min(now)));
        } else if let Some(confirmed) = read::<OrderConfirmed>(event)? {
            self.counts.confirmed += 1;
            self.sales.orders += 1;
            for line in &confirmed.cart.lines {
                let cents = u64::from(line.quantity) * line.price_cents;
                self.pieces += u64::from(line.quantity);
                self.sales.cents += cents;
                *self.sales.by_product.entry(line.product.clone()).or_default() += cents;
                *self.sales.by_city.entry(confirmed.cart.city.clone()).or_default() += cents;
            }
            self.ended(&event.key, now);
        } else if let Some(cancelled) = read::<OrderCancelled>(event)? {
            self.counts.cancelled += 1;
            *self.because.entry(cancelled.reason.code().to_owned()).or_default() += 1;
            self.ended(&event.key, now);
        }
        Ok(())
    }

    fn ended(&mut self, order: &str, now: u64) {
        if let Some(placed) = self.open.remove(order) {
            self.latencies.push(now.saturating_sub(placed));
        }
        self.last = self.last.max(now);
    }

    fn into_report(mut self) -> Report {
        self.latencies.sort_unstable();
        let at = |part: usize| {
            let place = (self.latencies.len() * part).div_ceil(100).saturating_sub(1);
            self.latencies.get(place).copied().unwrap_or(0)
        };
        let ended = self.counts.confirmed + self.counts.cancelled;
        let millis = self.last.saturating_sub(self.first.unwrap_or(self.last)).max(1);
        #[allow(clippy::cast_precision_loss)]
        let rate = (ended as f64 * 10_000.0 / millis as f64).round() / 10.0;
        Report {
            orders: OrderCounts { open: self.open.len() as u64, ..self.counts.clone() },
            rate_orders_per_s: rate,
            latency_ms: Latency { p50: at(50), p99: at(99) },
            cancelled_because: self.because,
            ..Report::default()
        }
    }
}

/// What the log of inventory says.
#[derive(Default)]
struct Shelves {
    initial: u64,
    shipped: u64,
    /// For each product what is free. Below zero something was promised that was not there.
    free: HashMap<String, i64>,
    /// What is set aside, by product, order and line.
    reserved: HashMap<(String, String, u32), u32>,
    /// Pieces put back or taken away that had not been set aside, or set aside twice.
    astray: u64,
    oversold: bool,
}

impl Shelves {
    fn count(&mut self, event: &StoredEvent) -> Result<(), ShopError> {
        let product = event.key.clone();
        let free = self.free.entry(product.clone()).or_default();
        if let Some(restocked) = read::<Restocked>(event)? {
            self.initial += restocked.quantity;
            *free += i64::try_from(restocked.quantity).unwrap_or(i64::MAX);
        } else if let Some(Reserved { order, line, quantity }) = read(event)? {
            *free -= i64::from(quantity);
            self.oversold |= *free < 0;
            if self.reserved.insert((product, order, line), quantity).is_some() {
                self.astray += u64::from(quantity);
            }
        } else if let Some(Released { order, line, quantity }) = read(event)? {
            *free += i64::from(quantity);
            self.leaves((product, order, line), quantity);
        } else if let Some(TakenAway { order, line, quantity }) = read(event)? {
            self.shipped += u64::from(quantity);
            self.leaves((product, order, line), quantity);
        }
        Ok(())
    }

    fn leaves(&mut self, place: (String, String, u32), quantity: u32) {
        if self.reserved.remove(&place) != Some(quantity) {
            self.astray += u64::from(quantity);
        }
    }

    fn sums(&self, agreed: bool) -> StockSums {
        let on_hand: i64 = self.free.values().sum();
        let reserved: i64 = self.reserved.values().map(|quantity| i64::from(*quantity)).sum();
        let whole = i64::try_from(self.initial - self.shipped.min(self.initial)) == Ok(on_hand + reserved);
        StockSums {
            initial: self.initial,
            on_hand,
            shipped: self.shipped,
            reserved,
            conserved: whole && reserved == 0 && self.astray == 0 && !self.oversold && agreed,
        }
    }
}
