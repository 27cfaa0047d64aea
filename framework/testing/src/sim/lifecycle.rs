//! Starts, kills and restarts of the nodes of a simulated cluster.
//!
//! Called by [faults](super::fault_scheduler), by scenarios, and at the end of a run. The node of a service with one node runs
//! among the tasks of the cluster; each node of a service with several is a [process](super::node_tasks) that can be paused.

use std::sync::Arc;
use std::time::Duration;

use super::World;
use super::bridge::SimulatedBridge;
use super::fault_counts::FaultEvent;
use super::node_tasks::NodeTasks;
use super::service::{Service, Zombie};
use whizbang_runtime::node::{Node, NodeConfig};

/// The lease of nodes of a service with several nodes: the shortest that is valid, so that more happens.
pub(super) const LEASE: Duration = Duration::from_secs(2);
/// The time between two looks at a node that starts or stops.
const CHANGE_POLL: Duration = Duration::from_millis(1);

impl World {
    /// Starts all nodes, and the node of the clients.
    pub(super) async fn start_all(&self) {
        for (at, service) in self.0.services.iter().enumerate() {
            for seat in 0..service.seats.len() {
                self.start(at, seat).await;
            }
        }
        let clients = self.0.services.len();
        let ids = self.0.ids.borrow().next_u64();
        let started = Node::builder("clients", whizbang_log::memory::MemoryStore::new())
            .bridge(SimulatedBridge::new(self.0.broker.clone(), clients, 0, None))
            .clock(self.0.clients.clock.clone())
            .seed(ids)
            .start()
            .await;
        match started {
            Ok(node) => *self.0.client.borrow_mut() = Some(node),
            Err(error) => self.report_violation(format!("the clients' node failed to start: {error}")),
        }
    }

    /// Starts the node of a seat, unless it runs or is being started.
    async fn start(&self, at: usize, number: usize) {
        let Some(service) = self.0.services.get(at) else { return };
        let Some(seat) = service.seats.get(number) else { return };
        let Some(build) = self.0.sim.build_of(at, service.version.get()) else { return };
        // Two crashes may overlap, and a seat has only one node.
        if seat.starting.replace(true) {
            return;
        }
        let starts = seat.starts.get() + 1;
        seat.starts.set(starts);
        if starts > 1 || service.has_several_nodes() {
            self.mark_disturbance();
        }
        // Each start has its own seed, which is the same in each run.
        let seed = self.0.sim.seed.wrapping_mul(31).wrapping_add(at as u64).wrapping_mul(1009).wrapping_add(starts);
        let seed = seed.wrapping_add((number as u64) << 32);
        // Short intervals make more happen in less virtual time.
        let config = NodeConfig { passivate_after: Duration::from_secs(4), lease: LEASE, ..NodeConfig::default() };
        let store = service.store.new_handle();
        *seat.store_handle.borrow_mut() = Some(store.clone());
        let builder = Node::builder(&service.name, store.clone())
            .config(config)
            .bridge(SimulatedBridge::new(self.0.broker.clone(), at, number, Some(store)))
            .clock(service.clock.clone())
            .seed(seed);
        let builder = build(builder);
        if starts == 1 && self.is_hosted_twice(at, &builder.owned()) {
            seat.starting.set(false);
            return;
        }
        let starting = async {
            if !service.has_several_nodes() {
                return Some(builder.start().await);
            }
            let tasks = NodeTasks::start(Some(number));
            *seat.tasks.borrow_mut() = Some(std::rc::Rc::clone(&tasks));
            tasks.run_inside(builder.start()).await
        };
        let started = tokio::select! {
            biased;
            started = starting => started,
            () = seat.kill_signal.notified() => None,
        };
        seat.starting.set(false);
        let Some(started) = started else {
            self.0.fault_counts.one(FaultEvent::CrashDuringStart);
            self.0.trace.add(format_args!("{} is killed during start", service.name));
            self.clean_up_killed(service, at, number);
            return;
        };
        match started {
            Ok(node) => {
                self.0.trace.add(format_args!("{} starts", service.name));
                service.record_manifest(node.manifest());
                *seat.node.borrow_mut() = Some(node);
            }
            // A later start fails if the node is killed during it; the first one only if the description is wrong.
            Err(error) if starts == 1 => self.report_violation(format!("{} failed to start: {error}", service.name)),
            Err(error) => {
                self.0.trace.add(format_args!("{} failed to start: {error}", service.name));
                *service.start_error.borrow_mut() = Some(error.to_string());
                seat.end_tasks();
            }
        }
    }

    /// Kills a node of the service. Uncommitted data may be lost.
    ///
    /// The run fails with the rule `fault` if no node was running or starting, unless
    /// [`allow_missed_faults`](super::Sim::allow_missed_faults) is set.
    pub fn kill(&self, service: usize) {
        if !self.try_kill(service) && !self.0.sim.allow_missed_faults {
            let name = self.0.services.get(service).map_or("an unknown service", |service| &service.name);
            self.report_violation(format!("fault: no node of {name} was running"));
        }
    }

    /// Returns a seat of the service in a state, if there is one. Draws only if there are several.
    pub(super) fn pick_seat(&self, service: usize, is_wanted: impl Fn(&super::service::Seat) -> bool) -> Option<usize> {
        let seats = self.0.services.get(service)?.seats.iter().enumerate();
        let wanted: Vec<usize> = seats.filter(|(_, seat)| is_wanted(seat)).map(|(number, _)| number).collect();
        let drawn = if wanted.len() > 1 { self.below(wanted.len() as u64) } else { 0 };
        wanted.get(usize::try_from(drawn).unwrap_or(0)).copied()
    }

    /// Kills a node of the service. Returns whether one was running or starting.
    pub(super) fn try_kill(&self, service: usize) -> bool {
        let running = self.pick_seat(service, super::service::Seat::is_running);
        let seat = running.or_else(|| self.pick_seat(service, |seat| seat.starting.get()));
        seat.is_some_and(|seat| self.try_kill_seat(service, seat))
    }

    /// Kills all nodes of the service. Returns whether one was running or starting.
    pub(super) fn try_kill_all(&self, service: usize) -> bool {
        let seats = self.0.services.get(service).map_or(0, |service| service.seats.len());
        (0..seats).filter(|seat| self.try_kill_seat(service, *seat)).count() > 0
    }

    /// Kills the node of a seat. Returns whether one was running or starting.
    pub(super) fn try_kill_seat(&self, at: usize, number: usize) -> bool {
        let Some(service) = self.0.services.get(at) else { return false };
        let Some(seat) = service.seats.get(number) else { return false };
        let node = seat.node.borrow_mut().take();
        let Some(node) = node else { return self.try_kill_starting(at, number) };
        self.0.trace.add(format_args!("{} is killed", service.name));
        self.clean_up_killed(service, at, number);
        drop(node);
        true
    }

    /// Kills a node that is starting. Returns whether there was one.
    pub(super) fn try_kill_starting(&self, service: usize, number: usize) -> bool {
        let seat = self.0.services.get(service).and_then(|service| service.seats.get(number));
        let starting = seat.filter(|seat| seat.starting.get());
        if let Some(seat) = starting {
            seat.kill_signal.notify_waiters();
        }
        starting.is_some()
    }

    /// Disconnects a killed node and crashes its store, or its part of a shared store.
    fn clean_up_killed(&self, killed: &Service, service: usize, number: usize) {
        self.mark_disturbance();
        if !self.0.faults_stopped.get() {
            self.0.crashes.set(self.0.crashes.get() + 1);
        }
        let zombie = killed.zombie.borrow().as_ref().map(|zombie| zombie.link.number);
        let links = self.0.broker.links_of(service).into_iter();
        for link in links.filter(|link| Some(link.number) != zombie && link.seat == number) {
            link.count_interrupted(&self.0.fault_counts);
            self.0.broker.leave(&link);
        }
        let Some(seat) = killed.seats.get(number) else { return };
        seat.end_tasks();
        if !killed.has_several_nodes() {
            killed.store.crash();
        }
        if let Some(store_handle) = seat.store_handle.borrow_mut().take() {
            if killed.has_several_nodes() {
                store_handle.crash();
            }
            store_handle.handle().revoke();
        }
    }

    /// Marks a disturbance of the whole cluster at this instant.
    fn mark_disturbance(&self) {
        self.0.step_log.end_disturbance(self.0.step_log.begin_disturbance());
    }

    /// Starts another node of the service while the old one is isolated. Then reconnects the old one and kills it later. Returns
    /// whether that was possible.
    pub(super) async fn hand_over(&self, at: usize, cut_off: Duration, lingers: Duration) -> bool {
        let Some(service) = self.0.services.get(at) else { return false };
        if service.has_several_nodes() {
            return self.hand_over_shards(at, cut_off, lingers).await;
        }
        let Some(seat) = service.seats.first() else { return false };
        if service.zombie.borrow().is_some() || seat.starting.get() {
            return false;
        }
        let Some(link) = self.0.broker.links_of(at).pop() else { return false };
        let Some(node) = seat.node.borrow_mut().take() else { return false };
        self.0.broker.isolate_link(&link, true);
        *service.zombie.borrow_mut() =
            Some(Zombie { node, link: Arc::clone(&link), store_handle: seat.store_handle.borrow_mut().take() });
        self.start(at, 0).await;
        if service.is_running() {
            self.0.fault_counts.one(FaultEvent::HandedOver);
        }
        tokio::time::sleep(cut_off).await;
        let is_same = |zombie: &Zombie| zombie.link.number == link.number;
        if service.zombie.borrow().as_ref().is_some_and(is_same) {
            self.0.trace.add(format_args!("the old node of {} is reconnected", service.name));
            self.0.broker.isolate_link(&link, false);
        }
        tokio::time::sleep(lingers).await;
        if service.zombie.borrow().as_ref().is_some_and(is_same) {
            self.kill_zombie(service);
        }
        // The new owner may have been killed, and no other fault restarts it.
        self.ensure_started(at).await;
        true
    }

    /// Kills the old node of a service, if there is one.
    pub(super) fn kill_zombie(&self, service: &Service) {
        let zombie = service.zombie.borrow_mut().take();
        if let Some(Zombie { node, link, store_handle }) = zombie {
            self.0.trace.add(format_args!("the old node of {} is killed", service.name));
            self.0.broker.leave(&link);
            if let Some(store_handle) = store_handle {
                store_handle.handle().revoke();
            }
            drop(node);
        }
    }

    /// Restarts the service's nodes once no other start or stop is in progress, because that one may be killed.
    pub(super) async fn ensure_started(&self, service: usize) {
        let is_changing = |service: &Service| service.seats.iter().any(super::service::Seat::is_changing);
        while self.0.services.get(service).is_some_and(is_changing) {
            tokio::time::sleep(CHANGE_POLL).await;
        }
        self.restart(service).await;
    }

    /// Restarts the service's nodes that were killed.
    ///
    /// Nodes that run, and those that are just stopping, are left alone. Completes when the nodes have started: they
    /// have read their stores and joined the bridge.
    pub async fn restart(&self, service: usize) {
        let seats = self.0.services.get(service).map_or(0, |service| service.seats.len());
        for seat in 0..seats {
            self.restart_seat(service, seat).await;
        }
    }

    /// Restarts the node of a seat, if it was killed or has ended itself.
    pub(super) async fn restart_seat(&self, service: usize, number: usize) {
        let seat = self.0.services.get(service).and_then(|service| service.seats.get(number));
        // A process manager restarts a node that has ended itself: an old node of its store took its shards back while it recovered.
        let has_ended = seat.is_some_and(|seat| seat.node.borrow().as_ref().is_some_and(|node| node.ended().is_some()));
        if has_ended {
            self.try_kill_seat(service, number);
        }
        if seat.is_some_and(|seat| !seat.is_running() && !seat.stopping.get()) {
            self.start(service, number).await;
        }
    }
}
