//! Places orders and waits until all of them have come to their end.

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
use crate::service::{Home, ShopError};

/// The number of open orders at a time: more of them would only wait.
const OPEN: u64 = 128;
/// The number of orders placed at once.
const AT_ONCE: u64 = 32;
/// The interval between two looks at the progress.
const LOOK: Duration = Duration::from_millis(2);
/// The time limit for an answer before the request is repeated: a killed service does not answer.
const ANSWER: Duration = Duration::from_secs(3);
/// The time without progress after which waiting ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// The outcome of placing orders.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placed {
    /// Placed now.
    pub new: u64,
    /// Placed before, by the same document.
    pub known: u64,
    /// Refused: the order's id is taken.
    pub refused: u64,
}

impl Placed {
    /// Adds what has become of more.
    pub fn add(&mut self, more: Self) {
        self.new += more.new;
        self.known += more.known;
        self.refused += more.refused;
    }
}

/// Places orders through a client of any of the services.
pub struct Counter<'a> {
    client: Client,
    /// Hears how far the orders are.
    watch: &'a mut dyn FnMut(Counts),
}

impl<'a> Counter<'a> {
    /// A counter that places orders and tells `watch` how far they are.
    pub fn new(client: Client, watch: &'a mut dyn FnMut(Counts)) -> Self {
        Self { client, watch }
    }

    /// Fills every shelf of the catalog, once for each delivery note.
    ///
    /// # Errors
    /// [`ShopError`] if a command cannot be sent.
    pub async fn restock(&self, note: &str, quantity: u64) -> Result<(), ShopError> {
        let products = (1..=CATALOG).map(product);
        let restocks = products.map(|product| {
            patiently(move || {
                let restock = Restock { product: product.clone(), note: note.to_owned(), quantity };
                self.client.send(restock).deadline(ANSWER)
            })
        });
        join_all(restocks).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(())
    }

    /// Places orders, not more than so many open at a time. `refused` hears of those whose id is taken.
    ///
    /// # Errors
    /// [`ShopError`] if a command cannot be sent.
    pub async fn place(
        &mut self,
        orders: impl Iterator<Item = PlaceOrder>,
        mut refused: impl FnMut(&Rejection),
    ) -> Result<Placed, ShopError> {
        let mut orders = orders.peekable();
        let mut placed = Placed::default();
        let before = self.progress().await?;
        while orders.peek().is_some() {
            let counts = self.progress().await?;
            let open = (before.placed + placed.new).saturating_sub(counts.ended());
            let room = OPEN.saturating_sub(open).min(AT_ONCE);
            if room == 0 {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let some = orders.by_ref().take(usize::try_from(room).unwrap_or(1));
            let client = &self.client;
            // An order sent twice is known the second time, so it may be sent until there is an answer.
            let sent = some.map(|order| patiently(move || client.send(order.clone()).deadline(ANSWER)));
            for answer in join_all(sent).await {
                match answer {
                    Ok(Placing::New) => placed.new += 1,
                    Ok(Placing::Known) => placed.known += 1,
                    Err(SendError::Rejected(no)) => {
                        placed.refused += 1;
                        refused(&no);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(placed)
    }

    /// Waits until every order has ended, all sums are balanced and all e-mails are written, of at least `placed` orders. Gives
    /// up after a span without progress; the report then shows the open orders.
    ///
    /// # Errors
    /// [`ShopError`] if a query is not answered.
    pub async fn wait(&mut self, home: &Home, placed: u64) -> Result<(), ShopError> {
        let mut last = None;
        let mut moved = Instant::now();
        loop {
            let counts = self.progress().await?;
            let sums = patiently(|| self.client.query(AskBooks {}).deadline(ANSWER)).await?;
            // Views that have just been started may lie behind: nothing is at its end that they do not know of.
            let known = counts.placed >= placed && sums.placed >= counts.placed;
            let even = known && sums.are_even() && counts.placed == counts.ended();
            let ended = even && self.sales().await?.orders == counts.confirmed;
            // Looked for last: there may be very many.
            let mails = if ended { mails_in(&home.mails())? } else { 0 };
            if ended && mails >= counts.ended() {
                return Ok(());
            }
            let now = (counts, sums, mails);
            if last != Some(now) {
                last = Some(now);
                moved = Instant::now();
            } else if moved.elapsed() > PATIENCE {
                return Ok(());
            }
            tokio::time::sleep(LOOK * 5).await;
        }
    }

    /// Returns the sales so far.
    ///
    /// # Errors
    /// [`ShopError`] if a query is not answered.
    pub async fn sales(&self) -> Result<Sales, ShopError> {
        Ok(patiently(|| self.client.query(AskRevenue {}).deadline(ANSWER)).await?)
    }

    async fn progress(&mut self) -> Result<Counts, ShopError> {
        let counts = patiently(|| self.client.query(AskProgress {}).deadline(ANSWER)).await?;
        (self.watch)(counts);
        Ok(counts)
    }
}

/// Sends or asks again as long as it may help: a service may be away for a while.
async fn patiently<T, F: Future<Output = Result<T, SendError>>>(ask: impl Fn() -> F) -> Result<T, SendError> {
    let begun = Instant::now();
    loop {
        match ask().await {
            Err(error) if error.is_transient() && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(LOOK * 10).await;
            }
            answer => return answer,
        }
    }
}
