//! The note in the health of the bridge about messages that wait at the server.
//!
//! The consumer loop learns their number with each delivery, and asks while a consumer receives nothing. Consumers that several
//! nodes share count at each of them.

/// The number of waiting messages from which on there is a note.
const LONG_LAG: u64 = 10_000;

/// Returns the note if many messages wait.
pub(super) fn note(lag: u64) -> Option<String> {
    (lag >= LONG_LAG).then(|| {
        format!(
            "{lag} messages wait at the broker: more arrive than this service handles, or it catches up after a stop; \
             if `lag` does not fall, add nodes or look for slow handlers and workers"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_begins_at_the_limit() {
        assert_eq!((note(0), note(LONG_LAG - 1)), (None, None));
        assert!(note(LONG_LAG).is_some_and(|note| note.starts_with("10000 messages wait")));
    }
}
