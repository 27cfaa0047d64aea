//! Declaration of singletons on the [builder](crate::node::NodeBuilder).

use crate::node::lifecycle::builder::NodeBuilder;
use crate::node::singleton::{DeclaredSingleton, Singleton};

impl NodeBuilder {
    /// Runs a task on one node of the service at a time: with the shard of the service to which its name is bound. If several
    /// nodes share the store, the node that has this shard open runs it, and the next owner of the shard starts it again. With
    /// a store that one node uses alone, it runs on that node.
    ///
    /// `run` is called each time the task is started, on the thread of the shard, and the returned future is polled there: it
    /// must not block. The future is dropped at a point at which it waits, if the node stops, the shard moves, or the lease of
    /// the node ends. Its work must therefore be safe to interrupt and repeat: send commands, whose ids or
    /// idempotency keys make a repetition harmless, and keep progress in an aggregate.
    ///
    /// A node that loses its lease stops the task before another node starts it. A future that blocks its thread beyond the
    /// lease, or a request to another system that is still under way, cannot be stopped: such a system can reject it by
    /// [`Singleton::epoch`].
    ///
    /// A task that panics is listed in the node's health and started again after a pause of 100 ms to 10 s. A task that returns is
    /// started again only when its shard is opened again, here or on another node.
    ///
    /// The service must own a domain, otherwise the start fails with
    /// [`StartError::SingletonWithoutDomain`](crate::StartError::SingletonWithoutDomain). Two programs of one service that own
    /// different domains may bind a name to different shards. While such a change is rolled out, both may run the task.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # use bank_fixture as bank;
    /// use bank::{Account, Deposit};
    /// use whizbang::node::Singleton;
    /// use whizbang::prelude::*;
    ///
    /// # whizbang::derive::block_on(async {
    /// let interest = |singleton: Singleton| async move {
    ///     loop {
    ///         let deposit = Deposit { account: "ada".into(), cents: 1 };
    ///         if singleton.client().send(deposit).await.is_err() {
    ///             return;
    ///         }
    ///         tokio::time::sleep(Duration::from_secs(3600)).await;
    ///     }
    /// };
    /// let builder = Node::builder("bank", MemoryStore::new()).aggregate::<Account>();
    /// let node = builder.singleton("interest", interest).start().await?;
    /// node.stop().await
    /// # }).unwrap();
    /// ```
    pub fn singleton<F, R>(mut self, name: &str, run: F) -> Self
    where
        F: Fn(Singleton) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + 'static,
    {
        self.singletons.push(DeclaredSingleton::new(name, run));
        self
    }
}
