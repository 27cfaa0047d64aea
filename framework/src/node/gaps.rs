//! What shards lack of what others have sent them, asked of the sender's log.
//!
//! Called by gates. Asks the owner of the sending shard over the bridge, or this node's own log, one question of a gate at a time.

use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::NodeEnd;
use super::background;
use super::confirmations::sent_to;
use super::definition::NodeDefinition;
use super::known_owners::KnownOwner;
use super::thread::ThreadRuntime;
use crate::bridge::{Page, Request, Response};
use crate::inbox::ReceiveWindow;
use crate::message::{Envelope, ShardId};
use crate::relay::page;
use crate::retry::Retry;
use crate::telemetry::TARGET;

/// How many outbox entries are asked for at a time.
const LIMIT: u16 = 256;

/// What a sender has answered: entries of its outbox, and the last sequence that it has sent.
struct Sent {
    entries: Vec<Envelope>,
    head: u64,
    /// How far this node has committed of it, as the sender knows.
    committed: u64,
}

impl ThreadRuntime {
    /// A sender has sent everything up to `through` and hears of no progress: what did not come is fetched from its outbox.
    pub(super) fn heard_sent(self: &Rc<Self>, from: &ShardId, to: &ShardId, through: u64) {
        if !self.shards.contains_key(to) || self.has_ended.get() || self.context.draining.get() {
            return;
        }
        if let Some(gate) = self.gate(from, to) {
            gate.is_told(through);
        }
    }

    /// Asks the sending shard's owner for as long as a gate has a question.
    pub(super) fn ask_sender(self: &Rc<Self>, gate: &Rc<ReceiveWindow>) {
        let (me, gate) = (Rc::downgrade(self), Rc::downgrade(gate));
        crate::spawn::repeated(&self.context.user_code, "ask a sender", move || ask(me.clone(), gate.clone()));
    }
}

async fn ask(me: Weak<ThreadRuntime>, gate: Weak<ReceiveWindow>) {
    // Asked again while something waits behind the gap: a question and its answer may get lost as well.
    let retry = Retry { longest: background::ASK, ..Retry::default() };
    let mut failures = 0;
    loop {
        let Some(asking) = gate.upgrade() else { return };
        let Some(question) = asking.missing_range() else { return asking.asked() };
        asking.may_ask(&question).await;
        let Some(spec) = me.upgrade().filter(|me| !me.has_ended.get()).map(|me| Arc::clone(&me.definition)) else {
            return asking.asked();
        };
        let answer = entries(&spec, &asking.from, &asking.to, question.after).await;
        drop(spec);
        let Some(share) = me.upgrade() else { return };
        let stops = share.has_ended.get() || share.context.draining.get();
        if answer.is_err() {
            asking.is_not_answered();
        }
        match answer {
            Ok(page) if share.is_older_than(&asking, page.committed) => return,
            Ok(page) => {
                if stops || !asking.answered(question, page.entries, page.head) {
                    // The sender sends again what was not committed, so this need not go on for ever.
                    return asking.asked();
                }
                failures = 0;
            }
            Err(again) if !again || stops || asking.missing_range().is_none() => return asking.asked(),
            // An owner that is away is said at once: without a wait this would ask for ever and never let go.
            Err(_) => {
                failures += 1;
                let wait = retry.wait(failures, &share.context.ids);
                drop((share, asking));
                tokio::time::sleep(wait).await;
            }
        }
    }
}

impl ThreadRuntime {
    /// Ends the node if it has committed less of what came through a gate than its sender knows: its store is empty, or an older copy,
    /// and would do again what it has done. An operator who says so goes on with it.
    fn is_older_than(&self, gate: &ReceiveWindow, committed: u64) -> bool {
        let here = self.watermark(&gate.from, &gate.to);
        if committed <= here {
            return false;
        }
        let (from, to) = (&gate.from, &gate.to);
        if self.definition.identity.get().is_none_or(|own| own.in_place_of_other) {
            tracing::warn!(
                target: TARGET, %from, %to, committed, here,
                "had committed more than this store knows, and is handled again, as configured",
            );
            return false;
        }
        let end = NodeEnd::OlderStore { from: from.to_string(), to: to.to_string(), committed, here };
        tracing::error!(target: TARGET, %end, "the node serves no more: end its process");
        self.definition.retire(&self.threads, end);
        true
    }
}

/// What `from` has sent to `to` above a sequence: from this node's own log, or its owner's over the bridge. The error says
/// whether to ask again.
async fn entries(spec: &Arc<NodeDefinition>, from: &ShardId, to: &ShardId, after: u64) -> Result<Sent, bool> {
    if let Some(reader) = spec.reader(from) {
        // Before it is read: what is sent meanwhile may not be among what is read.
        let head = sent_to(&*reader, to);
        let entries = page::outbox(&*reader, to, after, usize::from(LIMIT)).await.map_err(|_| true)?;
        return Ok(Sent { entries: entries.into_iter().map(|entry| entry.envelope).collect(), head, committed: 0 });
    }
    let Some(bridge) = &spec.bridge else { return Err(false) };
    let asked = Request::Outbox { from: from.clone(), to: to.clone(), after, limit: LIMIT.into() };
    match bridge.request(asked.clone(), background::ASK).await {
        Ok(Response::Envelopes(Page { envelopes: mut entries, last: head, committed, store })) => {
            if spec.known_owners.find(&**bridge, asked.domain(), store).await != KnownOwner::Owner {
                return Err(true);
            }
            if entries.iter().all(|one| asked.admits(one)) {
                spec.judged_all(&mut entries).await.map_err(|_| true)?;
                return Ok(Sent { entries, head, committed: committed.unwrap_or(0) });
            }
            tracing::error!(target: TARGET, %from, %to, "its owner was asked for what it has sent, and answers for somebody else");
            Err(false)
        }
        Ok(_) => Err(true),
        Err(error) => Err(error.is_transient()),
    }
}
