//! Places orders and waits until all of them have ended.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use whizbang::SendError;
use whizbang::prelude::*;

use crate::analytics::{AskBooks, AskRevenue, Sales};
use crate::intake::{CATALOG, product};
use crate::inventory::Restock;
use crate::orders::{AskProgress, Counts, PlaceOrder, Placing};
use crate::report::mails_in;
use crate::service::{DataFolder, ShopError};

/// The maximum number of open orders. More would only wait in queues.
const MAX_OPEN: u64 = 128;
/// The number of orders sent concurrently.
const BATCH: u64 = 32;
/// The interval between two queries of the progress.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The time without progress after which waiting ends. The client repeats its requests until then: a service may be unavailable
/// while it restarts.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The outcome of placing orders.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placed {
    /// Placed by this run.
    pub new: u64,
    /// Placed before, by the same document.
    pub known: u64,
    /// Rejected: another document has placed an order with the same id.
    pub rejected: u64,
}

impl Placed {
    /// Adds another outcome.
    pub fn add(&mut self, other: Self) {
        self.new += other.new;
        self.known += other.known;
        self.rejected += other.rejected;
    }
}

/// Places orders through a client of any of the services.
pub struct Counter<'a> {
    client: Client,
    /// Called with the counts after each query of the progress.
    on_progress: &'a mut dyn FnMut(Counts),
}

impl<'a> Counter<'a> {
    /// Creates a counter that reports the counts of orders to `on_progress`.
    pub fn new(client: Client, on_progress: &'a mut dyn FnMut(Counts)) -> Self {
        Self { client, on_progress }
    }

    /// Restocks every product of the catalog, once per delivery note.
    ///
    /// # Errors
    /// [`ShopError`] if a command cannot be sent.
    pub async fn restock(&self, note: &str, quantity: u64) -> Result<(), ShopError> {
        let products = (1..=CATALOG).map(product);
        let restocks = products.map(|product| {
            let restock = Restock { product, note: note.to_owned(), quantity };
            self.client.send(restock).deadline(STALL_TIMEOUT)
        });
        join_all(restocks).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(())
    }

    /// Places orders, at most 128 open at a time. Calls `on_rejected` with each rejection of an id that is in use.
    ///
    /// # Errors
    /// [`ShopError`] if a command cannot be sent.
    pub async fn place(
        &mut self,
        orders: impl Iterator<Item = PlaceOrder>,
        mut on_rejected: impl FnMut(&Rejection),
    ) -> Result<Placed, ShopError> {
        let mut orders = orders.peekable();
        let mut placed = Placed::default();
        let before = self.progress().await?;
        while orders.peek().is_some() {
            let counts = self.progress().await?;
            let open = (before.placed + placed.new).saturating_sub(counts.ended());
            let capacity = MAX_OPEN.saturating_sub(open).min(BATCH);
            if capacity == 0 {
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            }
            let batch = orders.by_ref().take(usize::try_from(capacity).unwrap_or(1));
            let client = &self.client;
            let sent = batch.map(|order| client.send(order).deadline(STALL_TIMEOUT));
            for answer in join_all(sent).await {
                match answer {
                    Ok(Placing::New) => placed.new += 1,
                    Ok(Placing::Known) => placed.known += 1,
                    Err(SendError::Rejected(rejection)) => {
                        placed.rejected += 1;
                        on_rejected(&rejection);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(placed)
    }

    /// Waits until at least `placed` orders are placed, every order has ended, all sums are balanced and all e-mails are written.
    /// Also returns after a minute without progress; the report then shows the open orders.
    ///
    /// # Errors
    /// [`ShopError`] if a query is not answered.
    pub async fn wait(&mut self, data: &DataFolder, placed: u64) -> Result<(), ShopError> {
        let mut last = None;
        let mut changed = Instant::now();
        loop {
            let counts = self.progress().await?;
            let sums = self.client.query(AskBooks).deadline(STALL_TIMEOUT).await?;
            // A view may lag behind after a restart. Wait until both views include all placed orders.
            let known = counts.placed >= placed && sums.placed >= counts.placed;
            let even = known && sums.are_even() && counts.placed == counts.ended();
            let ended = even && self.sales().await?.orders == counts.confirmed;
            // Counted last, because there may be very many.
            let mails = if ended { mails_in(&data.mails())? } else { 0 };
            if ended && mails >= counts.ended() {
                return Ok(());
            }
            let now = (counts, sums, mails);
            if last != Some(now) {
                last = Some(now);
                changed = Instant::now();
            } else if changed.elapsed() > STALL_TIMEOUT {
                return Ok(());
            }
            tokio::time::sleep(POLL_INTERVAL * 5).await;
        }
    }

    /// Returns the sales so far.
    ///
    /// # Errors
    /// [`ShopError`] if a query is not answered.
    pub async fn sales(&self) -> Result<Sales, ShopError> {
        Ok(self.client.query(AskRevenue).deadline(STALL_TIMEOUT).await?)
    }

    async fn progress(&mut self) -> Result<Counts, ShopError> {
        let counts = self.client.query(AskProgress).deadline(STALL_TIMEOUT).await?;
        (self.on_progress)(counts);
        Ok(counts)
    }
}
