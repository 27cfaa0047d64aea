//! Aggregator: collects the parts of an order until all have arrived or time is up, and counts those that come too late.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};

use crate::{SEEDS, assert_found};

const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Domain)]
struct Packing;

#[derive(Domain)]
struct Shipping;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Packing)]
struct PackPart {
    #[key]
    station: String,
    order: String,
    part: u8,
    parts: u8,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Packing)]
struct PartPacked {
    order: String,
    part: u8,
    /// The number of parts of the order.
    parts: u8,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Packing, handles(PackPart), records(PartPacked))]
struct Station {}

impl Handle<PackPart> for Station {
    fn handle(&self, pack: PackPart, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(PartPacked { order: pack.order, part: pack.part, parts: pack.parts });
        Ok(())
    }
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Shipping)]
struct PartAdded {
    part: u8,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Shipping)]
struct ShipmentReleased {
    is_complete: bool,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Shipping)]
struct PartTooLate {
    part: u8,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Shipping)]
struct ReleaseDue;

#[derive(Aggregate, Default)]
#[aggregate(
    domain = Shipping,
    reacts(PartPacked),
    applies(PartAdded, ShipmentReleased),
    records(PartTooLate),
    timers(ReleaseDue)
)]
struct Shipment {
    parts: BTreeSet<u8>,
    is_released: bool,
}

impl React<PartPacked> for Shipment {
    fn key(packed: &PartPacked, _context: &EventContext) -> Option<String> {
        Some(packed.order.clone())
    }

    fn react(&self, packed: PartPacked, effects: &mut Effects<Self>) {
        if self.parts.contains(&packed.part) {
            return;
        }
        if self.is_released {
            return effects.record(PartTooLate { part: packed.part });
        }
        if self.parts.is_empty() {
            effects.set_timer(&ReleaseDue, PATIENCE);
        }
        effects.record(PartAdded { part: packed.part });
        if self.parts.len() + 1 == usize::from(packed.parts) {
            effects.clear_timer::<ReleaseDue>();
            effects.record(ShipmentReleased { is_complete: true });
        }
    }
}

impl OnTimer<ReleaseDue> for Shipment {
    fn on_timer(&self, _due: ReleaseDue, effects: &mut Effects<Self>) {
        effects.record(ShipmentReleased { is_complete: false });
    }
}

impl Apply<PartAdded> for Shipment {
    fn apply(&mut self, added: &PartAdded) {
        self.parts.insert(added.part);
    }
}

impl Apply<ShipmentReleased> for Shipment {
    fn apply(&mut self, _released: &ShipmentReleased) {
        self.is_released = true;
    }
}

/// Counts parts instead of naming them: a part that is scanned twice completes an order that lacks another.
mod wrong {
    use super::*;

    #[derive(Aggregate, Default)]
    #[aggregate(
        domain = Shipping,
        name = "shipment",
        reacts(PartPacked),
        applies(PartAdded, ShipmentReleased),
        records(PartTooLate),
        timers(ReleaseDue)
    )]
    pub(super) struct Counting {
        parts: u8,
        is_released: bool,
    }

    impl React<PartPacked> for Counting {
        fn key(packed: &PartPacked, _context: &EventContext) -> Option<String> {
            Some(packed.order.clone())
        }

        fn react(&self, packed: PartPacked, effects: &mut Effects<Self>) {
            if self.is_released {
                return effects.record(PartTooLate { part: packed.part });
            }
            if self.parts == 0 {
                effects.set_timer(&ReleaseDue, PATIENCE);
            }
            effects.record(PartAdded { part: packed.part });
            if self.parts + 1 == packed.parts {
                effects.clear_timer::<ReleaseDue>();
                effects.record(ShipmentReleased { is_complete: true });
            }
        }
    }

    impl OnTimer<ReleaseDue> for Counting {
        fn on_timer(&self, _due: ReleaseDue, effects: &mut Effects<Self>) {
            effects.record(ShipmentReleased { is_complete: false });
        }
    }

    impl Apply<PartAdded> for Counting {
        fn apply(&mut self, _added: &PartAdded) {
            self.parts += 1;
        }
    }

    impl Apply<ShipmentReleased> for Counting {
        fn apply(&mut self, _released: &ShipmentReleased) {
            self.is_released = true;
        }
    }
}

/// Parts of a few orders at a few stations. A part may be packed twice.
fn parts() -> impl Strategy<Value = PackPart> {
    (0..3u8, 0..3u8, 0..3u8).prop_map(|(station, order, part)| PackPart {
        station: format!("station{station}"),
        order: format!("order{order}"),
        part,
        parts: 3,
    })
}

async fn pack(world: &World, part: PackPart) {
    world.send(part).await.expect("a part can always be packed");
}

/// Each order is released once, as complete only with all parts, and each part is in it or counted as too late.
fn orders_are_released_once(world: &World, packed: &[PackPart]) -> Result<(), String> {
    let (added, late) = (world.events::<PartAdded>(), world.events::<PartTooLate>());
    let released = world.events::<ShipmentReleased>();
    let orders: BTreeSet<_> = packed.iter().map(|part| part.order.clone()).collect();
    for order in orders {
        let all: BTreeSet<_> = packed.iter().filter(|part| part.order == order).map(|part| part.part).collect();
        let inside: BTreeSet<_> = added.iter().filter(|(of, _)| *of == order).map(|(_, added)| added.part).collect();
        let releases: Vec<_> = released.iter().filter(|(of, _)| *of == order).collect();
        let [(_, release)] = &*releases else { return Err(format!("{order} is released {} times", releases.len())) };
        if release.is_complete != (inside.len() == 3) {
            return Err(format!("{order} is released with {} of 3 parts as complete: {release:?}", inside.len()));
        }
        let is_known =
            |part: &u8| inside.contains(part) || late.iter().any(|(of, late)| *of == order && late.part == *part);
        if let Some(part) = all.into_iter().find(|part| !is_known(part)) {
            return Err(format!("part {part} of {order} is lost"));
        }
    }
    Ok(())
}

fn aggregation(sim: impl Fn(Sim) -> Sim + 'static) -> Flow<PackPart, impl AsyncFn(&World, PackPart)> {
    let gaps = (0..20u64).prop_map(|tenths| Duration::from_millis(tenths * 100));
    Flow::new("aggregator", sim, parts(), 1..14, pack).arrivals(gaps).at_end(orders_are_released_once)
}

#[test]
fn aggregator_releases_each_order_once() {
    let cluster = |sim: Sim| {
        sim.service("packing", |node| node.aggregate::<Station>())
            .service("shipping", |node| node.aggregate::<Shipment>())
    };
    let coverage = aggregation(cluster).check(0..SEEDS);
    let shipment = coverage.of::<Shipment>();
    shipment.timer::<ReleaseDue>().while_open().at_least(3);
    shipment.event::<PartPacked>().while_open().at_least(25);
}

#[test]
fn aggregator_that_counts_duplicates_is_found() {
    let cluster = |sim: Sim| {
        sim.service("packing", |node| node.aggregate::<Station>())
            .service("shipping", |node| node.aggregate::<wrong::Counting>())
    };
    assert_found(&aggregation(cluster).no_regressions(), "of 3 parts as complete");
}
