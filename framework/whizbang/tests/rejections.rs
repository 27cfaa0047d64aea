//! Typed rejections: from a handler and from a worker to the caller, in one process and over a bridge.

use std::collections::BTreeMap;

use whizbang::SendError;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::message::TypedRejection;
use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Domain)]
#[domain(codec = json)]
struct Cards;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Limit {
    day: Option<u64>,
}

#[derive(Rejection, Clone, Debug, PartialEq)]
#[rejection(domain = Bank)]
enum WithdrawError {
    #[rejection(text = "{{the account}} holds {cents:>4} cents", code = "no-funds")]
    InsufficientFunds { cents: u64, limits: BTreeMap<String, Limit> },
    #[rejection(text = "closed by {1}: {0:?}")]
    AccountClosed(Vec<Option<u8>>, String),
    #[rejection(text = "a deposit of type {type} is fixed until {in}")]
    Fixed { r#type: String, r#in: i128 },
    #[rejection(text = "the account is unknown")]
    Unknown,
}

/// The enum of an older caller: it knows fewer variants and other fields.
#[derive(Rejection, Debug, PartialEq)]
#[rejection(domain = Bank)]
enum OlderError {
    #[rejection(text = "no funds", code = "no-funds")]
    NoFunds { cents: u64, currency: Option<String> },
    #[rejection(text = "unknown")]
    Unknown { since: u64 },
}

#[derive(Rejection, Debug, PartialEq)]
#[rejection(domain = Cards)]
enum ChargeError {
    #[rejection(text = "declined: {reason}")]
    Declined { reason: String },
}

fn all() -> Vec<WithdrawError> {
    let limits = BTreeMap::from([("day".to_owned(), Limit { day: Some(7) }), ("none".to_owned(), Limit { day: None })]);
    vec![
        WithdrawError::InsufficientFunds { cents: 3, limits },
        WithdrawError::AccountClosed(vec![None, Some(1)], "a \0 \"bank\"".to_owned()),
        WithdrawError::Fixed { r#type: "x".to_owned(), r#in: 12 },
        WithdrawError::Unknown,
    ]
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Withdraw {
    #[key]
    account: String,
    nth: usize,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Withdraw))]
struct Account;

impl Handle<Withdraw> for Account {
    fn handle(&self, withdraw: Withdraw, _effects: &mut Effects<Self>) -> Result<(), Rejection> {
        Err(all().swap_remove(withdraw.nth))?
    }
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Cards)]
struct Charge {
    #[key]
    card: String,
}

#[derive(Worker)]
#[worker(domain = Cards, performs(Charge))]
struct Charger;

impl Perform<Charge> for Charger {
    async fn perform(&self, charge: Charge, _job: Job) -> Result<(), WorkError> {
        // A rejection is not retried, unlike the errors that `?` converts.
        Err(ChargeError::Declined { reason: format!("no card {}", charge.card) })?
    }
}

#[whizbang::test]
async fn typed_rejections_reach_each_caller() {
    let hub = LoopbackHub::new();
    let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().worker(Charger).bridge(hub.bridge());
    let node = node.start().await.unwrap();
    let remote = Client::connect("teller", hub.bridge()).await.unwrap();
    for client in [node.client(), remote.clone()] {
        for (nth, expected) in all().into_iter().enumerate() {
            let withdraw =
                || client.send(Withdraw { account: "ada".to_owned(), nth }).idempotency_key(&format!("w{nth}"));
            // The second one is answered from the log.
            for _ in 0..2 {
                let error = withdraw().await.unwrap_err();
                assert_eq!(error.rejection_as(), Some(expected.clone()), "{error}");
                assert_eq!(error.rejection().unwrap().text(), expected.to_string());
                assert_eq!(error.rejection_as::<ChargeError>(), None, "the code of another domain");
            }
        }
        let error = client.send(Charge { card: "4711".to_owned() }).await.unwrap_err();
        assert_eq!(error.rejection_as(), Some(ChargeError::Declined { reason: "no card 4711".to_owned() }));
        assert_eq!(error.to_string(), "rejected: declined: no card 4711 (cards.declined)");
    }
    assert_eq!((node.metrics().retries, node.metrics().dead_letters), (0, 0));
    remote.disconnect().await;
    node.stop().await.unwrap();
}

#[test]
fn codes_and_texts_follow_the_attributes() {
    let rejections: Vec<Rejection> = all().into_iter().map(Rejection::from).collect();
    let shown: Vec<_> = rejections.iter().map(|rejection| (rejection.code(), rejection.text())).collect();
    assert_eq!(
        shown,
        [
            ("bank.no-funds", "{the account} holds    3 cents"),
            ("bank.account-closed", "closed by a \0 \"bank\": [None, Some(1)]"),
            ("bank.fixed", "a deposit of type x is fixed until 12"),
            ("bank.unknown", "the account is unknown"),
        ]
    );
    assert_eq!(rejections[3], Rejection::new("bank.unknown", "the account is unknown"), "no fields, no data");
}

#[test]
fn other_version_is_read_as_far_as_it_is_known() {
    let newer = Rejection::from(all().swap_remove(0));
    assert_eq!(newer.typed(), Some(OlderError::NoFunds { cents: 3, currency: None }));
    // A field is missing, a code is unknown, a code has no domain: the rejection itself stays readable.
    for rejection in [all().swap_remove(3).into(), all().swap_remove(2).into(), Rejection::new("no-funds", "x")] {
        let rejection: Rejection = rejection;
        assert_eq!(OlderError::from_rejection(&rejection), None, "{rejection}");
        assert_eq!(SendError::Rejected(rejection.clone()).rejection(), Some(&rejection));
    }
    assert_eq!(SendError::Conflict.rejection_as::<OlderError>(), None);
}
