//! The calls of a simulated node to its store: the trait [`Store`] for a handle.
//!
//! Each call waits while the connection of the node is cut, see [`StoreHandle`](super::store_handle::StoreHandle). Nothing in
//! the simulation but a node calls them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::backend::Catalog;
use super::sim_leases::SimLeases;
use super::store::SimStore;
use super::store_handle::{Reply, Statements};
use whizbang_core::message::{Name, ShardId, StoreIdentity};
use whizbang_core::store::{CommitListener, Epoch, ShardHandle, ShardLeases, ShardReader, Store, StoreError, View};

impl Store for SimStore {
    fn open<'a>(&'a self, id: &'a ShardId, shards: u16, listener: Arc<dyn CommitListener>) -> Reply<'a, ShardHandle> {
        Box::pin(async move {
            // Yields, so that a node may be killed between any two shards that it opens.
            tokio::task::yield_now().await;
            let incarnation = self.incarnation_of(listener)?;
            let handle = self.0.backend.open(id, shards, incarnation.as_listener()).await?;
            self.0.resolve_uncertain(id, &handle.reader).await;
            Ok(self.wrap(id, handle, incarnation))
        })
    }

    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.read(shard).await))
    }

    fn view<'a>(&'a self, projection: &'a Name) -> Reply<'a, Option<View>> {
        Box::pin(self.exchange(async move |backend| backend.view(projection).await))
    }

    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.claim_view(projection).await))
    }

    fn save_view<'a>(&'a self, name: &'a Name, epoch: Epoch, view: View) -> Reply<'a, ()> {
        Box::pin(self.exchange(async move |backend| backend.save_view(name, epoch, view).await))
    }

    /// Statements are accepted and not run: a simulated cluster has no tables.
    fn save_view_with<'a>(&'a self, n: &'a Name, epoch: Epoch, view: View, _: Statements<'a>) -> Reply<'a, ()> {
        self.save_view(n, epoch, view)
    }

    fn runs_statements(&self) -> bool {
        true
    }

    fn catalog(&self) -> BoxFuture<'_, Result<Option<Catalog>, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.catalog().await))
    }

    fn replace_catalog(&self, old: Option<Catalog>, new: Catalog) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.replace_catalog(old, new).await))
    }

    fn identity(&self) -> BoxFuture<'_, Result<Option<StoreIdentity>, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.identity().await))
    }

    fn replace_identity(&self, old: StoreIdentity, new: StoreIdentity) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.exchange(async move |backend| backend.replace_identity(old, new).await))
    }

    fn durability(&self) -> &'static str {
        "simulated: committed data survives a crash"
    }

    fn leases(&self) -> Option<Arc<dyn ShardLeases>> {
        let inner = self.0.backend.leases()?;
        Some(Arc::new(SimLeases { store: self.clone(), inner }))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let is_shared = self.0.backend.is_shared();
            let mine =
                || if is_shared { self.0.incarnations_of(&self.1) } else { self.0.state.lock().incarnations.clone() };
            while mine().iter().any(|incarnation| !incarnation.pending_appends.lock().pending.is_empty()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if is_shared {
                // The store stays open for the other nodes.
                self.1.revoke();
            } else {
                self.0.state.lock().is_open = false;
            }
            for incarnation in mine() {
                incarnation.pending_appends.lock().closed = true;
            }
            Ok(())
        })
    }
}
