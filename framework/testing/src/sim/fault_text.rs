//! Texts about faults: their names, their descriptions, and the reasons why they missed.
//!
//! Used by traces, failure reports and [coverage](super::coverage).

use super::OperatorAction;
use super::fault_profile::{Fault, LinkDirection};

impl Fault {
    /// Returns the reason why the fault had no target.
    pub(super) fn miss_reason(&self) -> &'static str {
        match self {
            Self::Upgrade { .. } => "no node of the service was running",
            Self::Poison { .. } => "no message of an actor reached the service within 10 s",
            Self::BlockKey { .. } => "no key was loaded during the fault",
            Self::SecondNode { .. } => "the service owns no domain",
            Self::Crash { .. } | Self::Reboot { .. } | Self::HandOver { .. } | Self::FailCommits { .. } => {
                "no node of the service was running"
            }
            Self::PauseNode { .. } | Self::StopNode { .. } | Self::CutStore { .. } | Self::CutBroker { .. } => {
                "the service has only one node, or none was running"
            }
            Self::CrashAt { .. } => "no such operation started within 10 s, or no node of the service was running",
            Self::Panic { .. } => "no handler of the service was called before the faults stopped",
            Self::FailJobs { .. } | Self::HangJobs { .. } => {
                "no job of the service had an effect before the faults stopped"
            }
            fault if fault.targets_client_commands() => "no client sent a command before the faults stopped",
            _ => "the faults stopped before its moment",
        }
    }

    /// Returns the name of the variant, with the crash point if there is one.
    pub(super) fn kind(&self) -> String {
        let text = format!("{self:?}");
        let name = text.split([' ', '{']).next().unwrap_or_default();
        match self {
            Self::CrashAt { point, .. } => format!("{name} {point:?}"),
            _ => name.to_owned(),
        }
    }

    /// Describes the fault, with the names of the services.
    pub(super) fn describe(&self, services: &[String]) -> String {
        let name = |service: &usize| {
            services.get(service % services.len().max(1)).map_or("an unknown service", String::as_str)
        };
        match self {
            Self::Crash { service, down, .. } => format!("a node of {} is killed, down for {down:?}", name(service)),
            Self::CrashAt { service, point, down, .. } => {
                format!("a node of {} is killed during {}, down for {down:?}", name(service), point.describe())
            }
            Self::ClockJump { service, millis, duration } => {
                format!("the clock of {} jumps by {millis} ms, for {duration:?}", name(service))
            }
            Self::Reboot { service, millis, duration } => {
                format!("{} restarts with a clock error of {millis} ms, for {duration:?}", name(service))
            }
            Self::Partition { from, to, duration } => {
                format!("messages from {} to {} are lost, for {duration:?}", name(from), name(to))
            }
            Self::Isolate { service, direction, duration } => match direction {
                LinkDirection::Inbound => format!("messages to {} are lost, for {duration:?}", name(service)),
                LinkDirection::Outbound => format!("messages from {} are lost, for {duration:?}", name(service)),
                LinkDirection::Both => format!("{} is isolated, for {duration:?}", name(service)),
            },
            Self::PurgeStreams => "the broker purges all streams".to_owned(),
            Self::Forge { count, .. } => format!("a hostile client writes {count} packets"),
            Self::LoseStreams => "the broker loses all streams".to_owned(),
            Self::PauseBroker { duration } => format!("the broker pauses for {duration:?}"),
            Self::ChangeLeader { duration } => format!("the broker's leader changes, for {duration:?}"),
            Self::DropDuplicates { window, duration } => {
                format!("the broker drops duplicates within {window:?}, for {duration:?}")
            }
            Self::FailToStore { duration } => format!("the broker fails to store messages, for {duration:?}"),
            Self::ShortenAckWait { wait, duration } => {
                format!("the ack wait is {wait:?}, for {duration:?}")
            }
            Self::LimitInFlight { limit, duration } => {
                format!("at most {limit} messages are in flight, for {duration:?}")
            }
            Self::SlowHandlers { service, per_message, duration } => {
                format!("handlers of {} take {per_message:?} per message, for {duration:?}", name(service))
            }
            Self::HandOver { service, cut_off, lingers } => {
                format!(
                    "{} is taken over; the old node is isolated for {cut_off:?} and killed {lingers:?} later",
                    name(service)
                )
            }
            Self::Panic { service, times } => format!("{times} handlers of {} will panic", name(service)),
            Self::FailJobs { service, times } => {
                format!("{times} jobs of {} will fail after their effect", name(service))
            }
            Self::HangJobs { service, times } => {
                format!("{times} jobs of {} will hang after their effect", name(service))
            }
            Self::FailCommits { service } => format!("the store of {} fails", name(service)),
            Self::Poison { service, after, action } => {
                let does = if *action == OperatorAction::Redrive { "redrives" } else { "discards" };
                format!("a message of an actor fails in {}; an operator {does} it after {after:?}", name(service))
            }
            Self::SecondNode { service } => format!("a second node of {} is started on an empty store", name(service)),
            Self::BlockKey { service, duration } => {
                format!("a key of {} is unreadable, for {duration:?}", name(service))
            }
            Self::Upgrade { service, version, down } => {
                format!("{} is upgraded to version {version}, down for {down:?}", name(service))
            }
            Self::PauseNode { service, duration } => format!("a node of {} is paused for {duration:?}", name(service)),
            Self::StopNode { service, down } => format!("a node of {} is stopped for {down:?}", name(service)),
            Self::CutStore { service, direction, duration } => {
                format!("a node of {} is cut off from its store: {direction:?}, for {duration:?}", name(service))
            }
            Self::CutBroker { service, direction, duration } => {
                format!("a node of {} is cut off from the broker: {direction:?}, for {duration:?}", name(service))
            }
            Self::SkewClientClocks { millis, duration } => {
                format!("client clocks are wrong by {millis} ms, for {duration:?}")
            }
            Self::SkewOneClient { millis, duration } => {
                format!("the clock of one of two clients is wrong by {millis} ms, for {duration:?}")
            }
            Self::DuplicateCommands { times } => format!("{times} client commands will be sent twice"),
            Self::ReuseIds { times } => format!("{times} client ids will be reused"),
            Self::OldAndFutureIds { times } => format!("{times} client commands will be sent with old and future ids"),
            Self::ShortenDeadlines { deadline, times } => {
                format!("{times} client calls will have a deadline of {deadline:?}")
            }
        }
    }
}
