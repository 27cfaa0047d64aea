//! The statements that a projection has returned since its view was saved, and the events that they belong to.

use whizbang_core::message::{Envelope, MessageId, Name};
use whizbang_core::store::Statement;

/// Size of the statements from which the view is saved at once: 1 MiB.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// The statements of the next save, in the order of the events.
#[derive(Default)]
pub(super) struct Batch {
    statements: Vec<Statement>,
    events: Vec<BatchedEvent>,
    bytes: usize,
    /// Number of the statements before those of the first event: 0 or 1.
    resets: usize,
}

/// An event with statements.
#[derive(Clone)]
pub(super) struct BatchedEvent {
    pub(super) source: usize,
    pub(super) position: u64,
    pub(super) name: Name,
    pub(super) id: MessageId,
    /// Number of the statements up to and including those of this event.
    end: usize,
}

impl Batch {
    /// A batch that begins with the statement that empties the tables of a view which is rebuilt.
    pub(super) fn starting_with(reset: &'static str) -> Self {
        Self { statements: vec![Statement::new(reset)], resets: 1, ..Self::default() }
    }

    /// Adds the statements of an event.
    pub(super) fn add(&mut self, source: usize, position: u64, event: &Envelope, statements: Vec<Statement>) {
        if statements.is_empty() {
            return;
        }
        self.bytes += statements.iter().map(Statement::size).sum::<usize>();
        self.statements.extend(statements);
        let (name, id, end) = (event.name.clone(), event.id, self.statements.len());
        self.events.push(BatchedEvent { source, position, name, id, end });
    }

    pub(super) fn statements(&self) -> &[Statement] {
        &self.statements
    }

    /// Returns whether the view must be saved before more events are projected.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= MAX_BATCH_BYTES
    }

    /// Returns the event of a statement; `None` for the one that empties the tables.
    pub(super) fn event_of(&self, number: usize) -> Option<&BatchedEvent> {
        let at = self.events.partition_point(|event| event.end <= number);
        self.events.get(at).filter(|_| number >= self.resets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_core::clock::Timestamp;
    use whizbang_core::message::Kind;

    #[test]
    fn statement_names_its_event() {
        let name = Name::from_static("placed").unwrap();
        let event =
            |id| Envelope::new(MessageId::from_u128(id), Kind::Event, name.clone(), name.clone(), Timestamp::default());
        let some = |count| vec![Statement::new("SELECT 1"); count];
        let mut batch = Batch::starting_with("DELETE FROM orders");
        batch.add(0, 1, &event(1), some(2));
        batch.add(1, 7, &event(2), some(0));
        batch.add(1, 8, &event(3), some(1));
        let position = |number| batch.event_of(number).map(|event| (event.source, event.position));
        assert_eq!(batch.statements().len(), 4);
        assert_eq!([0, 1, 2, 3, 4].map(position), [None, Some((0, 1)), Some((0, 1)), Some((1, 8)), None]);
    }
}
