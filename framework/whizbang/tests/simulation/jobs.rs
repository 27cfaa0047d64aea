//! Workers in the simulated cluster: their steps in failure reports, and faults of jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::sim::{PassedRun, SimError};
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

/// A printer that runs out of paper a given number of times.
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

/// Returns the lines about one actor or worker and key.
fn part<'a>(actor_steps: &'a str, head: &str) -> Vec<&'a str> {
    let lines = actor_steps.lines().skip_while(|line| line.trim() != head).skip(1);
    lines.take_while(|line| line.starts_with("    ")).collect()
}

#[test]
fn failure_report_lists_each_attempt_of_a_job() {
    let run = printers(2).at_end(|_| Err("told".to_owned())).run(async |world| {
        assert_eq!(world.send(print("a", 3)).await.unwrap(), 3);
        world.send(print("b", 0)).await.expect_err("nothing to print");
    });
    let violation = run.expect_err("it is told");
    assert_eq!(violation.reason, "at the end: told");
    let actor_steps = violation.actor_steps;
    let (a, b) = (part(&actor_steps, "prints.printer `a`"), part(&actor_steps, "prints.printer `b`"));
    for (number, end) in [(1, "failed: there is no paper"), (2, "failed: there is no paper"), (3, "done")] {
        let line = format!("job Print {{\"label\":\"a\",\"copies\":3}}, attempt {number} -> {end}");
        assert_eq!(a.iter().filter(|text| text.ends_with(&line)).count(), 1, "{line}\n{actor_steps}");
    }
    assert!(a.last().unwrap().ends_with("Print {\"label\":\"a\",\"copies\":3} -> committed"), "{actor_steps}");
    assert!(b.first().unwrap().ends_with("attempt 1 -> rejected"), "{actor_steps}");
    assert!(b.last().unwrap().contains("rejected as prints.none -> committed"), "{actor_steps}");
    assert!(!actor_steps.contains("shard-"), "jobs stand with their own keys:\n{actor_steps}");
}

#[test]
fn failure_report_shows_payloads() {
    let run = cluster(Sim::new(1)).at_end(|_| Err("told".to_owned())).run(async |world| {
        world.send(deposit("ada", 70)).await.unwrap();
        world.send(withdraw("ada", 90, "")).await.expect_err("the balance is lower");
        world.send(deposit(&"x".repeat(250), 1)).await.unwrap();
    });
    let violation = run.expect_err("it is told");
    assert_eq!(violation.reason, "at the end: told");
    let actor_steps = violation.actor_steps;
    assert!(
        actor_steps.contains("Deposit {\"account\":\"ada\",\"cents\":70} -> Deposited {\"cents\":70"),
        "{actor_steps}"
    );
    assert!(actor_steps.contains("\"cents\":90"), "rejected commands have payloads, too:\n{actor_steps}");
    assert!(
        actor_steps.contains(&format!("Deposit {{\"account\":\"{}… -> Deposited", "x".repeat(68))),
        "{actor_steps}"
    );
    let longest = actor_steps.lines().filter(|line| line.contains("->")).map(|line| line.chars().count()).max();
    assert!(longest < Some(200), "{actor_steps}");
}

#[test]
fn domain_hosted_twice_is_a_typed_error() {
    let run = Sim::new(1)
        .service("one", |node| node.aggregate::<Account>())
        .service("two", |node| node.aggregate::<Account>())
        .run(async |_| panic!("it is not run"));
    let error = SimError::HostedTwice { domain: "bank".into(), first: "one".into(), second: "two".into() };
    assert_eq!(run.expect_err("both would answer").setup_error.as_deref(), Some(&error));
}

/// An external machine with the labels it has printed. A careless one ignores the idempotency keys of jobs.
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

/// Prints once during a fault.
fn printed_during(fault: Fault) -> PassedRun {
    let run = press(Sim::new(3), false).fault(Duration::ZERO, fault).run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        world.send(print("a", 1)).await.unwrap();
        world.sleep(Duration::from_secs(1)).await;
    });
    run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.actor_steps))
}

fn count_of(run: &PassedRun, event: FaultEvent) -> u64 {
    run.coverage.fault_events().get(&event).copied().unwrap_or(0)
}

#[test]
fn job_failing_after_its_effect_is_retried() {
    let run = printed_during(Fault::FailJobs { service: 0, times: 2 });
    assert_eq!((count_of(&run, FaultEvent::JobFailed), count_of(&run, FaultEvent::EffectRepeated)), (2, 2));
    let count = run.coverage.faults()["FailJobs"];
    assert_eq!((count.requested, count.fired), (1, 2));
}

#[test]
fn job_hanging_after_its_effect_is_retried() {
    let run = printed_during(Fault::HangJobs { service: 0, times: 1 });
    assert_eq!((count_of(&run, FaultEvent::JobHung), count_of(&run, FaultEvent::EffectRepeated)), (1, 1));
    assert!(run.elapsed > Duration::from_secs(300), "the limit of a job has passed: {:?}", run.elapsed);
}

#[test]
fn node_killed_between_effect_and_commit_retries_job() {
    let crash = Fault::CrashAt { service: 0, point: CrashPoint::Job, steps: 0, down: Duration::from_millis(100) };
    let run = printed_during(crash.clone());
    assert_eq!((count_of(&run, FaultEvent::CrashDuringJob), count_of(&run, FaultEvent::EffectRepeated)), (1, 1));
    assert!(run.coverage.crashes() >= 1);
    assert_eq!(run.coverage.faults()["CrashAt Job"].fired, 1);
    let run = press(Sim::new(3), true).fault(Duration::ZERO, crash).run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        world.send(print("a", 1)).await.unwrap();
    });
    let violation = run.expect_err("it was printed twice");
    let lines = part(&violation.actor_steps, "prints.press `a`");
    assert!(lines[0].ends_with("attempt 1 -> its process ended after its effect"), "{}", violation.actor_steps);
    assert!(lines[1].contains("-> done, once more: its effect was done before"), "{}", violation.actor_steps);
}

#[test]
fn fault_without_a_hit_fails_the_run() {
    let idle = |sim: Sim| sim.fault(Duration::ZERO, Fault::FailJobs { service: 0, times: 1 }).run(async |_| {});
    let violation = idle(press(Sim::new(1), false)).expect_err("there was no job");
    assert_eq!(violation.rule, "fault", "{}", violation.reason);
    assert!(violation.reason.contains("no job of the service had an effect"), "{}", violation.reason);
    idle(press(Sim::new(1), false).allow_missed_faults()).expect("it may miss");
}

#[test]
fn kill_of_a_stopped_node_fails_the_run() {
    let twice = |sim: Sim| {
        sim.run(async |world| {
            world.kill(0);
            world.kill(0);
            world.restart(0).await;
        })
    };
    let violation = twice(press(Sim::new(1), false)).expect_err("it was dead");
    assert_eq!(violation.reason, "fault: no node of prints was running");
    twice(press(Sim::new(1), false).allow_missed_faults()).expect("it may miss");
}

#[test]
fn fault_of_jobs_without_a_worker_is_an_error() {
    let fault = Fault::HangJobs { service: 0, times: 1 };
    let violation =
        cluster(Sim::new(1)).fault(Duration::ZERO, fault).run(async |_| {}).expect_err("there is no worker");
    assert!(matches!(violation.setup_error.as_deref(), Some(SimError::NoWorker { .. })), "{violation}");
}

#[test]
fn presses_print_each_label_once_under_all_faults() {
    let coverage = presses(false).check(0..200);
    for kind in ["FailJobs", "HangJobs", "CrashAt Job", "Crash", "CrashAt Commit"] {
        let count = coverage.faults()[kind];
        assert!(count.fired > 0 && count.requested > 10, "{kind}: {count:?}");
    }
    for event in [FaultEvent::JobFailed, FaultEvent::JobHung, FaultEvent::CrashDuringJob, FaultEvent::EffectRepeated] {
        assert!(coverage.fault_events().get(&event).is_some_and(|times| *times > 10), "{event}");
    }
}

#[test]
fn machine_that_ignores_keys_is_found() {
    let flow = presses(true);
    let found = flow.first_failure(0..200).expect("it is found");
    assert!(found.plan.size() <= 3, "{}", found.plan);
    let steps = &found.violation.actor_steps;
    assert!(steps.contains("once more: its effect was done before"), "{}\n{}\n{steps}", found.plan, found.violation);
}

#[test]
fn fault_kind_without_a_hit_fails_the_flow() {
    let late = Just((Duration::from_secs(600), Fault::FailJobs { service: 0, times: 1 }));
    let flow = || presses(false).faults_from(late.clone()).arrivals(Just(Duration::ZERO));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| flow().check(0..10)));
    let text = panicked.expect_err("nothing was hit").downcast_ref::<String>().cloned().unwrap();
    assert!(text.contains("FailJobs was injected ") && text.contains("and never hit"), "{text}");
    flow().allow_missed_faults().check(0..10);
}
