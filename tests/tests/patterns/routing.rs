//! Routing: content-based router, filter, splitter, dynamic router, wire tap, and a normalizer of foreign formats.

use std::collections::BTreeMap;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};

use crate::SEEDS;

#[derive(Domain)]
struct Sales;

#[derive(Domain)]
struct Depots;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Sales)]
struct PlaceOrder {
    #[key]
    order: String,
    country: String,
    cents: u64,
    items: Vec<String>,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Sales)]
struct OrderPlaced {
    country: String,
    cents: u64,
    items: Vec<String>,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Sales, handles(PlaceOrder), applies(OrderPlaced))]
struct Order {
    is_placed: bool,
}

impl Handle<PlaceOrder> for Order {
    fn handle(&self, place: PlaceOrder, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if !self.is_placed {
            let PlaceOrder { country, cents, items, .. } = place;
            effects.record(OrderPlaced { country, cents, items });
        }
        Ok(())
    }
}

impl Apply<OrderPlaced> for Order {
    fn apply(&mut self, _placed: &OrderPlaced) {
        self.is_placed = true;
    }
}

#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Depots)]
struct Review {
    #[key]
    order: String,
}

#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Depots)]
struct Approve {
    #[key]
    order: String,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Depots)]
struct Reviewed {}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Depots)]
struct Approved {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Depots, handles(Review, Approve), records(Reviewed, Approved))]
struct Desk {}

impl Handle<Review> for Desk {
    fn handle(&self, _review: Review, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Reviewed {});
        Ok(())
    }
}

impl Handle<Approve> for Desk {
    fn handle(&self, _approve: Approve, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Approved {});
        Ok(())
    }
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Sales, reacts(OrderPlaced))]
struct Router {}

impl React<OrderPlaced> for Router {
    fn react(&self, placed: OrderPlaced, effects: &mut Effects<Self>) {
        let order = effects.key().to_owned();
        match placed.cents {
            10_000.. => effects.send(Review { order }),
            _ => effects.send(Approve { order }),
        };
    }
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Depots)]
struct LargeOrderSeen {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Depots, reacts(OrderPlaced), records(LargeOrderSeen))]
struct LargeOrders {}

impl React<OrderPlaced> for LargeOrders {
    fn key(placed: &OrderPlaced, context: &EventContext) -> Option<String> {
        (placed.cents >= 10_000).then(|| context.key.clone())
    }

    fn react(&self, _placed: OrderPlaced, effects: &mut Effects<Self>) {
        effects.record(LargeOrderSeen {});
    }
}

#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Depots)]
struct Pick {
    #[key]
    item: String,
    order: String,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Depots)]
struct Picked {
    order: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Depots, handles(Pick), records(Picked))]
struct Shelf {}

impl Handle<Pick> for Shelf {
    fn handle(&self, pick: Pick, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Picked { order: pick.order });
        Ok(())
    }
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Sales, reacts(OrderPlaced))]
struct Splitter {}

impl React<OrderPlaced> for Splitter {
    fn react(&self, placed: OrderPlaced, effects: &mut Effects<Self>) {
        for item in placed.items {
            let order = effects.key().to_owned();
            effects.send(Pick { item, order });
        }
    }
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Sales)]
struct SetRoute {
    #[key]
    country: String,
    depot: String,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Sales)]
struct RouteSet {
    depot: String,
}

#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Depots)]
struct Deliver {
    #[key]
    depot: String,
    order: String,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Depots)]
struct Delivered {
    order: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Depots, handles(Deliver), records(Delivered))]
struct Depot {}

impl Handle<Deliver> for Depot {
    fn handle(&self, deliver: Deliver, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Delivered { order: deliver.order });
        Ok(())
    }
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Sales, handles(SetRoute), reacts(OrderPlaced), applies(RouteSet))]
struct Route {
    depot: Option<String>,
}

impl Handle<SetRoute> for Route {
    fn handle(&self, set: SetRoute, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(RouteSet { depot: set.depot });
        Ok(())
    }
}

impl React<OrderPlaced> for Route {
    fn key(placed: &OrderPlaced, _context: &EventContext) -> Option<String> {
        Some(placed.country.clone())
    }

    fn react(&self, _placed: OrderPlaced, effects: &mut Effects<Self>) {
        let order = effects.event_context().map(|context| context.key.clone()).unwrap_or_default();
        let depot = self.depot.clone().unwrap_or_else(|| "central".to_owned());
        effects.send(Deliver { depot, order });
    }
}

impl Apply<RouteSet> for Route {
    fn apply(&mut self, set: &RouteSet) {
        self.depot = Some(set.depot.clone());
    }
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(OrderPlaced))]
struct Tap {
    orders: BTreeMap<String, u64>,
}

impl Project<OrderPlaced> for Tap {
    fn project(&mut self, _placed: &OrderPlaced, context: &EventContext) {
        *self.orders.entry(context.key.clone()).or_default() += 1;
    }
}

/// A line such as `order7;de;500;bolt,nut`.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Sales)]
struct ImportLine {
    #[key]
    source: String,
    line: String,
}

/// The same as a list of named values.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Sales)]
struct ImportFields {
    #[key]
    source: String,
    fields: BTreeMap<String, String>,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Sales, handles(ImportLine, ImportFields))]
struct Normalizer {}

impl Handle<ImportLine> for Normalizer {
    fn handle(&self, import: ImportLine, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(from_line(&import.line).ok_or_else(malformed)?);
        Ok(())
    }
}

impl Handle<ImportFields> for Normalizer {
    fn handle(&self, import: ImportFields, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(from_fields(&import.fields).ok_or_else(malformed)?);
        Ok(())
    }
}

fn from_line(line: &str) -> Option<PlaceOrder> {
    let [order, country, cents, items] = *line.split(';').collect::<Vec<_>>() else { return None };
    order_of(order, country, cents, items)
}

fn from_fields(fields: &BTreeMap<String, String>) -> Option<PlaceOrder> {
    order_of(fields.get("order")?, fields.get("country")?, fields.get("cents")?, fields.get("items")?)
}

fn order_of(order: &str, country: &str, cents: &str, items: &str) -> Option<PlaceOrder> {
    let items = items.split(',').map(str::to_owned).collect();
    Some(PlaceOrder { order: order.to_owned(), country: country.to_owned(), cents: cents.parse().ok()?, items })
}

fn malformed() -> Rejection {
    Rejection::new("sales.malformed", "not an order")
}

#[derive(Clone, Debug)]
enum Step {
    Line(ImportLine),
    Fields(ImportFields),
    Route(SetRoute),
}

fn steps() -> impl Strategy<Value = Step> {
    let order = (0..20u8, 0..2u8, 1..20_000u64, 1..4usize);
    let texts = order.prop_map(|(order, country, cents, items)| {
        let items = ["bolt", "nut", "washer"][..items].join(",");
        [format!("order{order}"), format!("country{country}"), cents.to_string(), items]
    });
    let route = (0..2u8, 0..3u8)
        .prop_map(|(country, depot)| SetRoute { country: format!("country{country}"), depot: format!("depot{depot}") });
    let names = ["order", "country", "cents", "items"].map(str::to_owned);
    prop_oneof![
        3 => texts.clone().prop_map(|texts| Step::Line(ImportLine { source: "mail".into(), line: texts.join(";") })),
        3 => texts.prop_map(move |texts| Step::Fields(ImportFields {
            source: "web".into(),
            fields: names.clone().into_iter().zip(texts).collect(),
        })),
        1 => Just(Step::Line(ImportLine { source: "mail".into(), line: "order7;nothing".into() })),
        2 => route.prop_map(Step::Route),
    ]
}

async fn perform(world: &World, step: Step) {
    match step {
        // Only the malformed line is rejected.
        Step::Line(line) => {
            let is_order = from_line(&line.line).is_some();
            assert_eq!(world.send(line).await.is_ok(), is_order);
        }
        Step::Fields(fields) => world.send(fields).await.expect("the fields are an order"),
        Step::Route(route) => world.send(route).await.expect("a route can always be set"),
    }
}

/// Each order is routed by its content, split, delivered and tapped once.
fn orders_are_routed_once(world: &World, steps: &[Step]) -> Result<(), String> {
    imports_become_orders(world, steps)?;
    let count = |keys: Vec<String>, order: &str| keys.iter().filter(|key| *key == order).count();
    let keys =
        |events: Vec<(String, String)>, order: &str| count(events.into_iter().map(|(_, of)| of).collect(), order);
    let tap = world.view::<Tap>();
    for (order, placed) in world.events::<OrderPlaced>() {
        let is_large = usize::from(placed.cents >= 10_000);
        let own = |events: Vec<String>| count(events, &order);
        let reviewed = own(world.events::<Reviewed>().into_iter().map(|(key, _)| key).collect());
        let approved = own(world.events::<Approved>().into_iter().map(|(key, _)| key).collect());
        let large = own(world.events::<LargeOrderSeen>().into_iter().map(|(key, _)| key).collect());
        let picked =
            keys(world.events::<Picked>().into_iter().map(|(key, picked)| (key, picked.order)).collect(), &order);
        let delivered =
            world.events::<Delivered>().into_iter().map(|(key, delivered)| (key, delivered.order)).collect();
        let found = (reviewed, approved, large, picked, keys(delivered, &order), tap.orders.get(&order).copied());
        let expected = (is_large, 1 - is_large, is_large, placed.items.len(), 1, Some(1));
        if found != expected {
            return Err(format!("{order}: {found:?} instead of {expected:?}"));
        }
        let is_route = |depot: &str| {
            let is_set =
                |step: &Step| matches!(step, Step::Route(set) if set.country == placed.country && set.depot == depot);
            depot == "central" || steps.iter().any(is_set)
        };
        let depots = world.events::<Delivered>().into_iter().filter(|(_, of)| of.order == order);
        if let Some((depot, _)) = depots.into_iter().find(|(depot, _)| !is_route(depot)) {
            return Err(format!("{order} from {} is delivered to {depot}", placed.country));
        }
    }
    Ok(())
}

/// Each well-formed import sends one order, with its content; a malformed one sends nothing.
fn imports_become_orders(world: &World, steps: &[Step]) -> Result<(), String> {
    let imported = steps.iter().filter_map(|step| match step {
        Step::Line(import) => from_line(&import.line),
        Step::Fields(import) => from_fields(&import.fields),
        Step::Route(_) => None,
    });
    let text = |order: &PlaceOrder| format!("{order:?}");
    let mut expected: Vec<_> = imported.map(|order| text(&order)).collect();
    let mut sent: Vec<_> = world.sent::<PlaceOrder>().iter().map(|sent| text(&sent.command)).collect();
    expected.sort();
    sent.sort();
    if sent != expected {
        return Err(format!("{sent:?} were sent instead of {expected:?}"));
    }
    let missing = !expected.is_empty() && world.events::<OrderPlaced>().is_empty();
    if missing { Err("no order was placed".to_owned()) } else { Ok(()) }
}

#[test]
fn dynamic_router_follows_its_routes() {
    let sim = Sim::new(1).service("sales", |node| node.aggregate::<Order>().aggregate::<Route>());
    let run = sim.service("depots", |node| node.aggregate::<Depot>()).run(async |world| {
        let place = async |order: &str, country: &str| {
            let (order, country) = (order.to_owned(), country.to_owned());
            world.send(PlaceOrder { order, country, cents: 1, items: Vec::new() }).await.expect("it is placed");
            world.wait_idle().await;
        };
        let route = async |country: &str, depot: &str| {
            world.send(SetRoute { country: country.to_owned(), depot: depot.to_owned() }).await.expect("it is set");
        };
        place("1", "de").await;
        route("de", "bonn").await;
        place("2", "de").await;
        place("3", "fr").await;
        route("de", "ulm").await;
        place("4", "de").await;
        let mut delivered: Vec<_> =
            world.events::<Delivered>().into_iter().map(|(depot, of)| (of.order, depot)).collect();
        delivered.sort();
        let expected = [("1", "central"), ("2", "bonn"), ("3", "central"), ("4", "ulm")];
        assert_eq!(delivered, expected.map(|(order, depot)| (order.to_owned(), depot.to_owned())));
    });
    run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.trace));
}

#[test]
fn routers_route_each_order_once() {
    let cluster = |sim: Sim| {
        sim.service("sales", |node| {
            let node = node.aggregate::<Order>().aggregate::<Router>().aggregate::<Splitter>();
            node.aggregate::<Route>().aggregate::<Normalizer>().projection::<Tap>()
        })
        .service("depots", |node| {
            node.aggregate::<Desk>().aggregate::<LargeOrders>().aggregate::<Shelf>().aggregate::<Depot>()
        })
    };
    let coverage =
        Flow::new("routing", cluster, steps(), 1..10, perform).at_end(orders_are_routed_once).check(0..SEEDS);
    coverage.of::<Normalizer>().rejects::<ImportLine>().at_least(2);
    coverage.of::<Router>().event::<OrderPlaced>().while_open().at_least(20);
}
