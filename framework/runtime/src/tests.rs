//! Small domains for unit tests.

use crate::actor::Effects;
use crate::aggregate::{Apply, Handle};
use crate::derive::derives::{Aggregate, Command, Deserialize, Domain, Event, Serialize};
use whizbang_core::message::Rejection;

#[derive(Domain)]
pub(crate) struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
pub(crate) struct Deposit {
    #[key]
    pub(crate) account: String,
    pub(crate) cents: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
pub(crate) struct Deposited {
    pub(crate) cents: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit), applies(Deposited))]
pub(crate) struct Account {
    cents: u64,
}

impl Handle<Deposit> for Account {
    fn handle(&self, deposit: Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Deposited { cents: deposit.cents });
        Ok(self.cents + deposit.cents)
    }
}

impl Apply<Deposited> for Account {
    fn apply(&mut self, deposited: &Deposited) {
        self.cents += deposited.cents;
    }
}

/// Pots that pass numbers on, with a saga, a worker, timers and a view that follow them.
pub(crate) mod pots {

    use std::collections::BTreeMap;
    use std::time::Duration;

    use crate::actor::{Effects, EventContext};
    use crate::aggregate::{Apply, Handle, OnReply, React};
    use crate::derive::derives::{
        Aggregate, Command, Deserialize, Document, Domain, Event, Projection, Query, Saga, Serialize, Worker,
    };
    use crate::projection::{Answer, Project};
    use crate::saga::OnTimer;
    use crate::worker::{Job, Perform, WorkError};
    use whizbang_core::message::Rejection;

    pub(crate) const SHARDS: u16 = 8;
    pub(crate) const POTS: u64 = 16;

    #[derive(Domain)]
    #[domain(name = "pots", shards = 8)]
    pub(crate) struct Pots;

    #[derive(Command, Clone, Serialize, Deserialize)]
    #[command(domain = Pots, reply = u64)]
    pub(crate) struct Add {
        #[key]
        pub(crate) pot: String,
        pub(crate) nth: u64,
    }

    /// Sent by a pot to the next one, of another shard.
    #[derive(Command, Clone, Serialize, Deserialize)]
    #[command(domain = Pots)]
    pub(crate) struct Pass {
        #[key]
        pub(crate) pot: String,
        pub(crate) nth: u64,
    }

    #[derive(Command, Clone, Serialize, Deserialize)]
    #[command(domain = Pots, reply = u64)]
    pub(crate) struct Work {
        #[key]
        pub(crate) pot: String,
        pub(crate) nth: u64,
    }

    #[derive(Command, Clone, Serialize, Deserialize)]
    #[command(domain = Pots, reply = Report)]
    pub(crate) struct Inspect {
        #[key]
        pub(crate) pot: String,
    }

    /// The numbers that a pot has received.
    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    pub(crate) struct Report {
        pub(crate) added: Sequence,
        pub(crate) passed: Sequence,
        /// The replies of the worker, which may arrive in any order.
        pub(crate) worked: BTreeMap<u64, u64>,
    }

    /// Numbers that should arrive as 1, 2, 3, … once each.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
    pub(crate) struct Sequence {
        pub(crate) last: u64,
        pub(crate) count: u64,
        pub(crate) wrong: u64,
    }

    impl Sequence {
        fn see(&mut self, nth: u64) {
            self.wrong += u64::from(nth != self.last + 1);
            (self.last, self.count) = (nth, self.count + 1);
        }

        pub(crate) fn is_whole(self, count: u64) -> bool {
            self == Self { last: count, count, wrong: 0 }
        }
    }

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Pots)]
    pub(crate) struct Added {
        pub(crate) nth: u64,
    }

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Pots)]
    pub(crate) struct Passed {
        pub(crate) nth: u64,
    }

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Pots)]
    pub(crate) struct Worked {
        pub(crate) nth: u64,
    }

    pub(crate) fn pot(number: u64) -> String {
        format!("pot{}", number % POTS)
    }

    #[derive(Aggregate, Default)]
    #[aggregate(
    domain = Pots,
    handles(Add, Pass, Inspect),
    applies(Added, Passed, Worked),
    replies(Work)
)]
    pub(crate) struct Pot {
        pub(crate) report: Report,
    }

    impl Handle<Add> for Pot {
        fn handle(&self, add: Add, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
            let number: u64 = add.pot.trim_start_matches("pot").parse().unwrap();
            effects.record(Added { nth: add.nth });
            effects.send(Pass { pot: pot(number + 1), nth: add.nth });
            effects.send(Work { pot: add.pot, nth: add.nth });
            Ok(self.report.added.count + 1)
        }
    }

    impl Handle<Pass> for Pot {
        fn handle(&self, pass: Pass, effects: &mut Effects<Self>) -> Result<(), Rejection> {
            effects.record(Passed { nth: pass.nth });
            Ok(())
        }
    }

    impl Handle<Inspect> for Pot {
        fn handle(&self, _inspect: Inspect, _effects: &mut Effects<Self>) -> Result<Report, Rejection> {
            Ok(self.report.clone())
        }
    }

    impl OnReply<Work> for Pot {
        fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
            effects.record(Worked { nth: reply.unwrap() });
        }
    }

    impl Apply<Added> for Pot {
        fn apply(&mut self, added: &Added) {
            self.report.added.see(added.nth);
        }
    }

    impl Apply<Passed> for Pot {
        fn apply(&mut self, passed: &Passed) {
            self.report.passed.see(passed.nth);
        }
    }

    impl Apply<Worked> for Pot {
        fn apply(&mut self, worked: &Worked) {
            *self.report.worked.entry(worked.nth).or_default() += 1;
        }
    }

    #[derive(Document, Serialize, Deserialize)]
    #[document(domain = Pots)]
    pub(crate) struct Tick {
        pub(crate) nth: u64,
    }

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Pots)]
    pub(crate) struct Watched {
        pub(crate) nth: u64,
    }

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Pots)]
    pub(crate) struct Ticked {
        pub(crate) nth: u64,
    }

    /// Asks a watch what it has seen: the events, and the number of the last timer.
    #[derive(Command, Clone, Serialize, Deserialize)]
    #[command(domain = Pots, reply = (u64, u64, u64, u64))]
    pub(crate) struct Seen {
        #[key]
        pub(crate) pot: String,
    }

    /// Follows the events of one pot from another shard, and sets a timer behind each.
    #[derive(Saga, Default)]
    #[saga(domain = Pots, handles(Seen), applies(Watched, Ticked), reacts(Added), timers(Tick))]
    pub(crate) struct Watch {
        pub(crate) events: Sequence,
        pub(crate) ticked: u64,
    }

    impl React<Added> for Watch {
        fn key(_event: &Added, context: &EventContext) -> Option<String> {
            Some(format!("watch-{}", context.key))
        }

        fn react(&self, added: Added, effects: &mut Effects<Self>) {
            effects.record(Watched { nth: added.nth });
            effects.set_timer(&Tick { nth: added.nth }, Duration::from_millis(3));
        }
    }

    impl OnTimer<Tick> for Watch {
        fn on_timer(&self, tick: Tick, effects: &mut Effects<Self>) {
            effects.record(Ticked { nth: tick.nth });
        }
    }

    impl Handle<Seen> for Watch {
        fn handle(&self, _seen: Seen, _effects: &mut Effects<Self>) -> Result<(u64, u64, u64, u64), Rejection> {
            Ok((self.events.last, self.events.count, self.events.wrong, self.ticked))
        }
    }

    impl Apply<Watched> for Watch {
        fn apply(&mut self, watched: &Watched) {
            self.events.see(watched.nth);
        }
    }

    impl Apply<Ticked> for Watch {
        fn apply(&mut self, ticked: &Ticked) {
            self.ticked = ticked.nth;
        }
    }

    #[derive(Worker)]
    #[worker(domain = Pots, performs(Work))]
    pub(crate) struct Doer;

    impl Perform<Work> for Doer {
        async fn perform(&self, work: Work, _job: Job) -> Result<u64, WorkError> {
            if work.nth.is_multiple_of(7) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(work.nth)
        }
    }

    #[derive(Query, Serialize, Deserialize)]
    #[query(domain = Pots, reply = (u64, u64))]
    pub(crate) struct TotalAdded {}

    /// Counts the events, and those that did not follow their predecessor.
    #[derive(Projection, Default, Serialize, Deserialize)]
    #[projection(projects(Added), answers(TotalAdded))]
    pub(crate) struct Totals {
        pub(crate) pots: BTreeMap<String, (u64, u64, u64)>,
    }

    impl Project<Added> for Totals {
        fn project(&mut self, added: &Added, about: &EventContext) {
            let (last, count, wrong) = self.pots.entry(about.key.clone()).or_default();
            *wrong += u64::from(added.nth != *last + 1);
            (*last, *count) = (added.nth, *count + 1);
        }
    }

    impl Answer<TotalAdded> for Totals {
        fn answer(&self, _query: TotalAdded) -> (u64, u64) {
            let sum = |of: fn(&(u64, u64, u64)) -> u64| self.pots.values().map(of).sum();
            (sum(|pot| pot.1), sum(|pot| pot.2))
        }
    }
}
