//! The included layers: authorization, rate limits, validation.

use std::num::NonZeroU32;
use std::time::Duration;

use whizbang::SendError;
use whizbang::clock::{Clock, Timestamp};
use whizbang::layer::{Authorize, RateLimit, Validate};
use whizbang::prelude::*;

#[derive(Domain)]
#[domain(name = "shop", shards = 2)]
struct Shop;

#[derive(Command, garde::Validate, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Shop)]
struct Order {
    #[key]
    #[garde(skip)]
    cart: String,
    #[garde(range(min = 1, max = 10))]
    items: u64,
    #[garde(length(max = 5))]
    note: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Shop)]
struct Ordered {
    items: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Shop, handles(Order), records(Ordered), answers(ItemsIn))]
struct Cart;

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Shop, reply = u64)]
struct ItemsIn {
    #[key]
    cart: String,
}

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Shop, reply = u64)]
struct AllItems;

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Ordered), answers(AllItems))]
struct Items(u64);

impl Answer<ItemsIn> for Cart {
    fn answer(&self, _: ItemsIn) -> u64 {
        7
    }
}

impl Project<Ordered> for Items {
    fn project(&mut self, ordered: &Ordered, _: &EventContext) {
        self.0 += ordered.items;
    }
}

impl Answer<AllItems> for Items {
    fn answer(&self, _: AllItems) -> u64 {
        self.0
    }
}

impl Handle<Order> for Cart {
    fn handle(&self, order: Order, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Ordered { items: order.items });
        Ok(())
    }
}

fn order(items: u64, note: &str) -> Order {
    Order { cart: "a".to_owned(), items, note: note.to_owned() }
}

fn shop() -> whizbang::NodeBuilder {
    Node::builder("shop", MemoryStore::new()).threads(0).aggregate::<Cart>()
}

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

#[whizbang::test]
async fn header_decides_which_commands_pass() {
    let clerks = Authorize::by_header("role", |role, call| role == "clerk" && call.name() == "Order");
    let node = shop().layer(clerks).start().await.unwrap();
    for role in [None, Some("guest"), Some("")] {
        let sent = node.client().send(order(1, ""));
        let denied = match role {
            Some(role) => sent.header("role", role).await,
            None => sent.await,
        };
        let denied = denied.unwrap_err();
        assert_eq!(denied.rejection().unwrap().code(), "authorization.denied");
    }
    node.client().send(order(1, "")).header("role", "clerk").await.unwrap();
    node.wait_idle().await;
    let metrics = node.metrics();
    assert_eq!((metrics.rejections, metrics.events, metrics.dead_letters), (3, 1, 0));
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn header_decides_which_queries_of_a_client_pass() {
    let node = shop().projection::<Items>().start().await.unwrap();
    let clerks = Authorize::by_header("role", |role, call| role == "clerk" && call.name() != "Order");
    let client = node.client().layer(clerks);
    let items = || ItemsIn { cart: "a".to_owned() };
    for role in [None, Some("guest"), Some("clerk")] {
        let (key, view) = (client.query(items()), client.query(AllItems));
        let (key, view) = match role {
            Some(role) => (key.header("role", role), view.header("role", role)),
            None => (key, view),
        };
        for (answer, expected) in [(key.await, 7), (view.await, 0)] {
            match role {
                Some("clerk") => assert_eq!(answer.unwrap(), expected),
                _ => assert_eq!(answer.unwrap_err().rejection().unwrap().code(), Authorize::DENIED),
            }
        }
    }
    let denied = client.send(order(1, "")).header("role", "clerk").await.unwrap_err();
    assert_eq!(denied.rejection().unwrap().code(), Authorize::DENIED);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn rate_limit_follows_the_clock_of_the_node() {
    let start = Timestamp::from_millis(1_800_000_000_000);
    let (clock, set) = Clock::manual(start);
    let limit = RateLimit::per_second(number(2)).burst(number(3)).by_header("tenant");
    let node = shop().clock(clock).layer_of::<Order>(limit).start().await.unwrap();
    let sent = async |tenant: &str| match node.client().send(order(1, "")).header("tenant", tenant).no_retry().await {
        Ok(()) => true,
        Err(SendError::Busy { .. }) => false,
        Err(error) => panic!("{error}"),
    };
    for passes in [true, true, true, false, false] {
        assert_eq!(sent("acme").await, passes);
    }
    assert!(sent("other").await, "each tenant has its own limit");
    set.set(start.after(Duration::from_millis(500)));
    assert_eq!((sent("acme").await, sent("acme").await), (true, false));
    // A clock that is set back does not stop the tenant for an hour.
    set.set(start.before(Duration::from_secs(3600)));
    assert!(!sent("acme").await);
    set.set(start.before(Duration::from_secs(3599)));
    assert_eq!((sent("acme").await, sent("acme").await, sent("acme").await), (true, true, false));
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn client_waits_for_its_rate_limit() {
    let node = shop().start().await.unwrap();
    let client = node.client().layer(RateLimit::per_second(number(200)).burst(number(1)));
    let begun = whizbang::clock::instant();
    for _ in 0..4 {
        client.send(order(1, "")).await.unwrap();
    }
    // The first passes at once, and each of the others 5 ms after the one before.
    assert!(begun.elapsed() >= Duration::from_millis(14), "{:?}", begun.elapsed());
    assert_eq!(node.metrics().events, 4);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn invalid_message_is_rejected_with_its_fields() {
    let node = shop().layer_of::<Order>(Validate::<Order>::new()).start().await.unwrap();
    node.client().send(order(10, "short")).await.unwrap();
    for client in [node.client(), node.client().layer(Validate::<Order>::new())] {
        let invalid = client.send(order(11, "too long")).await.unwrap_err();
        let rejection = invalid.rejection().unwrap();
        assert_eq!(rejection.code(), "message.invalid");
        for part in ["items: ", "note: "] {
            assert!(rejection.text().contains(part), "{rejection}");
        }
    }
    // The client with the layer has sent nothing.
    assert_eq!((node.metrics().events, node.metrics().rejections), (1, 1));
    node.stop().await.unwrap();
}
