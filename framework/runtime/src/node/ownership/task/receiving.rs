//! The messages of the open shards: which of them the bridge receives for this node.

use std::time::Duration;

use super::{Local, OwnershipTask};
use crate::node::ownership::moves;
use whizbang_core::message::ShardId;
use whizbang_core::store::Epoch;
use whizbang_core::telemetry::TARGET;

/// Longest wait before a failed start of receiving is repeated.
const LONGEST_RECEIVE_WAIT: Duration = Duration::from_secs(5);
const FIRST_RECEIVE_WAIT: Duration = Duration::from_millis(100);

impl OwnershipTask {
    pub(super) fn receive_all(&mut self) {
        for (shard, epoch) in self.open_epochs() {
            self.receive(shard, epoch);
        }
    }

    pub(super) fn receive(&mut self, shard: ShardId, epoch: Epoch) {
        self.silent.insert(shard.clone(), 0);
        self.moves.push(moves::receive(&self.host, shard, epoch));
    }

    pub(super) fn receiving(&mut self, shard: ShardId, epoch: Epoch, received: Result<(), String>) {
        let is_open = self.is_open_at(&shard, epoch) && !self.is_suspended();
        let Some(attempts) = self.silent.get_mut(&shard).filter(|_| is_open) else {
            // Closed since: what begins late is stopped again, unless the shard was opened again.
            let is_open_again = matches!(self.local.get(&shard), Some(Local::Open { .. })) && !self.is_suspended();
            if received.is_ok() && !is_open_again {
                self.moves.push(moves::stop_receiving(&self.host, shard));
            }
            return;
        };
        match received {
            Ok(()) => self.forget_silent(&shard),
            Err(error) => {
                *attempts += 1;
                let wait = (FIRST_RECEIVE_WAIT * *attempts).min(LONGEST_RECEIVE_WAIT);
                if *attempts == 1 {
                    tracing::warn!(target: TARGET, %shard, error, "failed to receive for the shard: retrying");
                }
                self.issues
                    .raise(&receive_issue(&shard), format!("messages for shard {shard} are not received: {error}"));
                self.moves.push(moves::receive_after(shard, epoch, wait));
            }
        }
    }

    pub(super) fn forget_silent(&mut self, shard: &ShardId) {
        if self.silent.remove(shard).is_some() {
            self.issues.resolve(&receive_issue(shard));
        }
    }
}

fn receive_issue(shard: &ShardId) -> String {
    format!("receive {shard}")
}
