//! Errors as HTTP responses: `application/problem+json` as in RFC 9457.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use whizbang_runtime::router::SendError;

/// An error response with the members of RFC 9457, and `code`: a stable name of the error, for programs.
///
/// A rejection by a domain has status 422, the code of the rejection, and its fields in `data`. An unknown outcome has status 504:
/// the command may have been handled, and a request that is repeated with the same `Idempotency-Key` gets the first reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status of the response.
    status: StatusCode,
    /// The stable name of the error.
    code: String,
    /// The text for people. Contains no payload of another caller.
    detail: String,
    /// The fields of a rejection.
    data: Option<Value>,
}

impl Problem {
    /// Creates a problem. The code is for programs, such as `orders.unknown`; the detail is for people.
    ///
    /// Use it in layers around the gateway, such as authentication, so that all errors of a service have one
    /// form. With status 503 or 504 the response has `Retry-After: 1`.
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), detail: detail.into(), data: None }
    }

    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the stable name of the error.
    ///
    /// Codes of the gateway begin with `gateway.`: `gateway.invalid-request`, `gateway.invalid-key`,
    /// `gateway.invalid-header`, `gateway.empty-idempotency-key`, `gateway.idempotency-key-reused`,
    /// `gateway.not-found`, `gateway.unknown-outcome`, `gateway.unavailable` and `gateway.failed`. All others are codes
    /// of rejections, or your own.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Returns the problem of a request that is not a message of its route.
    pub(crate) fn invalid_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "gateway.invalid-request", detail)
    }
}

impl From<SendError> for Problem {
    fn from(error: SendError) -> Self {
        let detail = error.to_string();
        if let SendError::Rejected(rejection) = &error {
            let data = rejection.data().and_then(|data| serde_json::from_str(data).ok());
            return Self { data, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, rejection.code(), rejection.text()) };
        }
        let (status, code) = match &error {
            SendError::Conflict => (StatusCode::CONFLICT, "gateway.idempotency-key-reused"),
            SendError::Key { .. } => (StatusCode::BAD_REQUEST, "gateway.invalid-key"),
            SendError::EmptyIdempotencyKey => (StatusCode::BAD_REQUEST, "gateway.empty-idempotency-key"),
            SendError::Header { .. } => (StatusCode::BAD_REQUEST, "gateway.invalid-header"),
            SendError::Encode(_) => (StatusCode::BAD_REQUEST, "gateway.invalid-request"),
            error if error.is_transient() && error.may_have_happened() => {
                (StatusCode::GATEWAY_TIMEOUT, "gateway.unknown-outcome")
            }
            error if error.is_transient() => (StatusCode::SERVICE_UNAVAILABLE, "gateway.unavailable"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "gateway.failed"),
        };
        Self::new(status, code, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("error");
        let mut body = json!({
            "title": title, "status": self.status.as_u16(), "code": self.code, "detail": self.detail,
        });
        if let (Some(data), Some(members)) = (self.data, body.as_object_mut()) {
            members.insert("data".to_owned(), data);
        }
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
