//! Gaps: fetches messages between shards that did not arrive from the sender's outbox.
//!
//! Called by receive windows. Requests them from the owner of the sending shard over the bridge, or reads this node's
//! own log; one request per window at a time.

use std::rc::{Rc, Weak};
use std::sync::Arc;

use crate::inbox::ReceiveWindow;
use crate::node::definition::known_owners::Ownership;
use crate::node::definition::{NodeDefinition, REQUEST_TIMEOUT};
use crate::node::error::NodeEnd;
use crate::node::thread::ThreadRuntime;
use crate::relay::page;
use whizbang_core::bridge::{Page, Request, Response};
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, ShardId};
use whizbang_core::retry::Retry;
use whizbang_core::telemetry::TARGET;

/// Number of outbox entries requested at a time.
const LIMIT: u16 = 256;

/// Page of a sender's outbox, with the last sequence that it has sent.
struct OutboxPage {
    entries: Vec<Envelope>,
    head: u64,
    /// Watermark of this node, as the sender knows it.
    committed: u64,
}

impl ThreadRuntime {
    /// Handles a sender's report that it has sent up to `through` without progress: missing messages are fetched from
    /// its outbox.
    pub(in crate::node) fn note_sent(self: &Rc<Self>, from: &ShardId, to: &ShardId, through: u64) {
        if self.has_ended.get() || self.shard(to).is_none_or(|shard| self.context.is_closing(&shard)) {
            return;
        }
        if let Some(window) = self.receive_window(from, to) {
            window.note_sent(through);
        }
    }

    /// Requests missing messages from the sending shard's owner until the window lacks none.
    pub(in crate::node) fn request_missing(self: &Rc<Self>, window: &Rc<ReceiveWindow>) {
        let (me, window) = (Rc::downgrade(self), Rc::downgrade(window));
        whizbang_core::spawn::restarting(&self.context.user_code, "request missing messages", move || {
            request_missing(me.clone(), window.clone())
        });
    }
}

async fn request_missing(me: Weak<ThreadRuntime>, window: Weak<ReceiveWindow>) {
    // Repeated while messages wait behind the gap: a request or its response may be lost too.
    let retry = Retry { longest: REQUEST_TIMEOUT, ..Retry::default() };
    let mut failures = 0;
    loop {
        let Some(window) = window.upgrade() else { return };
        let Some(question) = window.missing_range() else { return window.end_requests() };
        window.wait_to_request(&question).await;
        let Some(definition) = me.upgrade().filter(|me| !me.has_ended.get()).map(|me| Arc::clone(&me.definition))
        else {
            return window.end_requests();
        };
        let answer = read_outbox(&definition, &window.from, &window.to, question.after).await;
        drop(definition);
        let Some(runtime) = me.upgrade() else { return };
        let stops = runtime.has_ended.get() || runtime.context.draining.get();
        if answer.is_err() {
            window.request_failed();
        }
        match answer {
            Ok(page) if runtime.end_if_older(&window, page.committed) => return,
            Ok(page) => {
                if stops || !window.answered(question, page.entries, page.head) {
                    // The sender sends uncommitted messages again, so this need not continue forever.
                    return window.end_requests();
                }
                failures = 0;
            }
            Err(again) if !again || stops || window.missing_range().is_none() => return window.end_requests(),
            // An unreachable owner is reported at once: without a wait this loop would spin.
            Err(_) => {
                failures += 1;
                let wait = retry.wait(failures, &runtime.context.ids);
                drop((runtime, window));
                tokio::time::sleep(wait).await;
            }
        }
    }
}

impl ThreadRuntime {
    /// Ends the node if it has committed less of a window's messages than their sender knows: its store is empty or
    /// an older copy, and committed work would be repeated. An operator may configure the node to continue.
    fn end_if_older(&self, window: &ReceiveWindow, committed: u64) -> bool {
        // A shard that is not open here has another owner, which knows more.
        let here = self.watermark(&window.from, &window.to).unwrap_or(u64::MAX);
        if committed <= here {
            return false;
        }
        let (from, to) = (&window.from, &window.to);
        if self.definition.identity.get().is_none_or(|own| own.in_place_of_other) {
            if self.definition.log_limits.untrue_answers.admits(instant()) {
                tracing::warn!(
                    target: TARGET, %from, %to, committed, here,
                    "store older than its peers know: messages are handled again, as configured",
                );
            }
            return false;
        }
        let end = NodeEnd::OlderStore { from: from.to_string(), to: to.to_string(), committed, here };
        tracing::error!(target: TARGET, %end, "store is empty or an older copy: shutting down; end the process");
        self.definition.end_node(&self.threads, end);
        true
    }
}

/// Returns entries of `from`'s outbox for `to` above a sequence, from this node's own log or from the owner over the
/// bridge. The error tells whether to retry.
async fn read_outbox(
    definition: &Arc<NodeDefinition>,
    from: &ShardId,
    to: &ShardId,
    after: u64,
) -> Result<OutboxPage, bool> {
    if let Some(reader) = definition.reader(from) {
        // Read before the entries: an entry sent in between may be missing from the page.
        let head = page::sent_to(&*reader, to);
        let entries = page::outbox(&*reader, to, after, usize::from(LIMIT)).await.map_err(|_| true)?;
        return Ok(OutboxPage {
            entries: entries.into_iter().map(|entry| entry.envelope).collect(),
            head,
            committed: 0,
        });
    }
    let Some(bridge) = &definition.bridge else { return Err(false) };
    let asked = Request::Outbox { from: from.clone(), to: to.clone(), after, limit: LIMIT.into() };
    match bridge.request(asked.clone(), REQUEST_TIMEOUT).await {
        Ok(Response::Envelopes(Page { envelopes: mut entries, last: head, committed, store, .. })) => {
            if definition.known_owners.find(&**bridge, asked.domain(), store).await != Ownership::Owner {
                return Err(true);
            }
            if entries.iter().all(|one| asked.admits(one)) {
                definition.resolve_shapes(&mut entries).await.map_err(|_| true)?;
                return Ok(OutboxPage { entries, head, committed: committed.unwrap_or(0) });
            }
            if definition.log_limits.untrue_answers.admits(instant()) {
                tracing::error!(target: TARGET, %from, %to, "owner returned entries of a different shard");
            }
            Err(false)
        }
        Ok(_) => Err(true),
        Err(error) => Err(error.is_transient()),
    }
}
