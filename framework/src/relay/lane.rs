//! What one shard sends to others: one lane per destination, a window of entries on their way, sent again if need be.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::instant;
use crate::message::{Envelope, ShardId};
use crate::store::{ShardReader, StoreError};
use crate::telemetry::{Counts, TARGET, passes};

/// How many entries of a lane are on their way, at most.
const WINDOW: u64 = 1024;
/// How many entries are read at a time.
const PAGE: usize = 128;
/// After what time without progress a lane's entries are sent again; it doubles up to [`LONGEST`].
const PATIENCE: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(10);

/// Hands an entry on; whether it was taken. The destination's commit is told to [`Lanes::committed`].
pub(crate) type Onward = Rc<dyn Fn(Envelope)>;

struct Lane {
    /// The last sequence handed on.
    offered: u64,
    /// The last sequence the destination has committed.
    committed: u64,
    /// The last sequence the store knows to be committed.
    stored: u64,
    /// When the entries on their way are handed on again.
    again: Instant,
    patience: Duration,
}

/// The lanes of one shard.
pub(crate) struct Lanes {
    lanes: RefCell<BTreeMap<ShardId, Lane>>,
    counts: Arc<Counts>,
}

impl Lanes {
    pub(crate) fn new(counts: Arc<Counts>) -> Rc<Self> {
        Rc::new(Self { lanes: RefCell::default(), counts })
    }

    /// When to look for lanes without progress.
    pub(crate) fn next_impatience(&self) -> Option<Instant> {
        let lanes = self.lanes.borrow();
        lanes.values().filter(|lane| lane.offered > lane.committed).map(|lane| lane.again).min()
    }

    /// What is on its way may have been lost: it is handed on again at the next look.
    pub(crate) fn hurry(&self) {
        for lane in self.lanes.borrow_mut().values_mut() {
            lane.offered = lane.committed;
        }
    }

    /// The same for what is on its way to one destination, unless that was just handed on.
    pub(crate) fn hurry_to(&self, to: &ShardId) {
        let now = instant();
        if let Some(lane) = self.lanes.borrow_mut().get_mut(to)
            && lane.again > now + PATIENCE / 2
            && lane.patience > PATIENCE
        {
            lane.patience = PATIENCE;
            lane.offered = lane.committed;
        }
    }

    /// Forgets what was on its way: it is handed on again.
    pub(crate) fn reset(&self) {
        self.lanes.borrow_mut().clear();
    }

    /// Hands on what the store has and the windows have room for.
    pub(crate) async fn pump(&self, reader: &Arc<dyn ShardReader>, onward: &Onward) -> Result<(), StoreError> {
        for (to, done, head) in reader.outbox_heads() {
            loop {
                let (after, room) = {
                    let mut lanes = self.lanes.borrow_mut();
                    let lane = lanes.entry(to.clone()).or_insert_with(|| Lane {
                        offered: done,
                        committed: done,
                        stored: done,
                        again: instant() + PATIENCE,
                        patience: PATIENCE,
                    });
                    lane.committed = lane.committed.max(done);
                    lane.stored = lane.stored.max(done);
                    if lane.offered == lane.committed {
                        lane.again = instant() + lane.patience;
                    }
                    (lane.offered, lane.committed.saturating_add(WINDOW).saturating_sub(lane.offered))
                };
                if after >= head || room == 0 {
                    break;
                }
                let entries = reader.outbox(&to, after, PAGE.min(usize::try_from(room).unwrap_or(PAGE))).await?;
                if entries.is_empty() {
                    break;
                }
                for entry in entries {
                    {
                        let mut lanes = self.lanes.borrow_mut();
                        let Some(lane) = lanes.get_mut(&to) else { return Ok(()) };
                        // A commit that came back meanwhile may have moved the lane on.
                        if entry.sequence <= lane.offered {
                            continue;
                        }
                        lane.offered = entry.sequence;
                        if cfg!(plant = "outbox_forgotten_when_sent") {
                            lane.committed = entry.sequence;
                        }
                    }
                    self.counts.sent.one();
                    let envelope = entry.envelope;
                    passes!("relay", envelope.name, envelope.id, envelope.correlation);
                    onward(envelope);
                }
            }
        }
        Ok(())
    }

    /// The destination has committed all up to and including `through`. Whether that was news. `head` is the last sequence
    /// that was sent to it; it is looked up only if `through` is more than was handed on.
    pub(crate) fn committed(&self, to: &ShardId, through: u64, head: impl FnOnce() -> u64) -> bool {
        let mut lanes = self.lanes.borrow_mut();
        let Some(lane) = lanes.get_mut(to) else { return false };
        if through <= lane.committed {
            return false;
        }
        // It may have asked for more than was handed on, but never for more than there is.
        if through > lane.offered && through > head() {
            // Believed, what comes next would never be sent.
            tracing::error!(
                target: TARGET, %to, through, sent = lane.offered,
                "claims to have committed what was never sent to it: is this store an older copy of the one it heard from?",
            );
            return false;
        }
        lane.committed = through;
        lane.offered = lane.offered.max(through);
        lane.patience = PATIENCE;
        lane.again = instant() + PATIENCE;
        true
    }

    /// Whether all that was ever sent is committed by its destination, by what the store says was sent.
    pub(crate) fn is_at_rest(&self, heads: &[(ShardId, u64, u64)]) -> bool {
        let lanes = self.lanes.borrow();
        heads.iter().all(|(to, done, head)| lanes.get(to).map_or(*done, |lane| lane.committed.max(*done)) >= *head)
    }

    /// What the store should be told: the destination and how far it has committed.
    pub(crate) fn unstored(&self, at_least: u64) -> Vec<(ShardId, u64)> {
        let mut lanes = self.lanes.borrow_mut();
        lanes
            .iter_mut()
            .filter(|(_, lane)| lane.committed >= lane.stored + at_least.max(1))
            .map(|(to, lane)| {
                lane.stored = lane.committed;
                (to.clone(), lane.committed)
            })
            .collect()
    }

    /// Lets lanes without progress start again from what is committed: whether any does, and when to look next.
    pub(crate) fn impatience(&self) -> (bool, Option<Instant>) {
        let now = instant();
        let (mut restarted, mut next) = (false, None);
        for lane in self.lanes.borrow_mut().values_mut().filter(|lane| lane.offered > lane.committed) {
            if lane.again <= now {
                restarted = true;
                lane.offered = lane.committed;
                lane.patience = (lane.patience * 2).min(LONGEST);
                lane.again = now + lane.patience;
            }
            next = Some(next.map_or(lane.again, |next: Instant| next.min(lane.again)));
        }
        (restarted, next)
    }
}
