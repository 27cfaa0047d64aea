//! The service that is moved: the bank with a view of its balances, timers, and messages whose receiver is missing at first.

use std::collections::BTreeMap;
use std::time::Duration;

use whizbang::NodeConfig;
use whizbang::prelude::*;
use whizbang::store::Store;

use crate::bank::{Account, Bank, Branch, Deposited, Transfer, Withdrawn};

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
pub(crate) struct BalanceOf {
    pub(crate) account: String,
}

/// The balance of each account.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited, Withdrawn), answers(BalanceOf))]
pub(crate) struct Balances {
    accounts: BTreeMap<String, u64>,
}

impl Project<Deposited> for Balances {
    fn project(&mut self, deposited: &Deposited, context: &EventContext) {
        *self.accounts.entry(context.key.clone()).or_default() += deposited.cents;
    }
}

impl Project<Withdrawn> for Balances {
    fn project(&mut self, withdrawn: &Withdrawn, context: &EventContext) {
        *self.accounts.entry(context.key.clone()).or_default() -= withdrawn.cents;
    }
}

impl Answer<BalanceOf> for Balances {
    fn answer(&self, query: BalanceOf) -> u64 {
        self.accounts.get(&query.account).copied().unwrap_or(0)
    }
}

#[derive(Domain)]
#[domain(name = "alarms", shards = 2)]
pub(crate) struct Alarms;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Alarms)]
pub(crate) struct Set {
    #[key]
    pub(crate) name: String,
    pub(crate) millis: u64,
}

/// Replies with the number of times that the alarm rang.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Alarms, reply = u32)]
pub(crate) struct Rings {
    #[key]
    pub(crate) name: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Alarms)]
struct Rang {}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Alarms)]
struct Due {}

#[derive(Saga, Default)]
#[saga(domain = Alarms, handles(Set, Rings), applies(Rang), timers(Due))]
pub(crate) struct Alarm {
    rings: u32,
}

impl Handle<Set> for Alarm {
    fn handle(&self, set: Set, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.set_timer(&Due {}, Duration::from_millis(set.millis));
        Ok(())
    }
}

impl Handle<Rings> for Alarm {
    fn handle(&self, _rings: Rings, _effects: &mut Effects<Self>) -> Result<u32, Rejection> {
        Ok(self.rings)
    }
}

impl OnTimer<Due> for Alarm {
    fn on_timer(&self, _due: Due, effects: &mut Effects<Self>) {
        effects.record(Rang {});
    }
}

impl Apply<Rang> for Alarm {
    fn apply(&mut self, _rang: &Rang) {
        self.rings += 1;
    }
}

#[derive(Domain)]
#[domain(name = "senders", shards = 2)]
pub(crate) struct Senders;

#[derive(Domain)]
#[domain(name = "notices", shards = 2)]
pub(crate) struct Notices;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Senders)]
pub(crate) struct Tell {
    #[key]
    pub(crate) key: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Notices)]
pub(crate) struct Notice {
    #[key]
    key: String,
}

/// Replies with the number of notices.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Notices, reply = u32)]
pub(crate) struct Noticed {
    #[key]
    pub(crate) key: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Notices)]
struct Arrived {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Senders, handles(Tell))]
pub(crate) struct Sender {}

impl Handle<Tell> for Sender {
    fn handle(&self, tell: Tell, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(Notice { key: tell.key });
        Ok(())
    }
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Notices, handles(Notice, Noticed), applies(Arrived))]
pub(crate) struct Board {
    arrived: u32,
}

impl Handle<Notice> for Board {
    fn handle(&self, _notice: Notice, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Arrived {});
        Ok(())
    }
}

impl Handle<Noticed> for Board {
    fn handle(&self, _noticed: Noticed, _effects: &mut Effects<Self>) -> Result<u32, Rejection> {
        Ok(self.arrived)
    }
}

impl Apply<Arrived> for Board {
    fn apply(&mut self, _arrived: &Arrived) {
        self.arrived += 1;
    }
}

/// Starts the service; the board is hosted later.
pub(crate) async fn start(store: impl Store, has_board: bool) -> Node {
    let builder = Node::builder("bank", store)
        .config(NodeConfig { threads: 0, ..NodeConfig::default() })
        .aggregate::<Account>()
        .saga::<Transfer>()
        .aggregate::<Branch>()
        .saga::<Alarm>()
        .aggregate::<Sender>()
        .projection::<Balances>();
    let builder = if has_board { builder.aggregate::<Board>() } else { builder };
    builder.start().await.unwrap()
}
