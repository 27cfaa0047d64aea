//! The threads of a node as the host of its leased shards.
//!
//! Called by the [ownership task](crate::node::ownership::task), on its own thread. Each call is a job for the thread
//! of the shard.

use std::rc::Rc;
use std::sync::Arc;

use crate::node::definition::{NodeDefinition, VIEW_THREAD};
use crate::node::ownership::host::{Opening, ShardHost};
use crate::node::shards::Closing;
use crate::node::thread::ThreadRuntime;
use crate::node::thread::Threads;
use futures_util::future::{BoxFuture, ready};
use whizbang_core::message::ShardId;
use whizbang_core::store::{Epoch, StoreError};
use whizbang_core::telemetry::error_chain;

/// The threads and the bridge of a node.
pub(in crate::node) struct ThreadHost {
    definition: Arc<NodeDefinition>,
    threads: Threads,
}

impl ThreadHost {
    pub(in crate::node) fn new(definition: &Arc<NodeDefinition>, threads: Threads) -> Self {
        Self { definition: Arc::clone(definition), threads }
    }

    fn close(&self, shard: ShardId, closing: Closing) -> BoxFuture<'static, ()> {
        let (threads, home) = (self.threads.clone(), self.definition.thread_of(shard.shard));
        Box::pin(async move { threads.close_shard(home, shard, closing).await })
    }
}

impl ShardHost for ThreadHost {
    fn open(&self, shard: ShardId) -> BoxFuture<'static, Result<Opening, StoreError>> {
        let (definition, threads) = (Arc::clone(&self.definition), self.threads.clone());
        Box::pin(async move {
            let (Some(membership), Some(leases)) = (&definition.membership, definition.store.leases()) else {
                return Ok(Opening::Taken);
            };
            let newer = &definition.newer;
            // Before the shard is taken: a node that knows the type may still own it, or take it.
            if let Some(found) = newer.in_store(&*definition.store, &shard).await? {
                return Ok(Opening::Unknown(found));
            }
            let home = definition.thread_of(shard.shard);
            let listener = threads.listener(home).await.ok_or(StoreError::Closed)?;
            let failures = listener.failures();
            let shards = definition.owns(&shard.domain).unwrap_or(1);
            let opened = leases.open(membership.member.id, &shard, shards, listener).await?;
            let Some(handle) = opened else { return Ok(Opening::Taken) };
            let epoch = handle.writer.epoch();
            // The earlier owner may have written until now.
            if let Some(found) = newer.in_shard(&*definition.store, &shard, &*handle.reader).await? {
                drop(handle);
                leases.release(membership.member.id, &shard, epoch).await?;
                return Ok(Opening::Unknown(found));
            }
            threads.open_shard(home, shard, handle, failures).await?;
            Ok(Opening::Open(epoch))
        })
    }

    fn drain(&self, shard: ShardId) -> BoxFuture<'static, ()> {
        self.close(shard, Closing::HandOver)
    }

    fn drop_shard(&self, shard: ShardId) -> BoxFuture<'static, ()> {
        self.close(shard, Closing::Lost)
    }

    fn receive(&self, shard: ShardId, epoch: Epoch) -> BoxFuture<'static, Result<(), String>> {
        let Some(bridge) = self.definition.bridge.clone() else { return Box::pin(ready(Ok(()))) };
        Box::pin(async move { bridge.own(&shard, epoch).await.map_err(|error| error_chain(&error).to_string()) })
    }

    fn stop_receiving(&self, shard: ShardId) -> BoxFuture<'static, ()> {
        let Some(bridge) = self.definition.bridge.clone() else { return Box::pin(ready(())) };
        Box::pin(async move { bridge.disown(&shard).await })
    }

    fn members_changed(&self, joined: bool) {
        let Some(membership) = &self.definition.membership else { return };
        self.definition.newer.renewed(&self.definition.issues, joined);
        let me = Some(membership.member.id);
        let saves: Vec<bool> = self.definition.views.iter().map(|view| membership.saver_of(&view.name) == me).collect();
        if saves.is_empty() {
            return;
        }
        let notify = move |runtime: &Rc<ThreadRuntime>| {
            for (view, saves) in runtime.views.iter().zip(saves) {
                view.set_saver(saves);
            }
        };
        self.threads.run(VIEW_THREAD, Box::new(notify));
    }

    fn is_live(&self) -> bool {
        self.definition.broken.lock().is_none() && self.threads.ended().is_none()
    }
}
