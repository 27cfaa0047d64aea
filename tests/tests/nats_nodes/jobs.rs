//! Jobs that send commands and publish events to another service, while their node is killed and the server restarts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::{BOTH, until};

const JOBS: u64 = 60;

#[derive(Domain)]
#[domain(name = "desks", shards = 4)]
struct Desks;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Desks)]
struct Order {
    #[key]
    order: String,
    number: u64,
}

/// Published by the job, without an aggregate.
#[derive(Event, Serialize, Deserialize)]
#[event(domain = Desks)]
struct Ordered {
    number: u64,
}

#[derive(Domain)]
#[domain(name = "books", shards = 4)]
struct Books;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Books, reply = u64)]
struct Book {
    #[key]
    book: String,
    number: u64,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Books, reply = (Vec<u64>, Vec<u64>))]
struct Read {
    #[key]
    book: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Books)]
struct Booked {
    number: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Books)]
struct Noted {
    number: u64,
}

/// The numbers that were booked by commands, and those that were noted from events.
#[derive(Aggregate, Default)]
#[aggregate(domain = Books, handles(Book, Read), reacts(Ordered), applies(Booked, Noted))]
struct Ledger {
    booked: Vec<u64>,
    noted: Vec<u64>,
}

impl Handle<Book> for Ledger {
    fn handle(&self, book: Book, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if effects.header("tenant") != Some("acme") {
            return Err(Rejection::new("books.tenant", "whose book is it?"));
        }
        effects.record(Booked { number: book.number });
        Ok(book.number)
    }
}

impl Handle<Read> for Ledger {
    fn handle(&self, _read: Read, _effects: &mut Effects<Self>) -> Result<(Vec<u64>, Vec<u64>), Rejection> {
        let (mut booked, mut noted) = (self.booked.clone(), self.noted.clone());
        booked.sort_unstable();
        noted.sort_unstable();
        Ok((booked, noted))
    }
}

impl React<Ordered> for Ledger {
    fn react(&self, ordered: Ordered, effects: &mut Effects<Self>) {
        effects.record(Noted { number: ordered.number });
    }
}

impl Apply<Booked> for Ledger {
    fn apply(&mut self, booked: &Booked) {
        self.booked.push(booked.number);
    }
}

impl Apply<Noted> for Ledger {
    fn apply(&mut self, noted: &Noted) {
        self.noted.push(noted.number);
    }
}

/// The replies by order.
type Replies = Arc<Mutex<BTreeMap<String, Result<u64, String>>>>;

#[derive(Worker)]
#[worker(domain = Desks, performs(Order), replies(Book))]
struct Clerk(Replies);

impl Perform<Order> for Clerk {
    async fn perform(&self, order: Order, job: Job) -> Result<(), WorkError> {
        job.send(Book { book: "one".to_owned(), number: order.number });
        job.publish("one", Ordered { number: order.number });
        Ok(())
    }
}

impl OnJobReply<Book> for Clerk {
    async fn on_job_reply(&self, reply: Result<u64, Rejection>, job: Job) -> Result<(), WorkError> {
        self.0.lock().unwrap().insert(job.key, reply.map_err(|no| no.code().to_owned()));
        Ok(())
    }
}

#[test]
fn jobs_send_once_across_kills_of_their_node_and_the_server() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let (url, desks, replies) = (server.url(), MemoryStore::new(), Replies::default());
            let start = async || {
                let node = Node::builder("desks", desks.clone()).worker(Clerk(Arc::clone(&replies)));
                let node = node.publishes::<Ordered>().propagate_headers(["tenant"]);
                node.bridge(crate::services::bridge(&url).await).start().await.expect("starts")
            };
            let books = Node::builder("books", MemoryStore::new()).aggregate::<Ledger>();
            let books = books.bridge(crate::services::bridge(&url).await).start().await.expect("starts");
            let mut node = start().await;
            for number in 0..JOBS {
                let order = Order { order: format!("order {number}"), number };
                node.client().send(order).header("tenant", "acme").await.expect("is done");
                if number % 20 == 10 {
                    // The next node sends the messages that are committed and not sent.
                    drop(node);
                    server.kill();
                    server.restart();
                    node = start().await;
                }
            }
            let all: Vec<_> = (0..JOBS).collect();
            until("all orders are booked and noted", async || {
                let read = books.client().send(Read { book: "one".to_owned() }).await.expect("reads");
                assert!(read.0.len() <= all.len() && read.1.len() <= all.len(), "more than once: {read:?}");
                read == (all.clone(), all.clone())
            })
            .await;
            let expected: BTreeMap<_, _> = all.iter().map(|number| (format!("order {number}"), Ok(*number))).collect();
            until("all replies are handled", async || *replies.lock().unwrap() == expected).await;
            node.stop().await.expect("stops");
            books.stop().await.expect("stops");
        });
    }
}
