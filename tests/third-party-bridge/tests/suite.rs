//! The public suite of bridges on a bridge that a third party could have written, and two nodes that use it.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use topic_bridge::{Broker, TopicBridge};
use whizbang::prelude::*;
use whizbang_conformance::bridge::Fixture;
use whizbang_conformance::bridge::hostile::Forgery;
use whizbang_core::bridge::Bridge;
use whizbang_core::message::ShardId;
use whizbang_wire::Packet;
use whizbang_wire::subject::Address;

#[derive(Default)]
struct Topics {
    broker: Broker,
    bridges: Mutex<Vec<Arc<TopicBridge>>>,
}

impl Topics {
    fn publish(&self, address: &Address, packet: Packet) {
        let headers = packet.headers.into_iter().map(|(name, value)| (name.into_owned(), value)).collect();
        self.broker.inject(TopicBridge::topic(address), headers, packet.payload);
    }
}

impl Fixture for Topics {
    fn bridge(&self) -> BoxFuture<'_, Arc<dyn Bridge>> {
        let bridge = Arc::new(TopicBridge::new(&self.broker));
        self.bridges.lock().push(Arc::clone(&bridge));
        async move { bridge as Arc<dyn Bridge> }.boxed()
    }

    fn interrupt(&self) -> BoxFuture<'_, ()> {
        self.bridges.lock().iter().for_each(|bridge| bridge.interrupt());
        async {}.boxed()
    }

    fn inject(&self, to: ShardId, packet: Packet) -> BoxFuture<'_, ()> {
        self.publish(&Address::Direct { to, from: None }, packet);
        async {}.boxed()
    }

    fn forge(&self, forgery: Forgery) -> BoxFuture<'_, ()> {
        self.publish(&forgery.address, forgery.packet);
        tokio::task::yield_now().boxed()
    }

    fn refused(&self) -> BoxFuture<'_, usize> {
        async { self.broker.refused() }.boxed()
    }
}

whizbang_conformance::bridge_suite!(Topics::default());

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
struct Deposit(#[key] String, u64);

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited(u64);

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit), applies(Deposited))]
struct Account(u64);

impl Handle<Deposit> for Account {
    fn handle(&self, Deposit(_, cents): Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Deposited(self.0 + cents));
        Ok(self.0 + cents)
    }
}

impl Apply<Deposited> for Account {
    fn apply(&mut self, Deposited(balance): &Deposited) {
        self.0 = *balance;
    }
}

#[whizbang::test]
async fn client_of_another_service_reaches_the_owner() {
    let broker = Broker::default();
    let store = MemoryStore::new();
    let node =
        Node::builder("bank", store).bridge(TopicBridge::new(&broker)).aggregate::<Account>().start().await.unwrap();
    let client = Client::connect("shop", TopicBridge::new(&broker)).await.unwrap();
    assert_eq!(client.send(Deposit("ada".into(), 500)).await.unwrap(), 500);
    assert_eq!(client.send(Deposit("ada".into(), 20)).await.unwrap(), 520);
    client.disconnect().await;
    node.stop().await.unwrap();
}
