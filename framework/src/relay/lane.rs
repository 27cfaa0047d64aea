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
use crate::telemetry::{Counts, passes};

/// How many entries of a lane are on their way, at most.
const WINDOW: u64 = 1024;
/// How many entries are read at a time.
const PAGE: usize = 128;
/// After what time without progress a lane's entries are sent again; it doubles up to [`LONGEST`].
const PATIENCE: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(10);

/// Hands an entry on; whether it was taken. The destination's commit is told to [`Lanes::committed`].
pub(crate) type Onward = Rc<dyn Fn(Envelope)>;

/// What a destination says that it has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// More than before.
    News,
    /// What was known.
    Known,
    /// More than was ever sent to it. Believed, what comes next would never be sent.
    Impossible,
}

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
    /// Nothing is sent any more, and nothing believed.
    stopped: bool,
}

impl Lane {
    /// A lane of which nothing is under way.
    fn from(committed: u64) -> Self {
        let again = instant() + PATIENCE;
        Self { offered: committed, committed, stored: committed, again, patience: PATIENCE, stopped: false }
    }
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

    /// When to look for lanes without progress to such destinations.
    pub(crate) fn next_impatience(&self, of: impl Fn(&ShardId) -> bool) -> Option<Instant> {
        let lanes = self.lanes.borrow();
        let waiting = lanes.iter().filter(|(to, lane)| lane.offered > lane.committed && of(to));
        waiting.map(|(_, lane)| lane.again).min()
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
            && !lane.stopped
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

    /// Hands on what the store has for such destinations and the windows have room for.
    pub(crate) async fn pump(
        &self,
        reader: &Arc<dyn ShardReader>,
        onward: &Onward,
        of: impl Fn(&ShardId) -> bool,
    ) -> Result<(), StoreError> {
        for (to, done, head) in reader.outbox_heads().into_iter().filter(|(to, ..)| of(to)) {
            loop {
                let (after, room) = {
                    let mut lanes = self.lanes.borrow_mut();
                    let lane = lanes.entry(to.clone()).or_insert_with(|| Lane::from(done));
                    if lane.stopped {
                        break;
                    }
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

    /// The destination says that it has committed all up to and including `through`. `head` is the last sequence that was sent to
    /// it; it is looked up only if `through` is more than was handed on.
    pub(crate) fn committed(&self, to: &ShardId, through: u64, head: impl FnOnce() -> u64) -> Claim {
        let mut lanes = self.lanes.borrow_mut();
        // Before anything is handed on, what the store knows is all that can be committed.
        let Some(lane) = lanes.get_mut(to) else {
            return if through > head() { Claim::Impossible } else { Claim::Known };
        };
        if through <= lane.committed || lane.stopped {
            return Claim::Known;
        }
        // It may have asked for more than was handed on, but never for more than there is.
        if through > lane.offered && through > head() {
            return Claim::Impossible;
        }
        lane.committed = through;
        lane.offered = lane.offered.max(through);
        lane.patience = PATIENCE;
        lane.again = instant() + PATIENCE;
        Claim::News
    }

    /// Hands nothing on to a destination any more.
    pub(crate) fn stop(&self, to: &ShardId) {
        let mut lanes = self.lanes.borrow_mut();
        let lane = lanes.entry(to.clone()).or_insert_with(|| Lane::from(0));
        lane.stopped = true;
        lane.offered = lane.committed;
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

    /// Lets lanes without progress to such destinations start again from what is committed: whether any does, and when to look
    /// next.
    pub(crate) fn impatience(&self, of: impl Fn(&ShardId) -> bool) -> (bool, Option<Instant>) {
        let now = instant();
        let (mut restarted, mut next) = (false, None);
        let mut lanes = self.lanes.borrow_mut();
        for (_, lane) in lanes.iter_mut().filter(|(to, lane)| lane.offered > lane.committed && of(to)) {
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
