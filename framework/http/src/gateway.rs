//! The builder of the routes, and the handlers behind them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, RawPathParamsRejection};
use axum::extract::{DefaultBodyLimit, RawPathParams, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, get, on};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use whizbang_core::message::{Codec, Command, Domain, MAX_PAYLOAD_BYTES, MessageId, Query, Shape};
use whizbang_core::user_code::user_code;
use whizbang_runtime::client::Client;

use crate::error::GatewayError;
use crate::openapi;
use crate::problem::Problem;
use crate::request::{Fields, add_path, read_query};
use crate::route::RouteCard;

/// The time limit of a request, unless configured otherwise.
const DEADLINE: Duration = Duration::from_secs(10);

/// HTTP routes for commands and queries.
///
/// A command is a POST (or the method of [`command_by`](Self::command_by)). Its fields are the members of a JSON body, and the
/// parameters of the path. A query is a GET. Its fields are the parameters of the path and of the query string.
///
/// | request | meaning |
/// |---|---|
/// | `Idempotency-Key: KEY` | the command is handled once, and a repetition gets the first reply; see [`scope_keys_by`](Self::scope_keys_by) |
/// | `Prefer: wait=5` | waits at most 5 seconds for the reply, and never longer than the gateway's [`deadline`](Self::deadline) |
/// | `Prefer: respond-async` | responds 202 with a receipt, `{"id": …}`, once the command is [accepted for later handling](whizbang_runtime::Client::post_to_broker) |
/// | `traceparent: …` | the trace that the command or the query continues |
///
/// | response | meaning |
/// |---|---|
/// | 200, 204 | the reply as JSON; 204 for a command without a reply |
/// | 202 | the receipt |
/// | 400, 413, 415 | the request is invalid: nothing was sent |
/// | 404 | the query's reply is an `Option`, and it is `None` |
/// | 409 | the `Idempotency-Key` was used with another request |
/// | 422 | the domain rejected the command |
/// | 503 | nothing was handled; repeat it later |
/// | 504 | the outcome is unknown; repeat it with the same `Idempotency-Key` |
/// | 500 | the command failed in every attempt, or nothing handles it |
///
/// Every error is a [`Problem`]. If the HTTP client goes away, a command that was sent is handled nevertheless.
///
/// ```
/// # use bank_fixture::*;
/// use whizbang_http::Gateway;
///
/// # whizbang::derive::block_on(async {
/// # let node = bank().await;
/// let routes: axum::Router = Gateway::new(node.client())
///     .command::<Deposit>("/accounts/{account}/deposits")
///     .openapi("/openapi.json", "Accounts", "1.0.0")
///     .router()?;
/// # drop(routes);
/// # Ok::<_, whizbang_http::GatewayError>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct Gateway {
    /// The settings that all routes share.
    settings: Settings,
    /// The routes in the order in which they were added.
    routes: Vec<(RouteCard, MethodRouter<Arc<Settings>>)>,
    /// The path of the OpenAPI document, its title and its version.
    description: Option<(String, String, String)>,
}

/// The state of each request.
#[derive(Debug)]
struct Settings {
    /// Sends the commands and queries.
    client: Client,
    /// The longest time that a request takes, retries included.
    deadline: Duration,
    /// The headers that are passed on to the command.
    forwarded: Vec<HeaderName>,
    /// The header whose value separates the idempotency keys of callers.
    key_scope: Option<HeaderName>,
}

impl Gateway {
    /// Creates a gateway without routes. The client may be a node's, or one that reaches other services over a bridge.
    pub fn new(client: Client) -> Self {
        let settings = Settings { client, deadline: DEADLINE, forwarded: Vec::new(), key_scope: None };
        Self { settings, routes: Vec::new(), description: None }
    }

    /// Sets the longest time that a request takes, retries included. Default: 10 s.
    ///
    /// The time of a request with `Prefer: wait` is the shorter of the two. When it has passed, the response is 504 if
    /// the command may have been handled, and 503 if not.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline;
        self
    }

    /// Passes a header of each request on to the command or the query: a tenant, a user. Every handler of the command can read it,
    /// as can `Answer::answer_for` and the layers of the client.
    ///
    /// The gateway does not check the value. Let a layer in front of it set the header, so that a caller cannot choose it.
    #[must_use]
    pub fn forward(mut self, header: HeaderName) -> Self {
        self.settings.forwarded.push(header);
        self
    }

    /// Makes idempotency keys count for one value of a header, such as the user that a layer has authenticated.
    ///
    /// Without it all callers share the keys of a target, and one can occupy the key of another. A request with a key and without
    /// the header is refused with 400.
    #[must_use]
    pub fn scope_keys_by(mut self, header: HeaderName) -> Self {
        self.settings.key_scope = Some(header);
        self
    }

    /// Adds a command as a POST.
    ///
    /// A parameter of the path, such as `{account}`, is the field of that name. The body may repeat it with the same
    /// value; with another value the response is 400. A command without a reply is answered with 204.
    #[must_use]
    pub fn command<C>(self, path: &str) -> Self
    where
        C: Command + DeserializeOwned,
        C::Reply: Serialize + DeserializeOwned,
    {
        self.command_by::<C>(Method::POST, path)
    }

    /// Adds a command with another method: PUT, PATCH or DELETE.
    ///
    /// The method changes nothing else: a PUT is handled once only with an `Idempotency-Key`, like a POST.
    /// [`router`](Self::router) refuses methods that do not fit a command, such as GET.
    ///
    /// ```
    /// # use bank_fixture::*;
    /// use axum::http::Method;
    /// use whizbang_http::Gateway;
    ///
    /// # whizbang::derive::block_on(async {
    /// # let node = bank().await;
    /// let routes = Gateway::new(node.client()).command_by::<Deposit>(Method::PUT, "/accounts/{account}/deposits").router();
    /// assert!(routes.is_ok());
    /// let routes = Gateway::new(node.client()).command_by::<Deposit>(Method::GET, "/accounts/{account}/deposits").router();
    /// assert!(routes.is_err());
    /// # });
    /// ```
    #[must_use]
    pub fn command_by<C>(mut self, method: Method, path: &str) -> Self
    where
        C: Command + DeserializeOwned,
        C::Reply: Serialize + DeserializeOwned,
    {
        let card = RouteCard::command::<C>(method.clone(), path, Shape::of::<C::Reply>(Codec::Json));
        let fields = card.known_fields();
        let respond = move |State(settings): State<Arc<Settings>>, request: CommandRequest| async move {
            settings.command::<C>(&fields, request).await.unwrap_or_else(IntoResponse::into_response)
        };
        // GET stands for a method that `router` refuses.
        let filter = MethodFilter::try_from(method).unwrap_or(MethodFilter::GET);
        self.routes.push((card, on(filter, respond)));
        self
    }

    /// Adds a query as a GET.
    ///
    /// A list is given by a parameter that occurs several times. A parameter that is not a field of the query is refused
    /// with 400, so that a misspelled one is noticed. If the reply is an `Option`, `None` is a 404.
    #[must_use]
    pub fn query<Q>(mut self, path: &str) -> Self
    where
        Q: Query + DeserializeOwned,
        Q::Reply: Serialize + DeserializeOwned,
    {
        let card = RouteCard::query::<Q>(path, Shape::of::<Q::Reply>(Codec::Json));
        let (fields, reply) = (card.known_fields(), Arc::clone(&card.reply));
        let respond = move |State(settings): State<Arc<Settings>>, request: QueryRequest| async move {
            settings.query::<Q>(&fields, &reply, request).await.unwrap_or_else(IntoResponse::into_response)
        };
        self.routes.push((card, get(respond)));
        self
    }

    /// Serves the OpenAPI 3.1 description of the routes at a path, with this title and version.
    ///
    /// The version is the one of the description, chosen by you. The text is made once, in [`router`](Self::router), so
    /// a request costs nothing. The path itself is not described.
    #[must_use]
    pub fn openapi(mut self, path: &str, title: &str, version: &str) -> Self {
        self.description = Some((path.to_owned(), title.to_owned(), version.to_owned()));
        self
    }

    /// Returns the OpenAPI 3.1 description of the routes.
    ///
    /// For programs that write the description to a file: a test that compares it with the published one, or a build
    /// step. It contains the schemas of the messages as far as their types are known.
    pub fn describe(&self, title: &str, version: &str) -> Value {
        openapi::describe(title, version, self.routes.iter().map(|(card, _)| card))
    }

    /// Returns the routes.
    ///
    /// # Errors
    /// [`GatewayError`] names the first route that cannot be served.
    pub fn router(self) -> Result<Router, GatewayError> {
        let described = self.description.as_ref().map(|(path, title, version)| {
            let text = self.describe(title, version).to_string();
            let response = move || async move { ([(header::CONTENT_TYPE, "application/json")], text) };
            (path.clone(), get(response))
        });
        let mut seen: Vec<(Method, String)> = Vec::new();
        let mut router = Router::new();
        for (card, route) in self.routes {
            card.check()?;
            let (method, path) = (card.method, card.path);
            if card.kind == crate::route::RouteKind::Command && matches!(method, Method::GET | Method::HEAD) {
                return Err(GatewayError::Method { method, path });
            }
            if MethodFilter::try_from(method.clone()).is_err() {
                return Err(GatewayError::Method { method, path });
            }
            if seen.contains(&(method.clone(), path.clone())) {
                return Err(GatewayError::Duplicate { method, path });
            }
            router = routed(router, &path, route)?;
            seen.push((method, path));
        }
        if let Some((path, route)) = described {
            router = routed(router, &path, route)?;
        }
        let limited = router.layer(DefaultBodyLimit::max(MAX_PAYLOAD_BYTES));
        Ok(limited.with_state(Arc::new(self.settings)))
    }
}

/// Adds a route. axum panics for a path that it does not accept.
fn routed(
    router: Router<Arc<Settings>>,
    path: &str,
    route: MethodRouter<Arc<Settings>>,
) -> Result<Router<Arc<Settings>>, GatewayError> {
    user_code(|| router.route(path, route))
        .map_err(|panicked| GatewayError::Path { path: path.to_owned(), reason: panicked.to_string() })
}

/// The parts of a request that becomes a command.
type CommandRequest = (Result<RawPathParams, RawPathParamsRejection>, HeaderMap, Result<Bytes, BytesRejection>);
/// The parts of a request that becomes a query.
type QueryRequest = (Result<RawPathParams, RawPathParamsRejection>, HeaderMap, RawQuery);

impl Settings {
    /// Handles the request of a command: reads the message, sends or posts it, and encodes the reply. With `respond-async`
    /// the response is 202 with the id, as soon as the command is stored.
    async fn command<C>(&self, fields: &Fields, request: CommandRequest) -> Result<Response, Problem>
    where
        C: Command + DeserializeOwned,
        C::Reply: Serialize,
    {
        let (path, headers, body) = request;
        let body = body.map_err(|error| Problem::new(error.status(), "gateway.invalid-request", error.body_text()))?;
        let mut message = read_body(&headers, &body)?;
        add_path(fields, &pairs(path)?, &mut message)?;
        let command: C = read(message)?;
        let id = self.id::<C>(&headers, &command)?;
        let preferences = Preferences::read(&headers, self.deadline);
        let (passed, trace) = (self.passed(&headers)?, trace_of(&headers));
        if preferences.respond_async {
            let mut post = self.client.post_to_broker(command).id(id).deadline(preferences.wait);
            for (name, value) in passed {
                post = post.header(name, value);
            }
            if let Some(trace) = trace {
                post = post.traceparent(trace);
            }
            post.await?;
            let applied = [("preference-applied", "respond-async")];
            return Ok((StatusCode::ACCEPTED, applied, axum::Json(json!({ "id": id.to_string() }))).into_response());
        }
        let mut send = self.client.send(command).id(id).deadline(preferences.wait);
        for (name, value) in passed {
            send = send.header(name, value);
        }
        if let Some(trace) = trace {
            send = send.traceparent(trace);
        }
        let reply = written(&send.await?)?;
        Ok(if reply.is_null() { StatusCode::NO_CONTENT.into_response() } else { axum::Json(reply).into_response() })
    }

    /// Handles the request of a query: reads the message from path and query string, and encodes the answer.
    async fn query<Q>(&self, fields: &Fields, reply: &Shape, request: QueryRequest) -> Result<Response, Problem>
    where
        Q: Query + DeserializeOwned,
        Q::Reply: Serialize,
    {
        let (path, headers, RawQuery(given)) = request;
        let given = form_urlencoded::parse(given.unwrap_or_default().as_bytes()).into_owned().collect::<Vec<_>>();
        let mut message = read_query(fields, &given)?;
        add_path(fields, &pairs(path)?, &mut message)?;
        let query: Q = read(message)?;
        let wait = Preferences::read(&headers, self.deadline).wait;
        let mut send = self.client.query(query).deadline(wait);
        for (name, value) in self.passed(&headers)? {
            send = send.header(name, value);
        }
        if let Some(trace) = trace_of(&headers) {
            send = send.traceparent(trace);
        }
        let found = written(&send.await?)?;
        if found.is_null() && matches!(reply, Shape::Option(_)) {
            return Err(Problem::new(StatusCode::NOT_FOUND, "gateway.not-found", "the query found nothing"));
        }
        Ok(axum::Json(found).into_response())
    }

    /// Returns the headers of the request that are passed on.
    fn passed<'a>(&'a self, headers: &'a HeaderMap) -> Result<Vec<(&'a str, &'a str)>, Problem> {
        let mut passed = Vec::new();
        for name in &self.forwarded {
            if let Some(value) = single(headers, name)? {
                passed.push((name.as_str(), value));
            }
        }
        Ok(passed)
    }

    /// Returns the id of a command: the same for each repetition, if the request has an idempotency key.
    fn id<C: Command>(&self, headers: &HeaderMap, command: &C) -> Result<MessageId, Problem> {
        let Some(key) = single(headers, &HeaderName::from_static("idempotency-key"))? else {
            return Ok(self.client.new_id());
        };
        if key.is_empty() {
            let detail = "the Idempotency-Key is empty; leave the header out, or choose a unique text";
            return Err(Problem::new(StatusCode::BAD_REQUEST, "gateway.empty-idempotency-key", detail));
        }
        let scoped = match &self.key_scope {
            None => key.to_owned(),
            Some(header) => {
                let missing = || Problem::invalid_request(format!("an Idempotency-Key needs the header `{header}`"));
                // A line break cannot occur in a header, so no two pairs are the same text.
                format!("{}\n{key}", single(headers, header)?.ok_or_else(missing)?)
            }
        };
        let id = user_code(|| MessageId::from_idempotency_key(C::Domain::NAME, command.key().as_str(), &scoped));
        id.map_err(|panicked| Problem::invalid_request(format!("the key of the command cannot be read: {panicked}")))
    }
}

/// The preferences of a request (RFC 7240). Unknown and invalid ones are ignored.
struct Preferences {
    wait: Duration,
    respond_async: bool,
}

impl Preferences {
    fn read(headers: &HeaderMap, limit: Duration) -> Self {
        let mut found = Self { wait: limit, respond_async: false };
        let texts = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        for preference in texts.flat_map(|text| text.split(',')).map(str::trim) {
            match preference.split_once('=') {
                None if preference.eq_ignore_ascii_case("respond-async") => found.respond_async = true,
                Some((name, seconds)) if name.trim().eq_ignore_ascii_case("wait") => {
                    if let Some(seconds) = seconds.trim().parse().ok().filter(|seconds| *seconds > 0) {
                        found.wait = limit.min(Duration::from_secs(seconds));
                    }
                }
                _ => {}
            }
        }
        found
    }
}

/// Returns the trace of the request.
fn trace_of(headers: &HeaderMap) -> Option<&str> {
    headers.get("traceparent").and_then(|trace| trace.to_str().ok())
}

/// Returns the only value of a header.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let invalid = |reason: &str| {
        Problem::new(StatusCode::BAD_REQUEST, "gateway.invalid-header", format!("the header `{name}` {reason}"))
    };
    if values.next().is_some() {
        return Err(invalid("occurs twice"));
    }
    value.to_str().map(|text| Some(text.trim())).map_err(|_| invalid("is not readable text"))
}

/// Reads the body as the fields of a message. An empty body has none.
fn read_body(headers: &HeaderMap, body: &[u8]) -> Result<Map<String, Value>, Problem> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    let kind = single(headers, &header::CONTENT_TYPE)?.unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind != "application/json" && !kind.ends_with("+json") {
        let detail = format!("the body is `{kind}`; send application/json");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "gateway.invalid-request", detail));
    }
    serde_json::from_slice(body)
        .map_err(|error| Problem::invalid_request(format!("the body is not a JSON object: {error}")))
}

fn pairs(path: Result<RawPathParams, RawPathParamsRejection>) -> Result<Vec<(String, String)>, Problem> {
    let path = path.map_err(|error| Problem::invalid_request(error.body_text()))?;
    Ok(path.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// Reads a message from its JSON form. The type's own code may panic.
fn read<M: DeserializeOwned>(message: Map<String, Value>) -> Result<M, Problem> {
    // A struct without fields is read from `null`, or from an object.
    let empty = message.is_empty();
    match user_code(|| M::deserialize(Value::Object(message))) {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(error)) if empty => match user_code(|| M::deserialize(Value::Null)) {
            Ok(Ok(message)) => Ok(message),
            _ => Err(Problem::invalid_request(error.to_string())),
        },
        Ok(Err(error)) => Err(Problem::invalid_request(error.to_string())),
        Err(panicked) => Err(Problem::invalid_request(format!("the message cannot be read: {panicked}"))),
    }
}

/// Returns the JSON form of a reply.
fn written<R: Serialize>(reply: &R) -> Result<Value, Problem> {
    let failed = |detail: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "gateway.failed", detail);
    match user_code(|| serde_json::to_value(reply)) {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => Err(failed(format!("the command was handled, and its reply has no JSON form: {error}"))),
        Err(panicked) => Err(failed(format!("the command was handled, and its reply cannot be written: {panicked}"))),
    }
}
