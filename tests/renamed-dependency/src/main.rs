//! A program whose dependency has another name: `wb = { package = "whizbang" }`.
//!
//! The name `whizbang` does not exist here, so each derive and attribute must use the path in `#[whizbang(crate = …)]`.

use wb::prelude::*;

#[derive(Domain)]
#[whizbang(crate = wb)]
struct Shop;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[whizbang(crate = wb)]
#[command(domain = Shop, reply = Receipt)]
struct Order {
    #[key]
    cart: String,
    items: Vec<Item>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[whizbang(crate = wb)]
#[serde(rename_all = "camelCase")]
struct Item {
    unit_cents: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[whizbang(crate = wb)]
struct Receipt {
    cents: u64,
}

#[derive(Rejection, Debug)]
#[whizbang(crate = wb)]
#[rejection(domain = Shop)]
enum Refused {
    #[rejection(text = "nothing is ordered", code = "empty")]
    Empty,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[whizbang(crate = wb)]
#[event(domain = Shop)]
struct Ordered {
    cents: u64,
}

#[derive(Document, Clone, Debug, Serialize, Deserialize)]
#[whizbang(crate = wb)]
#[document(domain = Shop)]
struct Reminder {
    cart: String,
}

#[derive(Aggregate, Default, Serialize, Deserialize)]
#[whizbang(crate = wb)]
#[aggregate(domain = Shop, handles(Order), applies(Ordered))]
struct Cart {
    cents: u64,
}

impl Handle<Order> for Cart {
    fn handle(&self, order: Order, effects: &mut Effects<Self>) -> Result<Receipt, Rejection> {
        if order.items.is_empty() {
            return Err(Refused::Empty.into());
        }
        let cents = order.items.iter().map(|item| item.unit_cents).sum();
        effects.record(Ordered { cents });
        Ok(Receipt { cents: self.cents + cents })
    }
}

impl Apply<Ordered> for Cart {
    fn apply(&mut self, ordered: &Ordered) {
        self.cents += ordered.cents;
    }
}

/// Has the orders of all carts packed, and reminds of them.
#[derive(Saga, Default)]
#[whizbang(crate = wb)]
#[saga(domain = Shop, reacts(Ordered), replies(Pack), timers(Reminder))]
struct Fulfilment;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[whizbang(crate = wb)]
#[command(domain = Shop, reply = u64)]
struct Pack {
    #[key]
    cart: String,
    cents: u64,
}

impl React<Ordered> for Fulfilment {
    fn react(&self, ordered: Ordered, effects: &mut Effects<Self>) {
        effects.send(Pack { cart: "all".to_owned(), cents: ordered.cents });
    }
}

impl OnReply<Pack> for Fulfilment {
    fn on_reply(&self, _: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        effects.complete();
    }
}

impl OnTimer<Reminder> for Fulfilment {
    fn on_timer(&self, _: Reminder, effects: &mut Effects<Self>) {
        effects.complete();
    }
}

#[derive(Worker)]
#[whizbang(crate = wb)]
#[worker(domain = Shop, performs(Pack))]
struct Packer;

impl Perform<Pack> for Packer {
    async fn perform(&self, pack: Pack, _: Job) -> Result<u64, WorkError> {
        Ok(pack.cents)
    }
}

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[whizbang(crate = wb)]
#[query(domain = Shop, reply = u64)]
struct Sales;

#[derive(Projection, Default, Serialize, Deserialize)]
#[whizbang(crate = wb)]
#[projection(projects(Ordered), answers(Sales))]
struct Totals {
    cents: u64,
}

impl Project<Ordered> for Totals {
    fn project(&mut self, ordered: &Ordered, _: &EventContext) {
        self.cents += ordered.cents;
    }
}

impl Answer<Sales> for Totals {
    fn answer(&self, _: Sales) -> u64 {
        self.cents
    }
}

/// Orders once, and returns the receipt and the sales.
async fn order() -> Result<(Receipt, u64), wb::Error> {
    let node = Node::builder("shop", MemoryStore::new()).threads(0).aggregate::<Cart>().saga::<Fulfilment>();
    let node = node.worker(Packer).projection::<Totals>().start().await?;
    let order = |items| Order { cart: "a".to_owned(), items };
    let receipt = node.client().send(order(vec![Item { unit_cents: 500 }])).await?;
    let refused = node.client().send(order(Vec::new())).await;
    assert_eq!(
        refused.err().and_then(|error| error.rejection().map(|why| why.code().to_owned())).as_deref(),
        Some("shop.empty")
    );
    node.wait_idle().await;
    let sales = node.client().query(Sales).await?;
    node.stop().await?;
    Ok((receipt, sales))
}

#[wb::main(crate = wb)]
async fn main() -> Result<(), wb::Error> {
    let (receipt, sales) = order().await?;
    assert_eq!(receipt.cents, sales);
    Ok(())
}

#[wb::test(crate = wb)]
async fn program_with_a_renamed_dependency_runs() {
    assert_eq!(order().await.unwrap(), (Receipt { cents: 500 }, 500));
}
