//! Workers with limits and rules in the simulated cluster, under all faults.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};
use whizbang::{CircuitBreaker, Retry, RetryDecision, WorkerOptions};

/// Most jobs at once, and most starts in a window.
const AT_ONCE: usize = 2;
const STARTS: usize = 3;
const WINDOW: Duration = Duration::from_secs(1);
/// Failures in a row after which the machine is left alone, and for how long.
const FAILURES: u32 = 2;
const PAUSE: Duration = Duration::from_millis(400);
/// The wait after a first jam; later ones are longer.
const JAM: Duration = Duration::from_millis(50);

#[derive(Domain)]
struct Labels;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Labels)]
struct Label {
    #[key]
    label: String,
    /// Number of calls that fail.
    jams: u32,
    is_bad: bool,
}

/// Asks a desk to have a label printed, so that an actor sends the command.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Labels)]
struct Ask {
    #[key]
    desk: String,
    label: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Labels, handles(Ask))]
struct Desk;

impl Handle<Ask> for Desk {
    fn handle(&self, ask: Ask, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(Label { label: ask.label, jams: 1, is_bad: false });
        Ok(())
    }
}

#[derive(Debug)]
enum MachineError {
    Jammed,
    BadLabel,
}

impl std::fmt::Display for MachineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for MachineError {}

/// The external machine, and the calls of one run.
#[derive(Default)]
struct Calls {
    /// Number of failed calls by label.
    jams: BTreeMap<String, u32>,
    /// First violation of a limit.
    wrong: Option<String>,
}

/// The calls of one start of the node: the limits of a node begin with it.
#[derive(Default)]
struct Started {
    running: usize,
    starts: Vec<Instant>,
    /// Failures in a row, and the last one.
    failures: (u32, Option<Instant>),
    /// The last jam by label.
    jams: BTreeMap<String, Instant>,
}

#[derive(Worker)]
#[worker(domain = Labels, performs(Label))]
struct Printer {
    calls: Arc<Mutex<Calls>>,
    started: Arc<Mutex<Started>>,
}

struct Running(Arc<Mutex<Started>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().unwrap().running -= 1;
    }
}

impl Printer {
    /// Records the start of a call, and a violation of a limit.
    fn begin(&self, label: &str) -> Running {
        let mut started = self.started.lock().unwrap();
        started.running += 1;
        let now = Instant::now();
        started.starts.push(now);
        let mut wrong = (started.running > AT_ONCE).then(|| format!("{} jobs run at once", started.running));
        if let Some(first) = started.starts.iter().rev().nth(STARTS)
            && now - *first < WINDOW
        {
            wrong = Some(format!("{} jobs began within {:?}", STARTS + 1, now - *first));
        }
        if let (FAILURES.., Some(last)) = started.failures
            && now - last < PAUSE
        {
            wrong = Some(format!("the circuit is closed {:?} after a failure", now - last));
        }
        if let Some(last) = started.jams.get(label).filter(|last| now - **last < JAM) {
            wrong = Some(format!("`{label}` is tried again {:?} after its jam", now - *last));
        }
        if wrong.is_some() {
            let mut calls = self.calls.lock().unwrap();
            calls.wrong = calls.wrong.take().or(wrong);
        }
        drop(started);
        Running(Arc::clone(&self.started))
    }
}

impl Printer {
    /// Records the end of a call. What is no jam may count as a success.
    fn end(&self, label: &str, is_jam: bool) {
        let mut started = self.started.lock().unwrap();
        let now = Instant::now();
        started.failures = if is_jam { (started.failures.0 + 1, Some(now)) } else { (0, None) };
        if is_jam {
            started.jams.insert(label.to_owned(), now);
        }
    }
}

impl Perform<Label> for Printer {
    async fn perform(&self, label: Label, _job: Job) -> Result<(), WorkError> {
        let _running = self.begin(&label.label);
        tokio::time::sleep(Duration::from_millis(30)).await;
        if label.is_bad {
            self.end(&label.label, false);
            return Err(MachineError::BadLabel.into());
        }
        let mut calls = self.calls.lock().unwrap();
        let jams = calls.jams.entry(label.label.clone()).or_default();
        let is_jam = *jams < label.jams;
        *jams += u32::from(is_jam);
        drop(calls);
        self.end(&label.label, is_jam);
        if is_jam { Err(MachineError::Jammed.into()) } else { Ok(()) }
    }
}

fn options() -> WorkerOptions {
    limits().retry_error(|error: &MachineError, attempt| match error {
        MachineError::Jammed => RetryDecision::After(JAM * attempt),
        MachineError::BadLabel => RetryDecision::GiveUp,
    })
}

/// The options without the rule of retries.
fn limits() -> WorkerOptions {
    WorkerOptions::new()
        // More than all faults together use up.
        .retry(Retry { attempts: 20, ..Retry::default() })
        .jobs(AT_ONCE)
        .rate(u32::try_from(STARTS).unwrap(), WINDOW)
        .circuit_breaker(CircuitBreaker::failures(FAILURES).pause(PAUSE))
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Print,
    Ask,
    Jam,
    Bad,
}

/// A flow whose worker has these options.
fn labels(options: fn() -> WorkerOptions) -> Flow<Step, impl AsyncFn(&World, Step)> {
    let sim = move |sim: Sim| {
        let calls = Arc::<Mutex<Calls>>::default();
        let ended = Arc::clone(&calls);
        let service = sim.service("labels", move |node| {
            let printer = Printer { calls: Arc::clone(&calls), started: Arc::default() };
            node.aggregate::<Desk>().worker_with(printer, options())
        });
        service.allow_dead_letters().at_end(move |_| match &ended.lock().unwrap().wrong {
            Some(wrong) => Err(wrong.clone()),
            None => Ok(()),
        })
    };
    let step = prop_oneof![Just(Step::Print), Just(Step::Ask), Just(Step::Jam), Just(Step::Bad)];
    let arrivals = (0..6u64).prop_map(|steps| Duration::from_millis(50 * steps));
    let flow = Flow::new("labels", sim, step, 1..10, async move |world: &World, step| {
        let label = format!("label{}", world.below(u64::MAX));
        match step {
            Step::Print => world.send(Label { label, jams: 0, is_bad: false }).await.expect("it is printed"),
            Step::Jam => world.send(Label { label, jams: 3, is_bad: false }).await.expect("it is printed"),
            Step::Ask => world.send(Ask { desk: "d".to_owned(), label }).await.expect("it is asked for"),
            Step::Bad => drop(world.send(Label { label, jams: 0, is_bad: true }).await.expect_err("a dead letter")),
        }
    });
    flow.arrivals(arrivals).no_regressions()
}

#[test]
fn limits_and_rules_hold_under_all_faults() {
    labels(options).check(0..200);
}

#[test]
fn missing_limits_are_found() {
    let found = |options: fn() -> WorkerOptions, reason: &str| {
        let found = labels(options).first_failure(0..200).expect(reason);
        assert!(found.violation.reason.contains(reason), "{}", found.violation.reason);
    };
    found(|| options().jobs(9), "3 jobs run at once");
    found(|| options().rate(9, Duration::from_millis(1)), "4 jobs began within");
    found(|| options().circuit_breaker(CircuitBreaker::failures(1_000).pause(PAUSE)), "the circuit is closed");
    found(|| limits().retry_error(|_: &MachineError, _| RetryDecision::After(Duration::ZERO)), "is tried again");
}
