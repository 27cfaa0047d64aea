//! Stuck and parked keys delay no other key, even if more messages wait for them than a window holds.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{FaultProfile, Flow, Sim, World};
use whizbang::{NodeConfig, Retry};

/// More messages than a send window or a subscription has in flight.
const CROWD: u64 = 1100;

#[derive(Domain)]
#[domain(shards = 1)]
struct Senders;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Senders)]
struct Spread {
    #[key]
    sender: String,
    to: String,
    count: u64,
    by_event: bool,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Senders)]
struct Told {
    to: String,
}

/// Sends commands to a box, or records events that the box handles.
#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Senders, handles(Spread), records(Told))]
struct Sender;

impl Handle<Spread> for Sender {
    fn handle(&self, spread: Spread, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for _ in 0..spread.count {
            if spread.by_event {
                effects.record(Told { to: spread.to.clone() });
            } else {
                effects.send(Put { box_: spread.to.clone() });
            }
        }
        Ok(())
    }
}

#[derive(Domain)]
#[domain(shards = 1)]
struct Boxes;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Boxes)]
struct Put {
    #[key]
    box_: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Boxes)]
struct Held {}

thread_local! {
    /// The number of failures left per box in this run.
    static JAMS: RefCell<BTreeMap<&'static str, u32>> = const { RefCell::new(BTreeMap::new()) };
}

#[derive(Saga, Debug, Default)]
#[saga(domain = Boxes, name = "box", handles(Put), reacts(Told), applies(Held))]
struct Box_ {
    holds: u64,
}

fn put(effects: &mut Effects<Box_>) {
    let key = effects.key().to_owned();
    let jams = JAMS.with_borrow_mut(|jams| {
        jams.get_mut(&*key).is_some_and(|left| {
            let jams = *left > 0;
            *left = left.saturating_sub(1);
            jams
        })
    });
    if jams {
        std::panic::resume_unwind(Box::new("the box jams"));
    }
    effects.record(Held {});
}

impl Handle<Put> for Box_ {
    fn handle(&self, _put: Put, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        put(effects);
        Ok(())
    }
}

impl React<Told> for Box_ {
    fn key(told: &Told, _about: &EventContext) -> Option<String> {
        Some(told.to.clone())
    }

    fn react(&self, _told: Told, effects: &mut Effects<Self>) {
        put(effects);
    }
}

impl Apply<Held> for Box_ {
    fn apply(&mut self, _held: &Held) {
        self.holds += 1;
    }
}

/// One box fails for some minutes, another one until its message is a dead letter.
fn cluster(sim: Sim) -> Sim {
    JAMS.set([("stuck", 4), ("parked", u32::MAX)].into());
    let retry = Retry { attempts: 6, first: Duration::from_secs(10), longest: Duration::from_secs(60) };
    sim.service("senders", |node| node.aggregate::<Sender>())
        .service("boxes", move |node| {
            node.saga::<Box_>().config(NodeConfig { threads: 0, retry, ..NodeConfig::default() })
        })
        .allow_open_sagas()
        .allow_dead_letters()
}

#[test]
fn stuck_and_parked_keys_delay_no_other_key() {
    let step = (0..8u8, any::<bool>());
    let flow = Flow::new("stuck", cluster, step, 4..8, async |world: &World, (to, by_event)| {
        let (to, parts) = match to {
            0 => ("parked".to_owned(), [CROWD / 2, CROWD / 2]),
            1 => ("stuck".to_owned(), [CROWD / 2, CROWD / 2]),
            other => (format!("other{other}"), [1, 2]),
        };
        let spread = |to: &str, count| Spread { sender: "s".to_owned(), to: to.to_owned(), count, by_event };
        for count in parts {
            world.send(spread(&to, count)).await.expect("it is sent");
        }
        // This message is sent behind those that wait for a stuck key.
        world.send(spread("behind", 1)).await.expect("it is sent");
    });
    let flow =
        flow.arrivals((1..20u64).prop_map(|steps| Duration::from_millis(100 * steps))).max_faults(0).no_regressions();
    let waits = flow.check(0..12).wait_times();
    assert!(waits.beside_stuck > 20, "{waits:?}");
    assert!(waits.longest < Duration::from_secs(1), "{waits:?}");
}

#[derive(Domain)]
#[domain(shards = 1)]
struct Halls;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Halls)]
struct Clean {
    #[key]
    hall: String,
}

/// Needs some seconds for each job.
#[derive(Worker)]
#[worker(domain = Halls, performs(Clean), on(Told))]
struct Cleaner;

impl Perform<Clean> for Cleaner {
    async fn perform(&self, _clean: Clean, _job: Job) -> Result<(), WorkError> {
        tokio::time::sleep(Duration::from_secs(8)).await;
        Ok(())
    }
}

impl OnEvent<Told> for Cleaner {
    async fn on_event(&self, _told: Told, _job: Job) -> Result<(), WorkError> {
        tokio::time::sleep(Duration::from_secs(8)).await;
        Ok(())
    }
}

#[test]
fn jobs_waiting_for_a_slot_are_not_delays() {
    let config = NodeConfig { threads: 0, jobs: 1, ..NodeConfig::default() };
    let run = Sim::new(1)
        .service("senders", |node| node.aggregate::<Sender>())
        .service("halls", move |node| node.worker(Cleaner).config(config.clone()))
        .run(async |world| {
            let clean = async |hall: &str| world.send(Clean { hall: hall.to_owned() }).await.unwrap();
            let spread = Spread { sender: "s".to_owned(), to: "a".to_owned(), count: 4, by_event: true };
            world.send(spread).await.unwrap();
            tokio::join!(clean("a"), clean("b"), clean("c"));
        });
    run.unwrap_or_else(|violation| panic!("{violation}"));
}

#[test]
fn slow_fault_profile_is_not_a_delay() {
    for profile in [
        FaultProfile { delay: 20_000, ..FaultProfile::NONE },
        FaultProfile { commit_delay: 20_000, ..FaultProfile::NONE },
    ] {
        let run = crate::cluster(Sim::new(1)).fault_profile(profile).run(async |world| {
            world.send(crate::bank::deposit("ada", 100)).await.unwrap();
            world.send(crate::bank::transfer("t1", "ada", "bob", 30)).await.unwrap();
        });
        run.unwrap_or_else(|violation| panic!("{violation}"));
    }
}

#[test]
fn wait_times_are_measured_in_undisturbed_runs_only() {
    let run = |profile| {
        let sim = crate::cluster(Sim::new(1)).fault_profile(profile);
        let run = sim.run(async |world| {
            world.send(crate::bank::deposit("ada", 100)).await.unwrap();
            world.send(crate::bank::transfer("t1", "ada", "bob", 30)).await.unwrap();
        });
        run.expect("it holds").coverage.wait_times()
    };
    let fair = run(FaultProfile::NONE);
    assert!(fair.measured >= 6 && fair.beside_stuck == 0 && fair.longest < Duration::from_millis(10), "{fair:?}");
    assert_eq!(run(FaultProfile { loss: 1, ..FaultProfile::NONE }).measured, 0);
}
