//! Configuration from environment variables: the keys, their units and ranges. The keys of a file have the same ranges.
//!
//! Called by users through the [configuration](crate::node::NodeConfig). Variables that belong to something else never
//! stop a node: Kubernetes sets `WHIZBANG_SERVICE_HOST` in every pod beside a service named `whizbang`, and variables
//! need not be UTF-8.

use std::ffi::OsString;
use std::time::Duration;

use crate::node::config::{ConfigError, NodeConfig};
use whizbang_core::message::ReplacedStore;
use whizbang_core::telemetry::TARGET;

/// Prefix of the variables.
const PREFIX: &str = "WHIZBANG_";

/// Prefix of the variables of the simulated cluster, which the same environment may contain.
const TEST_PREFIX: &str = "WHIZBANG_SIM";

/// The key without a number.
const REPLACES_STORE: &str = "replaces_store";

/// A key of the configuration with a number.
struct NumberKey {
    /// The name in a file. The variable's name is the prefix and this in upper case.
    name: &'static str,
    unit: Unit,
    least: u64,
    most: u64,
    get: fn(&NodeConfig) -> u64,
    set: fn(&mut NodeConfig, u64),
}

/// The unit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Count,
    Milliseconds,
}

/// Generates a key with a number of things.
macro_rules! count {
    ($name:ident $(. $inner:ident)?, $key:literal, $least:literal ..= $most:expr) => {
        NumberKey {
            name: $key,
            unit: Unit::Count,
            least: $least,
            most: $most,
            get: |config| config.$name $(.$inner)? as u64,
            // The range fits into the field's type.
            set: |config, value| config.$name $(.$inner)? = value.try_into().unwrap_or(config.$name $(.$inner)?),
        }
    };
}

/// Generates a key with a duration.
macro_rules! millis {
    ($name:ident $(. $inner:ident)?, $key:literal, $least:literal ..= $most:expr) => {
        NumberKey {
            name: $key,
            unit: Unit::Milliseconds,
            least: $least,
            most: $most,
            get: |config| u64::try_from(config.$name $(.$inner)?.as_millis()).unwrap_or(u64::MAX),
            set: |config, value| config.$name $(.$inner)? = Duration::from_millis(value),
        }
    };
}

/// Every key with a number.
const NUMBERS: &[NumberKey] = &[
    count!(threads, "threads", 0..=1024),
    count!(in_flight, "in_flight", 1..=16_777_216),
    count!(in_flight_per_key, "in_flight_per_key", 1..=u32::MAX as u64),
    millis!(passivate_after, "passivate_after_ms", 1000..=u64::MAX),
    count!(live_actors, "live_actors", 1..=usize::MAX as u64),
    millis!(remember, "remember_ms", 60_000..=u64::MAX),
    count!(retry.attempts, "retry_attempts", 1..=u32::MAX as u64),
    millis!(retry.first, "retry_first_ms", 0..=u64::MAX),
    millis!(retry.longest, "retry_longest_ms", 0..=u64::MAX),
    count!(jobs, "jobs", 1..=1_048_576),
    millis!(job_limit, "job_limit_ms", 1..=u64::MAX),
    millis!(blocked_after, "blocked_after_ms", 100..=u64::MAX),
    millis!(lease, "lease_ms", 2000..=300_000),
    millis!(newer_commands, "newer_commands_ms", 1000..=86_400_000),
];

impl NumberKey {
    /// Returns the allowed values in words.
    fn expected(&self) -> String {
        let what = match self.unit {
            Unit::Count => "a number",
            Unit::Milliseconds => "a number of milliseconds",
        };
        format!("{what}, {}", self.range())
    }

    /// Returns the range in words. A maximum that only the type sets is left out.
    fn range(&self) -> String {
        match (self.least, self.most) {
            (0, u64::MAX) => "0 or more".to_owned(),
            (least, most) if most >= u64::from(u32::MAX) => format!("at least {}", grouped(least)),
            (least, most) => format!("{} to {}", grouped(least), grouped(most)),
        }
    }

    fn parse(&self, text: &str) -> Option<u64> {
        let is_number = text.starts_with(|first: char| first.is_ascii_digit());
        let number: u64 = text.replace('_', "").parse().ok().filter(|_| is_number)?;
        (self.least..=self.most).contains(&number).then_some(number)
    }
}

/// Returns a number with commas: `16,384`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

impl NodeConfig {
    /// Returns the defaults, overridden by the environment: see [`environment`](Self::environment).
    ///
    /// ```
    /// use whizbang::NodeConfig;
    ///
    /// let config = NodeConfig::from_env()?;
    /// // Or after a file, which it overrides:
    /// // let config = NodeConfig::from_file("bank.toml")?.environment()?;
    /// # assert_eq!(config.jobs, 64);
    /// # Ok::<_, whizbang::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ConfigError`] names the variable, and its unit and range.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::default().environment()
    }

    /// Overrides the values for which the environment has a variable: the keys of a file in upper case with the prefix
    /// `WHIZBANG_`.
    ///
    /// A variable with this prefix and another name is refused if it is one or two letters from a key, and ignored with
    /// a warning in the log otherwise: the platform may have set it. Variables that are not UTF-8 are ignored.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable, and its unit and range.
    pub fn environment(self) -> Result<Self, ConfigError> {
        self.variables(std::env::vars_os())
    }

    /// Like [`environment`](Self::environment), for given variables.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable, and its unit and range.
    pub fn variables<N, V>(self, variables: impl IntoIterator<Item = (N, V)>) -> Result<Self, ConfigError>
    where
        N: Into<OsString>,
        V: Into<OsString>,
    {
        read(self, variables.into_iter().map(|(name, value)| (name.into(), value.into())))
    }

    /// Checks the numbers of a configuration file.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the first key whose value is out of its range. A value of another type is not checked here.
    pub(super) fn check_numbers(file: &toml::Table) -> Result<(), ConfigError> {
        for number in NUMBERS {
            let Some(value) = file.get(number.name).and_then(toml::Value::as_integer) else { continue };
            if !u64::try_from(value).is_ok_and(|value| (number.least..=number.most).contains(&value)) {
                return Err(ConfigError::Value {
                    key: number.name,
                    value: value.to_string(),
                    expected: number.expected(),
                });
            }
        }
        Ok(())
    }

    /// Returns key, default and range of each value with a number, as the documentation shows them.
    #[doc(hidden)]
    pub fn documented() -> Vec<(&'static str, String, String)> {
        let default = Self::default();
        let row = |key: &NumberKey| (key.name, grouped((key.get)(&default)), key.range());
        NUMBERS.iter().map(row).collect()
    }
}

/// Overrides the values that variables name.
fn read(
    mut config: NodeConfig,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<NodeConfig, ConfigError> {
    for (name, value) in variables {
        // A name that is not UTF-8 is not one of these.
        let Some(name) = name.to_str() else { continue };
        let Some(key) = name.strip_prefix(PREFIX).filter(|_| !name.starts_with(TEST_PREFIX)) else { continue };
        let key = key.to_ascii_lowercase();
        let text = value.to_string_lossy();
        let invalid = |expected: String| ConfigError::Variable {
            name: name.to_owned(),
            value: text.clone().into_owned(),
            expected,
        };
        if let Some(number) = NUMBERS.iter().find(|number| number.name == key) {
            let value = number.parse(&text).ok_or_else(|| invalid(number.expected()))?;
            (number.set)(&mut config, value);
        } else if key == REPLACES_STORE {
            let store = ReplacedStore::parse(&text);
            config.replaces_store = store.ok_or_else(|| invalid("`any` or 32 hexadecimal digits".to_owned()))?;
        } else if let Some(nearest) = nearest(&key) {
            let meant = format!("{PREFIX}{}", nearest.to_ascii_uppercase());
            return Err(ConfigError::UnknownVariable { name: name.to_owned(), meant });
        } else {
            tracing::warn!(target: TARGET, variable = name, "unknown environment variable ignored");
        }
    }
    Ok(config)
}

/// Returns the key of which `found` is probably a misspelling: at most two letters differ, and at most a quarter.
fn nearest(found: &str) -> Option<&'static str> {
    let keys = NUMBERS.iter().map(|number| number.name).chain([REPLACES_STORE]);
    let distances = keys.map(|key| (distance(found, key), key));
    let near = distances.filter(|(distance, key)| *distance <= (key.len() / 4).clamp(1, 2));
    near.min().map(|(_, key)| key)
}

/// Returns the Levenshtein distance of two keys.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, letter) in a.bytes().enumerate() {
        let mut diagonal = at;
        let mut left = at + 1;
        let mut next = vec![left];
        for (other, above) in b.bytes().zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(letter != other)).min(above + 1).min(left + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Result<NodeConfig, ConfigError> {
        NodeConfig::default().variables(pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())))
    }

    #[test]
    fn each_key_is_set_by_its_variable() {
        for number in NUMBERS {
            let name = format!("WHIZBANG_{}", number.name.to_ascii_uppercase());
            let value = (number.get)(&NodeConfig::default()) / 2;
            let config = variables(&[(&name, &value.to_string())]).unwrap();
            assert_eq!((number.get)(&config), value, "{name}");
            let others = NUMBERS.iter().filter(|other| other.name != number.name);
            for other in others {
                assert_eq!((other.get)(&config), (other.get)(&NodeConfig::default()), "{name} set {}", other.name);
            }
            // The file has the same keys.
            let file = NodeConfig::default().toml(&format!("{} = {value}", number.name)).unwrap();
            assert_eq!(file, config, "{name}");
        }
    }

    #[test]
    fn range_of_each_key_is_that_of_the_node() {
        for number in NUMBERS {
            let mut at_least = NodeConfig::default();
            at_least.retry.first = Duration::ZERO;
            (number.set)(&mut at_least, number.least);
            assert!(at_least.check().is_ok(), "{}", number.name);
            if number.most < u64::from(u32::MAX) {
                let mut above = NodeConfig::default();
                (number.set)(&mut above, number.most + 1);
                assert!(above.check().is_err(), "{}", number.name);
            }
            if number.least > 0 {
                let mut below = NodeConfig::default();
                (number.set)(&mut below, number.least - 1);
                assert!(below.check().is_err(), "{}", number.name);
            }
        }
    }

    #[test]
    fn error_names_variable_unit_and_range() {
        for (name, value, expected) in [
            ("WHIZBANG_PASSIVATE_AFTER_MS", "5s", "a number of milliseconds, at least 1,000"),
            ("WHIZBANG_PASSIVATE_AFTER_MS", "999", "a number of milliseconds, at least 1,000"),
            ("WHIZBANG_THREADS", "1025", "a number, 0 to 1,024"),
            ("WHIZBANG_THREADS", "", "a number, 0 to 1,024"),
            ("WHIZBANG_THREADS", "+3", "a number, 0 to 1,024"),
            ("WHIZBANG_THREADS", "3\nin_flight = 1", "a number, 0 to 1,024"),
            ("WHIZBANG_RETRY_FIRST_MS", "-1", "a number of milliseconds, 0 or more"),
            ("WHIZBANG_LEASE_MS", "300001", "a number of milliseconds, 2,000 to 300,000"),
            ("WHIZBANG_REPLACES_STORE", "yes", "`any` or 32 hexadecimal digits"),
        ] {
            let error = variables(&[(name, value)]).unwrap_err().to_string();
            assert_eq!(error, format!("invalid value `{value}` of variable {name}: expected {expected}"));
        }
    }

    #[test]
    fn foreign_variables_are_ignored() {
        let foreign = [
            ("HOME", "/"),
            ("WHIZBANG_SERVICE_HOST", "10.0.0.1"),
            ("WHIZBANG_PORT_4222_TCP", "tcp://10.0.0.1:4222"),
            ("WHIZBANG_SIM", "7"),
            ("WHIZBANG_SIM_SEEDS", "many"),
        ];
        assert_eq!(variables(&foreign).unwrap(), NodeConfig::default());
    }

    #[test]
    fn misspelled_variable_is_refused_with_the_right_name() {
        for (name, meant) in [
            ("WHIZBANG_THREAD", "WHIZBANG_THREADS"),
            ("WHIZBANG_JOB", "WHIZBANG_JOBS"),
            ("WHIZBANG_INFLIGHT", "WHIZBANG_IN_FLIGHT"),
            ("WHIZBANG_PASSIVATE_AFTER_SM", "WHIZBANG_PASSIVATE_AFTER_MS"),
            ("WHIZBANG_REPLACE_STORE", "WHIZBANG_REPLACES_STORE"),
        ] {
            let error = variables(&[(name, "1")]).unwrap_err().to_string();
            assert_eq!(error, format!("unknown variable {name}: did you mean {meant}?"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn variables_that_are_not_utf8_are_tolerated() {
        use std::os::unix::ffi::OsStringExt;

        let bytes = || OsString::from_vec(vec![b'3', 0xFF]);
        let mut name = OsString::from("WHIZBANG_THREADS");
        name.push(bytes());
        let foreign = [(bytes(), bytes()), (name, "3".into()), ("LANG".into(), bytes())];
        assert_eq!(NodeConfig::default().variables(foreign).unwrap(), NodeConfig::default());
        let error = NodeConfig::default().variables([("WHIZBANG_THREADS", bytes())]).unwrap_err();
        assert!(matches!(error, ConfigError::Variable { .. }), "{error}");
    }
}
