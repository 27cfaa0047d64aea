//! What goes wrong in a simulated cluster: all the time (weather), and at certain moments (faults).

use std::fmt;
use std::time::Duration;

/// How a simulated cluster maltreats everything all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// How many messages of a thousand the courier loses. A question may be lost on both ways.
    pub lose: u16,
    /// How many of a thousand it brings twice.
    pub repeat: u16,
    /// The longest time a message is under way; messages overtake each other within it. In milliseconds.
    pub delay: u16,
    /// The longest time a commit takes, in milliseconds: what is not committed is lost in a crash.
    pub disk: u16,
    /// The longest time reading from a store takes, in milliseconds. What is read may be as old as that.
    pub load: u16,
}

impl Weather {
    /// Everything arrives, once, in order and at once.
    pub const FAIR: Self = Self { lose: 0, repeat: 0, delay: 0, disk: 0, load: 0 };
}

impl fmt::Display for Weather {
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
    /// What one service sends to another is lost for a while; the other way is open.
    Cut {
        /// Who sends.
        from: usize,
        /// Who receives nothing.
        to: usize,
        /// For how long.
        lasts: Duration,
    },
    /// Everything that is under way is lost.
    EmptyCourier,
    /// The courier brings nothing for a while, and then everything.
    PauseCourier {
        /// For how long.
        lasts: Duration,
    },
    /// The courier takes nothing in for a while, as a broker whose leader changes; half of what it refuses it brings all the
    /// same.
    RefuseSends {
        /// For how long.
        lasts: Duration,
    },
    /// The next messages that the service's handlers take make them panic, each before it is tried again with better luck. No
    /// message suffers it more than twice.
    Panic {
        /// The service.
        service: usize,
        /// How many times.
        times: u8,
    },
    /// The store of the service fails: nothing that waits is known to be committed, and the shards must be opened again.
    FailCommits {
        /// The service.
        service: usize,
    },
}

impl Fault {
    /// The fault in words, with the services by their names.
    pub(super) fn told(&self, services: &[String]) -> String {
        let name = |service: &usize| services.get(service % services.len().max(1)).map_or("nobody", String::as_str);
        match self {
            Self::Crash { service, down, .. } => format!("a node of {} is killed, for {down:?}", name(service)),
            Self::Jump { service, millis, lasts } => {
                format!("the clock of {} jumps by {millis} ms, for {lasts:?}", name(service))
            }
            Self::Cut { from, to, lasts } => {
                format!("nothing gets from {} to {} for {lasts:?}", name(from), name(to))
            }
            Self::EmptyCourier => "the courier loses all it has".to_owned(),
            Self::PauseCourier { lasts } => format!("the courier pauses for {lasts:?}"),
            Self::RefuseSends { lasts } => format!("the courier's leader changes, for {lasts:?}"),
            Self::Panic { service, times } => format!("{times} handlers of {} will panic", name(service)),
            Self::FailCommits { service } => format!("the store of {} fails", name(service)),
        }
    }
}
