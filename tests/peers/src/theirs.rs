//! The account of `tests/bench` in the types of cqrs-es.

use cqrs_es::event_sink::EventSink;
use cqrs_es::{Aggregate, CqrsFramework, DomainEvent, EventStore};
use serde::{Deserialize, Serialize};

pub(crate) struct Deposit {
    pub(crate) cents: u64,
    pub(crate) note: [u8; 16],
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Deposited {
    cents: u64,
    note: [u8; 16],
}

impl DomainEvent for Deposited {
    fn event_type(&self) -> String {
        "Deposited".to_owned()
    }

    fn event_version(&self) -> String {
        "1.0".to_owned()
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Never {}

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Account {
    cents: u64,
}

impl Aggregate for Account {
    const TYPE: &'static str = "account";
    type Command = Deposit;
    type Event = Deposited;
    type Error = Never;
    type Services = ();

    async fn handle(&mut self, deposit: Deposit, (): &(), sink: &EventSink<Self>) -> Result<(), Never> {
        sink.write(Deposited { cents: deposit.cents, note: deposit.note }, self).await;
        Ok(())
    }

    fn apply(&mut self, deposited: Deposited) {
        self.cents += deposited.cents;
    }
}

/// Executes one deposit.
pub(crate) async fn deposit<S: EventStore<Account>>(framework: &CqrsFramework<Account, S>, account: &str) {
    let executed = framework.execute(account, Deposit { cents: 1, note: [7; 16] }).await;
    executed.unwrap_or_else(|error| panic!("it is handled: {error}"));
}
