//! Errors of a gateway's routes.

use axum::http::Method;

/// A route that cannot be served. No route of the gateway is served then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// A message is not a struct with named fields, so no request can give it.
    #[error("`{message}` has no named fields; make it a struct with named fields")]
    Fields {
        /// The domain and the name of the message.
        message: String,
    },
    /// A parameter of a path is not a field of the message, or a field that a text cannot express.
    #[error("parameter `{parameter}` of `{path}` is not a field of `{message}` that a text can express")]
    Parameter {
        /// The domain and the name of the message.
        message: String,
        /// The path of the route.
        path: String,
        /// The name of the parameter.
        parameter: String,
    },
    /// Two routes have one method and one path.
    #[error("`{method} {path}` is routed twice")]
    Duplicate {
        /// The method.
        method: Method,
        /// The path.
        path: String,
    },
    /// axum does not accept the path: it is invalid, or cannot be told from another path.
    #[error("path `{path}` cannot be routed: {reason}")]
    Path {
        /// The path.
        path: String,
        /// The reason.
        reason: String,
    },
    /// A command has a method other than POST, PUT, PATCH or DELETE.
    #[error("method `{method}` of `{path}` does not fit a command; use POST, PUT, PATCH or DELETE")]
    Method {
        /// The method.
        method: Method,
        /// The path.
        path: String,
    },
}
