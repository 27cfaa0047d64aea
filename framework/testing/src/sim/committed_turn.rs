//! One committed turn as reports show it: its cause, its effects by name, and the phase of its saga.
//!
//! Collected in the [step log](super::step_log); read by coverage, diagrams and failure reports.

use std::fmt;
use std::time::Duration;

use super::full_name::{FullName, short_name};
use super::payload::Payload;
use whizbang_core::message::MessageId;

/// The message that a turn handled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Cause {
    /// An accepted command.
    Command(FullName),
    /// A command rejected with this code.
    Rejected(FullName, String),
    /// An event.
    Event(FullName),
    /// The reply to a command that this actor sent.
    Reply(FullName),
    /// The rejection of a command that this actor sent.
    Rejection(FullName),
    /// A timer.
    Timer(String),
}

impl Cause {
    /// Describes the cause. Names are without their domain if that is `home`.
    pub(super) fn describe(&self, home: &str) -> String {
        let name = |full: &str| short_name(full, home).to_owned();
        match self {
            Self::Command(of) => name(of),
            Self::Rejected(of, code) => format!("{} rejected as {code}", name(of)),
            Self::Event(of) => name(of),
            Self::Reply(of) => format!("reply to {}", name(of)),
            Self::Rejection(of) => format!("rejection of {}", name(of)),
            Self::Timer(of) => format!("timer {of}"),
        }
    }
}

/// The phase of a saga when it handles a message. Aggregates are always open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Phase {
    /// The saga is in progress.
    #[default]
    Open,
    /// The saga compensates its steps.
    Compensating,
    /// The saga has ended.
    Ended,
}

/// The kind of end of a saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum End {
    /// All steps are done.
    Completed,
    /// All done steps are compensated.
    Compensated,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "ends",
            Self::Compensated => "ends, compensated",
        })
    }
}

/// One committed turn.
#[derive(Clone, Debug)]
pub(super) struct CommittedTurn {
    /// The virtual time of the commit, from the beginning of the run.
    pub(super) at: Duration,
    /// The id of the handled message.
    pub(super) id: MessageId,
    /// The payload of that message; `None` for a timer.
    pub(super) payload: Option<Payload>,
    /// The domain of the actor.
    pub(super) domain: String,
    /// The actor type.
    pub(super) actor: String,
    /// The key.
    pub(super) key: String,
    /// The message or timer that was handled.
    pub(super) cause: Cause,
    /// The phase of the actor before the turn.
    pub(super) phase: Phase,
    /// The last event recorded before this turn.
    pub(super) from: Option<String>,
    /// The recorded events.
    pub(super) records: Vec<Payload>,
    /// The commands that were sent.
    pub(super) sends: Vec<FullName>,
    /// The timers that were set.
    pub(super) sets: Vec<String>,
    /// The timers that were cleared.
    pub(super) clears: Vec<String>,
    /// The turn begins a compensation.
    pub(super) compensates: bool,
    /// The end of the saga, if the turn ends it.
    pub(super) ends: Option<End>,
}

impl CommittedTurn {
    /// Describes the effects of the turn, apart from its events.
    pub(super) fn effects(&self) -> String {
        let mut parts = Vec::new();
        let mut part = |verb: &str, names: &[String]| {
            let mut names: Vec<_> = names.iter().map(|name| short_name(name, &self.domain)).collect();
            names.dedup();
            if !names.is_empty() {
                parts.push(format!("{verb} {}", names.join(", ")));
            }
        };
        part("sends", &self.sends);
        part("sets", &self.sets);
        part("clears", &self.clears);
        if self.compensates {
            parts.push("starts compensation".to_owned());
        }
        parts.extend(self.ends.map(|end| end.to_string()));
        parts.join(", ")
    }
}
