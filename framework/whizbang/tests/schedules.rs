//! Cron schedules: each occurrence is sent once, in time, across restarts, daylight saving and jumps of the clock; missed and
//! overlapping occurrences follow their policies. The clock is paused.
#![cfg(all(feature = "testing", feature = "schedules"))]

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use whizbang::clock::{Clock, Timestamp};
use whizbang::message::{Codec, MessageId, Name, ShardId, shard_of};
use whizbang::prelude::*;
use whizbang::store::{CommitListener, Mark, Store, StoreError, StreamHint, Ticket, TimerWrite, Turn};
use whizbang::{Cron, Missed, Overlap};

#[derive(Domain)]
#[domain(name = "desk", shards = 4, codec = json)]
struct Desk;

/// Records the occurrence that has sent it.
#[derive(Command, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[command(domain = Desk)]
struct Report {
    #[key]
    report: String,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Desk, reply = Vec<String>)]
struct Read {
    #[key]
    report: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Desk)]
struct Reported {
    occurrence: String,
}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Desk, handles(Report), applies(Reported), answers(Read))]
struct Reports {
    occurrences: Vec<String>,
}

impl Handle<Report> for Reports {
    fn handle(&self, _report: Report, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let occurrence = effects.header("schedule-occurrence").unwrap_or("none").to_owned();
        effects.record(Reported { occurrence });
        Ok(())
    }
}

impl Apply<Reported> for Reports {
    fn apply(&mut self, reported: &Reported) {
        self.occurrences.push(reported.occurrence.clone());
    }
}

impl Answer<Read> for Reports {
    fn answer(&self, _read: Read) -> Vec<String> {
        self.occurrences.clone()
    }
}

/// Work that takes until the test ends it.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Desk)]
struct Clean {
    #[key]
    room: String,
}

#[derive(Worker)]
#[worker(domain = Desk, performs(Clean))]
struct Cleaner(Arc<Notify>);

impl Perform<Clean> for Cleaner {
    async fn perform(&self, clean: Clean, job: Job) -> Result<(), WorkError> {
        job.send(Report { report: format!("begun {}", clean.room) })
            .header("schedule-occurrence", job.header("schedule-occurrence").unwrap_or("none"));
        self.0.notified().await;
        Ok(())
    }
}

/// Reads a time of the year 2026, such as `2026-03-29T01:00:00Z`.
fn at(text: &str) -> Timestamp {
    let number = |from: usize| text[from..from + 2].parse::<u64>().unwrap();
    let days: u64 = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30].iter().take(number(5) as usize - 1).sum();
    let hours = (days + number(8) - 1) * 24 + number(11);
    Timestamp::from_millis(1_767_225_600_000 + (hours * 60 + number(14)) * 60_000)
}

fn builder(store: &MemoryStore, begin: Timestamp) -> whizbang::NodeBuilder {
    let (clock, _) = Clock::ticking(begin);
    Node::builder("desk", store.clone()).threads(0).aggregate::<Reports>().clock(clock)
}

async fn start(store: &MemoryStore, begin: &str) -> Node {
    builder(store, at(begin)).start().await.unwrap()
}

fn report(report: &str) -> Report {
    Report { report: report.to_owned() }
}

async fn read(node: &Node, report: &str) -> Vec<String> {
    node.client().query(Read { report: report.to_owned() }).await.unwrap()
}

/// Advances virtual time and runs everything that is due in it.
async fn pass(minutes: u64) {
    tokio::time::sleep(Duration::from_secs(60 * minutes)).await;
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

async fn run(test: impl Future<Output = ()>) {
    tokio::task::LocalSet::new().run_until(test).await;
}

fn hourly() -> Cron {
    Cron::new("0 * * * *").unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_occurrence_is_sent_once_in_time() {
    run(async {
        let store = MemoryStore::new();
        let node = start(&store, "2026-01-01T00:30:00Z").await;
        for _ in 0..2 {
            node.client().schedule("hourly", hourly(), report("a")).await.unwrap();
        }
        pass(29).await;
        assert!(read(&node, "a").await.is_empty());
        tokio::time::sleep(Duration::from_millis(59_999)).await;
        assert!(read(&node, "a").await.is_empty());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(read(&node, "a").await, ["2026-01-01T01:00:00Z"], "less than a second late");
        // Set again as it is, before and after occurrences.
        node.client().schedule("hourly", hourly(), report("a")).await.unwrap();
        pass(120).await;
        let expected = ["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z", "2026-01-01T03:00:00Z"];
        assert_eq!(read(&node, "a").await, expected);
        assert_eq!(node.dead_letters().await.unwrap(), []);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn schedule_is_listed_replaced_and_removed() {
    run(async {
        let store = MemoryStore::new();
        let node = start(&store, "2026-01-01T00:30:00Z").await;
        let client = node.client();
        client.schedule("hourly", hourly(), report("a")).await.unwrap();
        client.schedule("other", hourly(), report("b")).await.unwrap();
        let daily = Cron::new("0 3 * * *").unwrap();
        client.schedule("hourly", daily.clone(), report("c")).await.unwrap();
        let listed: Vec<_> = node
            .schedules()
            .unwrap()
            .into_iter()
            .flatten()
            .map(|all| (all.name, all.cron, all.key, all.next))
            .collect();
        let expected = [
            ("hourly".to_owned(), daily, "c".to_owned(), at("2026-01-01T03:00:00Z")),
            ("other".to_owned(), hourly(), "b".to_owned(), at("2026-01-01T01:00:00Z")),
        ];
        assert_eq!(listed, expected);
        assert!(client.unschedule::<Desk>("other").await.unwrap());
        assert!(!client.unschedule::<Desk>("other").await.unwrap());
        assert!(!client.unschedule::<Desk>("never set").await.unwrap());
        pass(24 * 60).await;
        let sent = (read(&node, "a").await.len(), read(&node, "b").await.len(), read(&node, "c").await);
        assert_eq!(sent, (0, 0, vec!["2026-01-01T03:00:00Z".to_owned()]));
        // A name can be used again.
        client.schedule("other", hourly(), report("b")).await.unwrap();
        pass(60).await;
        assert_eq!(read(&node, "b").await.len(), 1);
    })
    .await;
}

/// Sets the timer of a delayed message or schedule with a content that cannot be decoded.
async fn set_unreadable(store: &MemoryStore, (actor, timer, key): (&str, &str, &str), due: Timestamp) {
    struct Silent;
    impl CommitListener for Silent {
        fn committed(&self, _through: Ticket) {}
        fn failed(&self, _error: StoreError) {}
    }
    let shard = ShardId::new(Name::new("desk").unwrap(), shard_of(key, Desk::SHARDS));
    let mut shard = store.open(&shard, Desk::SHARDS, Arc::new(Silent)).await.unwrap();
    let id = MessageId::from_u128(1);
    let turn = Turn {
        actor: &Name::new(actor).unwrap(),
        key,
        stream: StreamHint::default(),
        number: 1,
        version: 0,
        time: due,
        id,
        correlation: id,
        traceparent: None,
        headers: &[],
        mark: Mark::None,
        reply: &[],
        reply_codec: Codec::Json,
        events: &[],
        outbox: &[],
        timers: &[TimerWrite::Set { name: timer, due, version: 1, codec: Codec::Bincode, payload: &[255; 3] }],
        notes: &[],
    };
    shard.writer.append(&turn).unwrap();
}

#[tokio::test(start_paused = true)]
async fn entries_that_cannot_be_read_are_listed() {
    run(async {
        let (store, due) = (MemoryStore::new(), at("2026-01-01T02:00:00Z"));
        let (id, no_id) = (MessageId::from_u128(7).to_string(), "no id");
        for entry in [
            ("whizbang-scheduler", "whizbang-due", id.as_str()),
            ("whizbang-scheduler", "whizbang-due", no_id),
            ("whizbang-schedules", "whizbang-occurs", "damaged"),
        ] {
            set_unreadable(&store, entry, due).await;
        }
        let node = start(&store, "2026-01-01T00:30:00Z").await;
        node.client().schedule("hourly", hourly(), report("a")).await.unwrap();
        node.client().post(report("b")).after(Duration::from_secs(60)).await.unwrap();
        let schedules = node.schedules().unwrap();
        assert_eq!(schedules[0].as_ref().unwrap().name, "hourly");
        let damaged = schedules[1].as_ref().unwrap_err();
        assert_eq!((damaged.domain.as_str(), &*damaged.key, damaged.due), ("desk", "damaged", due));
        assert_eq!(schedules.len(), 2);
        let (read, failed): (Vec<_>, Vec<_>) = node.delayed_messages(10).unwrap().into_iter().partition(Result::is_ok);
        assert_eq!(read.len(), 1);
        let mut failed: Vec<_> = failed.into_iter().map(|failed| failed.unwrap_err().key).collect();
        failed.sort();
        assert_eq!(failed, [id.as_str(), no_id]);
        pass(180).await;
        let letters = node.dead_letters().await.unwrap();
        assert_eq!(letters.len(), 2, "each message is reported when it is due: {letters:?}");
        assert_eq!(node.delayed_messages(10).unwrap(), []);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn missed_occurrences_follow_the_policy_after_a_restart() {
    run(async {
        let store = MemoryStore::new();
        let node = start(&store, "2026-01-01T00:30:00Z").await;
        for (name, missed) in [("skip", Missed::Skip), ("once", Missed::Once), ("all", Missed::All { most: 3 })] {
            node.client().schedule(name, hourly().missed(missed), report(name)).await.unwrap();
        }
        pass(35).await;
        drop(node);
        // Down from 01:05 to 06:10.
        let node = start(&store, "2026-01-01T06:10:00Z").await;
        pass(1).await;
        let hours = async |name| {
            let all = read(&node, name).await;
            all.iter().map(|text| text[11..13].to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            (hours("skip").await, hours("once").await, hours("all").await),
            ("01".into(), "01 06".into(), "01 04 05 06".into())
        );
        pass(60).await;
        assert_eq!((hours("skip").await, hours("all").await), ("01 07".into(), "01 04 05 06 07".into()));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn daylight_saving_sends_each_day_once() {
    run(async {
        for (begin, expected) in [
            ("2026-03-27T12:00:00Z", ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]),
            ("2026-10-23T12:00:00Z", ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]),
        ] {
            // With a restart between any two occurrences, and within the hour that is skipped or repeated.
            for minutes in [15, 37 * 60] {
                let store = MemoryStore::new();
                let zoned = Cron::new("30 2 * * *").unwrap().zone("Europe/Berlin").unwrap();
                let (mut now, end) = (at(begin), at(begin).after(Duration::from_secs(3 * 24 * 3600)));
                while now < end {
                    let node = builder(&store, now).start().await.unwrap();
                    node.client().schedule("nightly", zoned.clone(), report("a")).await.unwrap();
                    pass(minutes).await;
                    now = now.after(Duration::from_secs(60 * minutes));
                    drop(node);
                }
                let node = builder(&store, now).start().await.unwrap();
                pass(1).await;
                assert_eq!(read(&node, "a").await, expected, "restarts after {minutes} min");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn jumps_of_the_clock_repeat_no_occurrence() {
    run(async {
        let store = MemoryStore::new();
        let (clock, jumps) = Clock::ticking(at("2026-01-01T00:30:00Z"));
        let node = builder(&store, at("2026-01-01T00:30:00Z")).clock(clock).start().await.unwrap();
        node.client().schedule("hourly", hourly().missed(Missed::All { most: 10 }), report("a")).await.unwrap();
        for jump in [-3_600_000_i64, 0, 7_200_000, -7_200_000, 0, 0] {
            pass(40).await;
            jumps.jump(jump);
        }
        pass(240).await;
        let all = read(&node, "a").await;
        let mut unique = all.clone();
        unique.dedup();
        assert_eq!(all, unique);
        assert!(all.is_sorted(), "{all:?}");
        assert!(all.len() >= 6, "{all:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn overlapping_occurrences_follow_the_policy() {
    run(async {
        for (overlap, expected) in
            [(Overlap::Allow, "01 02 03 04"), (Overlap::Skip, "01 04"), (Overlap::Wait, "01 03 04")]
        {
            let (store, done) = (MemoryStore::new(), Arc::new(Notify::new()));
            let node = builder(&store, at("2026-01-01T00:30:00Z")).worker(Cleaner(Arc::clone(&done)));
            let limit = Duration::from_secs(100 * 3600);
            let config = whizbang::NodeConfig { job_limit: limit, threads: 0, ..whizbang::NodeConfig::default() };
            let node = node.config(config).start().await.unwrap();
            node.client().schedule("clean", hourly().overlap(overlap), Clean { room: "r".to_owned() }).await.unwrap();
            pass(160).await;
            let hours = async |node: &Node| {
                let all = read(node, "begun r").await;
                all.iter().map(|text| text[11..13].to_owned()).collect::<Vec<_>>().join(" ")
            };
            // The reports leave with the end of each job.
            assert_eq!(hours(&node).await, "", "{overlap:?}");
            done.notify_waiters();
            pass(5).await;
            if overlap == Overlap::Wait {
                // The occurrence that has waited is at work now.
                done.notify_waiters();
                pass(5).await;
            }
            pass(60).await;
            done.notify_waiters();
            pass(1).await;
            assert_eq!(hours(&node).await, expected, "{overlap:?}");
        }
    })
    .await;
}
