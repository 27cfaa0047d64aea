//! Responses with events, read as a browser reads them.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use whizbang::prelude::*;

use super::ServerSentEvents;
use crate::problem::Problem;

#[derive(Domain)]
#[domain(name = "plant", shards = 2)]
struct Plant;

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Plant)]
struct Measured {
    celsius: i32,
}

mod newer {
    use super::*;

    #[derive(Event, Debug, Serialize, Deserialize)]
    #[event(domain = Plant, version = 2, upcast(1 = super::Measured))]
    pub(super) struct Measured {
        pub(super) kelvin: u32,
    }

    impl From<super::Measured> for Measured {
        fn from(_: super::Measured) -> Self {
            Self { kelvin: 0 }
        }
    }
}

async fn measured(State(client): State<Client>, headers: HeaderMap) -> Result<Response, Problem> {
    let events = ServerSentEvents::new(client.subscribe::<Measured>().from_start()).resume(&headers)?;
    let events = events.only(|item| item.event.celsius >= 0).keep_alive(Duration::from_millis(20));
    Ok(events.into_response())
}

async fn request(client: &Client, last: Option<&str>) -> Response {
    let routes = Router::new().route("/measured", get(measured)).with_state(client.clone());
    let mut request = Request::get("/measured");
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    routes.oneshot(request.body(Body::empty()).expect("a request")).await.expect("never fails")
}

/// The body of a response, read field by field.
struct Reader {
    body: BodyDataStream,
    text: String,
}

impl Reader {
    fn new(response: Response) -> Self {
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), text: String::new() }
    }

    /// Returns the fields of the next event or comment; `None` at the end. The name of a comment is empty.
    async fn next(&mut self) -> Option<BTreeMap<String, String>> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let fields = event.lines().filter_map(|line| line.split_once(':'));
                let fields = fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
                self.text = rest.to_owned();
                return Some(fields);
            }
            let chunk = self.body.next().await?.expect("a part of the body");
            self.text += std::str::from_utf8(&chunk).expect("text");
        }
    }

    /// Returns the next event or comment for which `holds`.
    async fn until(&mut self, holds: impl Fn(&BTreeMap<String, String>) -> bool) -> BTreeMap<String, String> {
        loop {
            let fields = self.next().await.expect("another block");
            if holds(&fields) {
                return fields;
            }
        }
    }

    /// Returns the next event.
    async fn event(&mut self) -> Option<BTreeMap<String, String>> {
        loop {
            let fields = self.next().await?;
            if fields.contains_key("data") {
                return Some(fields);
            }
        }
    }
}

fn celsius(event: &BTreeMap<String, String>) -> i64 {
    let data: Value = serde_json::from_str(&event["data"]).expect("JSON");
    data["celsius"].as_i64().expect("a number")
}

#[whizbang::test]
async fn last_event_id_continues_behind_the_event() {
    let node = Node::builder("plant", MemoryStore::new()).publishes::<Measured>().start().await.expect("starts");
    let client = node.client();
    let publish = async |celsius| client.publish("boiler", Measured { celsius }).await.expect("publishes");
    for number in [1, 2, -3, 4] {
        publish(number).await;
    }
    let mut reader = Reader::new(request(&client, None).await);
    assert_eq!(celsius(&reader.event().await.expect("an event")), 1);
    let second = reader.event().await.expect("an event");
    assert_eq!((celsius(&second), second.contains_key("event")), (2, false));
    drop(reader);
    let mut reader = Reader::new(request(&client, Some(&second["id"])).await);
    assert_eq!(celsius(&reader.event().await.expect("an event")), 4, "the third is not chosen");
    // Nothing new: comments keep the connection open, and an event follows them.
    assert!(reader.next().await.expect("a comment").contains_key(""));
    publish(5).await;
    assert_eq!(celsius(&reader.event().await.expect("an event")), 5);
    node.stop().await.expect("stops");
    let end = reader.event().await.expect("the end");
    assert_eq!(end["event"], "end");
    assert!(end["data"].contains("gateway.stopped") && end["id"].starts_with("1:plant:"), "{end:?}");
    assert_eq!(reader.event().await, None);
}

async fn measured_from_now(State(client): State<Client>, headers: HeaderMap) -> Result<Response, Problem> {
    let events = ServerSentEvents::new(client.subscribe::<Measured>()).resume(&headers)?;
    Ok(events.only(|item| item.event.celsius >= 0).keep_alive(Duration::from_millis(20)).into_response())
}

#[whizbang::test]
async fn reconnection_before_the_first_event_misses_none() {
    let node = Node::builder("plant", MemoryStore::new()).publishes::<Measured>().start().await.expect("starts");
    let client = node.client();
    let publish = async |celsius| client.publish("boiler", Measured { celsius }).await.expect("publishes");
    publish(1).await;
    let request = async |last: Option<&str>| {
        let routes = Router::new().route("/measured", get(measured_from_now)).with_state(client.clone());
        let request =
            last.into_iter().fold(Request::get("/measured"), |request, id| request.header("last-event-id", id));
        routes.oneshot(request.body(Body::empty()).expect("a request")).await.expect("never fails")
    };
    let mut reader = Reader::new(request(None).await);
    let first = reader.until(|block| block.contains_key("id")).await;
    assert!(!first.contains_key("data"), "{first:?}");
    drop(reader);
    publish(2).await;
    let mut reader = Reader::new(request(Some(&first["id"])).await);
    let second = reader.event().await.expect("an event");
    assert_eq!(celsius(&second), 2);
    // An event that is not sent moves the cursor.
    publish(-3).await;
    let moved = reader.until(|block| block.contains_key("id")).await;
    assert!(!moved.contains_key("data") && moved["id"] != second["id"], "{moved:?}");
    assert!(reader.next().await.expect("a comment").contains_key(""), "the id is sent once");
    node.stop().await.expect("stops");
}

#[whizbang::test]
async fn invalid_or_foreign_last_event_id_is_reported() {
    let node = Node::builder("plant", MemoryStore::new()).publishes::<Measured>().start().await.expect("starts");
    let client = node.client();
    let response = request(&client, Some("4711")).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    // The log has no such event.
    let mut reader = Reader::new(request(&client, Some("1:plant:-:7-0000000a.0")).await);
    let end = reader.event().await.expect("the end");
    assert!(end["event"] == "end" && end["data"].contains("gateway.other-log"), "{end:?}");
    assert_eq!(reader.event().await, None);
    node.stop().await.expect("stops");
}

#[whizbang::test]
async fn unreadable_event_is_named_and_others_follow() {
    let store = MemoryStore::new();
    let node = Node::builder("plant", store.clone()).publishes::<Measured>().start().await.expect("starts");
    node.client().publish("boiler", Measured { celsius: 1 }).await.expect("publishes");
    node.stop().await.expect("stops");
    let node = Node::builder("plant", store).publishes::<newer::Measured>().start().await.expect("starts");
    let client = node.client();
    client.publish("boiler", newer::Measured { kelvin: 300 }).await.expect("publishes");
    let mut reader = Reader::new(request(&client, None).await);
    assert_eq!(celsius(&reader.event().await.expect("an event")), 1);
    let unreadable = reader.event().await.expect("an event");
    assert_eq!(unreadable["event"], "unreadable");
    let data: Value = serde_json::from_str(&unreadable["data"]).expect("JSON");
    assert_eq!((&data["position"], &data["name"]), (&json!(2), &json!("Measured")));
    assert!(unreadable["id"].contains("2-"), "{unreadable:?}");
    node.stop().await.expect("stops");
}

#[whizbang::test]
async fn shutdown_of_the_server_ends_open_responses() {
    let node = Node::builder("plant", MemoryStore::new()).publishes::<Measured>().start().await.expect("starts");
    let (stop, mut stops) = tokio::sync::watch::channel(false);
    let stopped = async move { drop(stops.wait_for(|stops| *stops).await) };
    let events = ServerSentEvents::new(node.client().subscribe::<Measured>()).until(stopped);
    let mut reader = Reader::new(events.into_response());
    // The response works until then.
    let started = reader.next().await.expect("a block");
    node.client().publish("boiler", Measured { celsius: 5 }).await.expect("publishes");
    let measured = reader.event().await.expect("an event");
    assert_eq!(celsius(&measured), 5);
    stop.send(true).expect("the response waits");
    let end = reader.event().await.expect("an end");
    assert_eq!((end["event"].as_str(), end["data"].contains("gateway.stopped")), ("end", true), "{end:?}");
    // A client that reconnects with it misses none.
    assert!(end["id"] == measured["id"] && end["id"] != started["id"], "{started:?} {measured:?} {end:?}");
    assert_eq!(reader.next().await, None);
    node.stop().await.expect("stops");
}
