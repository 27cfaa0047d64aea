//! The durability and the fitness of a server, as text for the log at start.

use async_nats::ServerInfo;

use super::config::NatsBuilder;
use whizbang_core::message::MAX_PAYLOAD_BYTES;

/// The maximum size in bytes of headers on a payload.
const HEADER_ALLOWANCE: usize = 32 * 1024;

/// Returns major, minor and patch of a server version; zeros for unreadable parts.
pub(super) fn parse_version(text: &str) -> (u32, u32, u32) {
    let mut numbers = text.trim_start_matches('v').split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

/// Describes the guarantees behind an acknowledgement of the server.
pub(super) fn describe(config: &NatsBuilder, info: &ServerInfo) -> String {
    let kept = if config.replicas > 1 {
        format!(
            "each stream is kept by {} servers and survives the loss of {}",
            config.replicas,
            (config.replicas - 1) / 2
        )
    } else {
        "each stream is kept by one server".to_owned()
    };
    format!(
        "nats-server {}: {kept}; it acknowledges before its disk has synced, so a crash of the server process loses nothing and \
         a power failure may lose the last seconds to minutes; lost messages are sent again from the services' logs",
        info.version
    )
}

/// Returns the reason for which no node may use the server, if there is one.
pub(super) fn refusal(info: &ServerInfo) -> Option<String> {
    if !info.jetstream {
        return Some("the server runs without JetStream: start it with `-js`".to_owned());
    }
    if parse_version(&info.version) < (2, 9, 0) {
        return Some(format!("nats-server {} is older than the minimum 2.9", info.version));
    }
    payload_limit_issue(info)
}

/// Returns the reason for which the server cannot transfer every message of a node, if there is one.
///
/// The bridge checks this when it connects, attaches and reconnects: otherwise a single large event would silently block all
/// subscribers of its shard.
pub(super) fn payload_limit_issue(info: &ServerInfo) -> Option<String> {
    let needed = MAX_PAYLOAD_BYTES + HEADER_ALLOWANCE;
    (info.max_payload < needed).then(|| {
        format!(
            "the server accepts messages of {} bytes, messages of this node may have {needed}: set `max_payload` to at least \
             {needed} in its configuration (default 1 MiB)",
            info.max_payload
        )
    })
}

/// Returns the warnings about this server for the operator.
pub(super) fn warnings(info: &ServerInfo) -> Vec<String> {
    let mut warnings = Vec::new();
    // Releases without known vulnerabilities at the time of writing: 2.11.16, 2.12.7, 2.14.0.
    let is_sound = match parse_version(&info.version) {
        (2, 11, patch) => patch >= 16,
        (2, 12, patch) => patch >= 7,
        found => found >= (2, 14, 0),
    };
    if !is_sound {
        warnings.push(format!(
            "nats-server {} has known vulnerabilities (fixed in 2.11.16, 2.12.7 and 2.14.0): restrict access to its port",
            info.version
        ));
    }
    // Fixed in 2.9.24 and 2.10.5; the warning says what is fixed.
    let loses_messages = match parse_version(&info.version) {
        (2, 9, patch) => patch < 24,
        (2, 10, patch) => patch < 5,
        _ => false,
    };
    if loses_messages {
        warnings.push(format!(
            "nats-server {} removes the oldest messages of a stream that is full instead of refusing new ones: commands without a \
             sender in a log, and refused messages, may be lost; use 2.9.24, 2.10.5 or later",
            info.version
        ));
    }
    // Observed: 2.9.10, 2.10.26, 2.11.0 and 2.11.11 do, 2.12.0 and later do not.
    if info.auth_required && parse_version(&info.version) < (2, 12, 0) {
        warnings.push(format!(
            "nats-server {} executes the acknowledgements of JetStream as requests, so every user can delete messages of \
             others whatever its permissions are: use 2.12 or later if services do not trust each other",
            info.version
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed() {
        for (text, found) in
            [("2.9.10", (2, 9, 10)), ("v2.12.8", (2, 12, 8)), ("2.14.0-RC.1", (2, 14, 0)), ("", (0, 0, 0))]
        {
            assert_eq!(parse_version(text), found);
        }
    }

    #[test]
    fn outdated_server_causes_a_warning() {
        let info =
            |version: &str| ServerInfo { version: version.to_owned(), max_payload: 1 << 20, ..ServerInfo::default() };
        for (version, count) in [
            ("2.9.10", 2),
            ("2.9.24", 1),
            ("2.10.4", 2),
            ("2.10.5", 1),
            ("2.11.15", 1),
            ("2.11.16", 0),
            ("2.12.8", 0),
            ("2.13.9", 1),
            ("2.15.1", 0),
        ] {
            assert_eq!(warnings(&info(version)).len(), count, "{version}");
        }
        for (version, count) in [("2.9.10", 3), ("2.11.16", 1), ("2.12.0", 1), ("2.12.8", 0)] {
            let guarded = ServerInfo { auth_required: true, ..info(version) };
            assert_eq!(warnings(&guarded).len(), count, "{version} with logins");
        }
    }
}
