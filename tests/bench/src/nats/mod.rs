//! Commands and events between nodes over a nats-server, against the NATS client alone.
//!
//! The caller, the owner and each subscriber have their own thread and connection; the server is a separate process.

mod ours;
mod raw;

pub(crate) use ours::{Book, Reader, bridge, next_run, write};

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use whizbang::derive::block_on;
use whizbang_tests::nats::{NatsServer, Release};

use crate::report::{REPETITIONS, report};

/// The bytes of a message.
const BYTES: usize = 200;
const RELEASE: Release = Release::Distribution;

/// The figures of a run of commands.
struct Measured {
    rate: f64,
    p50_us: f64,
}

pub(crate) fn command_alone() {
    commands("nats_command_latency", 0, 1, 3000, "us p50", |measured| measured.p50_us);
}

/// The same with an owner of the default configuration, an actor thread and a thread for the bridge, and a client with its own thread.
pub(crate) fn command_alone_threads() {
    commands("nats_command_latency_threads", 1, 1, 3000, "us p50", |measured| measured.p50_us);
}

pub(crate) fn command_256() {
    commands("nats_command_256_in_flight", 0, 256, 300, "commands/s", |measured| measured.rate);
}

fn commands(bench: &str, threads: usize, in_flight: usize, each: usize, unit: &str, figure: fn(&Measured) -> f64) {
    let pairs = command_pairs(threads, in_flight, each, 1 + REPETITIONS);
    let pairs: Vec<_> = pairs.iter().skip(1).map(|(ours, raw)| (figure(ours), figure(raw))).collect();
    report(bench, unit, "raw JetStream publish, pull, core reply, ack", &pairs);
}

/// Measures commands in alternation with their anchor.
fn command_pairs(threads: usize, in_flight: usize, each: usize, repetitions: usize) -> Vec<(Measured, Measured)> {
    let server = NatsServer::start(RELEASE);
    let url = server.url();
    let pair = |_| {
        let raw = raw::commands(&url, in_flight, each);
        (ours::commands(&url, threads, in_flight, each), raw)
    };
    (0..repetitions).map(pair).collect()
}

pub(crate) fn events_1() {
    events("nats_events_1_subscriber", 0, 1, 100_000);
}

/// The same with nodes of the default configuration: an actor thread, and a thread for the bridge.
pub(crate) fn events_1_threads() {
    events("nats_events_1_subscriber_threads", 1, 1, 100_000);
}

pub(crate) fn events_4() {
    events("nats_events_4_subscribers", 0, 4, 50_000);
}

pub(crate) fn events_16() {
    events("nats_events_16_subscribers", 0, 16, 20_000);
}

fn events(bench: &str, threads: usize, subscribers: usize, count: usize) {
    let pairs = event_pairs(threads, subscribers, count, 1 + REPETITIONS);
    report(bench, "deliveries/s", "raw pull consumers with a set of ids", pairs.get(1..).unwrap_or_default());
}

/// Measures events in alternation with their anchor.
fn event_pairs(threads: usize, subscribers: usize, count: usize, repetitions: usize) -> Vec<(f64, f64)> {
    let server = NatsServer::start(RELEASE);
    let pair = |_| {
        let raw = raw::events(&server.url(), subscribers, count);
        (ours::events(&server.url(), threads, subscribers, count), raw)
    };
    (0..repetitions).map(pair).collect()
}

/// Runs `each` requests in each of `tasks` tasks.
async fn in_flight<F: Future<Output = ()> + 'static>(
    tasks: usize,
    each: usize,
    ask: impl Fn(usize) -> F + 'static,
) -> Measured {
    let ask = Rc::new(ask);
    let next = Rc::new(Cell::new(0));
    // The first request of each task is a warm-up.
    let begun = Instant::now();
    let running: Vec<_> = (0..tasks)
        .map(|_| {
            let (ask, next) = (Rc::clone(&ask), Rc::clone(&next));
            tokio::task::spawn_local(async move {
                let mut spans = Vec::with_capacity(each);
                for _ in 0..each {
                    let number = next.replace(next.get() + 1);
                    let begun = Instant::now();
                    ask(number).await;
                    spans.push(begun.elapsed());
                }
                spans
            })
        })
        .collect();
    let mut spans: Vec<Duration> = Vec::new();
    for task in running {
        spans.extend(task.await.expect("it ends"));
    }
    Measured { rate: spans.len() as f64 / begun.elapsed().as_secs_f64(), p50_us: raw::p50(&spans) }
}

/// A thread that runs until it is told to end.
struct Running {
    end: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Running {
    fn end(self) {
        let _ = self.end.send(());
        self.thread.join().expect("it ends");
    }
}

/// Starts a thread and waits until it is ready.
fn thread<F: Future<Output = ()> + 'static>(
    url: &str,
    run: impl FnOnce(String, std::sync::mpsc::Sender<()>, oneshot::Receiver<()>) -> F + Send + 'static,
) -> Running {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (end, ended) = oneshot::channel();
    let url = url.to_owned();
    let thread = std::thread::spawn(move || block_on(run(url, ready, ended)));
    is_ready.recv().expect("it starts");
    Running { end, thread }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows run with few messages, twice on one server as in a measurement.
    #[test]
    fn rows_complete_with_few_messages() {
        for (threads, in_flight, each) in [(0, 1, 20), (1, 16, 5)] {
            for (ours, raw) in command_pairs(threads, in_flight, each, 2) {
                assert!(ours.rate > 0.0 && ours.p50_us > 0.0 && raw.rate > 0.0 && raw.p50_us > 0.0);
            }
        }
        for (ours, raw) in event_pairs(0, 2, 300, 2).into_iter().chain(event_pairs(1, 1, 300, 2)) {
            assert!(ours > 0.0 && raw > 0.0, "{ours} {raw}");
        }
    }
}
