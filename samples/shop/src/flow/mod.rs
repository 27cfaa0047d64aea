//! The way of one order through all services, put together from their logs: who, what, when, caused by what.

mod page;
mod text;

use std::collections::HashMap;

use whizbang::Domain;
use whizbang::actor::Stateful;
use whizbang::message::{MessageId, Name, ShardId, rejection_in, shard_of};
use whizbang::store::{Note, Store, StoredTurn};

use crate::inventory::Stock;
use crate::orders::{Fulfilment, Order, OrderPlaced};
use crate::payments::Payment;
use crate::report::open_shard;
use crate::service::{Home, Service, ShopError};
use crate::shipping::Shipment;

/// The way of one order.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The order.
    pub order: String,
    /// Its steps, in the order in which they were taken; causes before what they caused.
    pub steps: Vec<Step>,
}

/// One turn of one actor for the order.
#[derive(Clone, Debug)]
pub struct Step {
    /// The service.
    pub service: Service,
    /// The actor: its type and its key.
    pub who: String,
    /// What came of it: the events recorded, the no that was said, the messages sent.
    pub what: Vec<String>,
    /// Milliseconds since the order was placed.
    pub at_ms: u64,
    /// What it was caused by.
    pub because: String,
    /// How many causes lie before it.
    depth: usize,
}

/// A turn with the place where it was found.
struct Found {
    service: Service,
    shard: ShardId,
    actor: &'static str,
    key: String,
    turn: StoredTurn,
}

impl Flow {
    /// Puts together the way of an order. `None`: there is no such order. No node may work on the stores meanwhile.
    ///
    /// # Errors
    /// What reading a store can meet.
    pub async fn of(home: &Home, order: &str) -> Result<Option<Self>, ShopError> {
        let mut found = turns::<Order>(home, Service::Orders, order).await?;
        let Some(first) = found.first().map(|found| found.turn.clone()) else { return Ok(None) };
        found.extend(turns::<Fulfilment>(home, Service::Orders, order).await?);
        let mut products = products(&first)?;
        products.sort_unstable();
        products.dedup();
        for product in products {
            found.extend(turns::<Stock>(home, Service::Inventory, &product).await?);
        }
        found.extend(turns::<Payment>(home, Service::Payments, order).await?);
        found.extend(turns::<Shipment>(home, Service::Shipping, order).await?);
        // A product's stream has the turns of all orders.
        found.retain(|found| found.turn.correlation == first.correlation);

        let causes = causes(&found);
        let mut steps: Vec<Step> = found.iter().map(|found| step(found, &first, &causes)).collect();
        let parents: Vec<Option<usize>> =
            found.iter().map(|found| causes.get(&found.turn.id).map(|(parent, _)| *parent)).collect();
        for (at, step) in steps.iter_mut().enumerate() {
            let mut parent = parents.get(at).copied().flatten();
            // No way is longer than there are turns, so that a spoilt log does not keep this going for ever.
            while let Some(cause) = parent.filter(|_| step.depth <= found.len()) {
                step.depth += 1;
                parent = parents.get(cause).copied().flatten();
            }
        }
        // Clocks tick in milliseconds: of two steps in one tick the cause comes first.
        steps.sort_by_key(|step| (step.at_ms, step.depth));
        Ok(Some(Self { order: order.to_owned(), steps }))
    }
}

/// The turns of one actor.
async fn turns<A: Stateful>(home: &Home, service: Service, key: &str) -> Result<Vec<Found>, ShopError> {
    let broken = |reason: String| ShopError::Log { service: A::Domain::NAME, reason };
    let shard = shard_of(key, A::Domain::SHARDS);
    let store = home.store(service).await?;
    let (shard, reader) = open_shard::<A::Domain>(&store, shard).await?;
    let actor = Name::new(A::NAME).map_err(|error| broken(error.to_string()))?;
    let turns = reader.history(&actor, key).await.map_err(|error| broken(error.to_string()))?;
    store.close().await.map_err(|error| broken(error.to_string()))?;
    let found = |turn| Found { service, shard: shard.clone(), actor: A::NAME, key: key.to_owned(), turn };
    Ok(turns.into_iter().map(found).collect())
}

/// The products of an order, from the turn that placed it.
fn products(first: &StoredTurn) -> Result<Vec<String>, ShopError> {
    use whizbang::{Event, Message};
    fn is<E: Event>(name: &Name) -> bool {
        name.as_str() == E::NAME
    }
    let mut products = Vec::new();
    for event in first.events.iter().filter(|event| is::<OrderPlaced>(&event.name)) {
        let placed = OrderPlaced::decode(event.version, event.codec, &event.payload)
            .map_err(|error| ShopError::Log { service: "orders", reason: error.to_string() })?;
        products.extend(placed.cart.lines.into_iter().map(|line| line.product));
    }
    Ok(products)
}

/// For each message that was sent or recorded: the turn it came of, and what it is called.
fn causes(found: &[Found]) -> HashMap<MessageId, (usize, String)> {
    let mut causes = HashMap::new();
    for (at, Found { actor, shard, turn, .. }) in found.iter().enumerate() {
        for event in &turn.events {
            let id = MessageId::of_event(shard, event.position, event.cause);
            causes.insert(id, (at, format!("{} of {actor}", event.name)));
        }
        let answered = turn.id.derive("reply", 0);
        for (id, _) in &turn.sent {
            let what = if *id == answered { "the reply" } else { "a command" };
            causes.insert(*id, (at, format!("{what} of {actor}")));
        }
    }
    causes
}

fn step(found: &Found, first: &StoredTurn, causes: &HashMap<MessageId, (usize, String)>) -> Step {
    let Found { service, actor, key, turn, .. } = found;
    let mut what: Vec<String> = turn.events.iter().map(|event| event.name.to_string()).collect();
    if !turn.reply.is_empty()
        && let Ok(Some(no)) = rejection_in(turn.reply_codec, &turn.reply)
    {
        what.push(format!("says no: {}", no.text()));
    }
    for (timer, set) in &turn.timers {
        what.push(format!("{} the timer {timer}", if *set { "sets" } else { "clears" }));
    }
    let answered = turn.id.derive("reply", 0);
    let commands = turn.sent.iter().filter(|(id, _)| *id != answered).count();
    if commands > 0 {
        what.push(format!("sends {commands} command{}", if commands == 1 { "" } else { "s" }));
    }
    if turn.notes.iter().any(|note| matches!(note, Note::Ended)) {
        what.push("ends".to_owned());
    }
    if turn.notes.iter().any(|note| matches!(note, Note::DeadLetter(_))) {
        what.push("puts it among the dead letters".to_owned());
    }
    if what.is_empty() {
        what.push("takes note".to_owned());
    }
    let because = match (causes.get(&turn.id), &turn.timer) {
        (Some((_, what)), _) => what.clone(),
        (None, Some(timer)) => format!("the timer {timer}"),
        (None, None) if turn.id == first.id => "a client".to_owned(),
        (None, None) => "a worker".to_owned(),
    };
    Step {
        service: *service,
        who: format!("{actor} {key}"),
        what,
        at_ms: u64::try_from(turn.time.since(first.time).as_millis()).unwrap_or(u64::MAX),
        because,
        depth: 0,
    }
}
