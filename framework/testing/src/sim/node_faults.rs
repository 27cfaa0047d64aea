//! Faults of one node of a service with several nodes: pauses, stops, and cuts between it and the store or the broker.
//!
//! Called by the [fault scheduler](super::fault_scheduler). Each fault draws its node.

use std::sync::Arc;
use std::time::Duration;

use super::World;
use super::fault_counts::FaultEvent;
use super::fault_profile::LinkDirection;
use super::lifecycle::LEASE;
use super::service::{Seat, Service};

/// The longest time between the end of a pause and the moment at which the node receives what the store has sent.
const MAX_WAKE_MICROS: u64 = 50_000;

impl World {
    /// Returns a running node of a service with several nodes.
    fn pick_node(&self, at: usize) -> Option<(&Service, usize, &Seat)> {
        let service = self.0.services.get(at).filter(|service| service.has_several_nodes())?;
        let number = self.pick_seat(at, Seat::is_running)?;
        Some((service, number, service.seats.get(number)?))
    }

    /// Pauses a node, as SIGSTOP does. Returns whether one was running.
    pub(super) async fn pause_node(&self, at: usize, duration: Duration) -> bool {
        let Some((service, number, seat)) = self.pick_node(at) else { return false };
        let (Some(tasks), Some(store)) = (seat.tasks.borrow().clone(), seat.store_handle.borrow().clone()) else {
            return false;
        };
        if tasks.is_paused() {
            return false;
        }
        self.0.trace.add(format_args!("node {number} of {} is paused", service.name));
        self.0.fault_counts.one(FaultEvent::NodePaused);
        tasks.pause(true);
        // Answers of the store wait in the socket. They are not the first thing that the node sees afterwards.
        store.handle().cut(LinkDirection::Inbound);
        tokio::time::sleep(duration).await;
        if duration > LEASE {
            self.0.fault_counts.one(FaultEvent::PausedBeyondLease);
        }
        self.0.trace.add(format_args!("node {number} of {} is resumed", service.name));
        tasks.pause(false);
        tokio::time::sleep(Duration::from_micros(self.below(MAX_WAKE_MICROS))).await;
        store.restore(LinkDirection::Inbound);
        true
    }

    /// Cuts a node off from its store. Returns whether one was running.
    pub(super) async fn cut_store(&self, at: usize, direction: LinkDirection, duration: Duration) -> bool {
        let Some((service, number, seat)) = self.pick_node(at) else { return false };
        let Some(store) = seat.store_handle.borrow().clone() else { return false };
        self.0.trace.add(format_args!("node {number} of {} is cut off from its store: {direction:?}", service.name));
        self.0.fault_counts.one(FaultEvent::StoreCut);
        store.handle().cut(direction);
        tokio::time::sleep(duration).await;
        store.restore(direction);
        true
    }

    /// Cuts a node off from the broker. Returns whether one was running.
    pub(super) async fn cut_broker(&self, at: usize, direction: LinkDirection, duration: Duration) -> bool {
        let Some((service, number, _)) = self.pick_node(at) else { return false };
        let Some(link) = self.0.broker.links_of(at).into_iter().find(|link| link.seat == number) else { return false };
        self.0.trace.add(format_args!("node {number} of {} is cut off from the broker: {direction:?}", service.name));
        self.0.broker.cut_link(&link, Some(direction));
        tokio::time::sleep(duration).await;
        self.0.broker.cut_link(&link, None);
        true
    }

    /// Stops a node and starts it again. Returns whether one was running.
    pub(super) async fn stop_node(&self, at: usize, down: Duration) -> bool {
        let Some((service, number, seat)) = self.pick_node(at) else { return false };
        let (Some(node), Some(tasks)) = (seat.node.borrow_mut().take(), seat.tasks.borrow().clone()) else {
            return false;
        };
        seat.stopping.set(true);
        self.0.trace.add(format_args!("node {number} of {} is stopped", service.name));
        let stopped = tasks.run_inside(node.stop()).await;
        self.0.trace.add(format_args!("node {number} of {} has stopped: {stopped:?}", service.name));
        self.0.fault_counts.one(FaultEvent::NodeStopped);
        seat.end_tasks();
        let links = self.0.broker.links_of(at).into_iter();
        links.filter(|link| link.seat == number).for_each(|link| self.0.broker.leave(&link));
        if let Some(store) = seat.store_handle.borrow_mut().take() {
            store.handle().revoke();
        }
        seat.stopping.set(false);
        tokio::time::sleep(down).await;
        self.restart_seat(at, number).await;
        true
    }

    /// Cuts a node off from everything, so that its shards are taken over, reconnects it, and kills it later.
    pub(super) async fn hand_over_shards(&self, at: usize, cut_off: Duration, lingers: Duration) -> bool {
        let Some((service, number, seat)) = self.pick_node(at) else { return false };
        let Some(store) = seat.store_handle.borrow().clone() else { return false };
        let Some(link) = self.0.broker.links_of(at).into_iter().find(|link| link.seat == number) else { return false };
        self.0.trace.add(format_args!("node {number} of {} is cut off", service.name));
        self.0.broker.isolate_link(&link, true);
        store.handle().cut(LinkDirection::Both);
        tokio::time::sleep(cut_off).await;
        self.0.trace.add(format_args!("node {number} of {} is reconnected", service.name));
        self.0.fault_counts.one(FaultEvent::HandedOver);
        store.restore(LinkDirection::Both);
        self.0.broker.isolate_link(&link, false);
        tokio::time::sleep(lingers).await;
        let is_same = seat.store_handle.borrow().as_ref().is_some_and(|now| Arc::ptr_eq(now.handle(), store.handle()));
        if is_same {
            self.try_kill_seat(at, number);
        }
        self.ensure_started(at).await;
        true
    }
}
