//! The node of these tests: the bank, balances as a view, and a worker.

use std::collections::BTreeMap;

use whizbang::prelude::*;
use whizbang::{NodeConfig, WorkError};
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::postgres::PostgresServer;

use crate::bank::{Account, Bank, Deposited, Transfer, Withdrawn};

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
#[domain(name = "notices")]
pub(crate) struct Notices;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Notices, reply = String)]
pub(crate) struct Notify {
    #[key]
    pub(crate) key: String,
}

#[derive(Worker)]
#[worker(domain = Notices, performs(Notify))]
pub(crate) struct Notifier;

impl Perform<Notify> for Notifier {
    async fn perform(&self, notify: Notify, _job: Job) -> Result<String, WorkError> {
        Ok(format!("{} notified", notify.key))
    }
}

/// A node on so many threads; with 0 on the calling one.
pub(crate) async fn start(server: &PostgresServer, threads: usize) -> Node {
    start_at(&server.url(), threads).await
}

/// Like [`start`], at another URL of the server.
pub(crate) async fn start_at(url: &str, threads: usize) -> Node {
    // A node that starts again takes its shards at once.
    let store = PostgresStore::builder(url).exclusive().connect().await.unwrap();
    Node::builder("bank", store)
        .config(NodeConfig { threads, ..NodeConfig::default() })
        .aggregate::<Account>()
        .saga::<Transfer>()
        .projection::<Balances>()
        .worker(Notifier)
        .start()
        .await
        .unwrap()
}
