//! Runs the singletons whose home shard is open on a thread.
//!
//! Started when the shard begins to be served. A singleton is cancelled before its shard is released, so that its next node
//! starts it afterwards, and when the lease of the node ends: by then another node may own the shard. A process that was
//! stopped finds the end of its lease before it polls the task again.
//!
//! Never waits for a singleton that is cancelled: its future is dropped at the point at which it waits.

use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::actor::{OwnedShard, ThreadContext};
use crate::client::Client;
use crate::node::definition::NodeDefinition;
use crate::node::singleton::{HostedSingleton, Singleton};
use crate::node::thread::ThreadRuntime;
use crate::router::Remote;
use whizbang_core::spawn::{FIRST_RESTART, LONGEST_RESTART};
use whizbang_core::telemetry::TARGET;

/// Time between two looks at a lease that has run out.
const RESUME: Duration = Duration::from_millis(100);
/// Time after which a singleton that has panicked counts as healthy again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// Reason for the end of one run.
enum RunEnd {
    /// It has returned.
    Done,
    /// Its shard is closed or handed over, or the node ends.
    Closing,
    /// The lease of the node has run out.
    Lapsed,
    Panicked(String),
}

/// Marks a singleton as present on its shard until it is dropped: the shard is not released before.
struct Presence {
    context: Rc<ThreadContext>,
    shard: Rc<OwnedShard>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.shard.singletons.set(self.shard.singletons.get() - 1);
        self.context.idle.notify();
    }
}

impl ThreadRuntime {
    /// Starts the singletons of a shard that is served from now on.
    pub(in crate::node) fn start_singletons(self: &Rc<Self>, shard: &Rc<OwnedShard>) {
        for number in 0..self.definition.singletons.len() {
            let Some(hosted) = self.definition.singletons.get(number).filter(|hosted| hosted.home == shard.id) else {
                continue;
            };
            let Some((node, remote)) = self.context.remote.get().cloned() else { continue };
            shard.singletons.set(shard.singletons.get() + 1);
            let presence = Presence { context: Rc::clone(&self.context), shard: Rc::clone(shard) };
            let client = Client::new(node, remote as Arc<dyn Remote>, self.context.ids.fork());
            let singleton = Singleton::new(hosted.name.clone(), shard.epoch(), client);
            let hosting = host(Arc::clone(&self.definition), presence, number, singleton);
            whizbang_core::spawn::detached(&self.context.user_code, "singletons", hosting);
        }
    }
}

/// Runs a singleton, again after a panic or after the lease was renewed, until its shard closes or it returns.
async fn host(definition: Arc<NodeDefinition>, presence: Presence, number: usize, singleton: Singleton) {
    let (context, shard) = (Rc::clone(&presence.context), Rc::clone(&presence.shard));
    let Some(hosted) = definition.singletons.get(number) else { return };
    let (name, mut wait) = (&hosted.name, FIRST_RESTART);
    let task = format!("singleton {name}");
    loop {
        while !context.is_closing(&shard) && !definition.serves() {
            Rc::clone(&context).sleep_unless_closing(Rc::clone(&shard), RESUME).await;
        }
        if context.is_closing(&shard) {
            return;
        }
        tracing::info!(target: TARGET, singleton = %name, shard = %shard.id, epoch = singleton.epoch(), "singleton started");
        hosted.set_running(true);
        let (begun, ended) =
            (whizbang_core::clock::instant(), run(&definition, &presence, hosted, &singleton, &task).await);
        hosted.set_running(false);
        if begun.elapsed() >= HEALTHY_AFTER {
            wait = FIRST_RESTART;
        }
        match ended {
            RunEnd::Done => {
                context.user_code.task_recovered(&task);
                tracing::info!(target: TARGET, singleton = %name, "singleton returned: not started again here");
                return;
            }
            RunEnd::Closing => {
                tracing::info!(target: TARGET, singleton = %name, "singleton cancelled: its shard closes");
                return context.user_code.task_recovered(&task);
            }
            RunEnd::Lapsed => {
                tracing::warn!(target: TARGET, singleton = %name, "singleton cancelled: the lease has run out");
            }
            RunEnd::Panicked(error) => {
                context.user_code.failed(&task, &format!("{error}; restarting"));
                Rc::clone(&context).sleep_unless_closing(Rc::clone(&shard), wait).await;
                wait = (wait * 2).min(LONGEST_RESTART);
            }
        }
    }
}

/// Runs a singleton once. Before each poll of it the shard and the lease are looked at.
async fn run(
    definition: &Arc<NodeDefinition>,
    presence: &Presence,
    hosted: &HostedSingleton,
    singleton: &Singleton,
    task: &str,
) -> RunEnd {
    let (context, code) = (&presence.context, &presence.context.user_code);
    let label = code.label(hosted.name.as_str(), "");
    let given = singleton.clone();
    // The function itself is user code as well.
    let mut running = Box::pin(code.run(label, async move { (hosted.run)(given).await }));
    let healthy = async {
        tokio::time::sleep(HEALTHY_AFTER).await;
        code.task_recovered(task);
        pending().await
    };
    let ended = tokio::select! {
        biased;
        () = context.closes(&presence.shard) => RunEnd::Closing,
        () = lapses(definition) => RunEnd::Lapsed,
        ended = &mut running => match ended {
            Ok(()) => RunEnd::Done,
            Err(panicked) => RunEnd::Panicked(panicked.to_string()),
        },
        () = healthy => RunEnd::Done,
    };
    // Values of the user are dropped with it.
    if let Err(panicked) = code.call(label, move || drop(running)) {
        code.failed(task, panicked.text());
    }
    ended
}

/// Returns when the lease of the node has run out; never, if only one node may use the store.
async fn lapses(definition: &NodeDefinition) {
    loop {
        // Without a lease, or not even valid now: the look below decides.
        let end = definition.serves_until();
        let mut ends = Box::pin(async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => pending().await,
            }
        });
        // In each poll, because a timer is noticed late by a process that was stopped.
        poll_fn(|cx| if definition.serves() { ends.as_mut().poll(cx) } else { Poll::Ready(()) }).await;
        if !definition.serves() {
            return;
        }
    }
}
