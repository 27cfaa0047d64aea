//! What a service may do on a server, and nothing more: the text of a permissions block, made from its card.
//!
//! Called by people and deployment scripts, not by a running node. A subject names who speaks, so these permissions keep a
//! service from forging another's origin; what they allow is exactly what the bridge does.

use std::fmt::Write;

use super::connection::who;
use super::streams::takes_in;
use crate::bridge::NodeCard;
use crate::bridge::subject::Namespace;
use crate::message::Name;

/// The least permissions with which a service works.
///
/// ```
/// use whizbang::bridge::NodeCard;
/// use whizbang::bridge::nats::NatsPermissions;
/// use whizbang::bridge::subject::Namespace;
/// use whizbang::message::Name;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bank = Name::new("bank")?;
/// let card =
///     NodeCard { service: bank.clone(), owns: vec![(bank, 16)], subscribes: Vec::new(), answers: Vec::new() };
/// let text = NatsPermissions::for_card(&card, &Namespace::default()).to_string();
/// assert!(text.contains("\"whizbang.evt.bank.>\""));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsPermissions {
    /// The service.
    pub service: Name,
    /// The subjects it may publish to.
    pub publish: Vec<String>,
    /// The subjects it may subscribe to.
    pub subscribe: Vec<String>,
}

impl NatsPermissions {
    /// The permissions of the service that a card describes.
    pub fn for_card(card: &NodeCard, namespace: &Namespace) -> Self {
        let ns = namespace;
        let inbox = format!("_INBOX_{}.>", who(ns, &card.service));
        let mut publish = vec![inbox.clone()];
        let mut subscribe = vec![inbox];
        // Anybody may send a command that no actor sends, and ask; the owner of the domain decides what he says to it.
        publish.push(format!("{ns}.cmd.*.*.outside"));
        publish.push(format!("{ns}.ask.*.cmd.*"));
        publish.push(format!("{ns}.qry.*.*"));
        if takes_in(card) {
            publish.push(ns.refused_subject(&card.service));
            publish.extend(made(&ns.refused_stream(&card.service)));
        }
        for (domain, _) in &card.owns {
            // Commands and replies to anybody, but only in the name of its own shards.
            publish.push(format!("{ns}.cmd.*.*.{domain}.*"));
            publish.push(ns.event_filter(domain));
            publish.push(ns.head_filter(domain));
            publish.push(format!("{ns}.done.*.*.{domain}.*"));
            publish.push(format!("{ns}.ask.*.out.*.{domain}.*"));
            publish.push(format!("{ns}.ask.*.mark.*.{domain}.*"));
            publish.extend(made(&ns.event_stream(domain)));
            publish.extend(made(&ns.direct_stream(domain)));
            publish.extend(taken(&ns.direct_stream(domain), &card.service));
            subscribe.push(ns.ask_filter(domain));
            subscribe.push(ns.committed_filter(domain));
        }
        for (domain, _, _) in &card.subscribes {
            publish.push(format!("{ns}.ask.{domain}.evt.*"));
            publish.push(format!("$JS.API.STREAM.INFO.{}", ns.event_stream(domain)));
            publish.extend(taken(&ns.event_stream(domain), &card.service));
            subscribe.push(ns.head_filter(domain));
        }
        for (domain, query) in &card.answers {
            subscribe.push(ns.query_subject(domain, query));
        }
        for list in [&mut publish, &mut subscribe] {
            list.sort_unstable();
            list.dedup();
        }
        Self { service: card.service.clone(), publish, subscribe }
    }
}

/// What a service needs to make a stream and compare it.
fn made(stream: &str) -> [String; 2] {
    [format!("$JS.API.STREAM.CREATE.{stream}"), format!("$JS.API.STREAM.INFO.{stream}")]
}

/// What a service needs to take from a stream, through the consumer of its own name.
fn taken(stream: &str, service: &Name) -> [String; 5] {
    [
        format!("$JS.API.CONSUMER.CREATE.{stream}.{service}"),
        // A consumer that has stalled is deleted and made again.
        format!("$JS.API.CONSUMER.DELETE.{stream}.{service}"),
        format!("$JS.API.CONSUMER.INFO.{stream}.{service}"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{service}"),
        format!("$JS.ACK.{stream}.{service}.>"),
    ]
}

/// The text for nats-server's configuration: a variable that a user's `permissions` can name.
impl std::fmt::Display for NatsPermissions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |subjects: &[String]| {
            subjects.iter().fold(String::new(), |mut text, subject| {
                // Writing to a string does not fail.
                let _ = writeln!(text, "      \"{subject}\"");
                text
            })
        };
        let (service, publish, subscribe) = (&self.service, list(&self.publish), list(&self.subscribe));
        // Answers go to whoever has asked, once, and not for ever.
        write!(
            f,
            "# What service `{service}` may do. Include this file inside `authorization` (or an account) and name it:\n\
             #   users: [ {{ user: {service}, password: …, permissions: $WHIZBANG_{service} }} ]\n\
             WHIZBANG_{service}: {{\n  publish: {{\n    allow: [\n{publish}    ]\n  }}\n  subscribe: {{\n    allow: [\n{subscribe}    ]\n  }}\n  \
             allow_responses: {{ max: 1, expires: \"10m\" }}\n}}\n"
        )
    }
}
