//! Queries of a key under all faults: a caller reads what it has written, and never what is not committed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{FaultEvent, Flow, Sim, World};

#[derive(Domain)]
struct Shelves;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Shelves)]
struct Put {
    #[key]
    shelf: String,
    count: u64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Shelves)]
struct PutThere {
    count: u64,
}

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Shelves, reply = u64)]
struct CountOn {
    #[key]
    shelf: String,
}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Shelves, handles(Put), applies(PutThere), answers(CountOn))]
struct Shelf {
    count: u64,
}

impl Handle<Put> for Shelf {
    fn handle(&self, put: Put, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(PutThere { count: put.count });
        Ok(())
    }
}

impl Apply<PutThere> for Shelf {
    fn apply(&mut self, put: &PutThere) {
        self.count += put.count;
    }
}

impl Answer<CountOn> for Shelf {
    fn answer(&self, _query: CountOn) -> u64 {
        self.count
    }
}

/// Knowledge of a client about a shelf: the sum of the acknowledged commands, and the answers with the sum before each query.
#[derive(Default)]
struct Known {
    put: BTreeMap<String, u64>,
    answers: Vec<(String, u64, u64)>,
}

fn answers_contain_acknowledged_commands(world: &World, known: &Known, has_leases: bool) -> Result<(), String> {
    // Without leases a node that was taken over answers from its old state until its next commit.
    let was_replaced = !has_leases && world.fault_events().contains_key(&FaultEvent::HandedOver);
    for (shelf, least, answer) in &known.answers {
        let held = world.state::<Shelf>(shelf).count;
        if *answer > held {
            return Err(format!("{shelf} was answered as {answer}, and only {held} is committed"));
        }
        if answer < least && !was_replaced {
            return Err(format!("{shelf} was answered as {answer} after {least} were acknowledged"));
        }
    }
    Ok(())
}

fn keyed_queries(name: &'static str, nodes: usize) -> Flow<Put, impl AsyncFn(&World, Put)> {
    let known = Rc::new(RefCell::new(Known::default()));
    let (fresh, at_end) = (Rc::clone(&known), Rc::clone(&known));
    let cluster = move |sim: Sim| {
        *fresh.borrow_mut() = Known::default();
        let sim = sim.service("shelves", |node| node.aggregate::<Shelf>());
        if nodes > 1 { sim.nodes(nodes) } else { sim }
    };
    let puts = (0..3u8, 1..10u64).prop_map(|(shelf, count)| Put { shelf: format!("shelf{shelf}"), count });
    let put = async move |world: &World, put: Put| {
        let Put { shelf, count } = put.clone();
        // The second query of a step waits for the commit of the first one's command, or for none.
        let asked = world.query(CountOn { shelf: shelf.clone() });
        let (sent, _) = futures_util::future::join(world.send(put), asked).await;
        sent.expect("a shelf has room");
        let least = {
            let mut known = known.borrow_mut();
            let sum = known.put.entry(shelf.clone()).or_default();
            *sum += count;
            *sum
        };
        let answer = world.query(CountOn { shelf: shelf.clone() }).await.expect("a shelf answers");
        known.borrow_mut().answers.push((shelf, least, answer));
    };
    let flow = Flow::new(name, cluster, puts, 1..12, put);
    flow.at_end(move |world, _| answers_contain_acknowledged_commands(world, &at_end.borrow(), nodes > 1))
}

#[test]
fn query_shows_committed_commands_only() {
    let coverage = keyed_queries("keyed-queries", 1).check(0..100);
    assert!(coverage.fault_events().contains_key(&FaultEvent::HandedOver));
}

#[test]
fn query_on_three_nodes_shows_all_acknowledged_commands() {
    let coverage = keyed_queries("keyed-queries-on-three-nodes", 3).check(0..60);
    for needed in [FaultEvent::PausedBeyondLease, FaultEvent::ShardTakenOver] {
        assert!(coverage.fault_events().contains_key(&needed), "{needed:?}");
    }
}
