//! The faults of a run, one after the other, in an order that a seed decides.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use whizbang::message::IdSource;
use whizbang_tests::nats::stream_leader;
use whizbang_tests::{Direction, StallingProxy};

use crate::callers::Callers;
use crate::nodes::{Cluster, LEASE, NODES, SERVICES};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A node is killed with SIGKILL and started again after its lease.
    KillNode,
    /// A node is stopped in order and started again.
    Restart,
    /// A node is paused for less than its lease.
    ShortPause,
    /// A node is paused for longer than its lease: others take its shards.
    LongPause,
    /// The message server that leads the stream of a service's commands is killed and started again.
    KillNatsLeader,
    /// The database is killed and started again.
    KillPostgres,
    /// All sessions of the database are terminated.
    TerminateSessions,
    /// Packets of a node do not reach the database or the message servers; their responses reach the node.
    CutRequests,
    /// No answer of the database or of the message servers arrives at a node.
    CutAnswers,
}

impl Fault {
    pub(crate) const ALL: [Self; 9] = [
        Self::KillNode,
        Self::LongPause,
        Self::KillNatsLeader,
        Self::Restart,
        Self::KillPostgres,
        Self::ShortPause,
        Self::TerminateSessions,
        Self::CutRequests,
        Self::CutAnswers,
    ];
}

/// Waits until the callers have got `more` replies.
fn wait_for_replies(callers: &Callers, more: usize) {
    let before = callers.answered.load(std::sync::atomic::Ordering::Relaxed);
    whizbang_tests::eventually("replies after a fault", Duration::from_secs(90), || {
        (callers.answered.load(std::sync::atomic::Ordering::Relaxed) >= before + more).then_some(())
    });
}

/// Waits a span that is part of the fault: the time for which something is down.
#[expect(clippy::disallowed_methods, reason = "the length of an outage is part of the fault; no result depends on it")]
fn outage(span: Duration) {
    std::thread::sleep(span);
}

/// Stops one direction of some connections for at least `span`, and until it has held something back.
fn cut(proxies: &[&StallingProxy], direction: Direction, span: Duration) {
    let held = || proxies.iter().map(|proxy| proxy.held()).sum::<usize>();
    let before = held();
    proxies.iter().for_each(|proxy| proxy.stall(direction));
    outage(span);
    whizbang_tests::eventually("a cut to hold something back", Duration::from_secs(60), || {
        (held() > before).then_some(())
    });
    proxies.iter().for_each(|proxy| proxy.resume());
}

/// Injects faults until `end`, each kind at least once. Returns how often each fired.
pub(crate) fn inject(
    cluster: &mut Cluster,
    (runtime, operator): (&tokio::runtime::Runtime, &async_nats::Client),
    callers: &Callers,
    chance: &IdSource,
    end: Instant,
) -> BTreeMap<Fault, usize> {
    let lease = u64::try_from(LEASE.as_millis()).expect("small");
    let mut fired = BTreeMap::new();
    while Instant::now() < end || fired.len() < Fault::ALL.len() {
        let next = match Fault::ALL.iter().find(|fault| !fired.contains_key(*fault)) {
            Some(fault) => *fault,
            None => Fault::ALL[usize::try_from(chance.below(Fault::ALL.len() as u64)).expect("small")],
        };
        let service = usize::try_from(chance.below(SERVICES.len() as u64)).expect("small");
        let number = usize::try_from(chance.below(NODES as u64)).expect("small");
        match next {
            Fault::KillNode => {
                cluster.kill(service, number);
                outage(Duration::from_millis(chance.below(4_000)));
                cluster.start_node(service, number);
                cluster.wait_until_ready(service, number);
            }
            Fault::Restart => {
                let mut node = cluster.nodes[service][number].take().expect("a running node");
                node.signal("TERM");
                node.ends_in_order();
                cluster.start_node(service, number);
                cluster.wait_until_ready(service, number);
            }
            Fault::ShortPause | Fault::LongPause => {
                cluster.node(service, number).signal("STOP");
                let longest = if next == Fault::ShortPause { LEASE / 2 } else { 3 * LEASE };
                let shortest = if next == Fault::ShortPause { LEASE / 4 } else { LEASE + LEASE / 2 };
                let range = u64::try_from((longest - shortest).as_millis()).expect("small");
                outage(shortest + Duration::from_millis(chance.below(range)));
                cluster.node(service, number).signal("CONT");
            }
            Fault::KillNatsLeader => {
                let stream = format!("whizbang_commands_{}", SERVICES[service]);
                let leader = runtime.block_on(stream_leader(operator, &stream));
                // Between two leaders any server is as good.
                let server = leader.unwrap_or(number);
                cluster.nats.kill(server);
                outage(Duration::from_millis(chance.below(4_000)));
                cluster.nats.restart(server);
            }
            Fault::KillPostgres => {
                cluster.postgres.kill();
                outage(Duration::from_millis(chance.below(1_500)));
                cluster.postgres.run();
            }
            Fault::CutRequests | Fault::CutAnswers => {
                let direction = if next == Fault::CutRequests { Direction::Requests } else { Direction::Answers };
                let network = &cluster.networks[service][number];
                let proxies = match chance.below(3) {
                    0 => vec![&network.postgres],
                    1 => network.nats.iter().collect(),
                    _ => network.nats.iter().chain([&network.postgres]).collect(),
                };
                cut(&proxies, direction, Duration::from_millis(chance.below(3 * lease)));
            }
            Fault::TerminateSessions => assert!(cluster.postgres.terminate_sessions() > 0, "no session to terminate"),
        }
        *fired.entry(next).or_default() += 1;
        wait_for_replies(callers, 200);
    }
    fired
}
