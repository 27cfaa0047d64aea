//! What shards lack of what others have sent them, asked of the sender's log.
//!
//! Called by gates. Asks the owner of the sending shard over the bridge, or this node's own log, one question of a gate at a time.

use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::notes::sent_to;
use super::share::Share;
use super::spec::Spec;
use super::tasks;
use crate::bridge::{Answer, Asked};
use crate::inbox::Gate;
use crate::message::{Envelope, ShardId};
use crate::relay::page;
use crate::retry::Retry;
use crate::telemetry::TARGET;

/// How many outbox entries are asked for at a time.
const PAGE: u16 = 256;

/// What a sender has answered: entries of its outbox, and the last sequence that it has sent.
struct Page {
    entries: Vec<Envelope>,
    head: u64,
}

impl Share {
    /// A sender has sent everything up to `through` and hears of no progress: what did not come is fetched from its outbox.
    pub(super) fn heard_sent(self: &Rc<Self>, from: &ShardId, to: &ShardId, through: u64) {
        if !self.shards.contains_key(to) || self.has_ended.get() || self.host.draining.get() {
            return;
        }
        if let Some(gate) = self.gate(from, to) {
            gate.is_told(through);
        }
    }

    /// Asks the sending shard's owner for as long as a gate has a question.
    pub(super) fn ask_sender(self: &Rc<Self>, gate: &Rc<Gate>) {
        let (me, gate) = (Rc::downgrade(self), Rc::downgrade(gate));
        crate::spawn::repeated(&self.host.code, "ask a sender", move || ask(me.clone(), gate.clone()));
    }
}

async fn ask(me: Weak<Share>, gate: Weak<Gate>) {
    // Asked again while something waits behind the gap: a question and its answer may get lost as well.
    let retry = Retry { longest: tasks::ASK, ..Retry::default() };
    let mut failures = 0;
    loop {
        let Some(asking) = gate.upgrade() else { return };
        let Some(question) = asking.question() else { return asking.asked() };
        asking.may_ask(&question).await;
        let Some(spec) = me.upgrade().filter(|me| !me.has_ended.get()).map(|me| Arc::clone(&me.spec)) else {
            return asking.asked();
        };
        let answer = entries(&spec, &asking.from, &asking.to, question.after).await;
        drop(spec);
        let Some(share) = me.upgrade() else { return };
        let stops = share.has_ended.get() || share.host.draining.get();
        if answer.is_err() {
            asking.is_not_answered();
        }
        match answer {
            Ok(page) => {
                if stops || !asking.answered(question, page.entries, page.head) {
                    // The sender sends again what was not committed, so this need not go on for ever.
                    return asking.asked();
                }
                failures = 0;
            }
            Err(again) if !again || stops || asking.question().is_none() => return asking.asked(),
            // An owner that is away is said at once: without a wait this would ask for ever and never let go.
            Err(_) => {
                failures += 1;
                let wait = retry.wait(failures, &share.host.ids);
                drop((share, asking));
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// What `from` has sent to `to` above a sequence: from this node's own log, or its owner's over the bridge. The error says
/// whether to ask again.
async fn entries(spec: &Arc<Spec>, from: &ShardId, to: &ShardId, after: u64) -> Result<Page, bool> {
    if let Some(reader) = spec.reader(from) {
        // Before it is read: what is sent meanwhile may not be among what is read.
        let head = sent_to(&*reader, to);
        let entries = page::outbox(&*reader, to, after, usize::from(PAGE)).await.map_err(|_| true)?;
        return Ok(Page { entries: entries.into_iter().map(|entry| entry.envelope).collect(), head });
    }
    let Some(bridge) = &spec.bridge else { return Err(false) };
    let asked = Asked::Outbox { from: from.clone(), to: to.clone(), after, limit: PAGE.into() };
    match bridge.ask(asked.clone(), tasks::ASK).await {
        Ok(Answer::Envelopes(mut entries, head)) => {
            if entries.iter().all(|one| asked.admits(one)) {
                return spec.judged_all(&mut entries).await.map(|()| Page { entries, head }).map_err(|_| true);
            }
            tracing::error!(target: TARGET, %from, %to, "its owner was asked for what it has sent, and answers for somebody else");
            Err(false)
        }
        Ok(_) => Err(true),
        Err(error) => Err(error.is_transient()),
    }
}
