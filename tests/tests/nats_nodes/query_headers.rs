//! Headers and traces of queries on real servers: of a view and of a key.

use whizbang::layer::Authorize;
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::BOTH;
use crate::services::bridge;

#[derive(Domain)]
#[domain(name = "desk", shards = 2)]
struct Desk;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Desk)]
struct Open {
    #[key]
    name: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Desk)]
struct Opened {}

/// Returns a header and the trace of the query.
#[derive(Query, Serialize, Deserialize)]
#[query(domain = Desk, reply = (Option<String>, Option<String>))]
struct Caller;

/// As [`Caller`], of a key.
#[derive(Query, Serialize, Deserialize)]
#[query(domain = Desk, reply = (Option<String>, Option<String>))]
struct CallerOf {
    #[key]
    name: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Desk, handles(Open), records(Opened), answers(CallerOf))]
struct Drawer;

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Opened), answers(Caller))]
struct Openings;

impl Handle<Open> for Drawer {
    fn handle(&self, _: Open, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Opened {});
        Ok(())
    }
}

impl Project<Opened> for Openings {
    fn project(&mut self, _: &Opened, _: &EventContext) {}
}

fn read(context: &QueryContext<'_>) -> (Option<String>, Option<String>) {
    (context.header("user").map(String::from), context.traceparent.map(String::from))
}

impl Answer<Caller> for Openings {
    fn answer(&self, _: Caller) -> (Option<String>, Option<String>) {
        panic!("answered without its context")
    }

    fn answer_for(&self, _: Caller, context: &QueryContext<'_>) -> (Option<String>, Option<String>) {
        read(context)
    }
}

impl Answer<CallerOf> for Drawer {
    fn answer(&self, _: CallerOf) -> (Option<String>, Option<String>) {
        panic!("answered without its context")
    }

    fn answer_for(&self, _: CallerOf, context: &QueryContext<'_>) -> (Option<String>, Option<String>) {
        read(context)
    }
}

#[test]
fn answers_read_headers_of_queries_over_servers() {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node = Node::builder("desk", MemoryStore::new()).threads(0);
            let node = node.aggregate::<Drawer>().projection::<Openings>().bridge(bridge(&server.url()).await);
            let node = node.start().await.expect("starts");
            let client = Client::connect("caller", bridge(&server.url()).await).await.expect("connects");
            let client = client.layer(Authorize::by_header("user", |user, _| user == "ada lovelace"));
            let of = || CallerOf { name: "d1".to_owned() };
            let sent = (Some("ada lovelace".to_owned()), Some(trace.to_owned()));
            let of_view = client.query(Caller).header("user", "ada lovelace").traceparent(trace);
            assert_eq!(of_view.await.expect("is answered"), sent);
            let of_key = client.query(of()).header("user", "ada lovelace").traceparent(trace);
            assert_eq!(of_key.await.expect("is answered"), sent);
            for denied in [client.query(Caller).await, client.query(of()).header("user", "bob").await] {
                let denied = denied.expect_err("is denied");
                assert_eq!(denied.rejection().map(Rejection::code), Some(Authorize::DENIED));
            }
            node.stop().await.expect("stops");
        });
    }
}
