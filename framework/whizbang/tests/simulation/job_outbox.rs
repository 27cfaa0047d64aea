//! Jobs that send, under all faults: each message leaves once, with the commit of its job, under the same id in every
//! attempt.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use whizbang::message::MessageId;
use whizbang::prelude::*;
use whizbang::testing::{CrashPoint, Fault, FaultEvent, Flow, Sim, World};

#[derive(Domain)]
#[domain(name = "presses", shards = 4)]
struct Presses;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Presses)]
struct Print {
    #[key]
    label: String,
    copies: u64,
}

/// Published by the job, without an aggregate.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Presses)]
struct Printed {
    copies: u64,
}

#[derive(Domain)]
#[domain(name = "bills", shards = 4)]
struct Bills;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Bills, reply = u64)]
struct Charge {
    #[key]
    label: String,
    copies: u64,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Bills)]
struct File {
    #[key]
    label: String,
}

/// Sent later. Those with `cancelled` are cancelled before they are due.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Bills)]
struct Remind {
    #[key]
    label: String,
    cancelled: bool,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Bills)]
struct Reminded {
    times: u32,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Bills)]
struct Charged {
    copies: u64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Bills)]
struct Filed {}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Bills)]
struct Noted {}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Bills, handles(Charge, File, Remind), reacts(Printed), applies(Charged, Filed, Noted, Reminded))]
struct Bill {
    noted: u32,
    reminded: u32,
    charged: u32,
    filed: u32,
}

impl Handle<Charge> for Bill {
    fn handle(&self, charge: Charge, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Charged { copies: charge.copies });
        Ok(charge.copies)
    }
}

impl Handle<File> for Bill {
    fn handle(&self, _file: File, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Filed {});
        Ok(())
    }
}

impl Handle<Remind> for Bill {
    fn handle(&self, remind: Remind, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Reminded { times: if remind.cancelled { 100 } else { 1 } });
        Ok(())
    }
}

impl Apply<Reminded> for Bill {
    fn apply(&mut self, reminded: &Reminded) {
        self.reminded += reminded.times;
    }
}

impl React<Printed> for Bill {
    fn react(&self, _printed: Printed, effects: &mut Effects<Self>) {
        effects.record(Noted {});
    }
}

impl Apply<Noted> for Bill {
    fn apply(&mut self, _noted: &Noted) {
        self.noted += 1;
    }
}

impl Apply<Charged> for Bill {
    fn apply(&mut self, _charged: &Charged) {
        self.charged += 1;
    }
}

impl Apply<Filed> for Bill {
    fn apply(&mut self, _filed: &Filed) {
        self.filed += 1;
    }
}

/// The knowledge outside of the cluster about one label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// The charge's id, as each attempt of the job was given it.
    ids: Vec<MessageId>,
    /// The replies to the charge: the answered command, and the copies.
    replies: Vec<(Option<MessageId>, Option<u64>)>,
}

/// The delay of reminders.
const DELAY: Duration = Duration::from_secs(60);

type Outside = Arc<Mutex<BTreeMap<String, Known>>>;

#[derive(Worker)]
#[worker(domain = Presses, performs(Print), replies(Charge))]
struct Press(Outside);

impl Perform<Print> for Press {
    async fn perform(&self, print: Print, job: Job) -> Result<(), WorkError> {
        let charge = job.send(Charge { label: print.label.clone(), copies: print.copies }).id();
        job.publish(&print.label, Printed { copies: print.copies });
        let remind = |cancelled| Remind { label: print.label.clone(), cancelled };
        job.send(remind(false)).after(DELAY);
        let cancelled = job.send(remind(true)).after(DELAY).id();
        job.cancel(cancelled);
        self.0.lock().unwrap().entry(print.label).or_default().ids.push(charge);
        Ok(())
    }
}

impl OnJobReply<Charge> for Press {
    async fn on_job_reply(&self, copies: Result<u64, Rejection>, job: Job) -> Result<(), WorkError> {
        let mut outside = self.0.lock().unwrap();
        outside.entry(job.key).or_default().replies.push((job.replied_command, copies.ok()));
        Ok(())
    }
}

/// Files each bill that it hears of.
#[derive(Worker)]
#[worker(domain = Presses, on(Charged))]
struct Archivist;

impl OnEvent<Charged> for Archivist {
    async fn on_event(&self, _charged: Charged, job: Job) -> Result<(), WorkError> {
        job.send(File { label: job.key.clone() });
        Ok(())
    }
}

fn check(world: &World, outside: &Outside) -> Result<(), String> {
    for (label, known) in outside.lock().unwrap().iter() {
        let Bill { noted, charged, filed, reminded } = world.state::<Bill>(label);
        if (noted, charged, filed, reminded) != (1, 1, 1, 1) {
            return Err(format!(
                "{label} was noted {noted} times, charged {charged} times, filed {filed} times, reminded {reminded} times"
            ));
        }
        if known.ids.iter().any(|id| *id != known.ids[0]) {
            return Err(format!("the attempts for {label} gave its charge several ids: {:?}", known.ids));
        }
        let answered = |(command, copies): &(Option<MessageId>, Option<u64>)| {
            *command == known.ids.first().copied() && copies.is_some()
        };
        if known.replies.is_empty() || !known.replies.iter().all(answered) {
            return Err(format!("{label} has the replies {:?}", known.replies));
        }
    }
    Ok(())
}

fn cluster(sim: Sim) -> Sim {
    let outside = Outside::default();
    let press = Arc::clone(&outside);
    sim.service("presses", move |node| node.worker(Press(Arc::clone(&press))).worker(Archivist).publishes::<Printed>())
        .service("bills", |node| node.aggregate::<Bill>())
        .at_end(move |world| check(world, &outside))
}

fn presses() -> Flow<u64, impl AsyncFn(&World, u64)> {
    Flow::new("sending-presses", cluster, 1..5u64, 1..8, async |world: &World, copies| {
        let label = format!("label{}", world.below(u64::MAX));
        world.send(Print { label, copies }).await.expect("it is printed");
        world.sleep(2 * DELAY).await;
    })
    .no_regressions()
}

#[test]
fn jobs_send_each_message_once_under_all_faults() {
    let coverage = presses().check(0..200);
    for kind in ["FailJobs", "HangJobs", "CrashAt Job", "Crash", "CrashAt Commit"] {
        let count = coverage.faults()[kind];
        assert!(count.fired > 0 && count.requested > 10, "{kind}: {count:?}");
    }
    for event in [FaultEvent::JobFailed, FaultEvent::JobHung, FaultEvent::CrashDuringJob, FaultEvent::EffectRepeated] {
        assert!(coverage.fault_events().get(&event).is_some_and(|times| *times > 10), "{event}");
    }
}

/// Prints once during a fault of the presses.
fn printed_during(fault: Fault) {
    let run = cluster(Sim::new(5)).fault(Duration::ZERO, fault).run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        world.send(Print { label: "a".to_owned(), copies: 2 }).await.unwrap();
        world.sleep(2 * DELAY).await;
    });
    run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.actor_steps));
}

#[test]
fn second_attempt_sends_under_the_same_ids() {
    printed_during(Fault::FailJobs { service: 0, times: 2 });
    printed_during(Fault::HangJobs { service: 0, times: 1 });
}

#[test]
fn node_killed_around_the_commit_of_a_job_sends_once() {
    let down = Duration::from_millis(100);
    printed_during(Fault::CrashAt { service: 0, point: CrashPoint::Job, steps: 0, down });
    for steps in 0..4 {
        printed_during(Fault::CrashAt { service: 0, point: CrashPoint::Commit, steps, down });
    }
}
