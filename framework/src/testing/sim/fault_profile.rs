//! What goes wrong in a simulated cluster: all the time (weather), and at certain moments (faults).

use std::fmt;
use std::time::Duration;

use super::crash_points::CrashPoint;
use super::{OperatorAction, SimError};

/// How a simulated cluster maltreats everything all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultProfile {
    /// How many messages of a thousand are lost, on the way to the broker, there, or on the way from it, and how many of its answers.
    pub lose: u16,
    /// How many of a thousand are stored or brought twice.
    pub repeat: u16,
    /// The longest time a message is under way; messages overtake each other within it. In milliseconds.
    pub delay: u16,
    /// The longest time a commit takes, in milliseconds: what is not committed is lost in a crash.
    pub disk: u16,
    /// The longest time reading from a store takes, in milliseconds. What is read may be as old as that.
    pub load: u16,
}

impl FaultProfile {
    /// Returns whether messages wait for long because of it: what is lost is sent again later and later.
    pub(super) fn disturbs(self) -> bool {
        const LONG: u16 = 500;
        self.lose > 0 || self.delay > LONG || self.disk > LONG || self.load > LONG
    }

    /// Everything arrives, once, in order and at once.
    pub const FAIR: Self = Self { lose: 0, repeat: 0, delay: 0, disk: 0, load: 0 };
}

impl fmt::Display for FaultProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::FAIR {
            return f.write_str("fair");
        }
        write!(
            f,
            "{} ‰ lost, {} ‰ twice, up to {} ms under way, commits take up to {} ms, loads up to {} ms",
            self.lose, self.repeat, self.delay, self.disk, self.load
        )
    }
}

/// Which way is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkDirection {
    /// Nothing gets to the node.
    In,
    /// Nothing gets from the node.
    Out,
    /// Nothing gets through.
    Both,
}

/// Something that goes wrong at one moment. Services are numbered in the order in which they were described.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A node of the service is killed, and started again after a while. Of what it had not committed, any beginning may be
    /// in its log.
    Crash {
        /// The service.
        service: usize,
        /// How many other tasks take a step before it dies: the moment inside the moment.
        steps: u8,
        /// How long it stays down.
        down: Duration,
    },
    /// A node of the service is killed in the middle of the next work of this kind, and started again after a while. If none begins
    /// within [10 s](Fault::PATIENCE), nothing happens.
    CrashIn {
        /// The service.
        service: usize,
        /// In the middle of what.
        work: CrashPoint,
        /// How many other tasks take a step before it dies.
        steps: u8,
        /// How long it stays down.
        down: Duration,
    },
    /// The wall clock of the service's node jumps.
    Jump {
        /// The service.
        service: usize,
        /// By how many milliseconds.
        millis: i64,
        /// After what time it is set right. While it is wrong by more than a sender's deadline, commands from outside are
        /// refused as late.
        lasts: Duration,
    },
    /// A node of the service is killed and started again at once, on a machine whose wall clock is wrong. A timer that was set before
    /// is due then by that clock: this is how a timer fires long before its time has passed.
    Reboot {
        /// The service.
        service: usize,
        /// By how many milliseconds the clock is wrong.
        millis: i64,
        /// After what time it is set right.
        lasts: Duration,
    },
    /// What one service sends to another is lost for a while; the other way is open.
    Cut {
        /// Who sends.
        from: usize,
        /// Who receives nothing.
        to: usize,
        /// For how long.
        lasts: Duration,
    },
    /// What is said to a service's nodes, or what they say, is lost for a while.
    Isolate {
        /// The service.
        service: usize,
        /// Which way.
        way: LinkDirection,
        /// For how long.
        lasts: Duration,
    },
    /// All messages that the broker has, and all that are under way, are lost.
    EmptyStreams,
    /// A hostile client writes forged, malformed and oversize packets to every domain: see
    /// [`Hostile`](crate::testing::bridge::hostile::Hostile). It is not drawn at random, because it fills the trace.
    Forge {
        /// What it writes depends on this.
        seed: u64,
        /// How many packets it writes.
        count: u16,
    },
    /// The broker loses its streams with all messages and consumers. Whose they are makes them again.
    LoseStreams,
    /// The broker stands still for a while.
    PauseBroker {
        /// For how long.
        lasts: Duration,
    },
    /// The broker's leader changes: for a while it takes nothing in, though half of what it refuses it brings all the same, and
    /// it has forgotten what it was told last.
    ChangeLeader {
        /// For how long.
        lasts: Duration,
    },
    /// Messages have ids for a while, and the broker drops those whose id it knows, whether it still has the message or not.
    DropRepeats {
        /// For how long an id is known.
        window: Duration,
        /// For how long messages have ids.
        lasts: Duration,
    },
    /// Half of what the broker is to store it does not, and remembers the id all the same: sent again, it is a duplicate.
    FailToStore {
        /// For how long.
        lasts: Duration,
    },
    /// The broker's patience is short: what is not settled soon comes again.
    HurryAcks {
        /// The ack wait, at least 1 ms.
        wait: Duration,
        /// For how long.
        lasts: Duration,
    },
    /// The broker lets a service have only so many messages in hand.
    FewInHand {
        /// How many.
        most: u16,
        /// For how long.
        lasts: Duration,
    },
    /// The service's handlers take their time for each message, one after the other.
    Slow {
        /// The service.
        service: usize,
        /// How long for each.
        each: Duration,
        /// For how long.
        lasts: Duration,
    },
    /// The service's node is cut off, and another one takes over. Then the old one is connected again, and does not know that it
    /// owns nothing any more. In the end it dies.
    HandOver {
        /// The service.
        service: usize,
        /// How long the old node is cut off.
        cut_off: Duration,
        /// How long it lives on after that.
        lingers: Duration,
    },
    /// The next messages that the service's handlers take make them panic, each before it is tried again with better luck. No
    /// message suffers it more than twice.
    Panic {
        /// The service.
        service: usize,
        /// How many times.
        times: u8,
    },
    /// The next jobs of the service's workers fail once their effect is done, and are done again. No message suffers it, or a
    /// panic, more than twice.
    FailJobs {
        /// The service.
        service: usize,
        /// How many times.
        times: u8,
    },
    /// The next jobs of the service's workers never end once their effect is done: the node's
    /// [`job_limit`](crate::NodeConfig::job_limit) ends them, and they are done again. No message suffers it more than twice.
    HangJobs {
        /// The service.
        service: usize,
        /// How many times.
        times: u8,
    },
    /// The next message of an actor that the service's handlers take within [10 s](Fault::PATIENCE) fails in every attempt, and so
    /// becomes a dead letter. An operator takes care of it a while later; from then on it can be handled.
    Poison {
        /// The service.
        service: usize,
        /// How long after it is a dead letter.
        after: Duration,
        /// What the operator does.
        then: OperatorAction,
    },
    /// The next key of an aggregate or saga that a node of the service loads cannot be read for a while. Messages for other keys
    /// must not wait for that.
    StickKey {
        /// The service.
        service: usize,
        /// For how long, counted from the fault.
        lasts: Duration,
    },
    /// A second node of the service is started on an empty store, as after a folder that was not mounted: the broker refuses it,
    /// because the domains are claimed for another store.
    Rival {
        /// The service. It owns a domain.
        service: usize,
    },
    /// A node of the service is killed, and the next one is of another version, as [`Sim::version`](super::Sim::version) describes
    /// it; 0 is the first.
    Upgrade {
        /// The service.
        service: usize,
        /// The version.
        version: usize,
        /// How long it stays down.
        down: Duration,
    },
    /// The wall clock of all clients is wrong for a while: their commands have ids of another time, and deadlines that have passed or
    /// never pass.
    SkewClients {
        /// By how many milliseconds.
        millis: i64,
        /// For how long.
        lasts: Duration,
    },
    /// The next commands of clients are sent once more with the same id, at once or within 3 s: they are handled once, and each
    /// reply is the same.
    RepeatCommands {
        /// How many.
        times: u8,
    },
    /// The ids of the next commands that clients hear replies to are used again for another payload: that is a conflict.
    ReuseIds {
        /// How many.
        times: u8,
    },
    /// The next commands of clients are also sent with an id of the year 2000 and one of the year 2100: these are refused.
    OldAndFutureIds {
        /// How many.
        times: u8,
    },
    /// The next commands of clients have a short deadline in their first attempt.
    HurryClients {
        /// The deadline.
        deadline: Duration,
        /// How many.
        times: u8,
    },
    /// The store of the service fails: nothing that waits is known to be committed, and the shards must be opened again.
    FailCommits {
        /// The service.
        service: usize,
    },
}

impl Fault {
    /// For so long a crash waits for what it is to interrupt.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    /// The services that it names.
    fn services(&self) -> Vec<usize> {
        match self {
            Self::Crash { service, .. }
            | Self::CrashIn { service, .. }
            | Self::Jump { service, .. }
            | Self::Reboot { service, .. }
            | Self::Isolate { service, .. }
            | Self::Slow { service, .. }
            | Self::HandOver { service, .. }
            | Self::Panic { service, .. }
            | Self::FailJobs { service, .. }
            | Self::HangJobs { service, .. }
            | Self::Poison { service, .. }
            | Self::StickKey { service, .. }
            | Self::Upgrade { service, .. }
            | Self::Rival { service }
            | Self::FailCommits { service } => vec![*service],
            Self::Cut { from, to, .. } => vec![*from, *to],
            Self::EmptyStreams
            | Self::Forge { .. }
            | Self::LoseStreams
            | Self::PauseBroker { .. }
            | Self::ChangeLeader { .. }
            | Self::DropRepeats { .. }
            | Self::FailToStore { .. }
            | Self::HurryAcks { .. }
            | Self::FewInHand { .. }
            | Self::SkewClients { .. }
            | Self::RepeatCommands { .. }
            | Self::ReuseIds { .. }
            | Self::OldAndFutureIds { .. }
            | Self::HurryClients { .. } => Vec::new(),
        }
    }

    /// Why it cannot strike a cluster of so many services, if it cannot.
    pub(super) fn impossible(&self, count: usize) -> Option<SimError> {
        let service = self.services().into_iter().find(|service| *service >= count)?;
        Some(SimError::MissingService { fault: format!("{self:?}"), service, count })
    }

    /// The service whose jobs it strikes, if it strikes jobs.
    pub(super) fn strikes_jobs_of(&self) -> Option<usize> {
        match self {
            Self::FailJobs { service, .. } | Self::HangJobs { service, .. } => Some(*service),
            Self::CrashIn { service, work: CrashPoint::Job, .. } => Some(*service),
            _ => None,
        }
    }

    /// Returns whether it delays everything. One that strikes user code must delay nothing but the key or the job that it strikes, and
    /// one of a client nothing but that.
    pub(super) fn disturbs(&self) -> bool {
        let strikes_code = matches!(self, Self::Panic { .. } | Self::FailJobs { .. } | Self::HangJobs { .. });
        let strikes_key = matches!(self, Self::Poison { .. } | Self::StickKey { .. } | Self::Rival { .. });
        !strikes_code && !strikes_key && !self.is_of_commands()
    }

    /// Returns whether it strikes what actors send to each other.
    pub(super) fn is_of_messages(&self) -> bool {
        matches!(self, Self::Poison { .. })
    }

    /// Returns whether it strikes commands of clients, and needs some to strike.
    pub(super) fn is_of_commands(&self) -> bool {
        let is_sent =
            matches!(self, Self::RepeatCommands { .. } | Self::ReuseIds { .. } | Self::OldAndFutureIds { .. });
        is_sent || matches!(self, Self::HurryClients { .. })
    }

    /// What was missing if it has not struck.
    pub(super) fn missed(&self) -> &'static str {
        match self {
            Self::Upgrade { .. } => "no node of the service was running",
            Self::Poison { .. } => "no message of an actor came to the service within 10 s",
            Self::StickKey { .. } => "no key was loaded before it was over",
            Self::Rival { .. } => "the service owns no domain",
            Self::Crash { .. } | Self::Reboot { .. } | Self::HandOver { .. } | Self::FailCommits { .. } => {
                "no node of the service was running"
            }
            Self::CrashIn { .. } => "no such work began within 10 s, or no node of the service was running",
            Self::Panic { .. } => "no handler of the service was called before the faults stopped",
            Self::FailJobs { .. } | Self::HangJobs { .. } => {
                "no job of the service had an effect before the faults stopped"
            }
            fault if fault.is_of_commands() => "no client sent a command before the faults stopped",
            _ => "it was not its time",
        }
    }

    /// What kind of fault it is: the name of its variant, and in the middle of which work it strikes.
    pub(super) fn kind(&self) -> String {
        let text = format!("{self:?}");
        let name = text.split([' ', '{']).next().unwrap_or_default();
        match self {
            Self::CrashIn { work, .. } => format!("{name} {work:?}"),
            _ => name.to_owned(),
        }
    }

    /// The fault in words, with the services by their names.
    pub(super) fn told(&self, services: &[String]) -> String {
        let name = |service: &usize| services.get(service % services.len().max(1)).map_or("nobody", String::as_str);
        match self {
            Self::Crash { service, down, .. } => format!("a node of {} is killed, for {down:?}", name(service)),
            Self::CrashIn { service, work, down, .. } => {
                format!("a node of {} is killed inside {}, for {down:?}", name(service), work.told())
            }
            Self::Jump { service, millis, lasts } => {
                format!("the clock of {} jumps by {millis} ms, for {lasts:?}", name(service))
            }
            Self::Reboot { service, millis, lasts } => {
                format!("{} starts again with a clock that is wrong by {millis} ms, for {lasts:?}", name(service))
            }
            Self::Cut { from, to, lasts } => {
                format!("nothing gets from {} to {} for {lasts:?}", name(from), name(to))
            }
            Self::Isolate { service, way, lasts } => match way {
                LinkDirection::In => format!("{} hears nothing, for {lasts:?}", name(service)),
                LinkDirection::Out => format!("{} is not heard, for {lasts:?}", name(service)),
                LinkDirection::Both => format!("{} is cut off, for {lasts:?}", name(service)),
            },
            Self::EmptyStreams => "the broker loses all messages".to_owned(),
            Self::Forge { count, .. } => format!("a hostile client writes {count} packets"),
            Self::LoseStreams => "the broker loses all streams".to_owned(),
            Self::PauseBroker { lasts } => format!("the broker stands still for {lasts:?}"),
            Self::ChangeLeader { lasts } => format!("the broker's leader changes, for {lasts:?}"),
            Self::DropRepeats { window, lasts } => {
                format!("the broker drops what comes twice within {window:?}, for {lasts:?}")
            }
            Self::FailToStore { lasts } => format!("the broker fails to store, for {lasts:?}"),
            Self::HurryAcks { wait, lasts } => format!("the broker waits {wait:?} for a node's word, for {lasts:?}"),
            Self::FewInHand { most, lasts } => format!("the broker gives {most} messages at once, for {lasts:?}"),
            Self::Slow { service, each, lasts } => {
                format!("each message takes the handlers of {} {each:?}, for {lasts:?}", name(service))
            }
            Self::HandOver { service, cut_off, lingers } => {
                format!(
                    "{} is taken over; its old node is cut off for {cut_off:?} and dies {lingers:?} later",
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
            Self::Poison { service, after, then } => {
                let does = if *then == OperatorAction::Redrive { "redrives" } else { "discards" };
                format!("a message of an actor fails in {}; an operator {does} it {after:?} later", name(service))
            }
            Self::Rival { service } => format!("a second node of {} is started on an empty store", name(service)),
            Self::StickKey { service, lasts } => format!("a key of {} cannot be read, for {lasts:?}", name(service)),
            Self::Upgrade { service, version, down } => {
                format!("{} is replaced by its version {version}, after {down:?}", name(service))
            }
            Self::SkewClients { millis, lasts } => {
                format!("the clock of the clients is wrong by {millis} ms, for {lasts:?}")
            }
            Self::RepeatCommands { times } => format!("{times} commands of clients will be sent twice"),
            Self::ReuseIds { times } => format!("{times} ids of clients will be used again"),
            Self::OldAndFutureIds { times } => format!("{times} commands of clients will have ids of other times"),
            Self::HurryClients { deadline, times } => {
                format!("{times} clients will wait for {deadline:?} only")
            }
        }
    }
}
