//! A hostile client beside honest nodes.
//!
//! Any client with access to the broker can publish to every address. The promise is not that forgeries are recognized as
//! such: it is that honest nodes get the same results as without them, at about the same speed.
//!
//! The cases run an exchange between two honest nodes twice, undisturbed and under attack, and compare the results.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join};

use super::sample::{command, effects, event, external_command, shard};
use crate::bridge::hostile::{Forgery, Hostile, Target};
use crate::bridge::node::{NodeBehavior, TestNode, named, service};
use crate::bridge::{Fixture, SHARDS};
use whizbang_core::bridge::{Request, Response};
use whizbang_core::message::Envelope;
use whizbang_wire::Packet;
use whizbang_wire::subject::Address;

/// The number of forgeries that the hostile client publishes.
const FORGERIES: usize = 400;
/// The number of invalid packets in a flood.
const FLOOD: usize = 3000;

/// The results of honest nodes: routes and sequences of commands and events, and the responses.
type Results = (BTreeSet<(String, u64)>, BTreeSet<(String, u64)>, Vec<Response>);

/// Returns a domain of the honest nodes, which the forgeries name.
fn target(domain: &'static str) -> Target {
    Target {
        domain: named(domain),
        shards: SHARDS,
        command: named("Do"),
        event: named("Happened"),
        actor: named("Recorder"),
        has_begun: true,
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
    let honest = |received: &[Envelope]| -> BTreeSet<(String, u64)> {
        let honest: Vec<_> = received.iter().filter(|envelope| !Hostile::is_forged(envelope)).cloned().collect();
        let later = effects(&honest).into_iter().filter(|(_, number)| *number > before);
        later.map(|(way, number)| (way, number - before)).collect()
    };
    shop.wait_until("all that was sent", |received| {
        honest(&received.direct).len() == count && honest(&received.events).len() == count
    })
    .await;
    let (sent, recorded) = shop.inspect(|received| (honest(&received.direct), honest(&received.events)));
    (sent, recorded, responses)
}

/// Starts the two honest nodes: a bank that answers commands with their payload, and a shop that subscribes to it.
async fn start(fixture: &dyn Fixture) -> (TestNode, TestNode) {
    let responder = |request: Request| -> BoxFuture<'static, Response> {
        let Request::Command(envelope) = request else {
            return Box::pin(async { Response::Watermark { through: 0, store: None } });
        };
        Box::pin(async move { Response::Reply(envelope.payload) })
    };
    let behavior = NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() };
    let bank = TestNode::start_with(fixture, service("bank").owning(named("bank"), SHARDS), behavior).await;
    let shop = TestNode::start(
        fixture,
        service("shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")]),
    )
    .await;
    (bank, shop)
}

/// A client publishes malformed, contradictory, oversize and false packets to every address: the results of honest nodes stay the
/// same.
///
/// The forgeries come from a fixed seed, so a failure can be repeated. The case also fails if nothing was refused: the attack
/// would then test nothing.
pub async fn hostile_client_does_not_affect_other_nodes(fixture: &dyn Fixture) {
    let (bank, shop) = start(fixture).await;
    let undisturbed = exchange(&bank, &shop, 1..=100).await;
    let mut hostile = Hostile::new(11, vec![target("bank"), target("shop")]);
    let attack = async {
        let mut kinds = BTreeSet::new();
        for _ in 0..FORGERIES {
            let forgery = hostile.forge().expect("a forgery");
            kinds.insert(forgery.kind);
            fixture.forge(forgery).await;
        }
        kinds
    };
    let (kinds, attacked) = join(attack, exchange(&bank, &shop, 101..=200)).await;
    assert!(kinds.len() > 12, "{kinds:?}");
    assert_eq!(attacked, undisturbed);
    assert!(fixture.refused().await > 0, "the hostile client had no effect");
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
