//! Node configuration: from code, from a TOML file, from the environment.
//!
//! Called by users and by the [builder](crate::node::NodeBuilder), which validates it once.

mod environment;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use whizbang_core::message::ReplacedStore;
use whizbang_core::retry::Retry;

/// Configuration of a node. Every value has a default.
///
/// In a file, durations are milliseconds and the key says so: `passivate_after_ms = 60000`. An unknown key is an error.
/// In the [environment](Self::environment) the same keys are upper case with the prefix `WHIZBANG_`:
/// `WHIZBANG_PASSIVATE_AFTER_MS=60000`.
///
/// ```
/// use std::time::Duration;
/// use whizbang::NodeConfig;
///
/// let config = NodeConfig::default().toml("threads = 2\npassivate_after_ms = 60000")?;
/// assert_eq!(config.passivate_after, Duration::from_secs(60));
/// # Ok::<_, whizbang::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Number of actor threads, started and ended by the node. Default 1; at most 1,024. With at least one, the
    /// bridge has its own thread.
    ///
    /// With 0 everything runs on the thread that starts the node, which must be inside a tokio `LocalSet`
    /// (`#[whizbang::main]` is one): a command to an actor there is handled without a thread switch. A simulated
    /// node, which has a seed, always runs like this.
    pub threads: usize,
    /// Most turns in flight on each thread, queued or waiting for their commit; more are refused as `Busy`. Default
    /// 16,384.
    pub in_flight: usize,
    /// Most turns in flight for one key. Default 1,024.
    pub in_flight_per_key: u32,
    /// Time after which an idle actor is passivated. Default 5 min; at least 1 s.
    pub passivate_after: Duration,
    /// Most live actors of one type on each thread. Above it, activating an actor passivates the least recently used
    /// idle ones; only actors with turns in flight, which `in_flight` bounds, may exceed it. Default 100,000.
    pub live_actors: usize,
    /// Time for which the ids of callers from outside are remembered with their replies. Default 7 days; at least 1
    /// min.
    pub remember: Duration,
    /// Retry policy of failed deliveries.
    pub retry: Retry,
    /// Most jobs of one worker that run at once on each thread; more wait. Default 64; 1 to 1,048,576.
    pub jobs: usize,
    /// Longest duration of one job. A longer one is dropped at its await point and counts as failed: it is retried
    /// with the same idempotency key, as [`retry`](Self::retry) says. Default 5 min; at least 1 ms.
    pub job_limit: Duration,
    /// Time after which a thread running user code is reported as blocked in the node's
    /// [health](crate::Node::health), with the actor type and the message. Nothing is interrupted. Default 2 s; at
    /// least 100 ms. Measured in steps of 50 ms.
    pub blocked_after: Duration,
    /// Duration of the lease by which a node owns its shards, if several nodes of the service share the store. A node
    /// that crashes or cannot reach the store is replaced after this time. It renews the lease several times within it,
    /// and serves nothing if that failed for 0.8 of it. Default 10 s; 2 s to 5 min. The same for all nodes of a
    /// service. Without effect on a store that only one node may use.
    pub lease: Duration,
    /// Longest wait of a command that only a newer version of the program handles, while such nodes of the service exist or
    /// are expected. After it the command is handled as one without a handler. Default 10 min; 1 s to 24 h. Without effect on
    /// a store that only one node may use.
    pub newer_commands: Duration,
    /// Store whose broker claims this node takes over although it does not continue that store. Default none. For
    /// disaster recovery: set it for one start, and only if the old store is lost.
    pub replaces_store: ReplacedStore,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            threads: 1,
            in_flight: 16_384,
            in_flight_per_key: 1024,
            passivate_after: Duration::from_secs(300),
            live_actors: 100_000,
            remember: Duration::from_secs(7 * 24 * 3600),
            retry: Retry::default(),
            jobs: 64,
            job_limit: Duration::from_secs(300),
            blocked_after: Duration::from_secs(2),
            lease: Duration::from_secs(10),
            newer_commands: Duration::from_secs(600),
            replaces_store: ReplacedStore::None,
        }
    }
}

/// The keys of a configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    threads: Option<usize>,
    in_flight: Option<usize>,
    in_flight_per_key: Option<u32>,
    passivate_after_ms: Option<u64>,
    live_actors: Option<usize>,
    remember_ms: Option<u64>,
    retry_attempts: Option<u32>,
    retry_first_ms: Option<u64>,
    retry_longest_ms: Option<u64>,
    jobs: Option<usize>,
    job_limit_ms: Option<u64>,
    blocked_after_ms: Option<u64>,
    lease_ms: Option<u64>,
    newer_commands_ms: Option<u64>,
    replaces_store: Option<String>,
}

impl NodeConfig {
    /// Returns the defaults, overridden by the keys of a TOML file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line and the key.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::default().toml(&text)
    }

    /// Overrides the keys present in a TOML text.
    ///
    /// # Errors
    /// [`ConfigError::Toml`] names the line and the key, [`ConfigError::Value`] the key, its unit and its range.
    pub fn toml(self, text: &str) -> Result<Self, ConfigError> {
        let invalid = |error: toml::de::Error| ConfigError::Toml { reason: error.to_string() };
        let file: FileConfig = toml::from_str(text).map_err(invalid)?;
        Self::check_numbers(&toml::from_str(text).map_err(invalid)?)?;
        let replaces_store = match file.replaces_store.as_deref() {
            None => self.replaces_store,
            Some(text) => ReplacedStore::parse(text).ok_or_else(|| ConfigError::Value {
                key: "replaces_store",
                value: text.to_owned(),
                expected: "`any` or 32 hexadecimal digits".to_owned(),
            })?,
        };
        Ok(Self { replaces_store, ..self.changed(file) })
    }

    fn changed(mut self, file: FileConfig) -> Self {
        let millis = Duration::from_millis;
        self.threads = file.threads.unwrap_or(self.threads);
        self.in_flight = file.in_flight.unwrap_or(self.in_flight);
        self.in_flight_per_key = file.in_flight_per_key.unwrap_or(self.in_flight_per_key);
        self.passivate_after = file.passivate_after_ms.map_or(self.passivate_after, millis);
        self.live_actors = file.live_actors.unwrap_or(self.live_actors);
        self.remember = file.remember_ms.map_or(self.remember, millis);
        self.retry.attempts = file.retry_attempts.unwrap_or(self.retry.attempts);
        self.retry.first = file.retry_first_ms.map_or(self.retry.first, millis);
        self.retry.longest = file.retry_longest_ms.map_or(self.retry.longest, millis);
        self.jobs = file.jobs.unwrap_or(self.jobs);
        self.job_limit = file.job_limit_ms.map_or(self.job_limit, millis);
        self.blocked_after = file.blocked_after_ms.map_or(self.blocked_after, millis);
        self.lease = file.lease_ms.map_or(self.lease, millis);
        self.newer_commands = file.newer_commands_ms.map_or(self.newer_commands, millis);
        self
    }

    /// Checks all ranges.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let checks = [
            ("threads", self.threads <= 1024, "0 to 1024"),
            ("in_flight", (1..=16_777_216).contains(&self.in_flight), "1 to 16,777,216"),
            ("in_flight_per_key", self.in_flight_per_key >= 1, "at least 1"),
            ("passivate_after", self.passivate_after >= Duration::from_secs(1), "at least 1 s"),
            ("live_actors", self.live_actors >= 1, "at least 1"),
            ("remember", self.remember >= Duration::from_secs(60), "at least 1 min"),
            ("jobs", (1..=1_048_576).contains(&self.jobs), "1 to 1,048,576"),
            ("job_limit", self.job_limit >= Duration::from_millis(1), "at least 1 ms"),
            ("blocked_after", self.blocked_after >= Duration::from_millis(100), "at least 100 ms"),
            (
                "newer_commands",
                (Duration::from_secs(1)..=Duration::from_secs(24 * 3600)).contains(&self.newer_commands),
                "1 s to 24 h",
            ),
            ("lease", (Duration::from_secs(2)..=Duration::from_secs(300)).contains(&self.lease), "2 s to 5 min"),
            ("retry.attempts", self.retry.attempts >= 1, "at least 1"),
            // The two values may come from different sources, so the text names the keys of both.
            (
                "retry.longest",
                self.retry.longest >= self.retry.first,
                "at least retry.first (`retry_longest_ms` and `retry_first_ms`)",
            ),
        ];
        match checks.into_iter().find(|(_, holds, _)| !holds) {
            Some((key, _, range)) => Err(ConfigError::Range { key, range }),
            None => Ok(()),
        }
    }
}

/// Returns the default name of this process for operators: the host, if the environment names it, and the process id.
pub(in crate::node) fn default_label() -> String {
    let host = std::env::var("HOSTNAME").ok().filter(|host| !host.is_empty() && host.len() <= 200);
    format!("{}/{}", host.as_deref().unwrap_or("node"), std::process::id())
}

/// Invalid configuration. The node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read configuration file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The text is not a valid configuration: unknown key, or value of the wrong type.
    #[error("invalid configuration: {reason}")]
    Toml {
        /// Location and cause.
        reason: String,
    },
    /// The value of a key in a file is out of its range.
    #[error("invalid value `{value}` of key {key}: expected {expected}")]
    Value {
        /// The key in the file.
        key: &'static str,
        /// Its value.
        value: String,
        /// The unit and the range.
        expected: String,
    },
    /// The value of an environment variable is not a number, or out of its range.
    #[error("invalid value `{value}` of variable {name}: expected {expected}")]
    Variable {
        /// The variable.
        name: String,
        /// Its value.
        value: String,
        /// The unit and the range.
        expected: String,
    },
    /// An environment variable has almost the name of a key.
    #[error("unknown variable {name}: did you mean {meant}?")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The variable that is probably meant.
        meant: String,
    },
    /// A setting of the code is out of its range, or contradicts another one.
    #[error("`{key}` is out of range: {range}")]
    Range {
        /// The field of the configuration, or the method that sets it.
        key: &'static str,
        /// The allowed range.
        range: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_sets_only_named_values() {
        let config = NodeConfig::default().toml("threads = 2\nretry_first_ms = 5\n").unwrap();
        assert_eq!(config.threads, 2);
        assert_eq!(config.retry.first, Duration::from_millis(5));
        assert_eq!(config.live_actors, NodeConfig::default().live_actors);
    }

    #[test]
    fn unknown_key_is_refused_by_name() {
        let error = NodeConfig::default().toml("thread = 2").unwrap_err().to_string();
        assert!(error.contains("`thread`") && error.contains("threads"), "{error}");
    }

    #[test]
    fn replaced_store_is_read_from_file_and_environment() {
        let id = "0".repeat(31) + "7";
        let file = NodeConfig::default().toml(&format!("replaces_store = \"{id}\"\n")).unwrap();
        assert_eq!(NodeConfig::default().variables([("WHIZBANG_REPLACES_STORE", id)]).unwrap(), file);
        assert_ne!(file, NodeConfig::default());
        assert!(NodeConfig::default().toml("replaces_store = \"yes\"\n").is_err());
    }

    #[test]
    fn range_error_of_a_file_names_key_unit_and_range() {
        for (text, expected) in [
            (
                "passivate_after_ms = 999",
                "`999` of key passivate_after_ms: expected a number of milliseconds, at least 1,000",
            ),
            ("threads = 1025", "`1025` of key threads: expected a number, 0 to 1,024"),
            ("lease_ms = 1999", "`1999` of key lease_ms: expected a number of milliseconds, 2,000 to 300,000"),
            ("replaces_store = \"yes\"", "`yes` of key replaces_store: expected `any` or 32 hexadecimal digits"),
        ] {
            let error = NodeConfig::default().toml(text).unwrap_err().to_string();
            assert_eq!(error, format!("invalid value {expected}"));
        }
    }

    #[test]
    fn ranges_are_checked() {
        let config = NodeConfig { passivate_after: Duration::from_millis(1), ..NodeConfig::default() };
        assert!(matches!(config.check(), Err(ConfigError::Range { key: "passivate_after", .. })));
        for (lease, is_valid) in [(1_999, false), (2_000, true), (300_000, true), (300_001, false)] {
            let config = NodeConfig { lease: Duration::from_millis(lease), ..NodeConfig::default() };
            assert_eq!(config.check().is_ok(), is_valid, "{lease}");
        }
        assert!(NodeConfig::default().check().is_ok());
    }
}
