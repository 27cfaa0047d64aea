//! Untrusted clients publish messages that no node would: each gets an error, is refused or becomes a dead letter, with its reason, and
//! valid messages after them are handled.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{HeaderMap, jetstream};
use futures_util::StreamExt;
use whizbang::message::{MessageId, shard_of};
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::checker::ShardLog;
use whizbang_tests::nats::{NatsConfig, NatsServer};

use crate::bank::{Account, Bank, Transfer, Transfers, deposit};
use crate::services::bridge;
use crate::{BOTH, until};

/// A message of an untrusted client, to be corrupted: headers and payload.
#[derive(Clone)]
struct Forgery {
    subject: String,
    headers: Vec<(&'static str, String)>,
    payload: Vec<u8>,
}

/// Returns a valid deposit of one cent into ada's account.
fn good(number: u128) -> Forgery {
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", &MessageId::from_u128(number).to_string()),
        ("ce-type", "bank.Deposit"),
        ("ce-source", "/"),
        ("ce-kind", "command"),
        ("ce-datacontenttype", "application/x-bincode"),
        ("ce-subject", "ada"),
    ];
    let headers = headers.map(|(name, value)| (name, value.to_owned())).to_vec();
    // bincode: the length of the text, the text, the number.
    let subject = format!("whizbang.cmd.bank.{}.outside", shard_of("ada", Bank::SHARDS));
    Forgery { subject, headers, payload: b"\x03ada\x01".to_vec() }
}

impl Forgery {
    fn to(mut self, subject: &str) -> Self {
        self.subject = subject.to_owned();
        self
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    fn and(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }

    fn carrying(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    fn headers(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            map.append(*name, value.as_str());
        }
        map
    }
}

/// Returns the messages that must be refused, with a part of the reason.
fn to_be_put_aside() -> Vec<(Forgery, &'static str)> {
    let shard = shard_of("ada", Bank::SHARDS);
    let mut cases = vec![
        (good(100).carrying(&vec![0; 600 * 1024]), "bytes"),
        (good(101).with("ce-type", "bank.Nonsense"), "unhandled message"),
        (good(102).with("ce-type", "elsewhere.Deposit"), "the domain"),
        (good(103).with("ce-schemaversion", "99"), "version"),
        (good(104).with("ce-schemaversion", "many"), "ce-schemaversion"),
        (good(105).and("ce-id", &MessageId::from_u128(1).to_string()), "ce-id"),
        (good(106).and("ce-type", "bank.Withdraw"), "ce-type"),
        (good(107).with("ce-kind", "event"), "the kind"),
        (good(108).with("ce-specversion", "2.0"), "ce-specversion"),
        (good(109).with("ce-source", "/accounts/0/Account").with("ce-sequence", "00000000000000000001"), "ce-"),
        (good(110).to(&format!("whizbang.cmd.bank.{shard}.transfers.0")), "the origin"),
        (good(111).to(&format!("whizbang.cmd.bank.{}.outside", (shard + 1) % Bank::SHARDS)), "the shard of the key"),
        (good(112).carrying(b""), "the message"),
        (good(113).carrying(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "the message"),
        (good(114).with("ce-subject", "%ff"), "ce-subject"),
        (good(115).with("ce-datacontenttype", "text/html"), "ce-datacontenttype"),
        // The id of the valid message, with another payload.
        (good(1).carrying(b"\x03ada\x02"), "another payload"),
        (good(116).with("ce-deadline", "2001-01-01T00:00:00Z"), "deadline"),
    ];
    for needed in ["ce-specversion", "ce-id", "ce-type", "ce-source", "ce-kind", "ce-datacontenttype"] {
        cases.push((good(120).without(needed), needed));
    }
    let bare = Forgery { headers: Vec::new(), payload: b"\0\xff noise".to_vec(), ..good(0) };
    cases.push((bare, "ce-specversion"));
    cases
}

#[test]
fn invalid_messages_are_refused_and_valid_ones_are_handled() {
    for release in BOTH {
        run(async {
            let config = NatsConfig { max_payload: Some(4 << 20), ..NatsConfig::default() };
            let server = NatsServer::start_with(release, config);
            let store = MemoryStore::new();
            let node = Node::builder("bank", store.clone()).aggregate::<Account>().bridge(bridge(&server.url()).await);
            let node = node.start().await.expect("starts");
            let stranger = async_nats::connect(server.url()).await.expect("connects");
            let context = jetstream::new(stranger.clone());
            let write = async |forgery: &Forgery| {
                let (subject, headers) = (forgery.subject.clone(), forgery.headers());
                let taken = context.publish_with_headers(subject, headers, forgery.payload.clone().into()).await;
                taken.expect("writes").await.expect("is acknowledged");
            };
            write(&good(1)).await;
            let balance = async || node.client().send(deposit("ada", 0)).await.expect("is handled");
            until("the first valid message", async || balance().await == 1).await;
            let cases = to_be_put_aside();
            for (forgery, _) in &cases {
                write(forgery).await;
            }
            write(&good(2)).await;
            until("the valid message after them", async || balance().await == 2).await;

            let mut refused = context.get_stream("whizbang_refused_bank").await.expect("a stream");
            until("all refused messages", async || {
                refused.info().await.expect("its state").state.messages >= cases.len() as u64
            })
            .await;
            let consumer = refused.create_consumer(jetstream::consumer::pull::Config::default()).await.expect("made");
            let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
            let mut messages = consumer.messages().await.expect("messages").take(cases.len());
            while let Some(message) = messages.next().await {
                let headers = message.expect("a message").headers.clone().expect("headers");
                *reasons.entry(headers.get("whizbang-refused").expect("a reason").to_string()).or_default() += 1;
            }
            for (forgery, part) in &cases {
                assert!(
                    reasons.keys().any(|reason| reason.contains(part)),
                    "{part}: {:?}\n{reasons:#?}",
                    forgery.headers
                );
            }
            assert_eq!(refused.info().await.expect("its state").state.messages, cases.len() as u64, "{reasons:#?}");
            // No message is left to be redelivered.
            let commands = context.get_stream("whizbang_commands_bank").await.expect("a stream");
            let mut consumer: jetstream::consumer::PullConsumer = commands.get_consumer("bank").await.expect("there");
            until("an empty stream", async || {
                let info = consumer.info().await.expect("its state");
                info.num_ack_pending == 0 && info.num_pending == 0
            })
            .await;
            assert_eq!(balance().await, 2);
            node.stop().await.expect("stops");
        });
    }
}

#[test]
fn invalid_request_gets_the_reason_in_the_response() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node =
                Node::builder("bank", MemoryStore::new()).aggregate::<Account>().bridge(bridge(&server.url()).await);
            let node = node.start().await.expect("starts");
            let stranger = async_nats::connect(server.url()).await.expect("connects");
            let ask = async |forgery: Forgery| {
                let asked = stranger.request_with_headers(
                    "whizbang.ask.bank.cmd.any",
                    forgery.headers(),
                    forgery.payload.clone().into(),
                );
                let answer = asked.await.expect("an answer");
                answer.headers.expect("headers").get("whizbang-answer").expect("a kind of response").to_string()
            };
            assert_eq!(ask(good(1)).await, "reply");
            assert_eq!(ask(good(1)).await, "reply");
            assert_eq!(ask(good(1).carrying(b"\x03ada\x02")).await, "conflict");
            assert_eq!(ask(good(2).with("ce-type", "bank.Nonsense")).await, "unhandled");
            assert_eq!(ask(good(3).with("ce-type", "elsewhere.Deposit")).await, "undecodable");
            assert_eq!(ask(good(4).carrying(b"\xff")).await, "undecodable");
            assert_eq!(ask(good(5).without("ce-id")).await, "undecodable");
            assert_eq!(ask(good(6).with("ce-schemaversion", "99")).await, "undecodable");
            assert_eq!(ask(good(7).with("ce-deadline", "2001-01-01T00:00:00Z")).await, "late");
            assert_eq!(ask(good(8)).await, "reply");
            assert_eq!(node.client().send(deposit("ada", 0)).await.expect("is handled"), 2);
            node.stop().await.expect("stops");
        });
    }
}

/// Without permissions a client can publish in a service's name. Contradictory messages are refused, and messages ahead of their
/// sequence wait for the earlier ones: neither blocks the true messages.
#[test]
fn impersonation_blocks_no_true_message() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let (money, moves) = (MemoryStore::new(), MemoryStore::new());
            let accounts =
                Node::builder("accounts", money.clone()).aggregate::<Account>().bridge(bridge(&server.url()).await);
            let accounts = accounts.start().await.expect("starts");
            let transfers = Node::builder("transfers", moves.clone()).saga::<Transfer>();
            let transfers = transfers.bridge(bridge(&server.url()).await).start().await.expect("starts");
            let stranger = async_nats::connect(server.url()).await.expect("connects");
            let context = jetstream::new(stranger);
            let (to, from) = (shard_of("ada", Bank::SHARDS), shard_of("t1", Transfers::SHARDS));
            // A command ahead of its sequence that the saga's shard never sent, and an event that the account never recorded.
            let command = good(1)
                .to(&format!("whizbang.cmd.bank.{to}.transfers.{from}"))
                .with("ce-source", &format!("/transfers/{from}/Transfer"))
                .with("ce-originkey", "t1")
                .with("ce-sequence", "00000000000000000900");
            let event = good(2)
                .to(&format!("whizbang.evt.bank.{to}.Withdrawn"))
                .with("ce-type", "bank.Withdrawn")
                .with("ce-kind", "event")
                .with("ce-source", &format!("/bank/{to}/Account"))
                .with("ce-partitionkey", &format!("bank/{to}"))
                .with("ce-streamversion", "00000000000000000900")
                .with("ce-sequence", "00000000000000000900")
                .carrying(b"\x05\x02t1");
            for forgery in [&command, &event] {
                let (subject, headers) = (forgery.subject.clone(), forgery.headers());
                let taken = context.publish_with_headers(subject, headers, forgery.payload.clone().into()).await;
                taken.expect("writes").await.expect("is acknowledged");
            }
            let dropped = || (accounts.metrics().commands_dropped, transfers.metrics().events_dropped);
            until("the forgeries to be dropped", async || dropped() == (1, 1)).await;
            let client = transfers.client();
            client.send(deposit("ada", 100)).await.expect("is handled");
            client.send(crate::bank::transfer("t1", "ada", "bob", 30)).await.expect("begins");
            until("the transfer", async || {
                client.send(crate::bank::outcome("t1")).await.is_ok_and(|outcome| outcome == "done")
            })
            .await;
            assert_eq!(client.send(deposit("ada", 0)).await.expect("is handled"), 70);
            assert_eq!(client.send(deposit("bob", 0)).await.expect("is handled"), 30);
            let ended = async { tokio::join!(transfers.stop(), accounts.stop()) };
            let (one, other) = tokio::time::timeout(Duration::from_secs(20), ended).await.expect("in time");
            one.expect("stops");
            other.expect("stops");
            let logs = ShardLog::read_domain::<Bank>(&money).await.expect("the store can be read");
            assert!(logs.iter().all(|log| log.dead_letters.is_empty()));
        });
    }
}
