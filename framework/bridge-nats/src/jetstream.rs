//! The requests to the JetStream API: inspects, creates and compares streams, reads and conditionally writes messages.
//!
//! Called at attach and after each reconnection. Written against the API itself: a server silently drops settings that it does not
//! know, and comparing the settings it returns detects that on every version.
//!
//! A request is repeated for a while, because a cluster that elects a leader answers nothing or an error. Every request is
//! idempotent: the settings are complete, and a conditional write names the message that it follows.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Request, RequestErrorKind};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::config::StreamSetup;
use super::connection::Connection;
use super::stored_message::StoredMessage;
use whizbang_core::bridge::BridgeError;
use whizbang_core::telemetry::error_chain;

/// The time limit of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The time for which requests are retried, with pauses of [`RETRY_PAUSE`], while a cluster elects a leader.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);
/// The pause between two attempts of a request.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The stream does not exist.
const STREAM_NOT_FOUND: u64 = 10059;
/// The consumer does not exist.
const CONSUMER_NOT_FOUND: u64 = 10014;
/// The stream has no message on the subject.
const MESSAGE_NOT_FOUND: u64 = 10037;
/// The last message of the subject is another one.
const WRONG_LAST_SEQUENCE: [u64; 2] = [10071, 10164];
/// Another consumer of the work queue has the same messages.
const CONSUMERS_OVERLAP: [u64; 2] = [10099, 10100];
/// The request exceeds the resources of the cluster or of the account: a retry does not help.
const INSUFFICIENT_RESOURCES: [u64; 4] = [10023, 10028, 10047, 10074];

/// The desired configuration of a stream or consumer: settings to compare, and settings that must not be set.
pub(super) struct DesiredConfig {
    /// The name in errors: ``stream `x` ``.
    pub(super) label: String,
    /// The last part of the API's subjects: `stream`, or `stream.consumer`.
    pub(super) path: String,
    /// The settings as the API has them. Each must have this value unless it is adjustable.
    pub(super) settings: Value,
    /// The settings that must be missing, false, empty or unlimited.
    pub(super) must_be_unset: &'static [&'static str],
    /// The settings that may differ: a difference is logged and the stream or consumer is used unchanged.
    pub(super) adjustable: &'static [&'static str],
}

/// The identity and the end of an existing stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Incarnation {
    /// The creation time, as the server formats it.
    pub(super) created: String,
    /// The sequence of the last message.
    pub(super) last: u64,
}

impl Incarnation {
    /// Returns true if `later` is the same stream and has lost no message at its end.
    pub(super) fn continues(&self, later: &Self) -> bool {
        self.created == later.created && self.last <= later.last
    }
}

/// The reason for which an API request failed.
pub(super) enum ApiFailure {
    /// The requested object does not exist.
    Missing,
    /// The last message is not the expected one.
    WrongLastSequence,
    /// A work queue delivers each message to one consumer, and another one exists for the same messages.
    Overlap,
    /// A retry may succeed.
    Transient(BridgeError),
    /// A retry does not help.
    Permanent(BridgeError),
}

/// The JetStream API over one connection.
#[derive(Clone)]
pub(super) struct JetStream {
    /// It sends requests and receives their responses.
    client: Client,
    /// The servers, for errors.
    broker: Arc<str>,
    /// The subjects that the server denies. A denied request gets no response, so it is ended by the denial.
    denials: broadcast::Sender<String>,
    /// Permission to create missing streams and consumers.
    pub(super) setup: StreamSetup,
    /// The logged differences of adjustable settings, by path.
    adjusted: Arc<Mutex<BTreeMap<String, Vec<AdjustedSetting>>>>,
}

/// A difference of an adjustable setting: its name, its value at the server, and the configured value.
type AdjustedSetting = (String, String, String);

impl JetStream {
    /// Returns the API over a connection. Clones share the record of logged differences.
    pub(super) fn new(connection: &Connection, setup: StreamSetup) -> Self {
        Self {
            setup,
            client: connection.client.clone(),
            broker: Arc::clone(&connection.broker),
            denials: connection.denials.clone(),
            adjusted: Arc::default(),
        }
    }

    /// Creates a stream if it does not exist, then compares it.
    pub(super) async fn ensure_stream(&self, wanted: &DesiredConfig) -> Result<Incarnation, BridgeError> {
        let info = self.ensure("STREAM", wanted, &wanted.settings).await?;
        Ok(read_incarnation(&info))
    }

    /// Returns the incarnation of a stream; `None` if it does not exist.
    pub(super) async fn stream_info(&self, name: &str) -> Result<Option<Incarnation>, BridgeError> {
        match self.request_with_retry(&format!("STREAM.INFO.{name}"), &Value::Null).await {
            Ok(info) => Ok(Some(read_incarnation(&info))),
            Err(ApiFailure::Missing) => Ok(None),
            Err(failure) => Err(self.bridge_error(failure)),
        }
    }

    /// Returns the description of a stream or consumer, created if it was missing and permitted.
    ///
    /// # Errors
    /// [`BridgeError::Mismatch`] names the first setting that changes the meaning. [`BridgeError::Refused`] if the server, its
    /// permissions or [`StreamSetup::Existing`] forbid the creation.
    pub(super) async fn ensure(&self, kind: &str, wanted: &DesiredConfig, body: &Value) -> Result<Value, BridgeError> {
        let path = &wanted.path;
        let found = match self.request_with_retry(&format!("{kind}.INFO.{path}"), &Value::Null).await {
            Err(ApiFailure::Missing) if self.setup == StreamSetup::Existing => {
                return Err(self.not_set_up(&wanted.label));
            }
            Err(ApiFailure::Missing) => {
                let created = self.request_with_retry(&format!("{kind}.CREATE.{path}"), body).await;
                if created.is_ok() {
                    tracing::info!(broker = &*self.broker, "created {}", wanted.label);
                }
                created
            }
            found => found,
        };
        match found {
            Ok(info) => compare(wanted, &info).map(|()| {
                self.warn_about_adjusted(wanted, &info);
                info
            }),
            Err(ApiFailure::Missing) => Err(BridgeError::Unreachable {
                broker: self.broker.to_string(),
                reason: format!("{} disappeared while it was created", wanted.label),
            }),
            Err(ApiFailure::Overlap) => Err(self.overlap_error(wanted).await),
            Err(failure) => Err(self.bridge_error(failure)),
        }
    }

    /// Logs adjustable settings that an operator or an earlier configuration has changed, once per change.
    fn warn_about_adjusted(&self, wanted: &DesiredConfig, info: &Value) {
        let different = adjusted_settings(wanted, info);
        let mut known = self.adjusted.lock();
        if known.get(&wanted.path) != Some(&different) {
            for (setting, found, configured) in &different {
                tracing::warn!(
                    broker = &*self.broker,
                    setting,
                    found,
                    configured,
                    "{} differs from this node's configuration and is used unchanged; change it with `nats stream edit` or \
                     `nats consumer edit` if the configuration is right",
                    wanted.label
                );
            }
            known.insert(wanted.path.clone(), different);
        }
    }

    /// Returns the error for something missing that this node may not create.
    fn not_set_up(&self, label: &str) -> BridgeError {
        let reason =
            format!("{label} does not exist and this node creates nothing: run the setup (`NatsBuilder::set_up`)");
        BridgeError::Refused { broker: self.broker.to_string(), reason }
    }

    /// Returns the last message of a stream on a subject, which may have wildcards.
    pub(super) async fn last_message(&self, stream: &str, subject: &str) -> Result<Option<StoredMessage>, BridgeError> {
        let asked = json!({ "last_by_subj": subject });
        match self.request_with_retry(&format!("STREAM.MSG.GET.{stream}"), &asked).await {
            Ok(answer) => Ok(StoredMessage::read(&answer)),
            Err(ApiFailure::Missing) => Ok(None),
            Err(failure) => Err(self.bridge_error(failure)),
        }
    }

    /// Publishes a message if the last message of its subject has the sequence `last`, 0 for none. After an error the message may be
    /// stored nevertheless.
    pub(super) async fn publish_after(
        &self,
        subject: String,
        payload: Bytes,
        last: u64,
    ) -> Result<PublishOutcome, BridgeError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", last.to_string().as_str());
        match self.request(&subject, payload, Some(headers)).await {
            Ok(answer) => Ok(PublishOutcome::Stored(answer.get("seq").and_then(Value::as_u64).unwrap_or(0))),
            Err(ApiFailure::WrongLastSequence) => Ok(PublishOutcome::Conflict),
            Err(failure) => Err(self.bridge_error(failure)),
        }
    }

    /// Converts a failure that the caller cannot handle itself.
    pub(super) fn bridge_error(&self, failure: ApiFailure) -> BridgeError {
        match failure {
            ApiFailure::Missing => self.refused("it does not exist".to_owned()),
            ApiFailure::WrongLastSequence => self.refused("another message is the last one".to_owned()),
            ApiFailure::Overlap => self.refused("another consumer of the stream receives the same messages".to_owned()),
            ApiFailure::Transient(error) | ApiFailure::Permanent(error) => error,
        }
    }

    /// Returns an error for a refusal by the server.
    pub(super) fn refused(&self, reason: String) -> BridgeError {
        BridgeError::Refused { broker: self.broker.to_string(), reason }
    }

    /// Makes an API request and retries transient failures for [`RETRY_TIMEOUT`].
    pub(super) async fn request_with_retry(&self, path: &str, body: &Value) -> Result<Value, ApiFailure> {
        let asking = async {
            loop {
                match self.api_request(path, body).await {
                    Err(ApiFailure::Transient(error)) => {
                        tracing::debug!(
                            broker = &*self.broker, path, error = %error_chain(&error),
                            "retrying a JetStream request",
                        );
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    other => return other,
                }
            }
        };
        match tokio::time::timeout(RETRY_TIMEOUT, asking).await {
            Ok(answer) => answer,
            Err(_) => self.api_request(path, body).await,
        }
    }

    /// Makes one request to the API, without a retry.
    async fn api_request(&self, path: &str, body: &Value) -> Result<Value, ApiFailure> {
        let payload = if body.is_null() { String::new() } else { body.to_string() };
        self.request(&format!("$JS.API.{path}"), payload.into(), None).await
    }

    /// Makes one request to JetStream: to its API, or a message for a stream.
    async fn request(&self, subject: &str, payload: Bytes, headers: Option<HeaderMap>) -> Result<Value, ApiFailure> {
        let mut request = Request::new().payload(payload).timeout(Some(REQUEST_TIMEOUT));
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
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
            asked = self.client.send_request(subject.to_owned(), request) => asked,
            () = denied => {
                let reason = format!("this user is not permitted to publish to `{subject}`");
                return Err(ApiFailure::Permanent(BridgeError::Refused { broker: self.broker.to_string(), reason }));
            }
        };
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                // A server without JetStream reports this immediately, and so does a cluster without a leader.
                let reason = "no response from JetStream: enable it (`nats-server -js`) in this account".to_owned();
                let error = BridgeError::Refused { broker: self.broker.to_string(), reason };
                return Err(if self.client.server_info().jetstream {
                    ApiFailure::Transient(error)
                } else {
                    ApiFailure::Permanent(error)
                });
            }
            Err(error) => {
                return Err(ApiFailure::Transient(BridgeError::Broker {
                    doing: format!("send a request to `{subject}`"),
                    source: Arc::new(error),
                }));
            }
        };
        let answer: Value = serde_json::from_slice(&answer.payload).map_err(|error| {
            let doing = format!("parse the response of `{subject}`");
            ApiFailure::Permanent(BridgeError::Broker { doing, source: Arc::new(error) })
        })?;
        let Some(error) = answer.get("error") else { return Ok(answer) };
        let code = error.get("err_code").and_then(Value::as_u64).unwrap_or(0);
        if [STREAM_NOT_FOUND, CONSUMER_NOT_FOUND, MESSAGE_NOT_FOUND].contains(&code) {
            return Err(ApiFailure::Missing);
        }
        if WRONG_LAST_SEQUENCE.contains(&code) {
            return Err(ApiFailure::WrongLastSequence);
        }
        if CONSUMERS_OVERLAP.contains(&code) {
            return Err(ApiFailure::Overlap);
        }
        let text = error.get("description").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
        let refused =
            BridgeError::Refused { broker: self.broker.to_string(), reason: format!("`{subject}`: {text} ({code})") };
        let busy = error.get("code").and_then(Value::as_u64) == Some(503) && !INSUFFICIENT_RESOURCES.contains(&code);
        Err(if busy { ApiFailure::Transient(refused) } else { ApiFailure::Permanent(refused) })
    }
}

/// The result of a conditional publish.
pub(super) enum PublishOutcome {
    /// The message is stored, with this sequence.
    Stored(u64),
    /// Another message is the last one of its subject.
    Conflict,
}

/// Reads creation time and last sequence from the description of a stream.
pub(super) fn read_incarnation(info: &Value) -> Incarnation {
    Incarnation {
        created: info.get("created").and_then(Value::as_str).unwrap_or_default().to_owned(),
        last: info.pointer("/state/last_seq").and_then(Value::as_u64).unwrap_or(0),
    }
}

/// Returns the adjustable settings that differ from the desired ones. A larger limit than desired does not count.
fn adjusted_settings(wanted: &DesiredConfig, info: &Value) -> Vec<AdjustedSetting> {
    let found = |setting: &str| info.pointer("/config").and_then(|config| config.get(setting)).unwrap_or(&Value::Null);
    let is_more = |found: &Value, wanted: &Value| match (found.as_i64(), wanted.as_i64()) {
        (Some(found), Some(wanted)) => found > wanted && wanted > 0,
        _ => false,
    };
    let settings = wanted.settings.as_object().into_iter().flatten();
    let adjustable = settings.filter(|(setting, _)| wanted.adjustable.contains(&setting.as_str()));
    let different = adjustable.filter(|(setting, value)| found(setting) != *value && !is_more(found(setting), value));
    different.map(|(setting, value)| (setting.clone(), found(setting).to_string(), value.to_string())).collect()
}

/// Checks the settings that must not differ and names the first difference.
pub(super) fn compare(wanted: &DesiredConfig, info: &Value) -> Result<(), BridgeError> {
    let config = info.get("config").unwrap_or(&Value::Null);
    let found = |setting: &str| config.get(setting).unwrap_or(&Value::Null);
    let mismatch = |setting: &str, wanted_value: &str| BridgeError::Mismatch {
        what: wanted.label.clone(),
        setting: setting.to_owned(),
        found: found(setting).to_string(),
        wanted: wanted_value.to_owned(),
    };
    for (setting, value) in wanted.settings.as_object().into_iter().flatten() {
        // The server omits settings that are false.
        let is_default = *value == json!(false) && found(setting).is_null();
        if found(setting) != value && !is_default && !wanted.adjustable.contains(&setting.as_str()) {
            return Err(mismatch(setting, &value.to_string()));
        }
    }
    let is_set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        // 0 and -1 both mean unlimited.
        Value::Number(number) => number.as_f64().is_some_and(|number| number > 0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(_) | Value::Bool(true) => true,
    };
    match wanted.must_be_unset.iter().find(|setting| is_set(found(setting))) {
        Some(setting) => Err(mismatch(setting, "nothing")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(config: &Value) -> Result<(), String> {
        let wanted = DesiredConfig {
            label: "stream `x`".to_owned(),
            path: "x".to_owned(),
            settings: json!({ "subjects": ["a.>"], "max_age": 60, "no_ack": false }),
            must_be_unset: &["mirror", "sealed", "max_msg_size"],
            adjustable: &[],
        };
        compare(&wanted, &json!({ "config": config })).map_err(|error| error.to_string())
    }

    #[test]
    fn first_difference_is_reported() {
        assert_eq!(compared(&json!({ "subjects": ["a.>"], "max_age": 60, "max_msg_size": -1, "other": 1 })), Ok(()));
        for (config, error) in [
            (
                json!({ "subjects": ["b.>"], "max_age": 60 }),
                r#"stream `x` exists with subjects = ["b.>"], expected ["a.>"]"#,
            ),
            (json!({ "subjects": ["a.>"] }), "stream `x` exists with max_age = null, expected 60"),
            (
                json!({ "subjects": ["a.>"], "max_age": 60, "no_ack": true }),
                "stream `x` exists with no_ack = true, expected false",
            ),
            (
                json!({ "subjects": ["a.>"], "max_age": 60, "sealed": true }),
                "stream `x` exists with sealed = true, expected nothing",
            ),
        ] {
            assert_eq!(compared(&config), Err(error.to_owned()));
        }
    }

    #[test]
    fn adjustable_settings_may_differ_and_are_reported() {
        let wanted = DesiredConfig {
            label: "stream `x`".to_owned(),
            path: "x".to_owned(),
            settings: json!({ "subjects": ["a.>"], "max_age": 60, "max_bytes": 100, "num_replicas": 1 }),
            must_be_unset: &[],
            adjustable: &["max_age", "max_bytes", "num_replicas"],
        };
        let found = |config: Value| {
            let info = json!({ "config": config });
            compare(&wanted, &info).unwrap();
            adjusted_settings(&wanted, &info)
        };
        assert_eq!(found(json!({ "subjects": ["a.>"], "max_age": 60, "max_bytes": 200, "num_replicas": 3 })), []);
        let less = json!({ "subjects": ["a.>"], "max_age": 0, "max_bytes": 50, "num_replicas": 1 });
        let names: Vec<_> = found(less).into_iter().map(|(setting, ..)| setting).collect();
        assert_eq!(names, ["max_age", "max_bytes"]);
    }

    #[test]
    fn recreated_or_truncated_stream_is_detected() {
        let known = Incarnation { created: "monday".to_owned(), last: 7 };
        assert!(known.continues(&Incarnation { last: 9, ..known.clone() }));
        assert!(!known.continues(&Incarnation { last: 6, ..known.clone() }));
        assert!(!known.continues(&Incarnation { created: "tuesday".to_owned(), last: 9 }));
    }
}
