//! Workers in the simulated cluster: what the story tells of their jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use whizbang::prelude::*;
use whizbang::testing::Sim;
use whizbang::testing::sim::SimError;

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
    let deeds = run.expect_err("it is told").deeds;
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
        world.send(deposit(&"x".repeat(500), 1)).await.unwrap();
    });
    let deeds = run.expect_err("it is told").deeds;
    assert!(deeds.contains("Deposit {\"account\":\"ada\",\"cents\":70} -> Deposited {\"cents\":70"), "{deeds}");
    assert!(deeds.contains("\"cents\":90"), "rejected commands have payloads, too:\n{deeds}");
    let longest = deeds.lines().filter(|line| line.contains("->")).map(|line| line.chars().count()).max();
    assert!(longest < Some(300), "{deeds}");
}

#[test]
fn domain_hosted_twice_is_a_typed_error() {
    let run = Sim::new(1)
        .service("one", |node| node.host::<Account>())
        .service("two", |node| node.host::<Account>())
        .run(async |_| panic!("it is not run"));
    let error = SimError::HostedTwice { domain: "bank".into(), first: "one".into(), second: "two".into() };
    assert_eq!(run.expect_err("both would answer").description, Some(error));
}
