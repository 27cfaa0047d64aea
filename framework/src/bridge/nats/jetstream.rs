//! The few requests to JetStream's API that the bridge makes: streams and consumers are looked at, made, and compared.
//!
//! Called at attach and after each reconnection. Written against the API itself, so that a setting which a server does not
//! know and drops in silence is found by comparing what it echoes, on every version alike.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Request, RequestErrorKind};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::connection::Connection;
use super::streams::Source;
use crate::bridge::BridgeError;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(5);
/// A cluster that elects a leader is asked again for this long, with pauses of [`PAUSE`].
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(250);

const STREAM_NOT_FOUND: u64 = 10059;
const CONSUMER_NOT_FOUND: u64 = 10014;
/// The request fits no node of the cluster, or the account: waiting does not help.
const RESOURCES: [u64; 4] = [10023, 10028, 10047, 10074];

/// A stream or a consumer as it should be: settings that are compared, and such as must not be set.
pub(super) struct Wanted {
    /// What it is called in errors: ``stream `x` ``.
    pub(super) what: String,
    /// The end of the API's subjects: a stream, or `stream.consumer`.
    pub(super) path: String,
    pub(super) settings: Value,
    pub(super) unset: &'static [&'static str],
}

/// What is known of a stream that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Incarnation {
    /// When it was created, as the server writes it.
    pub(super) created: String,
    /// The number of its last message.
    pub(super) last: u64,
}

impl Incarnation {
    /// Whether `later` is the same stream with nothing lost at its end.
    pub(super) fn continues(&self, later: &Self) -> bool {
        self.created == later.created && self.last <= later.last
    }
}

/// Why the API does not do something.
enum Failure {
    /// What is asked for does not exist.
    Missing,
    /// It may work later.
    Later(BridgeError),
    Final(BridgeError),
}

/// JetStream's API behind one connection.
#[derive(Clone)]
pub(super) struct JetStream {
    client: Client,
    broker: Arc<str>,
    denials: broadcast::Sender<String>,
}

impl JetStream {
    pub(super) fn new(connection: &Connection) -> Self {
        Self {
            client: connection.client.clone(),
            broker: Arc::clone(&connection.broker),
            denials: connection.denials.clone(),
        }
    }

    /// Makes a stream unless it exists; then compares it.
    pub(super) async fn ensure_stream(&self, wanted: &Wanted) -> Result<Incarnation, BridgeError> {
        let info = self.ensure("STREAM", wanted, &wanted.settings).await?;
        Ok(incarnation(&info))
    }

    /// Makes sure that a stream and its consumer are there and as they should be; none if the stream is another's and missing.
    pub(super) async fn ensure_source(&self, source: &Source) -> Result<Option<Incarnation>, BridgeError> {
        let incarnation = match &source.makes {
            Some(wanted) => Some(self.ensure_stream(wanted).await?),
            None => self.stream(&source.stream).await?,
        };
        if incarnation.is_some() {
            self.ensure_consumer(&source.stream, &source.consumer).await?;
        }
        Ok(incarnation)
    }

    /// What is known of a stream; none if it does not exist.
    async fn stream(&self, name: &str) -> Result<Option<Incarnation>, BridgeError> {
        match self.insist(&format!("STREAM.INFO.{name}"), &Value::Null).await {
            Ok(info) => Ok(Some(incarnation(&info))),
            Err(Failure::Missing) => Ok(None),
            Err(Failure::Later(error) | Failure::Final(error)) => Err(error),
        }
    }

    /// Makes a consumer unless it exists; then compares it.
    async fn ensure_consumer(&self, stream: &str, wanted: &Wanted) -> Result<(), BridgeError> {
        let body = json!({ "stream_name": stream, "config": wanted.settings });
        self.ensure("CONSUMER", wanted, &body).await.map(|_| ())
    }

    async fn ensure(&self, kind: &str, wanted: &Wanted, body: &Value) -> Result<Value, BridgeError> {
        let path = &wanted.path;
        let found = match self.insist(&format!("{kind}.INFO.{path}"), &Value::Null).await {
            Err(Failure::Missing) => {
                let made = self.insist(&format!("{kind}.CREATE.{path}"), body).await;
                if made.is_ok() {
                    tracing::info!(broker = &*self.broker, "made {}", wanted.what);
                }
                made
            }
            found => found,
        };
        match found {
            Ok(info) => compare(wanted, &info).map(|()| info),
            Err(Failure::Missing) => Err(BridgeError::Unreachable {
                broker: self.broker.to_string(),
                reason: format!("{} went away while it was made", wanted.what),
            }),
            Err(Failure::Later(error) | Failure::Final(error)) => Err(error),
        }
    }

    /// Repeats a request while the answer may change by itself.
    async fn insist(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let asking = async {
            loop {
                match self.ask(path, body).await {
                    Err(Failure::Later(error)) => {
                        tracing::debug!(broker = &*self.broker, path, %error, "JetStream is asked again");
                        tokio::time::sleep(PAUSE).await;
                    }
                    other => return other,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(answer) => answer,
            Err(_) => self.ask(path, body).await,
        }
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let payload = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::new().payload(payload.into()).timeout(Some(REQUEST));
        let subject = format!("$JS.API.{path}");
        let mut denials = self.denials.subscribe();
        let denied = async {
            loop {
                match denials.recv().await {
                    Ok(denied) if denied == subject => return,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => pending().await,
                }
            }
        };
        let asked = tokio::select! {
            biased;
            asked = self.client.send_request(subject.clone(), request) => asked,
            () = denied => {
                let reason = format!("this user may not publish to `{subject}`");
                return Err(Failure::Final(BridgeError::Refused { broker: self.broker.to_string(), reason }));
            }
        };
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                // A server without JetStream says so at once, and so does a cluster that has no leader yet.
                let reason = "JetStream does not answer: is it on (`nats-server -js`), and in this account?".to_owned();
                let error = BridgeError::Refused { broker: self.broker.to_string(), reason };
                return Err(if self.client.server_info().jetstream {
                    Failure::Later(error)
                } else {
                    Failure::Final(error)
                });
            }
            Err(error) => {
                return Err(Failure::Later(BridgeError::Broker {
                    doing: format!("the request to `$JS.API.{path}`"),
                    source: Arc::new(error),
                }));
            }
        };
        let answer: Value = serde_json::from_slice(&answer.payload).map_err(|error| {
            let doing = format!("reading the answer of `$JS.API.{path}`");
            Failure::Final(BridgeError::Broker { doing, source: Arc::new(error) })
        })?;
        let Some(error) = answer.get("error") else { return Ok(answer) };
        let code = error.get("err_code").and_then(Value::as_u64).unwrap_or(0);
        if code == STREAM_NOT_FOUND || code == CONSUMER_NOT_FOUND {
            return Err(Failure::Missing);
        }
        let text = error.get("description").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
        let refused = BridgeError::Refused {
            broker: self.broker.to_string(),
            reason: format!("`$JS.API.{path}`: {text} ({code})"),
        };
        let busy = error.get("code").and_then(Value::as_u64) == Some(503) && !RESOURCES.contains(&code);
        Err(if busy { Failure::Later(refused) } else { Failure::Final(refused) })
    }
}

fn incarnation(info: &Value) -> Incarnation {
    Incarnation {
        created: info.get("created").and_then(Value::as_str).unwrap_or_default().to_owned(),
        last: info.pointer("/state/last_seq").and_then(Value::as_u64).unwrap_or(0),
    }
}

/// Finds the first setting that differs.
fn compare(wanted: &Wanted, info: &Value) -> Result<(), BridgeError> {
    let config = info.get("config").unwrap_or(&Value::Null);
    let found = |setting: &str| config.get(setting).unwrap_or(&Value::Null);
    let mismatch = |setting: &str, wanted_value: &str| BridgeError::Mismatch {
        what: wanted.what.clone(),
        setting: setting.to_owned(),
        found: found(setting).to_string(),
        wanted: wanted_value.to_owned(),
    };
    for (setting, value) in wanted.settings.as_object().into_iter().flatten() {
        // The server leaves out what is false.
        let is_default = *value == json!(false) && found(setting).is_null();
        if found(setting) != value && !is_default {
            return Err(mismatch(setting, &value.to_string()));
        }
    }
    let is_set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        // 0 and -1 both stand for no limit.
        Value::Number(number) => number.as_f64().is_some_and(|number| number > 0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(_) | Value::Bool(true) => true,
    };
    match wanted.unset.iter().find(|setting| is_set(found(setting))) {
        Some(setting) => Err(mismatch(setting, "nothing")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(config: &Value) -> Result<(), String> {
        let wanted = Wanted {
            what: "stream `x`".to_owned(),
            path: "x".to_owned(),
            settings: json!({ "subjects": ["a.>"], "max_age": 60, "no_ack": false }),
            unset: &["mirror", "sealed", "max_msg_size"],
        };
        compare(&wanted, &json!({ "config": config })).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(compared(&json!({ "subjects": ["a.>"], "max_age": 60, "max_msg_size": -1, "other": 1 })), Ok(()));
        for (config, error) in [
            (
                json!({ "subjects": ["b.>"], "max_age": 60 }),
                r#"stream `x` exists with subjects = ["b.>"], needed is ["a.>"]"#,
            ),
            (json!({ "subjects": ["a.>"] }), "stream `x` exists with max_age = null, needed is 60"),
            (
                json!({ "subjects": ["a.>"], "max_age": 60, "no_ack": true }),
                "stream `x` exists with no_ack = true, needed is false",
            ),
            (
                json!({ "subjects": ["a.>"], "max_age": 60, "sealed": true }),
                "stream `x` exists with sealed = true, needed is nothing",
            ),
        ] {
            assert_eq!(compared(&config), Err(error.to_owned()));
        }
    }

    #[test]
    fn a_stream_that_was_made_anew_or_has_lost_its_end_is_another() {
        let known = Incarnation { created: "monday".to_owned(), last: 7 };
        assert!(known.continues(&Incarnation { last: 9, ..known.clone() }));
        assert!(!known.continues(&Incarnation { last: 6, ..known.clone() }));
        assert!(!known.continues(&Incarnation { created: "tuesday".to_owned(), last: 9 }));
    }
}
