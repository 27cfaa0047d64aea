//! The routes of a small service, called without a server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderName, Method, Request, Response};
use serde_json::{Value, json};
use tower::ServiceExt;
use whizbang::layer::Authorize;
use whizbang::prelude::*;

use super::{Gateway, GatewayError};

#[derive(Domain)]
struct Library;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Format {
    Paper,
    Audio,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Library, reply = u64)]
struct Lend {
    #[key]
    book: String,
    days: u8,
    format: Format,
    #[serde(default)]
    notes: Vec<String>,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Library)]
struct Return {
    #[key]
    book: String,
}

/// A command whose own code panics when it is read.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Library)]
struct Burn {
    #[key]
    book: String,
    #[serde(deserialize_with = "explode")]
    at: u64,
}

static EXPLODES: AtomicBool = AtomicBool::new(false);

fn explode<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let value = u64::deserialize(from)?;
    assert!(!EXPLODES.load(Ordering::Relaxed) || value != 451, "451");
    Ok(value)
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Library)]
struct Tuple(#[key] String);

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Library)]
struct Lent {
    days: u8,
    tenant: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Library)]
struct Returned {}

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Library, reply = Option<u8>)]
struct DaysOf {
    book: String,
}

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Library, reply = Vec<Option<String>>)]
struct Caller;

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Library, reply = Vec<String>)]
struct Search {
    min: Option<u8>,
    #[serde(default)]
    book: Vec<String>,
    #[serde(default)]
    exact: bool,
}

#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(domain = Library, handles(Lend, Return, Burn), applies(Lent, Returned))]
struct Book {
    lent: u64,
    is_out: bool,
}

impl Handle<Lend> for Book {
    fn handle(&self, lend: Lend, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if self.is_out {
            return Err(Rejection::new("library.lent", "another reader has it"));
        }
        let tenant = effects.header("x-tenant").or(effects.traceparent()).unwrap_or_default().to_owned();
        effects.record(Lent { days: lend.days, tenant });
        Ok(self.lent + 1)
    }
}

impl Handle<Return> for Book {
    fn handle(&self, _: Return, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Returned {});
        Ok(())
    }
}

impl Handle<Burn> for Book {
    fn handle(&self, _: Burn, _: &mut Effects<Self>) -> Result<(), Rejection> {
        Ok(())
    }
}

impl Apply<Lent> for Book {
    fn apply(&mut self, _: &Lent) {
        self.lent += 1;
        self.is_out = true;
    }
}

impl Apply<Returned> for Book {
    fn apply(&mut self, _: &Returned) {
        self.is_out = false;
    }
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Lent), answers(DaysOf, Search, Caller))]
struct Days {
    days: BTreeMap<String, (u8, String)>,
}

impl Project<Lent> for Days {
    fn project(&mut self, lent: &Lent, about: &EventContext) {
        self.days.insert(about.key.clone(), (lent.days, lent.tenant.clone()));
    }
}

impl Answer<DaysOf> for Days {
    fn answer(&self, query: DaysOf) -> Option<u8> {
        self.days.get(&query.book).map(|(days, _)| *days)
    }
}

impl Answer<Caller> for Days {
    fn answer(&self, _: Caller) -> Vec<Option<String>> {
        Vec::new()
    }

    fn answer_for(&self, _: Caller, context: &QueryContext<'_>) -> Vec<Option<String>> {
        [context.header("x-tenant"), context.header("x-other"), context.traceparent]
            .map(|text| text.map(String::from))
            .to_vec()
    }
}

impl Answer<Search> for Days {
    fn answer(&self, query: Search) -> Vec<String> {
        let wanted = |book: &str| query.book.is_empty() || query.book.iter().any(|wanted| wanted == book);
        let long = |days: u8| if query.exact { Some(days) == query.min } else { days >= query.min.unwrap_or(0) };
        let found = self.days.iter().filter(|(book, (days, _))| wanted(book) && long(*days));
        found.map(|(book, (_, tenant))| format!("{book} {tenant}").trim().to_owned()).collect()
    }
}

async fn node() -> Node {
    let node = Node::builder("library", MemoryStore::new()).aggregate::<Book>().projection::<Days>();
    node.start().await.expect("starts")
}

fn gateway(node: &Node) -> Gateway {
    Gateway::new(node.client())
        .forward(HeaderName::from_static("x-tenant"))
        .command::<Lend>("/books/{book}/loans")
        .command_by::<Return>(Method::DELETE, "/books/{book}/loans")
        .command::<Burn>("/books/{book}/ashes")
        .query::<DaysOf>("/books/{book}")
        .query::<Search>("/books")
}

struct Reply {
    status: u16,
    kind: String,
    body: Value,
}

async fn call(routes: &Router, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut request = Request::builder().method(method).uri(path);
    if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).expect("a request");
    let response: Response<Body> = routes.clone().oneshot(request).await.expect("never fails");
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().expect("text").to_owned());
    let status = response.status().as_u16();
    let bytes = to_bytes(response.into_body(), usize::MAX).await.expect("a body");
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Reply { status, kind: kind.unwrap_or_default(), body }
}

const PAPER: &str = r#"{ "days": 7, "format": "Paper" }"#;

#[tokio::test]
async fn commands_and_queries_are_answered() {
    let node = node().await;
    let routes = gateway(&node).router().expect("routes");
    let lent = call(&routes, "POST", "/books/Moby%20Dick/loans", &[("x-tenant", "acme")], PAPER).await;
    assert_eq!((lent.status, lent.body), (200, json!(1)));
    let again = call(&routes, "POST", "/books/Moby%20Dick/loans", &[], PAPER).await;
    assert_eq!(
        (again.status, &again.body["code"], &*again.kind),
        (422, &json!("library.lent"), "application/problem+json")
    );
    node.wait_idle().await;
    assert_eq!(call(&routes, "GET", "/books/Moby%20Dick", &[], "").await.body, json!(7));
    let unknown = call(&routes, "GET", "/books/Emma", &[], "").await;
    assert_eq!((unknown.status, &unknown.body["code"]), (404, &json!("gateway.not-found")));
    for (query, found) in [
        ("", json!(["Moby Dick acme"])),
        ("?min=7", json!(["Moby Dick acme"])),
        ("?min=8", json!([])),
        ("?min=7&exact=true&book=Emma&book=Moby+Dick", json!(["Moby Dick acme"])),
        ("?book=Emma", json!([])),
    ] {
        let reply = call(&routes, "GET", &format!("/books{query}"), &[], "").await;
        assert_eq!((reply.status, reply.body), (200, found), "{query}");
    }
    let returned = call(&routes, "DELETE", "/books/Moby%20Dick/loans", &[], "").await;
    assert_eq!((returned.status, returned.body), (204, Value::Null));
    node.stop().await.expect("stops");
}

#[tokio::test]
async fn repeated_requests_are_handled_once() {
    let node = node().await;
    let key = HeaderName::from_static("x-user");
    let routes = gateway(&node).scope_keys_by(key).router().expect("routes");
    let ada = [("idempotency-key", "loan-1"), ("x-user", "ada")];
    for _ in 0..3 {
        assert_eq!(call(&routes, "POST", "/books/emma/loans", &ada, PAPER).await.body, json!(1));
    }
    let other = r#"{ "days": 8, "format": "Paper" }"#;
    let conflict = call(&routes, "POST", "/books/emma/loans", &ada, other).await;
    assert_eq!((conflict.status, &conflict.body["code"]), (409, &json!("gateway.idempotency-key-reused")));
    // The same key of another user is another request.
    let bob = [("idempotency-key", "loan-1"), ("x-user", "bob")];
    assert_eq!(call(&routes, "POST", "/books/emma/loans", &bob, PAPER).await.status, 422);
    for headers in [&[("idempotency-key", "loan-1")][..], &[("idempotency-key", ""), ("x-user", "ada")][..]] {
        assert_eq!(call(&routes, "POST", "/books/emma/loans", headers, PAPER).await.status, 400);
    }
    let twice = [("idempotency-key", "a"), ("idempotency-key", "b"), ("x-user", "ada")];
    assert_eq!(call(&routes, "POST", "/books/emma/loans", &twice, PAPER).await.body["code"], "gateway.invalid-header");
    node.stop().await.expect("stops");
}

#[tokio::test]
async fn receipt_names_the_posted_command() {
    let node = node().await;
    let routes = gateway(&node).router().expect("routes");
    let headers = [("prefer", "wait=3, respond-async"), ("idempotency-key", "loan-1")];
    let first = call(&routes, "POST", "/books/emma/loans", &headers, PAPER).await;
    let second = call(&routes, "POST", "/books/emma/loans", &headers, PAPER).await;
    assert_eq!((first.status, second.status), (202, 202));
    assert!(first.body["id"].is_string() && first.body == second.body, "{} {}", first.body, second.body);
    // The command itself returns the result, under the same key.
    let result = call(&routes, "POST", "/books/emma/loans", &headers[1..], PAPER).await;
    assert_eq!((result.status, result.body), (200, json!(1)));
    node.stop().await.expect("stops");
}

#[tokio::test]
async fn every_request_continues_its_trace() {
    let node = node().await;
    let routes = gateway(&node).router().expect("routes");
    let trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    for (book, prefer, status) in [("emma", "wait=3", 200), ("ulysses", "respond-async", 202)] {
        let path = format!("/books/{book}/loans");
        let reply = call(&routes, "POST", &path, &[trace, ("prefer", prefer)], PAPER).await;
        assert_eq!(reply.status, status, "{book}: {}", reply.body);
        node.wait_idle().await;
        let found = call(&routes, "GET", &format!("/books?book={book}"), &[], "").await;
        assert_eq!(found.body, json!([format!("{book} {}", trace.1)]));
    }
    node.stop().await.expect("stops");
}

#[tokio::test]
async fn query_gets_forwarded_headers_and_trace() {
    let node = node().await;
    let routes = gateway(&node).query::<Caller>("/caller").router().expect("routes");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let sent = [("x-tenant", "acme"), ("x-other", "secret"), ("traceparent", trace)];
    let reply = call(&routes, "GET", "/caller", &sent, "").await;
    assert_eq!((reply.status, reply.body), (200, json!(["acme", null, trace])));
    assert_eq!(call(&routes, "GET", "/caller", &[], "").await.body, json!([null, null, null]));
    let twice = call(&routes, "GET", "/caller", &[("x-tenant", "acme"), ("x-tenant", "other")], "").await;
    assert_eq!((twice.status, &twice.body["code"]), (400, &json!("gateway.invalid-header")));
    // Around the gateway's client, a layer decides about queries and commands by the same header.
    let client = node.client().layer(Authorize::by_header("x-tenant", |tenant, _| tenant == "acme"));
    let routes = Gateway::new(client).forward(HeaderName::from_static("x-tenant")).query::<Caller>("/caller").router();
    let routes = routes.expect("routes");
    assert_eq!(call(&routes, "GET", "/caller", &sent, "").await.status, 200);
    for denied in [&[][..], &[("x-tenant", "other")][..]] {
        let reply = call(&routes, "GET", "/caller", denied, "").await;
        assert_eq!((reply.status, &reply.body["code"]), (422, &json!("authorization.denied")));
    }
    node.stop().await.expect("stops");
}

#[tokio::test]
async fn invalid_requests_send_nothing() {
    let node = node().await;
    let routes = gateway(&node).router().expect("routes");
    EXPLODES.store(true, Ordering::Relaxed);
    let long = format!("/books/{}/loans", "a".repeat(300));
    let big = format!(r#"{{ "days": 7, "format": "Paper", "notes": ["{}"] }}"#, "x".repeat(600 * 1024));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (path, kind, body, status) in [
        ("/books/emma/loans", "application/json", "", 400),
        ("/books/emma/loans", "application/json", "{}", 400),
        ("/books/emma/loans", "application/json", "[]", 400),
        ("/books/emma/loans", "application/json", &*deep, 400),
        ("/books/emma/loans", "application/json", r#"{ "days": 7, "format": "Paper""#, 400),
        ("/books/emma/loans", "application/json", r#"{ "days": 256, "format": "Paper" }"#, 400),
        ("/books/emma/loans", "application/json", r#"{ "days": 7, "format": "Stone" }"#, 400),
        ("/books/emma/loans", "application/json", r#"{ "days": 7, "format": "Paper", "book": "other" }"#, 400),
        ("/books/emma/loans", "text/plain", PAPER, 415),
        ("/books/emma/loans", "application/json", &*big, 413),
        ("/books/%FF/loans", "application/json", PAPER, 400),
        ("/books/emma/ashes", "application/json", r#"{ "at": 451 }"#, 400),
        (&*long, "application/json", PAPER, 400),
    ] {
        let reply = call(&routes, "POST", path, &[("content-type", kind)], body).await;
        let shown = body.get(..80).unwrap_or(body);
        assert_eq!(reply.status, status, "{path} {shown}: {}", reply.body);
        assert_eq!(reply.kind, "application/problem+json", "{path} {shown}");
        assert!(reply.body["code"].is_string() && reply.body["detail"].is_string(), "{}", reply.body);
    }
    for query in ["?min=many", "?exact=1", "?min=1&min=2", "?color=red", "?min=256"] {
        assert_eq!(call(&routes, "GET", &format!("/books{query}"), &[], "").await.status, 400, "{query}");
    }
    node.wait_idle().await;
    assert_eq!(node.metrics().turns, 0, "nothing was handled");
    node.stop().await.expect("stops");
}

#[tokio::test]
async fn stopped_node_is_unavailable() {
    let node = node().await;
    let routes = gateway(&node).deadline(Duration::from_millis(200)).router().expect("routes");
    node.stop().await.expect("stops");
    let reply = call(&routes, "POST", "/books/emma/loans", &[("prefer", "wait=1")], PAPER).await;
    assert_eq!(reply.status, 503, "{}", reply.body);
}

#[tokio::test]
async fn routes_that_cannot_be_served_are_refused() {
    let node = node().await;
    let error = |gateway: Gateway| gateway.router().map(drop).expect_err("is refused");
    let new = || Gateway::new(node.client());
    assert!(
        matches!(error(new().command::<Tuple>("/t")), GatewayError::Fields { message } if message == "library.Tuple")
    );
    assert!(matches!(
        error(new().command::<Lend>("/books/{title}/loans")),
        GatewayError::Parameter { parameter, .. } if parameter == "title"
    ));
    assert!(matches!(
        error(new().command::<Lend>("/books/{book}/{notes}")),
        GatewayError::Parameter { parameter, .. } if parameter == "notes"
    ));
    assert!(matches!(error(gateway(&node).command::<Lend>("/books/{book}/loans")), GatewayError::Duplicate { .. }));
    assert!(matches!(error(new().command::<Return>("no-slash")), GatewayError::Path { .. }));
    assert!(matches!(error(new().command_by::<Return>(Method::GET, "/r/{book}")), GatewayError::Method { .. }));
    assert!(matches!(error(new().command_by::<Return>(Method::HEAD, "/r/{book}")), GatewayError::Method { .. }));
    node.stop().await.expect("stops");
}

#[tokio::test]
async fn openapi_describes_every_route() {
    let node = node().await;
    let routes = gateway(&node).openapi("/openapi.json", "Library", "1.2.3").router().expect("routes");
    let reply = call(&routes, "GET", "/openapi.json", &[], "").await;
    assert_eq!((reply.status, &*reply.kind), (200, "application/json"));
    let lend = &reply.body["paths"]["/books/{book}/loans"]["post"];
    assert_eq!(lend["operationId"], "library.Lend");
    assert_eq!(lend["parameters"][0]["name"], "book");
    let schema = &lend["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(
        *schema,
        json!({
            "type": "object",
            "properties": {
                "days": { "type": "integer", "minimum": 0, "maximum": 255 },
                "format": { "oneOf": [{ "const": "Paper" }, { "const": "Audio" }] },
                "notes": { "type": "array", "items": { "type": "string" } },
            },
            "required": ["days", "format"],
        })
    );
    assert_eq!(lend["responses"]["200"]["content"]["application/json"]["schema"]["maximum"], json!(u64::MAX));
    assert!(reply.body["paths"]["/books/{book}/loans"]["delete"]["responses"]["204"].is_object());
    assert!(reply.body["paths"]["/books/{book}"]["get"]["responses"]["404"].is_object());
    let parameters = reply.body["paths"]["/books"]["get"]["parameters"].as_array().expect("parameters");
    assert_eq!(parameters.iter().map(|parameter| &parameter["name"]).collect::<Vec<_>>(), ["min", "book", "exact"]);
    let asyncapi = super::asyncapi(node.manifest(), "whizbang", "1.2.3");
    assert_eq!(asyncapi["channels"]["library-Lent-event"]["address"], "whizbang.evt.library.{shard}.Lent");
    assert_eq!(asyncapi["operations"]["library-Lend-command"]["action"], "receive");
    node.stop().await.expect("stops");
}
