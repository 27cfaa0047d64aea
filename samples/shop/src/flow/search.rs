//! Finds every turn of an order, in the streams of the actors and workers that may have handled its messages.

use whizbang::Message;
use whizbang::Stateful;
use whizbang::message::{Name, ShardId, shard_of};
use whizbang::prelude::*;
use whizbang::store::StoredTurn;
use whizbang::worker::stream_of;

use crate::inventory::Stock;
use crate::logs::Logs;
use crate::notifications::Mailer;
use crate::orders::{Fulfilment, Order, OrderPlaced, Orders};
use crate::payments::{Cashier, Payment};
use crate::report::shard_log;
use crate::service::{DataFolder, Service, ShopError};
use crate::shipping::Shipment;

/// A turn, with the service, shard and stream that contain it.
pub(super) struct Found {
    pub(super) service: Service,
    pub(super) shard: ShardId,
    pub(super) actor: &'static str,
    /// Empty for a worker.
    pub(super) key: String,
    pub(super) turn: StoredTurn,
}

/// Returns all turns of an order, the one that placed it first. Empty if the order does not exist.
pub(super) async fn search(data: &DataFolder, order: &str) -> Result<Vec<Found>, ShopError> {
    let orders = data.logs(Service::Orders).await?;
    let mut found = of_actor::<Order>(&orders, Service::Orders, order).await?;
    let Some(first) = found.first().map(|found| found.turn.clone()) else { return Ok(found) };
    found.extend(of_actor::<Fulfilment>(&orders, Service::Orders, order).await?);

    let inventory = data.logs(Service::Inventory).await?;
    for product in products(&first)? {
        found.extend(of_actor::<Stock>(&inventory, Service::Inventory, &product).await?);
    }
    let payments = data.logs(Service::Payments).await?;
    found.extend(of_actor::<Payment>(&payments, Service::Payments, order).await?);
    found.extend(of_worker::<Cashier>(&payments, Service::Payments, order).await?);

    let shipping = data.logs(Service::Shipping).await?;
    found.extend(of_actor::<Shipment>(&shipping, Service::Shipping, order).await?);

    let notifications = data.logs(Service::Notifications).await?;
    found.extend(of_worker::<Mailer>(&notifications, Service::Notifications, order).await?);

    // The streams of products and workers contain the turns of all orders.
    found.retain(|found| found.turn.correlation == first.correlation);
    Ok(found)
}

/// Returns the turns of an aggregate or saga.
async fn of_actor<A: Stateful>(store: &Option<Logs>, service: Service, key: &str) -> Result<Vec<Found>, ShopError> {
    let shard = shard_of(key, A::Domain::SHARDS);
    turns::<A::Domain>(store, service, (A::NAME, key), (shard, key)).await
}

/// Returns the turns of a worker in the shard of a key.
async fn of_worker<W: Worker>(store: &Option<Logs>, service: Service, key: &str) -> Result<Vec<Found>, ShopError> {
    let shard = shard_of(key, W::Domain::SHARDS);
    turns::<W::Domain>(store, service, (W::NAME, ""), (shard, &stream_of(shard))).await
}

async fn turns<D: Domain>(
    store: &Option<Logs>,
    service: Service,
    (actor, key): (&'static str, &str),
    (shard, stream): (u16, &str),
) -> Result<Vec<Found>, ShopError> {
    let broken = |reason: String| ShopError::Log { service: D::NAME, reason };
    let Some(store) = store else { return Ok(Vec::new()) };
    let Some((shard, log)) = shard_log::<D>(store, shard).await? else { return Ok(Vec::new()) };
    let name = Name::new(actor).map_err(|error| broken(error.to_string()))?;
    let turns = log.history(&name, stream).await.map_err(|error| broken(error.to_string()))?;
    let found = |turn| Found { service, shard: shard.clone(), actor, key: key.to_owned(), turn };
    Ok(turns.into_iter().map(found).collect())
}

/// Returns the products of an order, from the turn that placed it.
fn products(first: &StoredTurn) -> Result<Vec<String>, ShopError> {
    let mut products = Vec::new();
    for event in first.events.iter().filter(|event| event.name.as_str() == OrderPlaced::NAME) {
        let placed = OrderPlaced::decode(event.version, event.codec, &event.payload)
            .map_err(|error| ShopError::Log { service: Orders::NAME, reason: error.to_string() })?;
        products.extend(placed.cart.lines.into_iter().map(|line| line.product));
    }
    products.sort_unstable();
    products.dedup();
    Ok(products)
}
