//! The description of one route, from which its checks and its documentation follow.

use std::sync::Arc;

use axum::http::Method;
use serde::de::DeserializeOwned;
use whizbang_core::message::{Codec, Command, Domain, Message, Query, Shape};

use crate::error::GatewayError;
use crate::request::{Fields, is_text};

/// The kind of the message behind a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteKind {
    /// A command, in the body of the request.
    Command,
    /// A query, in the query string.
    Query,
}

/// One route: a method and a path, and the message that it becomes.
#[derive(Clone, Debug)]
pub(crate) struct RouteCard {
    /// The kind of the message.
    pub(crate) kind: RouteKind,
    /// The method of the request.
    pub(crate) method: Method,
    /// The path with its parameters in braces.
    pub(crate) path: String,
    /// The domain of the message.
    pub(crate) domain: &'static str,
    /// The name of the message in its domain.
    pub(crate) name: &'static str,
    /// The fields of the message; `None` if it has no named ones.
    pub(crate) fields: Option<Fields>,
    /// The shape of the reply, for the document.
    pub(crate) reply: Arc<Shape>,
}

impl RouteCard {
    pub(crate) fn command<C: Command + DeserializeOwned>(method: Method, path: &str, reply: Arc<Shape>) -> Self {
        Self::new::<C>(RouteKind::Command, method, path, reply)
    }

    pub(crate) fn query<Q: Query + DeserializeOwned>(path: &str, reply: Arc<Shape>) -> Self {
        Self::new::<Q>(RouteKind::Query, Method::GET, path, reply)
    }

    fn new<M: Message + DeserializeOwned>(kind: RouteKind, method: Method, path: &str, reply: Arc<Shape>) -> Self {
        let fields = Fields::of(&Shape::of::<M>(Codec::Json));
        Self { kind, method, path: path.to_owned(), domain: M::Domain::NAME, name: M::NAME, fields, reply }
    }

    /// Returns the names of the parameters in the path.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &str> {
        let segments = self.path.split('/');
        segments.filter_map(|segment| segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')))
    }

    /// Returns the fields of the message. Empty if [`check`](Self::check) fails.
    pub(crate) fn known_fields(&self) -> Fields {
        self.fields.clone().unwrap_or_default()
    }

    /// Checks that a request can give the message: it has named fields, and the path's parameters are some of them.
    pub(crate) fn check(&self) -> Result<(), GatewayError> {
        let message = || format!("{}.{}", self.domain, self.name);
        let Some(fields) = &self.fields else { return Err(GatewayError::Fields { message: message() }) };
        for parameter in self.parameters() {
            if !fields.find(parameter).is_some_and(|field| is_text(&field.shape)) {
                let (path, parameter) = (self.path.clone(), parameter.to_owned());
                return Err(GatewayError::Parameter { message: message(), path, parameter });
            }
        }
        Ok(())
    }
}
