//! Durable appends to the store on disk, several in flight, against as many bytes written and flushed in the same folder; and the
//! time to open a store.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};
use std::time::Instant;

use whizbang::clock::Timestamp;
use whizbang::message::{Codec, MessageId, Name, ShardId};
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedStore};
use whizbang::store::{CommitListener, EventWrite, Mark, ShardWriter, Store, StoreError, StreamHint, Ticket, Turn};

const REPETITIONS: usize = 5;
const PAYLOAD: usize = 200;
const KEYS: usize = 1000;

/// Records the time at which each append is reported, and wakes the appending task.
struct Stamps {
    through: AtomicU64,
    reports: Mutex<Vec<(u64, Instant)>>,
    appender: Thread,
}

impl Stamps {
    fn new() -> Arc<Self> {
        let appender = std::thread::current();
        Arc::new(Self { through: AtomicU64::new(0), reports: Mutex::default(), appender })
    }

    fn note(&self, through: u64) {
        self.reports.lock().unwrap().push((through, Instant::now()));
        self.through.store(through, Ordering::Release);
        self.appender.unpark();
    }
}

impl CommitListener for Stamps {
    fn committed(&self, through: Ticket) {
        self.note(through);
    }
    fn failed(&self, error: StoreError) {
        panic!("{error}");
    }
}

/// Appends per second, and the median and 99th percentile of the wait, in microseconds.
struct Figures {
    each_second: f64,
    p50: f64,
    p99: f64,
}

/// Keeps `in_flight` appends in flight until `count` are done.
fn drive(stamps: &Stamps, in_flight: u64, count: u64, mut append: impl FnMut(u64)) -> Figures {
    let begun = Instant::now();
    let mut sent = Vec::with_capacity(count as usize);
    while stamps.through.load(Ordering::Acquire) < count {
        if (sent.len() as u64) < count && sent.len() as u64 - stamps.through.load(Ordering::Acquire) < in_flight {
            sent.push(Instant::now());
            append(sent.len() as u64);
        } else {
            std::thread::park();
        }
    }
    let each_second = count as f64 / begun.elapsed().as_secs_f64();
    let reports = stamps.reports.lock().unwrap();
    let mut report = reports.iter().peekable();
    let mut waits: Vec<f64> = Vec::new();
    for (number, at) in (1..).zip(&sent) {
        while report.peek().is_some_and(|(through, _)| *through < number) {
            report.next();
        }
        waits.push((report.peek().expect("it was reported").1 - *at).as_secs_f64() * 1e6);
    }
    waits.sort_by(f64::total_cmp);
    Figures { each_second, p50: waits[waits.len() / 2], p99: waits[waits.len() * 99 / 100] }
}

/// Appends turn after turn, key by key.
struct Appender {
    writer: Box<dyn ShardWriter>,
    names: Vec<String>,
    actor: Name,
}

impl Appender {
    fn new(store: &EmbeddedStore, listener: Arc<dyn CommitListener>) -> Self {
        let shard = ShardId::new(Name::new("bank").unwrap(), 0);
        let opened =
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(store.open(&shard, 1, listener));
        let names = (0..KEYS).map(|key| format!("account-{key}")).collect();
        Self { writer: opened.unwrap().writer, names, actor: Name::new("Account").unwrap() }
    }

    /// Appends turn `number`, from 1.
    fn append(&mut self, number: u64) {
        let turn = number - 1;
        let before = turn / KEYS as u64;
        let events = [EventWrite { name: "Deposited", version: 1, codec: Codec::Bincode, payload: &[1; PAYLOAD] }];
        let turn = Turn {
            actor: &self.actor,
            key: &self.names[turn as usize % KEYS],
            stream: StreamHint::default(),
            number: before + 1,
            version: before,
            time: Timestamp::from_millis(1_700_000_000_000),
            id: MessageId::from_u128(u128::from(number)),
            correlation: MessageId::from_u128(u128::from(number)),
            traceparent: None,
            headers: &[],
            mark: Mark::Outside { digest: number },
            reply: &[0, 5],
            reply_codec: Codec::Bincode,
            events: &events,
            outbox: &[],
            timers: &[],
            notes: &[],
        };
        self.writer.append(&turn).unwrap();
    }
}

fn ours(folder: &Path, in_flight: u64, count: u64) -> Figures {
    let store = EmbeddedStore::open(folder).unwrap();
    let stamps = Stamps::new();
    let mut appender = Appender::new(&store, Arc::clone(&stamps) as Arc<_>);
    drive(&stamps, in_flight, count, |number| appender.append(number))
}

/// Bytes to write, and the number of the last append in them.
type Gathered = Arc<Mutex<(Vec<u8>, u64)>>;

/// The anchor with raw bytes: queued, written to a preallocated file and flushed by a thread.
fn raw(folder: &Path, bytes: usize, in_flight: u64, count: u64) -> Figures {
    let file = zeros(&folder.join("raw"), 512 * 1024 * 1024);
    let stamps = Stamps::new();
    let (gathered, end) = (Gathered::default(), Arc::new(AtomicBool::new(false)));
    let writer: JoinHandle<()> = {
        let (gathered, end, stamps) = (Arc::clone(&gathered), Arc::clone(&end), Arc::clone(&stamps));
        std::thread::spawn(move || {
            let mut offset = 0;
            while !end.load(Ordering::Acquire) {
                let (bytes, through) = std::mem::take(&mut *gathered.lock().unwrap());
                if bytes.is_empty() {
                    std::thread::park();
                    continue;
                }
                file.write_all_at(&bytes, offset).unwrap();
                file.sync_data().unwrap();
                offset = (offset + bytes.len() as u64) % (400 * 1024 * 1024);
                stamps.note(through);
            }
        })
    };
    let payload = vec![7; bytes];
    let figures = drive(&stamps, in_flight, count, |number| {
        let mut gathered = gathered.lock().unwrap();
        gathered.0.extend_from_slice(&payload);
        gathered.1 = number;
        drop(gathered);
        writer.thread().unpark();
    });
    end.store(true, Ordering::Release);
    writer.thread().unpark();
    writer.join().unwrap();
    figures
}

fn zeros(path: &Path, length: u64) -> File {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    let zeros = vec![0; 1024 * 1024];
    (0..length).step_by(zeros.len()).for_each(|offset| file.write_all_at(&zeros, offset).unwrap());
    file.sync_all().unwrap();
    file
}

/// The size of an append in the log, measured once.
fn bytes_each(folder: &Path, count: u64) -> usize {
    let used = log_bytes(folder);
    (used / count as usize).max(1)
}

fn log_bytes(folder: &Path) -> usize {
    let logs = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let logs = logs.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("log-"));
    logs.map(|path| std::fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).unwrap_or(0)).sum()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn appends() {
    let folder = tempfile::tempdir().unwrap();
    let _ = ours(&folder.path().join("size"), 64, 10_000);
    let bytes = bytes_each(&folder.path().join("size"), 10_000);
    for (in_flight, count) in [(1, 3_000), (64, 100_000), (1_000, 400_000)] {
        let pairs: Vec<(Figures, Figures)> = (0..REPETITIONS)
            .map(|nth| {
                let ours = ours(&folder.path().join(format!("store-{in_flight}-{nth}")), in_flight, count);
                (ours, raw(folder.path(), bytes, in_flight, count))
            })
            .collect();
        let of = |figure: fn(&Figures) -> f64| {
            (median(pairs.iter().map(|pair| figure(&pair.0))), median(pairs.iter().map(|pair| figure(&pair.1))))
        };
        let (rate, p50, p99) = (of(|f| f.each_second), of(|f| f.p50), of(|f| f.p99));
        let ratio = median(pairs.iter().map(|pair| pair.0.each_second / pair.1.each_second));
        println!(
            "{in_flight} in flight, {bytes} bytes each: {:.0}/s, p50 {:.0} us, p99 {:.0} us; raw {:.0}/s, {:.0} us, {:.0} us; \
             ratio {ratio:.2}",
            rate.0, p50.0, p99.0, rate.1, p50.1, p99.1
        );
    }
}

pub(crate) fn recovery() {
    const TURNS: u64 = 1_000_000;
    let folder = tempfile::tempdir().unwrap();
    let rare = EmbeddedConfig::default().checkpoint_bytes(u64::MAX);
    let store = EmbeddedStore::open_with(folder.path(), &rare).unwrap();
    let stamps = Stamps::new();
    let mut appender = Appender::new(&store, Arc::clone(&stamps) as Arc<_>);
    drive(&stamps, 10_000, TURNS, |number| appender.append(number));
    drop(appender);
    drop(store);
    let bytes = log_bytes(folder.path());
    let open = |config: &EmbeddedConfig| {
        let begun = Instant::now();
        let store = EmbeddedStore::open_with(folder.path(), config).unwrap();
        (begun.elapsed().as_secs_f64(), store)
    };
    let all = median((0..REPETITIONS).map(|_| open(&rare).0));
    open(&rare).1.checkpoint();
    let rest = median((0..REPETITIONS).map(|_| open(&rare).0));
    println!(
        "opening {TURNS} records, {:.0} MB: {:.0} ms from the log alone ({:.2} s a GB), {:.0} ms with a checkpoint",
        bytes as f64 / 1e6,
        all * 1e3,
        all / bytes as f64 * 1e9,
        rest * 1e3
    );
}
