//! Public types may get fields and variants without breaking programs: they are `#[non_exhaustive]`, or on a list with the reason.
//!
//! Reads `tests/public-api.txt`, which another test compares with the code. docs/stability.md explains the two kinds of types.

use std::collections::BTreeSet;

use crate::source::{File, Finding, assert_none, file};

/// Types that are matched or built completely outside of their crate, below `whizbang::`.
const EXHAUSTIVE: [(&str, &[&str]); 5] = [
    (
        "settings, written with `..Default::default()`",
        &["NodeConfig", "Retry", "testing::FaultProfile", "testing::LoopbackFaults"],
    ),
    (
        "a store or a bridge carries every field, so a new one must not compile unnoticed",
        &[
            "bridge::AckOutcome",
            "bridge::Notification",
            "bridge::Request",
            "bridge::Response",
            "bridge::subject::Address",
            "bridge::wire::Packet",
            "message::Envelope",
            "message::Origin",
            "message::ReplacedStore",
            "message::Run",
            "message::ShardId",
            "store::Appended",
            "store::CatalogEntry",
            "store::DeadLetter",
            "store::EventWrite",
            "store::Mark",
            "store::Note",
            "store::OutboxEntry",
            "store::OutboxWrite",
            "store::SentMessage",
            "store::ShardHandle",
            "store::Snapshot",
            "store::Source",
            "store::SourceKind",
            "store::StoredEvent",
            "store::StoredTurn",
            "store::StreamState",
            "store::Timer",
            "store::TimerCursor",
            "store::TimerPage",
            "store::TimerWrite",
            "store::Turn",
            "store::View",
            "store::Watermark",
        ],
    ),
    (
        "fixed by the protocol or by serde's data model",
        &["Role", "message::Field", "message::Kind", "message::ReplyMode", "message::ReplyShape", "message::Variant"],
    ),
    (
        "a description that a test writes completely",
        &[
            "testing::LinkDirection",
            "testing::sim::OperatorAction",
            "testing::sim::Plan",
            "testing::bridge::node::NodeBehavior",
        ],
    ),
    (
        "the suites call a broker or a store that their user connects, and compare all that it returns",
        &[
            "testing::bridge::hostile::Forgery",
            "testing::bridge::hostile::Target",
            "testing::bridge::node::Received",
            "testing::broker::Acknowledgement",
            "testing::broker::ConsumerSettings",
            "testing::broker::BrokerStream",
            "testing::broker::Discard",
            "testing::broker::PublishAck",
            "testing::broker::PublishError",
            "testing::broker::ReceivedMessage",
            "testing::broker::Retention",
            "testing::broker::StreamSettings",
            "testing::broker::model::Delivery",
            "testing::broker::model::Next",
            "testing::store::Owner",
        ],
    ),
];

/// The enums and the structs without private fields that are not `#[non_exhaustive]`: the byte of their line, and their names.
fn exhaustive(api: &File) -> Vec<(usize, &str)> {
    let lines: Vec<_> = api.lines().collect();
    let mut found = Vec::new();
    for (index, (at, line)) in lines.iter().enumerate().filter(|(_, (_, line))| !line.starts_with(' ')) {
        let Some((kind, rest)) = ["enum", "struct"].into_iter().find_map(|kind| {
            let (_, rest) = line.split_once(&format!("{kind} whizbang::"))?;
            Some((kind, rest))
        }) else {
            continue;
        };
        let mut members = lines[index + 1..].iter().map(|(_, line)| *line).take_while(|line| line.starts_with(' '));
        let is_open = match kind {
            "enum" => true,
            _ => {
                let members: Vec<_> = members.by_ref().collect();
                let has_private = members.iter().any(|member| member.trim() == "// private fields");
                let is_field = |member: &&str| member.strip_prefix("    pub ").is_some_and(|field| !is_function(field));
                !has_private && members.iter().any(is_field)
            }
        };
        if is_open && !line.contains("#[non_exhaustive]") {
            found.push((*at, rest.split(['<', ' ', '(']).next().unwrap_or_default()));
        }
    }
    found
}

/// Returns whether a public member of a type is a function or a constant, and not a field.
fn is_function(member: &str) -> bool {
    ["fn ", "async fn ", "const ", "type "].iter().any(|start| member.starts_with(start))
}

fn findings(api: &File, allowed: &[&str]) -> Vec<Finding> {
    let found = exhaustive(api);
    let names: BTreeSet<&str> = found.iter().map(|(_, name)| *name).collect();
    let mut findings = Vec::new();
    for (at, name) in found.iter().filter(|(_, name)| !allowed.contains(name)) {
        let text =
            "add `#[non_exhaustive]` and a constructor, or list it in tests/tests/tidy/growth.rs with the reason";
        findings.push(api.finding(*at, format!("`{name}` cannot grow: {text}")));
    }
    for name in allowed.iter().filter(|name| !names.contains(**name)) {
        findings.push(
            api.finding_at_top(format!("there is no exhaustive `{name}`: remove it from tests/tests/tidy/growth.rs")),
        );
    }
    findings
}

#[test]
fn public_types_can_grow() {
    let api = file("tests/public-api.txt");
    assert!(api.text.contains("#[non_exhaustive]"), "the form of the file was not recognized");
    let allowed: Vec<&str> = EXHAUSTIVE.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    assert_none(&findings(&api, &allowed));
}

#[test]
fn type_that_cannot_grow_is_found() {
    let found = |text: &str, allowed: &[&str]| findings(&File::new("tests/public-api.txt", text), allowed).len();
    let open = "#[derive(Debug)] struct whizbang::store::View\n    pub bytes: Bytes\n";
    assert_eq!(found(open, &[]), 1);
    assert_eq!(found(open, &["store::View"]), 0);
    assert_eq!(found(&format!("#[non_exhaustive] {open}"), &[]), 0);
    assert_eq!(found(&format!("{open}    // private fields\n"), &[]), 0);
    assert_eq!(found("struct whizbang::Node\n    pub fn stop(self)\n    pub const MAX: u8\n", &[]), 0);
    assert_eq!(found("enum whizbang::Role\n    Saga\n", &[]), 1);
    assert_eq!(found("trait whizbang::Saga\n", &["Role"]), 1);
}
