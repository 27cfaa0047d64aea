//! A hostile client beside other nodes.
//!
//! Any client with access to the broker can publish to every address. The promise is not that forgeries are recognized as
//! such: it is that other nodes get the same results as without them, at about the same speed.
//!
//! The cases run an exchange between two other nodes twice, undisturbed and under attack, and compare the results.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join};

use super::sample::{command, effects, event, external_command, shard};
use crate::bridge::hostile::{Forgery, Hostile, Target};
use crate::bridge::node::{ARRIVAL_TIMEOUT, NodeBehavior, TestNode, named, service};
use crate::bridge::{Fixture, SHARDS};
use whizbang_core::bridge::{Request, Response, StoreCard};
use whizbang_core::message::{Envelope, Kind, Run, StoreId};
use whizbang_wire::Packet;
use whizbang_wire::subject::Address;

/// The minimum number of forgeries that the hostile client publishes.
const FORGERIES: usize = 400;
/// The hostile client replaces a claim after this number of forgeries.
const CLAIM_INTERVAL: usize = 20;
/// The number of invalid packets in a flood.
const FLOOD: usize = 3000;

/// The results of other nodes: routes and sequences of commands and events, and the responses.
type Results = (BTreeSet<(String, u64)>, BTreeSet<(String, u64)>, Vec<Response>);

/// Returns a domain of the attacked nodes, which the forgeries name.
fn target(domain: &'static str) -> Target {
    Target {
        domain: named(domain),
        shards: SHARDS,
        command: named("Do"),
        event: named("Happened"),
        actor: named("Recorder"),
        query: (named(domain), named("Sum")),
    }
}

/// Sends, publishes and requests the given numbers, and returns the results.
async fn exchange(bank: &TestNode, shop: &TestNode, numbers: RangeInclusive<u64>) -> Results {
    let before = numbers.start() - 1;
    let count = usize::try_from(numbers.end() - before).unwrap_or(0);
    let mut responses = Vec::new();
    for number in numbers {
        let of = |domain| shard(domain, u16::try_from(number).unwrap_or(0) % SHARDS);
        bank.bridge.send(command(&of("bank"), &shard("shop", 0), number)).await.expect("sends");
        bank.bridge.publish(event(&of("bank"), number)).await.expect("publishes");
        // The same request in every run.
        let request = Request::Command(external_command(&of("bank"), number - before));
        responses.push(shop.bridge.request(request, Duration::from_secs(20)).await.expect("is answered"));
    }
    let genuine = |received: &[Envelope]| -> BTreeSet<(String, u64)> {
        let genuine: Vec<_> = received.iter().filter(|envelope| !Hostile::is_forged(envelope)).cloned().collect();
        let later = effects(&genuine).into_iter().filter(|(_, number)| *number > before);
        later.map(|(way, number)| (way, number - before)).collect()
    };
    shop.wait_until("all that was sent", |received| {
        genuine(&received.direct).len() == count && genuine(&received.events).len() == count
    })
    .await;
    let (sent, recorded) = shop.inspect(|received| (genuine(&received.direct), genuine(&received.events)));
    (sent, recorded, responses)
}

/// Starts the two other nodes: a bank that answers commands with their payload, and a shop that subscribes to it.
async fn start(fixture: &dyn Fixture) -> (TestNode, TestNode) {
    let responder = |request: Request| -> BoxFuture<'static, Response> {
        let Request::Command(envelope) = request else {
            return Box::pin(async { Response::Watermark { through: 0, store: None } });
        };
        Box::pin(async move { Response::Reply(envelope.payload) })
    };
    let behavior = NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() };
    // A node with a store claims its domain.
    let store = StoreCard::new(StoreId::from_u128(1), Run { epoch: 1, nonce: 1 });
    let card = service("bank").owning(named("bank"), SHARDS).answering(named("bank"), named("Sum")).store(store);
    let bank = TestNode::start_with(fixture, card, behavior).await;
    let shop = TestNode::start(
        fixture,
        service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
    )
    .await;
    (bank, shop)
}

/// Lets a hostile client observe the packets of an exchange.
fn observe(hostile: &mut Hostile, numbers: RangeInclusive<u64>) {
    for number in numbers {
        let of = |domain| shard(domain, u16::try_from(number).unwrap_or(0) % SHARDS);
        let (to, from) = (shard("shop", 0), of("bank"));
        let sent = command(&from, &to, number);
        let reply = Envelope { kind: Kind::Reply, domain: from.domain.clone(), ..sent.clone() };
        let direct = Address::Direct { to, from: Some(from.clone()) };
        let recorded = event(&from, number);
        let asked = Request::Command(external_command(&from, number));
        let envelope = |envelope: &Envelope| Packet::from_envelope(envelope).expect("is encoded");
        hostile.observe(direct.clone(), envelope(&sent));
        hostile.observe(direct, envelope(&reply));
        hostile.observe(Address::for_event(&recorded).expect("an address"), envelope(&recorded));
        hostile.observe(Address::for_request(&asked), Packet::from_request(&asked).expect("is encoded"));
    }
}

/// A client publishes malformed, contradictory, oversize and false packets to every address, and replays packets of other nodes,
/// unchanged and changed: the results of other nodes stay the same, and no node loses its claim.
///
/// The forgeries come from a fixed seed, so a failure can be repeated. The attack lasts as long as the exchange. The case also
/// fails if a kind of forgery is missing or if nothing was refused: the attack would then test nothing.
pub async fn hostile_client_does_not_affect_other_nodes(fixture: &dyn Fixture) {
    let (bank, shop) = start(fixture).await;
    let undisturbed = exchange(&bank, &shop, 1..=100).await;
    let owner = shop.bridge.owner(&named("bank")).await.expect("the claim is read");
    let mut hostile = Hostile::new(11, vec![target("bank"), target("shop")]);
    observe(&mut hostile, 1..=100);
    let is_over = Cell::new(false);
    let attack = async {
        let mut kinds = BTreeSet::new();
        for written in 1.. {
            if written > FORGERIES && is_over.get() {
                break;
            }
            let forgery = hostile.forge().expect("a forgery");
            kinds.insert(forgery.kind);
            fixture.forge(forgery).await;
            if written % CLAIM_INTERVAL == 0 {
                let (domain, content) = hostile.forge_claim().expect("a claim");
                fixture.forge_claim(domain, content).await;
            }
            // A fixture that never waits leaves the exchange its turn.
            tokio::task::yield_now().await;
        }
        kinds
    };
    let exchange = async {
        let results = exchange(&bank, &shop, 101..=200).await;
        is_over.set(true);
        results
    };
    let (kinds, attacked) = join(attack, exchange).await;
    assert_eq!(kinds, Hostile::kinds().collect());
    assert_eq!(attacked, undisturbed);
    assert!(fixture.refused().await > 0, "the hostile client had no effect");
    let is_restored = async {
        while shop.bridge.owner(&named("bank")).await.ok() != Some(owner) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(ARRIVAL_TIMEOUT, is_restored).await.is_ok(), "the claim is not that of the bank");
    bank.inspect(|received| assert!(received.claims_lost.is_empty(), "{:?}", received.claims_lost));
    bank.stop().await;
    shop.stop().await;
}

/// A flood of invalid packets is refused without delaying the messages that arrive with it and after it.
///
/// A refused packet costs one copy into the refused stream. If the copies held up the receiving loop, one client could stop a
/// service.
pub async fn flood_of_junk_blocks_no_message(fixture: &dyn Fixture) {
    let (bank, shop) = start(fixture).await;
    let flood = async {
        for number in 0..FLOOD {
            let to = shard("shop", u16::try_from(number).unwrap_or(0) % SHARDS);
            let packet = Packet { headers: Vec::new(), payload: Bytes::from_static(b"junk") };
            fixture.forge(Forgery { kind: "junk", address: Address::Direct { to, from: None }, packet }).await;
        }
    };
    let ((), (sent, recorded, _)) = join(flood, exchange(&bank, &shop, 1..=50)).await;
    assert_eq!((sent.len(), recorded.len()), (50, 50));
    let (sent, ..) = exchange(&bank, &shop, 51..=60).await;
    assert_eq!(sent.len(), 10, "after the flood");
    assert!(fixture.refused().await > 0, "the flood had no effect");
    bank.stop().await;
    shop.stop().await;
}
