//! Counts the report from the logs of the services.

use std::collections::HashMap;

use whizbang::message::Name;
use whizbang::prelude::*;
use whizbang::projection::saved;
use whizbang::store::StoredEvent;

use super::history::each_event;
use super::mails::mails_in;
use super::{Analytics, Latency, MoneySums, OrderCounts, Report, StockSums};
use crate::analytics::{AskRevenue, Revenue, Sales};
use crate::inventory::{Inventory, Released, Reserved, Restocked, TakenAway};
use crate::logs::Logs;
use crate::orders::{OVERDUE, OrderCancelled, OrderConfirmed, OrderPlaced, Orders};
use crate::payments::{PaymentRefunded, PaymentTaken, Payments, balance_cents};
use crate::service::{DataFolder, Service, ShopError};
use crate::shipping::{ParcelSent, Shipping};

/// Counts the report. While services are running, the figures of each service are as of the moment its log was read.
///
/// # Errors
/// [`ShopError`] if a store cannot be read.
pub async fn tally(data: &DataFolder) -> Result<Report, ShopError> {
    let mut stores = Stores { data, dead_letters: 0, running: false };
    let mut order_tally = OrderTally::default();
    stores.read::<Orders>(Service::Orders, |event| order_tally.count(event)).await?;

    let mut stock_tally = StockTally::default();
    stores.read::<Inventory>(Service::Inventory, |event| stock_tally.count(event)).await?;

    let mut sent = 0;
    stores
        .read::<Shipping>(Service::Shipping, |event| {
            sent += read::<ParcelSent>(event)?.map_or(0, |parcel| u64::from(parcel.quantity));
            Ok(())
        })
        .await?;

    let (mut charged_cents, mut refunded_cents) = (0, 0);
    stores
        .read::<Payments>(Service::Payments, |event| {
            charged_cents += read::<PaymentTaken>(event)?.map_or(0, |taken| taken.cents);
            refunded_cents += read::<PaymentRefunded>(event)?.map_or(0, |refunded| refunded.cents);
            Ok(())
        })
        .await?;

    let revenue_cents = order_tally.sales.cents;
    let ledger = balance_cents(&data.ledger())?;
    let analytics = stores.analytics_sales().await?;
    let even = charged_cents.checked_sub(refunded_cents) == Some(revenue_cents);
    let agreed = stock_tally.shipped == sent && sent == order_tally.pieces;
    let stock = stock_tally.sums(agreed);
    Ok(Report {
        stock,
        money: MoneySums {
            charged_cents,
            refunded_cents,
            revenue_cents,
            conserved: even && u64::try_from(ledger) == Ok(revenue_cents),
        },
        emails: mails_in(&data.mails())?,
        analytics: Analytics { revenue_cents: analytics.cents, matches_log: analytics == order_tally.sales },
        dead_letters: stores.dead_letters,
        running: stores.running,
        ..order_tally.into_report()
    })
}

/// The stores of the services, read one after the other.
struct Stores<'a> {
    data: &'a DataFolder,
    dead_letters: u64,
    running: bool,
}

impl Stores<'_> {
    async fn read<D: Domain>(
        &mut self,
        service: Service,
        each: impl FnMut(&StoredEvent) -> Result<(), ShopError>,
    ) -> Result<(), ShopError> {
        if let Some(store) = self.open(service).await? {
            self.dead_letters += each_event::<D>(&store, each).await?;
        }
        Ok(())
    }

    /// Returns the figures of analytics, from its last saved view.
    async fn analytics_sales(&mut self) -> Result<Sales, ShopError> {
        let Some(store) = self.open(Service::Analytics).await? else { return Ok(Sales::default()) };
        let broken = |reason: String| ShopError::Log { service: Service::Analytics.name(), reason };
        let name = Name::new(<Revenue as Projection>::NAME).map_err(|error| broken(error.to_string()))?;
        let view = store.view(&name).await.map_err(|error| broken(error.to_string()))?;
        let revenue = view.and_then(|view| saved::<Revenue>(&view)).unwrap_or_default();
        Ok(revenue.answer(AskRevenue))
    }

    async fn open(&mut self, service: Service) -> Result<Option<Logs>, ShopError> {
        let store = self.data.logs(service).await?;
        self.running |= store.as_ref().is_some_and(Logs::was_in_use);
        Ok(store)
    }
}

/// Decodes the event if it has this type.
fn read<E: Event>(event: &StoredEvent) -> Result<Option<E>, ShopError> {
    if event.name.as_str() != E::NAME {
        return Ok(None);
    }
    E::decode(event.version, event.codec, &event.payload)
        .map(Some)
        .map_err(|error| ShopError::Log { service: E::Domain::NAME, reason: format!("{}: {error}", E::NAME) })
}

/// The counts from the log of orders.
#[derive(Default)]
struct OrderTally {
    counts: OrderCounts,
    because: std::collections::BTreeMap<String, u64>,
    sales: Sales,
    pieces: u64,
    /// The placing times of open orders, in milliseconds.
    open: HashMap<String, u64>,
    latencies: Vec<u64>,
    /// The maximum latency without orders whose payment was overdue.
    answered_ms: u64,
    first: Option<u64>,
    last: u64,
}

impl OrderTally {
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
            self.ended(&event.key, now, true);
        } else if let Some(cancelled) = read::<OrderCancelled>(event)? {
            self.counts.cancelled += 1;
            let code = cancelled.reason.code();
            *self.because.entry(code.to_owned()).or_default() += 1;
            self.ended(&event.key, now, code != OVERDUE);
        }
        Ok(())
    }

    fn ended(&mut self, order: &str, now: u64, answered: bool) {
        if let Some(placed) = self.open.remove(order) {
            let took = now.saturating_sub(placed);
            self.latencies.push(took);
            self.answered_ms = self.answered_ms.max(if answered { took } else { 0 });
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
            latency_ms: Latency { p50: at(50), p99: at(99), max: at(100), max_answered: self.answered_ms },
            cancelled_because: self.because,
            ..Report::default()
        }
    }
}

/// The counts from the log of inventory.
#[derive(Default)]
struct StockTally {
    initial: u64,
    shipped: u64,
    /// The free pieces of each product. A negative value means that more was reserved than was in stock.
    free: HashMap<String, i64>,
    /// The reserved pieces, by product, order and line.
    reserved: HashMap<(String, String, u32), u32>,
    /// Pieces released or collected without a reservation, or reserved twice.
    mismatched: u64,
    oversold: bool,
}

impl StockTally {
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
                self.mismatched += u64::from(quantity);
            }
        } else if let Some(Released { order, line, quantity }) = read(event)? {
            *free += i64::from(quantity);
            self.unreserve((product, order, line), quantity);
        } else if let Some(TakenAway { order, line, quantity }) = read(event)? {
            self.shipped += u64::from(quantity);
            self.unreserve((product, order, line), quantity);
        }
        Ok(())
    }

    fn unreserve(&mut self, place: (String, String, u32), quantity: u32) {
        if self.reserved.remove(&place) != Some(quantity) {
            self.mismatched += u64::from(quantity);
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
            conserved: whole && reserved == 0 && self.mismatched == 0 && !self.oversold && agreed,
        }
    }
}
