//! Errors as HTTP responses: `application/problem+json` as in RFC 9457.

use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use whizbang::SendError;

/// An error response.
pub(crate) struct Problem {
    status: StatusCode,
    /// Stable, for programs: the code of a rejection, or a code of the gateway.
    code: String,
    /// For people.
    detail: String,
    /// The fields of a typed rejection, for programs.
    data: Option<Value>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), detail: detail.into(), data: None }
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
            SendError::Encode(_) => (StatusCode::BAD_REQUEST, "gateway.invalid-request"),
            // The command may have been handled. The client can safely repeat it with the same idempotency key.
            error if error.is_transient() && error.may_have_happened() => {
                (StatusCode::GATEWAY_TIMEOUT, "gateway.unknown-outcome")
            }
            error if error.is_transient() => (StatusCode::SERVICE_UNAVAILABLE, "gateway.unavailable"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "gateway.failed"),
        };
        Self::new(status, code, detail)
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "gateway.invalid-request", rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("error");
        let mut body = json!({
            "title": title, "status": self.status.as_u16(), "code": self.code, "detail": self.detail,
        });
        if let Some(data) = self.data {
            body["data"] = data;
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
