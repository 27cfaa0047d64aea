//! Gaps: fetches messages between shards that did not arrive from the sender's outbox.
//!
//! Called by receive windows. Requests them from the owner of the sending shard over the bridge, or reads this node's
//! own log; one request per window at a time.

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

/// Number of outbox entries requested at a time.
const LIMIT: u16 = 256;

/// Page of a sender's outbox, with the last sequence that it has sent.
struct Sent {
    entries: Vec<Envelope>,
    head: u64,
    /// Watermark of this node, as the sender knows it.
    committed: u64,
}

impl ThreadRuntime {
    /// Handles a sender's report that it has sent up to `through` without progress: missing messages are fetched from
    /// its outbox.
    pub(super) fn heard_sent(self: &Rc<Self>, from: &ShardId, to: &ShardId, through: u64) {
        if !self.shards.contains_key(to) || self.has_ended.get() || self.context.draining.get() {
            return;
        }
        if let Some(gate) = self.gate(from, to) {
            gate.is_told(through);
        }
    }

    /// Requests missing messages from the sending shard's owner until the window lacks none.
    pub(super) fn ask_sender(self: &Rc<Self>, gate: &Rc<ReceiveWindow>) {
        let (me, gate) = (Rc::downgrade(self), Rc::downgrade(gate));
        crate::spawn::repeated(&self.context.user_code, "request missing messages", move || {
            ask(me.clone(), gate.clone())
        });
    }
}

async fn ask(me: Weak<ThreadRuntime>, gate: Weak<ReceiveWindow>) {
    // Repeated while messages wait behind the gap: a request or its response may be lost too.
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
                    // The sender sends uncommitted messages again, so this need not continue forever.
                    return asking.asked();
                }
                failures = 0;
            }
            Err(again) if !again || stops || asking.missing_range().is_none() => return asking.asked(),
            // An unreachable owner is reported at once: without a wait this loop would spin.
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
    /// Ends the node if it has committed less of a window's messages than their sender knows: its store is empty or
    /// an older copy, and committed work would be repeated. An operator may configure the node to continue.
    fn is_older_than(&self, gate: &ReceiveWindow, committed: u64) -> bool {
        let here = self.watermark(&gate.from, &gate.to);
        if committed <= here {
            return false;
        }
        let (from, to) = (&gate.from, &gate.to);
        if self.definition.identity.get().is_none_or(|own| own.in_place_of_other) {
            tracing::warn!(
                target: TARGET, %from, %to, committed, here,
                "store older than its peers know: messages are handled again, as configured",
            );
            return false;
        }
        let end = NodeEnd::OlderStore { from: from.to_string(), to: to.to_string(), committed, here };
        tracing::error!(target: TARGET, %end, "store is empty or an older copy: shutting down; end the process");
        self.definition.retire(&self.threads, end);
        true
    }
}

/// Returns entries of `from`'s outbox for `to` above a sequence, from this node's own log or from the owner over the
/// bridge. The error tells whether to retry.
async fn entries(spec: &Arc<NodeDefinition>, from: &ShardId, to: &ShardId, after: u64) -> Result<Sent, bool> {
    if let Some(reader) = spec.reader(from) {
        // Read before the entries: an entry sent in between may be missing from the page.
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
            tracing::error!(target: TARGET, %from, %to, "owner returned entries of a different shard");
            Err(false)
        }
        Ok(_) => Err(true),
        Err(error) => Err(error.is_transient()),
    }
}
