//! The context of a query: its headers and its trace, beside the message.

use whizbang_core::message::{Envelope, MessageId, header};

/// The context of a query that is answered. [`Answer::answer_for`](crate::Answer::answer_for) gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueryContext<'a> {
    /// The correlation id.
    pub correlation: MessageId,
    /// The headers that the caller has [set](crate::client::SendQuery::header), sorted by name.
    pub headers: &'a [(String, String)],
    /// The W3C trace context that the caller [continues](crate::client::SendQuery::traceparent).
    pub traceparent: Option<&'a str>,
}

impl<'a> QueryContext<'a> {
    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        header(self.headers, name)
    }

    /// Reads the context from the envelope of a query.
    pub(crate) fn of(query: &'a Envelope) -> Self {
        Self { correlation: query.correlation, headers: &query.headers, traceparent: query.traceparent.as_deref() }
    }
}
