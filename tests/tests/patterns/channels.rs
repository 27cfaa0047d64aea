//! Channels: publish-subscribe, queues with competing consumers, requests, return addresses, correlation, guaranteed delivery.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use whizbang::Retry;
use whizbang::message::MessageId;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};

use crate::SEEDS;

#[derive(Domain)]
struct Baskets;

#[derive(Domain)]
struct Stocks;

#[derive(Domain)]
struct Mail;

/// Replies with the number of articles in the basket.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Baskets, reply = u64)]
struct Buy {
    #[key]
    basket: String,
    article: String,
    count: u64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Baskets)]
struct Bought {
    article: String,
    count: u64,
    correlation: MessageId,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Baskets)]
struct StockKnown {
    left: i64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Baskets, handles(Buy, StockAnswered), applies(Bought), records(StockKnown))]
struct Basket {
    count: u64,
}

impl Handle<Buy> for Basket {
    fn handle(&self, buy: Buy, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        let Buy { basket, article, count } = buy;
        effects.send(AskStock { article: article.clone(), reply_to: basket });
        effects.record(Bought { article, count, correlation: effects.correlation() });
        if self.count + count > 100 {
            // The command and the event are discarded.
            return Err(Rejection::new("baskets.full", "at most 100 articles"));
        }
        Ok(self.count + count)
    }
}

impl Handle<StockAnswered> for Basket {
    fn handle(&self, answered: StockAnswered, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(StockKnown { left: answered.left });
        Ok(())
    }
}

impl Apply<Bought> for Basket {
    fn apply(&mut self, bought: &Bought) {
        self.count += bought.count;
    }
}

#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Stocks)]
struct AskStock {
    #[key]
    article: String,
    /// The basket that gets the answer.
    reply_to: String,
}

#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Baskets)]
struct StockAnswered {
    #[key]
    basket: String,
    left: i64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Stocks)]
struct Taken {
    count: u64,
    correlation: MessageId,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Stocks, handles(AskStock), reacts(Bought), applies(Taken))]
struct Stock {
    taken: u64,
}

impl React<Bought> for Stock {
    fn key(bought: &Bought, _context: &EventContext) -> Option<String> {
        Some(bought.article.clone())
    }

    fn react(&self, bought: Bought, effects: &mut Effects<Self>) {
        effects.record(Taken { count: bought.count, correlation: effects.correlation() });
    }
}

impl Handle<AskStock> for Stock {
    fn handle(&self, ask: AskStock, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(StockAnswered { basket: ask.reply_to, left: 1000 - self.taken as i64 });
        Ok(())
    }
}

impl Apply<Taken> for Stock {
    fn apply(&mut self, taken: &Taken) {
        self.taken += taken.count;
    }
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Bought))]
struct Sold {
    by_article: BTreeMap<String, u64>,
}

impl Project<Bought> for Sold {
    fn project(&mut self, bought: &Bought, _context: &EventContext) {
        *self.by_article.entry(bought.article.clone()).or_default() += bought.count;
    }
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Mail)]
struct SendMail {
    #[key]
    mail: String,
    text: String,
}

/// The mail server. It ignores a mail whose key it knows.
type Sent = Arc<Mutex<BTreeMap<MessageId, String>>>;

#[derive(Worker)]
#[worker(domain = Mail, on(Taken), performs(SendMail))]
struct Mailer {
    sent: Sent,
}

impl OnEvent<Taken> for Mailer {
    async fn on_event(&self, taken: Taken, job: Job) -> Result<(), WorkError> {
        let text = format!("{} articles leave the stock", taken.count);
        job.send(SendMail { mail: job.idempotency_key.to_string(), text });
        Ok(())
    }
}

impl Perform<SendMail> for Mailer {
    async fn perform(&self, mail: SendMail, job: Job) -> Result<(), WorkError> {
        self.sent.lock().unwrap().insert(job.idempotency_key, mail.text);
        Ok(())
    }
}

const PATIENT: Retry = Retry { attempts: 40, first: Duration::from_millis(100), longest: Duration::from_secs(2) };

fn cluster(sim: Sim, sent: Sent) -> Sim {
    sim.service("baskets", |node| node.aggregate::<Basket>())
        .service("stocks", |node| node.aggregate::<Stock>().projection::<Sold>())
        .service("mail", move |node| node.worker(Mailer { sent: Arc::clone(&sent) }).retry(PATIENT))
}

fn purchases() -> impl Strategy<Value = Buy> {
    (0..3u8, 0..3u8, 1..40u64).prop_map(|(basket, article, count)| Buy {
        basket: format!("basket{basket}"),
        article: format!("article{article}"),
        count,
    })
}

async fn buy(world: &World, buy: Buy) {
    // A basket may be full.
    let _ = world.send(buy).await;
}

/// Each purchase reaches each subscriber once, with its correlation id, and its question is answered once.
fn purchases_reach_all_subscribers(world: &World, sent: &Sent) -> Result<(), String> {
    let bought = world.events::<Bought>();
    let mut published: Vec<_> = bought.iter().map(|(_, bought)| (bought.correlation, bought.count)).collect();
    let mut taken: Vec<_> = world.events::<Taken>().iter().map(|(_, taken)| (taken.correlation, taken.count)).collect();
    published.sort();
    taken.sort();
    if published != taken {
        return Err(format!("{published:?} are bought and {taken:?} are taken"));
    }
    let sold: u64 = world.view::<Sold>().by_article.values().sum();
    let total: u64 = bought.iter().map(|(_, bought)| bought.count).sum();
    let (answers, mails) = (world.events::<StockKnown>().len(), sent.lock().unwrap().len());
    if (sold, answers, mails) != (total, bought.len(), bought.len()) {
        return Err(format!("{} purchases: {sold} of {total} sold, {answers} answers, {mails} mails", bought.len()));
    }
    Ok(())
}

#[test]
fn channels_deliver_each_message_once() {
    let sent = Sent::default();
    let at_end = Arc::clone(&sent);
    let fresh = move |sim: Sim| {
        sent.lock().unwrap().clear();
        cluster(sim, Arc::clone(&sent))
    };
    let flow = Flow::new("channels", fresh, purchases(), 1..10, buy);
    let coverage = flow.at_end(move |world, _| purchases_reach_all_subscribers(world, &at_end)).check(0..SEEDS);
    coverage.of::<Basket>().rejects::<Buy>().at_least(1);
    coverage.of::<Stock>().event::<Bought>().while_open().at_least(20);
}

#[test]
fn message_waits_for_a_receiver_that_is_down() {
    let run = cluster(Sim::new(3), Sent::default()).run(async |world| {
        world.kill(1);
        let basket = "ada".to_owned();
        assert_eq!(world.send(Buy { basket, article: "nut".into(), count: 3 }).await.unwrap(), 3);
        world.sleep(Duration::from_secs(60)).await;
        assert_eq!(world.state::<Stock>("nut").taken, 0);
        world.restart(1).await;
        world.wait_idle().await;
        assert_eq!(world.state::<Stock>("nut").taken, 3);
    });
    if let Err(broken) = run {
        panic!("{broken}");
    }
}

#[test]
fn receiver_handles_a_repeated_request_once() {
    let run = cluster(Sim::new(4), Sent::default()).run(async |world| {
        let buy = || Buy { basket: "ada".into(), article: "nut".into(), count: 3 };
        for _ in 0..3 {
            assert_eq!(world.call(buy()).idempotency_key("form 17").await.unwrap(), 3);
        }
        assert_eq!(world.state::<Basket>("ada").count, 3);
    });
    if let Err(broken) = run {
        panic!("{broken}");
    }
}
