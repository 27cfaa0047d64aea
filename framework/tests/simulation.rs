//! The bank's transfer in a simulated cluster: every fault, from one seed, and the framework's own invariants.

mod bank;

use std::time::{Duration, Instant};

use bank::*;
use proptest::prelude::*;
use whizbang::testing::{Fault, Flow, Sim, Weather, World};

const ROUGH: Weather = Weather { lose: 100, repeat: 150, delay: 40, disk: 8 };

#[derive(Clone, Debug)]
enum Step {
    Deposit { account: u8, cents: u16 },
    Transfer { from: u8, to: u8, cents: u16 },
}

fn account(number: u8) -> String {
    format!("account{number}")
}

async fn perform(world: &World, step: Step) {
    match step {
        Step::Deposit { account: number, cents } => {
            world.send(deposit(&account(number), cents.into())).await.unwrap();
        }
        Step::Transfer { from, to, cents } => {
            let name = format!("transfer{}", world.below(u64::MAX));
            world.send(transfer(&name, &account(from), &account(to), cents.into())).await.unwrap();
        }
    }
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..4, 1u16..500).prop_map(|(account, cents)| Step::Deposit { account, cents }),
        (0u8..4, 0u8..4, 1u16..300).prop_map(|(from, to, cents)| Step::Transfer { from, to, cents }),
    ]
}

fn cluster(sim: Sim) -> Sim {
    sim.service("accounts", |node| node.host::<Account>()).service("transfers", |node| node.host::<Transfer>())
}

fn conserved(world: &World, steps: &[Step]) -> Result<(), String> {
    let given: u64 = steps
        .iter()
        .map(|step| match step {
            Step::Deposit { cents, .. } => u64::from(*cents),
            Step::Transfer { .. } => 0,
        })
        .sum();
    let held: u64 = world.states::<Account>().iter().map(|(_, account)| account.cents).sum();
    if held == given { Ok(()) } else { Err(format!("{given} cents were paid in and {held} are held")) }
}

fn seeds() -> u64 {
    std::env::var("SEEDS").map_or(200, |seeds| seeds.parse().unwrap())
}

#[test]
fn one_rough_run_holds() {
    let run = cluster(Sim::new(1))
        .weather(ROUGH)
        .fault(Duration::from_millis(300), Fault::Crash { service: 0, steps: 3, down: Duration::from_millis(500) })
        .fault(Duration::from_millis(700), Fault::Crash { service: 1, steps: 9, down: Duration::from_millis(500) })
        .run(async |world| {
            perform(world, Step::Deposit { account: 0, cents: 100 }).await;
            for _ in 0..4 {
                perform(world, Step::Transfer { from: 0, to: 1, cents: 20 }).await;
            }
        });
    match run {
        Ok(run) => println!("{}", run.trace),
        Err(broken) => panic!("{broken}\n{}", broken.trace),
    }
}

#[test]
fn two_hundred_seeds_of_transfers_hold() {
    let begun = Instant::now();
    Flow::new("transfers", cluster, steps(), 1..12, perform).at_end(conserved).check(0..seeds());
    println!("200 seeds in {:?}", begun.elapsed());
}
