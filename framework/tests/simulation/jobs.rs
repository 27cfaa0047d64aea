//! Workers in the simulated cluster: what the story tells of their jobs, and what goes wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::sim::{Run, SimError};
use whizbang::testing::{CrashPoint, Fault, FaultEvent, Flow, Sim, World};

use crate::bank::{Account, deposit, withdraw};
use crate::cluster;

#[derive(Domain)]
struct Prints;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Prints, reply = u64)]
struct Print {
    #[key]
    label: String,
    copies: u64,
}

/// A printer that has no paper so often.
#[derive(Worker)]
#[worker(domain = Prints, performs(Print))]
struct Printer {
    empty: Arc<AtomicU32>,
}

impl Perform<Print> for Printer {
    async fn perform(&self, print: Print, _job: Job) -> Result<u64, WorkError> {
        if self.empty.load(Ordering::Relaxed) > 0 {
            self.empty.fetch_sub(1, Ordering::Relaxed);
            return Err(WorkError::Retry("there is no paper".into()));
        }
        match print.copies {
            0 => Err(Rejection::new("prints.none", "nothing to print").into()),
            copies => Ok(copies),
        }
    }
}

fn printers(empty: u32) -> Sim {
    let empty = Arc::new(AtomicU32::new(empty));
    Sim::new(1).service("prints", move |node| node.worker(Printer { empty: Arc::clone(&empty) }))
}

fn print(label: &str, copies: u64) -> Print {
    Print { label: label.to_owned(), copies }
}

/// The part of a story that tells of one actor or worker and key.
fn part<'a>(deeds: &'a str, head: &str) -> Vec<&'a str> {
    let lines = deeds.lines().skip_while(|line| line.trim() != head).skip(1);
    lines.take_while(|line| line.starts_with("    ")).collect()
}

#[test]
fn each_attempt_of_a_job_stands_in_the_story() {
    let run = printers(2).at_end(|_| Err("told".to_owned())).run(async |world| {
        assert_eq!(world.send(print("a", 3)).await.unwrap(), 3);
        world.send(print("b", 0)).await.expect_err("nothing to print");
    });
    let broken = run.expect_err("it is told");
    assert_eq!(broken.reason, "at the end: told");
    let deeds = broken.deeds;
    let (a, b) = (part(&deeds, "prints.printer `a`"), part(&deeds, "prints.printer `b`"));
    for (number, end) in [(1, "failed: there is no paper"), (2, "failed: there is no paper"), (3, "done")] {
        let line = format!("job Print {{\"label\":\"a\",\"copies\":3}}, attempt {number} -> {end}");
        assert_eq!(a.iter().filter(|told| told.ends_with(&line)).count(), 1, "{line}\n{deeds}");
    }
    assert!(a.last().unwrap().ends_with("Print {\"label\":\"a\",\"copies\":3} -> committed"), "{deeds}");
    assert!(b.first().unwrap().ends_with("attempt 1 -> rejected"), "{deeds}");
    assert!(b.last().unwrap().contains("rejected as prints.none -> committed"), "{deeds}");
    assert!(!deeds.contains("shard-"), "jobs stand with their own keys:\n{deeds}");
}

#[test]
fn payloads_stand_in_the_story() {
    let run = cluster(Sim::new(1)).at_end(|_| Err("told".to_owned())).run(async |world| {
        world.send(deposit("ada", 70)).await.unwrap();
        world.send(withdraw("ada", 90, "")).await.expect_err("she has less");
        world.send(deposit(&"x".repeat(250), 1)).await.unwrap();
    });
    let broken = run.expect_err("it is told");
    assert_eq!(broken.reason, "at the end: told");
    let deeds = broken.deeds;
    assert!(deeds.contains("Deposit {\"account\":\"ada\",\"cents\":70} -> Deposited {\"cents\":70"), "{deeds}");
    assert!(deeds.contains("\"cents\":90"), "rejected commands have payloads, too:\n{deeds}");
    assert!(deeds.contains(&format!("Deposit {{\"account\":\"{}… -> Deposited", "x".repeat(68))), "{deeds}");
    let longest = deeds.lines().filter(|line| line.contains("->")).map(|line| line.chars().count()).max();
    assert!(longest < Some(200), "{deeds}");
}

#[test]
fn domain_hosted_twice_is_a_typed_error() {
    let run = Sim::new(1)
        .service("one", |node| node.aggregate::<Account>())
        .service("two", |node| node.aggregate::<Account>())
        .run(async |_| panic!("it is not run"));
    let error = SimError::HostedTwice { domain: "bank".into(), first: "one".into(), second: "two".into() };
    assert_eq!(run.expect_err("both would answer").description.as_deref(), Some(&error));
}

/// A machine outside: what it has printed, by label. It knows the keys of its jobs, if it is a good one.
#[derive(Clone, Default)]
struct Machine {
    careless: bool,
    keys: Arc<Mutex<BTreeSet<String>>>,
    printed: Arc<Mutex<BTreeMap<String, u32>>>,
}

#[derive(Worker)]
#[worker(domain = Prints, performs(Print))]
struct Press {
    machine: Machine,
}

impl Perform<Print> for Press {
    async fn perform(&self, print: Print, job: Job) -> Result<u64, WorkError> {
        let is_new = self.machine.keys.lock().unwrap().insert(job.idempotency_key.to_string());
        if is_new || self.machine.careless {
            *self.machine.printed.lock().unwrap().entry(print.label).or_default() += 1;
        }
        Ok(print.copies)
    }
}

fn press(sim: Sim, careless: bool) -> Sim {
    let machine = Machine { careless, ..Machine::default() };
    let printed = Arc::clone(&machine.printed);
    sim.service("prints", move |node| node.worker(Press { machine: machine.clone() })).at_end(move |_| {
        match printed.lock().unwrap().iter().find(|(_, times)| **times != 1) {
            Some((label, times)) => Err(format!("{label} was printed {times} times")),
            None => Ok(()),
        }
    })
}

fn presses(careless: bool) -> Flow<u8, impl AsyncFn(&World, u8)> {
    Flow::new(
        "presses",
        move |sim| press(sim, careless),
        0..4u8,
        1..8,
        async |world: &World, copies| {
            let label = format!("label{}", world.below(u64::MAX));
            world.send(print(&label, u64::from(copies) + 1)).await.expect("it is printed");
        },
    )
    .no_regressions()
}

/// One print during a fault.
fn printed_during(fault: Fault) -> Run {
    let run = press(Sim::new(3), false).fault(Duration::ZERO, fault).run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        world.send(print("a", 1)).await.unwrap();
        world.sleep(Duration::from_secs(1)).await;
    });
    run.unwrap_or_else(|broken| panic!("{broken}\n{}", broken.deeds))
}

fn happened(run: &Run, trouble: FaultEvent) -> u64 {
    run.coverage.troubles().get(&trouble).copied().unwrap_or(0)
}

#[test]
fn job_that_fails_after_its_effect_is_done_again() {
    let run = printed_during(Fault::FailJobs { service: 0, times: 2 });
    assert_eq!((happened(&run, FaultEvent::JobFailed), happened(&run, FaultEvent::EffectRepeated)), (2, 2));
    let count = run.coverage.faults()["FailJobs"];
    assert_eq!((count.asked, count.fired), (1, 2));
}

#[test]
fn job_that_hangs_after_its_effect_is_done_again() {
    let run = printed_during(Fault::HangJobs { service: 0, times: 1 });
    assert_eq!((happened(&run, FaultEvent::JobHung), happened(&run, FaultEvent::EffectRepeated)), (1, 1));
    assert!(run.lasted > Duration::from_secs(300), "the limit of a job has passed: {:?}", run.lasted);
}

#[test]
fn process_killed_between_effect_and_commit_does_the_job_again() {
    let crash = Fault::CrashIn { service: 0, work: CrashPoint::Job, steps: 0, down: Duration::from_millis(100) };
    let run = printed_during(crash.clone());
    assert_eq!((happened(&run, FaultEvent::CrashInAJob), happened(&run, FaultEvent::EffectRepeated)), (1, 1));
    assert!(run.coverage.crashes() >= 1);
    assert_eq!(run.coverage.faults()["CrashIn Job"].fired, 1);
    let run = press(Sim::new(3), true).fault(Duration::ZERO, crash).run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        world.send(print("a", 1)).await.unwrap();
    });
    let broken = run.expect_err("it was printed twice");
    let told = part(&broken.deeds, "prints.press `a`");
    assert!(told[0].ends_with("attempt 1 -> its process ended after its effect"), "{}", broken.deeds);
    assert!(told[1].contains("-> done, once more: its effect was done before"), "{}", broken.deeds);
}

#[test]
fn fault_that_strikes_nothing_fails_the_run() {
    let idle = |sim: Sim| sim.fault(Duration::ZERO, Fault::FailJobs { service: 0, times: 1 }).run(async |_| {});
    let broken = idle(press(Sim::new(1), false)).expect_err("there was no job");
    assert_eq!(broken.rule, "fault", "{}", broken.reason);
    assert!(broken.reason.contains("no job of the service had an effect"), "{}", broken.reason);
    idle(press(Sim::new(1), false).faults_may_miss()).expect("it may miss");
}

#[test]
fn kill_of_a_node_that_is_not_there_fails_the_run() {
    let twice = |sim: Sim| {
        sim.run(async |world| {
            world.kill(0);
            world.kill(0);
            world.restart(0).await;
        })
    };
    let broken = twice(press(Sim::new(1), false)).expect_err("it was dead");
    assert_eq!(broken.reason, "fault: no node of prints was there to be killed");
    twice(press(Sim::new(1), false).faults_may_miss()).expect("it may miss");
}

#[test]
fn fault_of_jobs_without_a_worker_is_an_error() {
    let fault = Fault::HangJobs { service: 0, times: 1 };
    let broken = cluster(Sim::new(1)).fault(Duration::ZERO, fault).run(async |_| {}).expect_err("there is no worker");
    assert!(matches!(broken.description.as_deref(), Some(SimError::NoWorker { .. })), "{broken}");
}

#[test]
fn presses_print_each_label_once_under_all_faults() {
    let coverage = presses(false).check(0..200);
    for kind in ["FailJobs", "HangJobs", "CrashIn Job", "Crash", "CrashIn Commit"] {
        let count = coverage.faults()[kind];
        assert!(count.fired > 0 && count.asked > 10, "{kind}: {count:?}");
    }
    for trouble in [FaultEvent::JobFailed, FaultEvent::JobHung, FaultEvent::CrashInAJob, FaultEvent::EffectRepeated] {
        assert!(coverage.troubles().get(&trouble).is_some_and(|times| *times > 10), "{trouble}");
    }
}

#[test]
fn machine_that_ignores_keys_is_found() {
    let flow = presses(true);
    let found = flow.first_broken(0..200).expect("it is found");
    assert!(found.plan.size() <= 3, "{}", found.plan);
    let told = &found.broken.deeds;
    assert!(told.contains("once more: its effect was done before"), "{}\n{}\n{told}", found.plan, found.broken);
}

#[test]
fn kind_of_fault_that_never_strikes_fails_the_flow() {
    let late = Just((Duration::from_secs(600), Fault::FailJobs { service: 0, times: 1 }));
    let flow = || presses(false).faults_from(late.clone()).arrivals(Just(Duration::ZERO));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| flow().check(0..10)));
    let text = panicked.expect_err("nothing was struck").downcast_ref::<String>().cloned().unwrap();
    assert!(text.contains("FailJobs was asked for ") && text.contains("and never struck"), "{text}");
    flow().faults_may_miss().check(0..10);
}
