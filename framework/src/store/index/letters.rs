//! The dead letters that wait to be resolved.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::super::record::Location;
use super::stream::Stream;
use crate::message::MessageId;

/// By message and stream: two actors of one shard may both fail on the same event.
#[derive(Debug, Default)]
pub(super) struct Letters(BTreeMap<(MessageId, Stream), Location>);

const FIRST: Stream = Stream(0, 0);
const LAST: Stream = Stream(u64::MAX, u64::MAX);

impl Letters {
    pub(super) fn add(&mut self, id: MessageId, stream: Stream, location: Location) {
        self.0.insert((id, stream), location);
    }

    pub(super) fn resolve(&mut self, id: MessageId, stream: Stream) {
        self.0.remove(&(id, stream));
    }

    pub(super) fn all(&self) -> Vec<(MessageId, Stream, Location)> {
        self.0.iter().map(|((id, stream), location)| (*id, *stream, *location)).collect()
    }

    /// All letters of one id come together, even if that makes one page longer than `limit`: the next page starts behind
    /// the id, so what is left of it would never be seen.
    pub(super) fn after(&self, after: Option<MessageId>, limit: usize) -> Vec<(MessageId, Location)> {
        let start = match after {
            Some(id) => Bound::Excluded((id, LAST)),
            None => Bound::Included((MessageId::from_u128(0), FIRST)),
        };
        let mut page: Vec<(MessageId, Location)> = Vec::new();
        if limit == 0 {
            return page;
        }
        for ((id, _), location) in self.0.range((start, Bound::Unbounded)) {
            if page.len() >= limit && page.last().is_some_and(|(last, _)| last != id) {
                break;
            }
            page.push((*id, *location));
        }
        page
    }
}
