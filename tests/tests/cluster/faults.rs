//! The faults of a run, one after the other, in an order that a seed decides.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use whizbang::message::IdSource;

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
    /// The message server is killed and started again.
    KillNats,
    /// The database is killed and started again.
    KillPostgres,
    /// All sessions of the database are terminated.
    TerminateSessions,
}

impl Fault {
    pub(crate) const ALL: [Self; 7] = [
        Self::KillNode,
        Self::LongPause,
        Self::KillNats,
        Self::Restart,
        Self::KillPostgres,
        Self::ShortPause,
        Self::TerminateSessions,
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

/// Injects faults until `end`, each kind at least once. Returns how often each fired.
pub(crate) fn inject(
    cluster: &mut Cluster,
    callers: &Callers,
    chance: &IdSource,
    end: Instant,
) -> BTreeMap<Fault, usize> {
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
            Fault::KillNats => {
                cluster.nats.kill();
                outage(Duration::from_millis(chance.below(1_500)));
                cluster.nats.restart();
            }
            Fault::KillPostgres => {
                cluster.postgres.kill();
                outage(Duration::from_millis(chance.below(1_500)));
                cluster.postgres.run();
            }
            Fault::TerminateSessions => assert!(cluster.postgres.terminate_sessions() > 0, "no session to terminate"),
        }
        *fired.entry(next).or_default() += 1;
        wait_for_replies(callers, 200);
    }
    fired
}
