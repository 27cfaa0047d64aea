//! Scatter-gather: asks several suppliers and decides on the answers of a quorum, or on those that arrived before a deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::collection::btree_set;
use proptest::prelude::*;
use whizbang::message::MessageId;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};

use crate::{SEEDS, assert_found};

const DEADLINE: Duration = Duration::from_secs(2);

#[derive(Domain)]
struct Suppliers;

#[derive(Domain)]
struct Purchasing;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Suppliers, reply = u64)]
struct AskPrice {
    #[key]
    supplier: String,
    item: u8,
}

/// A supplier with a price of its own. Some do not sell all items.
#[derive(Aggregate, Default)]
#[aggregate(domain = Suppliers, handles(AskPrice))]
struct Supplier {}

impl Handle<AskPrice> for Supplier {
    fn handle(&self, ask: AskPrice, _effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        price(&ask.supplier, ask.item).ok_or_else(|| Rejection::new("suppliers.unknown-item", "not sold here"))
    }
}

fn price(supplier: &str, item: u8) -> Option<u64> {
    let number = supplier.bytes().map(u64::from).sum::<u64>();
    (!(number + u64::from(item)).is_multiple_of(3)).then_some(100 + number % 7 * u64::from(item))
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Purchasing)]
struct RequestQuotes {
    #[key]
    tender: String,
    item: u8,
    suppliers: Vec<String>,
    /// The number of quotes that suffice: 1 for the first, the number of suppliers for all.
    quorum: usize,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Purchasing)]
struct QuotesRequested {
    asked: Vec<(MessageId, String)>,
    quorum: usize,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Purchasing)]
struct SupplierAnswered {
    supplier: String,
    /// The price; `None` if the supplier refused.
    cents: Option<u64>,
}

#[derive(Event, Debug, PartialEq, Serialize, Deserialize)]
#[event(domain = Purchasing)]
struct TenderClosed {
    best: Option<(u64, String)>,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Purchasing)]
struct DeadlineReached;

#[derive(Saga, Default)]
#[saga(
    domain = Purchasing,
    handles(RequestQuotes),
    replies(AskPrice),
    applies(QuotesRequested, SupplierAnswered),
    records(TenderClosed),
    timers(DeadlineReached)
)]
struct Tender {
    asked: BTreeMap<MessageId, String>,
    answers: BTreeMap<String, Option<u64>>,
    quorum: usize,
}

impl Handle<RequestQuotes> for Tender {
    fn handle(&self, request: RequestQuotes, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if self.quorum > 0 {
            return Err(Rejection::new("purchasing.requested-before", "this tender exists"));
        }
        let RequestQuotes { item, suppliers, quorum, .. } = request;
        let mut asked = Vec::new();
        for supplier in suppliers {
            let sent = effects.send(AskPrice { supplier: supplier.clone(), item });
            asked.push((sent.id(), supplier));
        }
        effects.set_timer(&DeadlineReached, DEADLINE);
        effects.record(QuotesRequested { asked, quorum });
        Ok(())
    }
}

impl OnReply<AskPrice> for Tender {
    fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        let Some(supplier) = effects.replied_command().and_then(|id| self.asked.get(&id)) else { return };
        let cents = reply.ok();
        effects.record(SupplierAnswered { supplier: supplier.clone(), cents });
        let mut answers = self.answers.clone();
        answers.insert(supplier.clone(), cents);
        let quotes = answers.values().flatten().count();
        if quotes >= self.quorum || answers.len() == self.asked.len() {
            effects.record(TenderClosed { best: best(&answers) });
            effects.complete();
        }
    }
}

impl OnTimer<DeadlineReached> for Tender {
    fn on_timer(&self, _reached: DeadlineReached, effects: &mut Effects<Self>) {
        effects.record(TenderClosed { best: best(&self.answers) });
        effects.complete();
    }
}

fn best(answers: &BTreeMap<String, Option<u64>>) -> Option<(u64, String)> {
    answers.iter().filter_map(|(supplier, cents)| Some(((*cents)?, supplier.clone()))).min()
}

impl Apply<QuotesRequested> for Tender {
    fn apply(&mut self, requested: &QuotesRequested) {
        self.asked = requested.asked.iter().cloned().collect();
        self.quorum = requested.quorum;
    }
}

impl Apply<SupplierAnswered> for Tender {
    fn apply(&mut self, answered: &SupplierAnswered) {
        self.answers.insert(answered.supplier.clone(), answered.cents);
    }
}

/// Stays open after the deadline: a late answer closes the tender again, perhaps with another winner.
mod wrong {
    use super::*;

    #[derive(Saga, Default)]
    #[saga(
        domain = Purchasing,
        name = "tender",
        handles(RequestQuotes),
        replies(AskPrice),
        applies(QuotesRequested, SupplierAnswered),
        records(TenderClosed),
        timers(DeadlineReached)
    )]
    pub(super) struct Undecided {
        tender: Tender,
    }

    impl Handle<RequestQuotes> for Undecided {
        fn handle(&self, request: RequestQuotes, effects: &mut Effects<Self>) -> Result<(), Rejection> {
            if self.tender.quorum > 0 {
                return Err(Rejection::new("purchasing.requested-before", "this tender exists"));
            }
            let RequestQuotes { item, suppliers, quorum, .. } = request;
            let mut asked = Vec::new();
            for supplier in suppliers {
                let sent = effects.send(AskPrice { supplier: supplier.clone(), item });
                asked.push((sent.id(), supplier));
            }
            effects.set_timer(&DeadlineReached, DEADLINE);
            effects.record(QuotesRequested { asked, quorum });
            Ok(())
        }
    }

    impl OnReply<AskPrice> for Undecided {
        fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
            let Some(supplier) = effects.replied_command().and_then(|id| self.tender.asked.get(&id)) else { return };
            let cents = reply.ok();
            effects.record(SupplierAnswered { supplier: supplier.clone(), cents });
            let mut answers = self.tender.answers.clone();
            answers.insert(supplier.clone(), cents);
            let quotes = answers.values().flatten().count();
            if quotes >= self.tender.quorum || answers.len() == self.tender.asked.len() {
                effects.record(TenderClosed { best: best(&answers) });
                effects.complete();
            }
        }
    }

    impl OnTimer<DeadlineReached> for Undecided {
        fn on_timer(&self, _reached: DeadlineReached, effects: &mut Effects<Self>) {
            effects.record(TenderClosed { best: best(&self.tender.answers) });
        }
    }

    impl Apply<QuotesRequested> for Undecided {
        fn apply(&mut self, requested: &QuotesRequested) {
            self.tender.apply(requested);
        }
    }

    impl Apply<SupplierAnswered> for Undecided {
        fn apply(&mut self, answered: &SupplierAnswered) {
            self.tender.apply(answered);
        }
    }
}

fn tenders() -> impl Strategy<Value = RequestQuotes> {
    (0..6u8, 1..4u8, btree_set(0..6u8, 1..5), 1..5usize).prop_map(|(tender, item, suppliers, quorum)| RequestQuotes {
        tender: format!("tender{tender}"),
        item,
        suppliers: suppliers.into_iter().map(|supplier| format!("supplier{supplier}")).collect(),
        quorum,
    })
}

async fn request(world: &World, request: RequestQuotes) {
    // A second tender of the same name is rejected, which is not a failure of the flow.
    let _ = world.send(request).await;
}

/// Each tender is closed once, with the best of the answers that arrived before.
fn tenders_are_closed_once(world: &World, _requests: &[RequestQuotes]) -> Result<(), String> {
    let (answers, closed) = (world.events::<SupplierAnswered>(), world.events::<TenderClosed>());
    for (tender, requested) in world.events::<QuotesRequested>() {
        let decisions: Vec<_> = closed.iter().filter(|(of, _)| *of == tender).collect();
        let [(_, decision)] = &*decisions else { return Err(format!("{tender} is closed {} times", decisions.len())) };
        let of_tender = answers.iter().filter(|(of, _)| *of == tender).map(|(_, answer)| answer);
        let answered: BTreeMap<_, _> = of_tender.map(|answer| (answer.supplier.clone(), answer.cents)).collect();
        if decision.best != best(&answered) {
            return Err(format!("{tender} is closed with {decision:?}, and {answered:?} answered"));
        }
        let quotes = answered.values().flatten().count();
        if quotes > requested.quorum {
            return Err(format!("{tender} waits for {quotes} quotes, and {} suffice", requested.quorum));
        }
        if requested.asked.len() < answered.len() {
            return Err(format!("{tender} counts an answer twice"));
        }
    }
    Ok(())
}

fn gathering(sim: impl Fn(Sim) -> Sim + 'static) -> Flow<RequestQuotes, impl AsyncFn(&World, RequestQuotes)> {
    Flow::new("scatter-gather", sim, tenders(), 1..8, request).at_end(tenders_are_closed_once)
}

#[test]
fn scatter_gather_closes_each_tender_once() {
    let cluster = |sim: Sim| {
        sim.service("suppliers", |node| node.aggregate::<Supplier>())
            .service("purchasing", |node| node.saga::<Tender>())
    };
    let coverage = gathering(cluster).check(0..SEEDS);
    let tender = coverage.of::<Tender>();
    tender.timer::<DeadlineReached>().while_open().at_least(1);
    tender.reply::<AskPrice>().while_open().at_least(20);
    tender.rejection::<AskPrice>().while_open().at_least(10);
    tender.reply::<AskPrice>().after_end().at_least(1);
}

#[test]
fn tender_closes_at_its_quorum_or_its_deadline() {
    let cluster = |sim: Sim| {
        sim.service("suppliers", |node| node.aggregate::<Supplier>())
            .service("purchasing", |node| node.saga::<Tender>())
    };
    let suppliers = ["supplier1", "supplier2", "supplier4"].map(str::to_owned);
    assert!(suppliers.iter().all(|supplier| price(supplier, 1).is_some()), "all of them sell the item");
    let run = cluster(Sim::new(1)).run(async |world| {
        let ask = async |tender: &str, quorum| {
            let request = RequestQuotes { tender: tender.to_owned(), item: 1, suppliers: suppliers.to_vec(), quorum };
            world.send(request).await.expect("the tender is new");
        };
        let quotes = |tender: &str| world.events::<SupplierAnswered>().iter().filter(|(of, _)| of == tender).count();
        let is_closed = |tender: &str| world.events::<TenderClosed>().iter().any(|(of, _)| of == tender);
        for (tender, quorum) in [("first", 1), ("two", 2), ("all", 3)] {
            ask(tender, quorum).await;
            world.sleep(DEADLINE / 2).await;
            assert_eq!((quotes(tender), is_closed(tender)), (quorum, true), "{tender}");
        }
        // More than there are: closed when all have answered.
        ask("more", 4).await;
        world.sleep(DEADLINE / 2).await;
        assert_eq!((quotes("more"), is_closed("more")), (3, true));
        world.kill(0);
        ask("late", 1).await;
        world.sleep(DEADLINE - Duration::from_millis(100)).await;
        assert_eq!((quotes("late"), is_closed("late")), (0, false), "the deadline has not passed");
        world.sleep(Duration::from_secs(1)).await;
        assert_eq!((quotes("late"), is_closed("late")), (0, true));
        world.restart(0).await;
        world.wait_idle().await;
        assert_eq!(quotes("late"), 0, "late answers do nothing");
    });
    run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.trace));
}

#[test]
fn gather_open_after_its_deadline_is_found() {
    let cluster = |sim: Sim| {
        sim.service("suppliers", |node| node.aggregate::<Supplier>())
            .service("purchasing", |node| node.saga::<wrong::Undecided>())
    };
    assert_found(&gathering(cluster).no_regressions(), "is closed 2 times");
}
