//! Every derive with every key, in a program that denies all warnings, and the generated items.

#![deny(warnings, missing_docs, unreachable_pub, unused_qualifications)]

use whizbang::derive::{Role, Snapshots, Stateful};
use whizbang::message::{Codec, CodecError, Kind, Message};
use whizbang::prelude::*;

/// A domain with all keys.
#[derive(Domain)]
#[domain(name = "the-bank", shards = 4, codec = json)]
struct Bank;

/// A domain with defaults.
#[derive(Domain)]
struct OrderDesk;

/// A command with all keys.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = Vec<u64>, name = "PutIn", version = 3, upcast(1 = DepositV1, 2 = old::DepositV2))]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

#[derive(Serialize, Deserialize)]
struct DepositV1 {
    account: String,
}

impl From<DepositV1> for Deposit {
    fn from(old: DepositV1) -> Self {
        Self { account: old.account, cents: 0 }
    }
}

mod old {
    use super::Deposit;
    use whizbang::prelude::*;

    #[derive(Serialize, Deserialize)]
    pub(crate) struct DepositV2 {
        account: String,
        euros: u32,
    }

    impl From<DepositV2> for Deposit {
        fn from(old: DepositV2) -> Self {
            Self { account: old.account, cents: u64::from(old.euros) * 100 }
        }
    }
}

/// A command with unnamed fields and a raw identifier.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
struct r#Close(#[key] u64);

/// A user-defined key type.
#[derive(Serialize, Deserialize)]
struct Iban(String);

impl<'a> From<&'a Iban> for whizbang::message::Key<'a> {
    fn from(iban: &'a Iban) -> Self {
        Self::from(&iban.0)
    }
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = OrderDesk)]
struct Order {
    #[key]
    r#where: Iban,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
enum Moved {
    In(u64),
    Out { cents: u64 },
    Nothing,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = OrderDesk, name = "ordered", version = 1)]
struct Ordered;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct StatementSent {
    page: u8,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct StatementLost;

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Bank, reply = Option<u64>, name = "balance-of")]
struct BalanceOf {
    account: String,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Bank, name = "overdue")]
struct Overdue {
    since: u64,
}

#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(
    domain = Bank,
    name = "konto",
    handles(Deposit, Close),
    applies(Moved),
    records(StatementSent, StatementLost),
    reacts(Ordered),
    replies(Order),
    timers(Overdue),
    snapshot(every = 100, schema = 2),
)]
struct Account {
    cents: u64,
}

impl Handle<Deposit> for Account {
    fn handle(&self, deposit: Deposit, _effects: &mut Effects<Self>) -> Result<Vec<u64>, Rejection> {
        Ok(vec![self.cents, deposit.cents])
    }
}

impl Handle<Close> for Account {
    fn handle(&self, close: Close, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if self.cents == 0 {
            (1..=3).for_each(|page| effects.record(StatementSent { page }));
            effects.record(StatementLost);
            return Ok(());
        }
        Err(Rejection::new("bank.never", format!("{} stays open", close.0)))
    }
}

impl Apply<Moved> for Account {
    fn apply(&mut self, moved: &Moved) {
        match moved {
            Moved::In(cents) => self.cents += cents,
            Moved::Out { cents } => self.cents -= cents,
            Moved::Nothing => {}
        }
    }
}

impl React<Ordered> for Account {
    fn react(&self, _ordered: Ordered, _effects: &mut Effects<Self>) {}
}

impl OnReply<Order> for Account {
    fn on_reply(&self, _reply: Result<(), Rejection>, _effects: &mut Effects<Self>) {}
}

impl OnTimer<Overdue> for Account {
    fn on_timer(&self, _overdue: Overdue, _effects: &mut Effects<Self>) {}
}

/// A state that is an enum, with default snapshots.
#[derive(Saga, Default, Serialize, Deserialize)]
#[saga(domain = Bank, reacts(Moved, Ordered), handles(Close), applies(Moved), records(StatementSent), replies(Order, Deposit), timers(Overdue), snapshot)]
enum PaymentPlan {
    #[default]
    Open,
    Paid,
}

impl React<Moved> for PaymentPlan {
    fn react(&self, _moved: Moved, _effects: &mut Effects<Self>) {}
}

impl React<Ordered> for PaymentPlan {
    fn key(_ordered: &Ordered, context: &EventContext) -> Option<String> {
        (context.version > 1).then(|| context.key.clone())
    }

    fn react(&self, _ordered: Ordered, _effects: &mut Effects<Self>) {}
}

impl Handle<Close> for PaymentPlan {
    fn handle(&self, _close: Close, _effects: &mut Effects<Self>) -> Result<(), Rejection> {
        Ok(())
    }
}

impl Apply<Moved> for PaymentPlan {
    fn apply(&mut self, _moved: &Moved) {
        *self = Self::Paid;
    }
}

impl OnReply<Order> for PaymentPlan {
    fn on_reply(&self, _reply: Result<(), Rejection>, _effects: &mut Effects<Self>) {}
}

impl OnReply<Deposit> for PaymentPlan {
    fn on_reply(&self, _reply: Result<Vec<u64>, Rejection>, _effects: &mut Effects<Self>) {}
}

impl OnTimer<Overdue> for PaymentPlan {
    fn on_timer(&self, _overdue: Overdue, _effects: &mut Effects<Self>) {}
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(name = "all-balances", schema = 7, projects(Moved, Ordered), answers(BalanceOf))]
struct Balances {
    orders: u64,
}

impl Project<Moved> for Balances {
    fn project(&mut self, _moved: &Moved, _context: &EventContext) {}
}

impl Project<Ordered> for Balances {
    fn project(&mut self, _ordered: &Ordered, _context: &EventContext) {
        self.orders += 1;
    }
}

impl Answer<BalanceOf> for Balances {
    fn answer(&self, query: BalanceOf) -> Option<u64> {
        (query.account == "ada").then_some(self.orders)
    }
}

#[derive(Worker)]
#[worker(domain = OrderDesk, name = "desk", performs(Order), on(Moved, Ordered))]
struct Desk {
    name: String,
}

impl Perform<Order> for Desk {
    async fn perform(&self, order: Order, _job: Job) -> Result<(), WorkError> {
        if order.r#where.0 == self.name { Ok(()) } else { Err(Rejection::new("desk.unknown", "unknown name").into()) }
    }
}

impl OnEvent<Moved> for Desk {
    async fn on_event(&self, _moved: Moved, _job: Job) -> Result<(), WorkError> {
        Ok(())
    }
}

impl OnEvent<Ordered> for Desk {
    async fn on_event(&self, _ordered: Ordered, _job: Job) -> Result<(), WorkError> {
        Ok(())
    }
}

fn name_of<M: Message>() -> (&'static str, u32, Kind) {
    (M::NAME, M::VERSION, M::KIND)
}

#[test]
fn names_and_versions_default_to_those_of_the_type() {
    assert_eq!((Bank::NAME, Bank::SHARDS, Bank::CODEC), ("the-bank", 4, Codec::Json));
    assert_eq!((OrderDesk::NAME, OrderDesk::SHARDS, OrderDesk::CODEC), ("order-desk", 16, Codec::Bincode));
    assert_eq!(name_of::<Deposit>(), ("PutIn", 3, Kind::Command));
    assert_eq!(name_of::<Close>(), ("Close", 1, Kind::Command));
    assert_eq!(name_of::<Moved>(), ("Moved", 1, Kind::Event));
    assert_eq!(name_of::<Ordered>(), ("ordered", 1, Kind::Event));
    assert_eq!(name_of::<BalanceOf>(), ("balance-of", 1, Kind::Query));
    assert_eq!(name_of::<Overdue>(), ("overdue", 1, Kind::Document));
    assert_eq!((Account::NAME, Account::ROLE), ("konto", Role::Aggregate));
    assert_eq!((PaymentPlan::NAME, PaymentPlan::ROLE), ("payment-plan", Role::Saga));
    assert_eq!((<Balances as Projection>::NAME, <Balances as Projection>::SCHEMA), ("all-balances", 7));
    assert_eq!(<Desk as Worker>::NAME, "desk");
}

#[test]
fn marked_field_is_the_key() {
    assert_eq!(Deposit { account: "ada".into(), cents: 1 }.key().as_str(), "ada");
    assert_eq!(Close(7).key().as_str(), "7");
    assert_eq!(Order { r#where: Iban("DE02".to_owned()) }.key().as_str(), "DE02");
}

#[test]
fn older_versions_are_upcast_and_newer_ones_rejected() {
    let mut bytes = Vec::new();
    Deposit { account: "ada".into(), cents: 5 }.encode(Codec::Json, &mut bytes).unwrap();
    assert_eq!(Deposit::decode(3, Codec::Json, &bytes).unwrap().cents, 5);
    assert_eq!(Deposit::decode(2, Codec::Json, br#"{"account": "ada", "euros": 3}"#).unwrap().cents, 300);
    assert_eq!(Deposit::decode(1, Codec::Json, br#"{"account": "ada"}"#).unwrap().account, "ada");
    assert!(matches!(Deposit::decode(1, Codec::Json, b"{}"), Err(CodecError::Decode { .. })));
    for unknown in [0, 4, u32::MAX] {
        let error = Deposit::decode(unknown, Codec::Json, &bytes).err();
        assert_eq!(error, Some(CodecError::Version { name: "PutIn", found: unknown, known: 3 }));
    }
    assert!(matches!(Ordered::decode(2, Codec::Json, b"null"), Err(CodecError::Version { .. })));
}

#[test]
fn states_are_saved_and_restored() {
    let coding = Account::coding().unwrap();
    let saved = coding.save(&Account { cents: 9 }).unwrap();
    assert_eq!(coding.restore(&saved).unwrap().cents, 9);
    assert!(coding.restore(b"").is_err());
    assert_eq!(Account::SNAPSHOTS, Snapshots::Given { every: 100, schema: 2 });
    assert_eq!(PaymentPlan::SNAPSHOTS, Snapshots::Given { every: 200, schema: 1 });
    assert_eq!(Account::initial().cents, 0);
    let mut plan = PaymentPlan::initial();
    plan.apply(&Moved::Nothing);
    assert!(matches!(plan, PaymentPlan::Paid));
    let view = Projection::save(&Balances { orders: 3 }).unwrap();
    assert_eq!(<Balances as Projection>::restore(&view).unwrap().orders, 3);
    assert!(<Balances as Projection>::restore(b"").is_err());
}

#[cfg(feature = "testing")]
#[test]
fn unapplied_event_is_stored_and_changes_nothing() {
    whizbang::testing::Scenario::<Account>::new()
        .key("7")
        .given([Moved::In(5)])
        .given([StatementSent { page: 1 }])
        .given([StatementLost, StatementLost])
        .state(|account| assert_eq!(account.cents, 5))
        .given([Moved::Out { cents: 5 }])
        .when(Close(7))
        .records(StatementSent { page: 1 })
        .records(StatementSent { page: 2 })
        .records(StatementSent { page: 3 })
        .records(StatementLost)
        .state(|account| assert_eq!(account.cents, 0));
}

mod program {
    /// Runs in a `LocalSet` for actors, with timers.
    #[whizbang::main]
    pub(super) async fn main() -> Result<u8, tokio::task::JoinError> {
        let waited = tokio::task::spawn_local(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            7
        });
        waited.await
    }

    use std::time::Duration;
}

#[test]
fn main_runs_on_a_runtime_with_a_local_set() {
    assert_eq!(program::main().unwrap(), 7);
}

#[whizbang::test]
async fn attribute_of_a_test_starts_the_same_runtime() -> Result<(), tokio::task::JoinError> {
    tokio::task::spawn_local(async {}).await
}

#[whizbang::test]
#[should_panic = "as expected"]
async fn attributes_of_a_test_are_kept() {
    panic!("as expected");
}
