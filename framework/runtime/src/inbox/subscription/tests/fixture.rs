//! A subscription whose owner and subscribers are played by the test.

use std::collections::VecDeque;

use super::super::*;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Kind, MessageId, Origin};

/// The owner's log, and the requests it received.
#[derive(Default)]
pub(super) struct Owner {
    pub(super) log: RefCell<Vec<Envelope>>,
    /// Each request: position, number of events, time.
    pub(super) asked: RefCell<Vec<(u64, usize, Instant)>>,
    /// Number of requests that stay unanswered.
    pub(super) silent: Cell<usize>,
    /// Happens between the next request and its response.
    pub(super) meanwhile: Cell<Option<Box<dyn FnOnce()>>>,
    /// Most events in a response, if fewer than requested.
    pub(super) short: Cell<Option<usize>>,
}

/// Handles events of one name, and keeps them until the test settles them.
#[derive(Clone, Default)]
pub(super) struct Taken {
    pub(super) watermark: u64,
    pub(super) name: &'static str,
    pub(super) events: Rc<RefCell<VecDeque<(u64, Done)>>>,
}

impl Subscriber for Taken {
    fn watermark(&self) -> u64 {
        self.watermark
    }

    fn takes(&self, event: &Name) -> bool {
        self.name.is_empty() || event.as_str() == self.name
    }

    fn handle(&self, event: &Envelope, done: Done) {
        self.events.borrow_mut().push_back((position(event), done));
    }

    fn unstored(&self) -> Vec<(ShardId, Source, u64)> {
        let kind = whizbang_core::store::SourceKind::Events { subscriber: Name::from_static("saga").unwrap() };
        vec![(shard(), Source { shard: shard(), kind }, self.watermark)]
    }
}

impl Taken {
    pub(super) fn new(watermark: u64, name: &'static str) -> Self {
        Self { watermark, name, ..Self::default() }
    }

    /// Returns the positions that wait.
    pub(super) fn positions(&self) -> Vec<u64> {
        self.events.borrow().iter().map(|(position, _)| *position).collect()
    }

    /// Settles the first event.
    pub(super) fn finish(&self) {
        let (_, done) = self.events.borrow_mut().pop_front().unwrap();
        done();
    }
}

pub(super) struct Fixture {
    pub(super) source: Rc<Subscription>,
    pub(super) owner: Rc<Owner>,
    pub(super) monitor: TaskMonitor,
    pub(super) issues: Arc<HealthIssues>,
    pub(super) queued: Rc<QueuedBytes>,
    /// Live events that are settled.
    pub(super) settled: Rc<RefCell<Vec<u64>>>,
}

pub(super) fn shard() -> ShardId {
    ShardId::new(Name::from_static("bank").unwrap(), 0)
}

pub(super) fn position(event: &Envelope) -> u64 {
    event.origin.as_ref().map_or(0, |origin| origin.sequence)
}

/// The event at this position of the owner's log.
pub(super) fn event(sequence: u64) -> Envelope {
    let name = Name::from_static("bank").unwrap();
    let id = MessageId::from_u128(u128::from(sequence) + 1_000);
    let origin = Origin { shard: shard(), actor: name.clone(), key: "ada".into(), sequence, version: 1, store: None };
    let envelope = Envelope::new(id, Kind::Event, name.clone(), name, Timestamp::from_millis(0));
    Envelope { origin: Some(origin), ..envelope }
}

pub(super) fn other(sequence: u64) -> Envelope {
    Envelope { id: MessageId::from_u128(7), ..event(sequence) }
}

impl Fixture {
    pub(super) fn new(subscribers: &[Taken]) -> Self {
        let owner = Rc::new(Owner::default());
        let asked = Rc::clone(&owner);
        let pages: ReadEvents = Rc::new(move |_, after, most| {
            asked.asked.borrow_mut().push((after, most, Instant::now()));
            let silent = asked.silent.get();
            asked.silent.set(silent.saturating_sub(1));
            let log = asked.log.borrow();
            let most = asked.short.get().unwrap_or(most);
            let page: Vec<Envelope> = log.iter().filter(|event| position(event) > after).take(most).cloned().collect();
            let head = log.last().map_or(0, position);
            let meanwhile = asked.meanwhile.take();
            Box::pin(async move {
                if let Some(meanwhile) = meanwhile {
                    meanwhile();
                }
                if silent > 0 { Err("no answer".to_owned()) } else { Ok((page, head)) }
            })
        });
        let monitor = whizbang_core::user_code::UserCode::new(&Arc::default());
        let (issues, queued) = (Arc::<HealthIssues>::default(), Rc::<QueuedBytes>::default());
        let code = TaskMonitor::clone(&monitor);
        let source = Subscription::new(shard(), pages, code, Rc::default(), Arc::clone(&issues), Rc::clone(&queued));
        source.set_subscribers(subscribers.iter().map(|one| Box::new(one.clone()) as Box<dyn Subscriber>).collect());
        Self { source, owner, monitor, issues, queued, settled: Rc::default() }
    }

    pub(super) fn live(&self, event: Envelope) {
        let settled = Rc::clone(&self.settled);
        let position = position(&event);
        self.source.event(event, Box::new(move || settled.borrow_mut().push(position)));
    }

    pub(super) fn settled(&self) -> Vec<u64> {
        self.settled.take()
    }

    pub(super) fn questions(&self) -> usize {
        self.owner.asked.borrow().len()
    }

    pub(super) fn log_reaches(&self, last: u64) {
        *self.owner.log.borrow_mut() = (1..=last).map(event).collect();
    }
}

/// Runs a test on paused time, with the tasks that it spawns.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// Runs all tasks until they wait, without advancing the time.
pub(super) async fn turn() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Advances virtual time.
pub(super) async fn pass(span: Duration) {
    turn().await;
    tokio::time::advance(span).await;
    turn().await;
}
