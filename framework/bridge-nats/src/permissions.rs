//! Permissions for nats-server, generated from the cards of services.
//!
//! Called by operators and deployment scripts, not by a running node. A subject contains the domain of its sender, so a service that
//! may publish only to its own subjects cannot forge another origin. That holds only while it cannot create streams: a stream can
//! read every subject of the account, republish to any, and acknowledge requests that were meant for others.

use std::fmt::Write;

use super::connection::client_name;
use super::inboxes::response_inbox;
use super::streams::receives_messages;
use whizbang_core::bridge::NodeCard;
use whizbang_core::message::Name;
use whizbang_wire::subject::Namespace;

/// The minimum permissions of an identity.
///
/// ```
/// use whizbang::bridge::NodeCard;
/// use whizbang::bridge::nats::NatsPermissions;
/// use whizbang::bridge::subject::Namespace;
/// use whizbang::message::Name;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bank = Name::new("bank")?;
/// let card = NodeCard::new(bank.clone()).owning(bank, 16);
/// let runtime = NatsPermissions::runtime(&card, &Namespace::default()).to_string();
/// assert!(runtime.contains("\"whizbang.evt.bank.>\"") && !runtime.contains("CREATE"));
/// let setup = NatsPermissions::setup(&[card], &Namespace::default()).to_string();
/// assert!(setup.contains("CREATE") && !setup.contains("\"whizbang.evt.bank.>\""));
/// # Ok(())
/// # }
/// ```
///
/// The text form is a variable of the nats-server configuration, ready to be included. It is the same for the same cards, so it
/// can be kept under version control and compared.
///
/// | function | identity | isolates services |
/// |---|---|---|
/// | [`runtime`](Self::runtime) | a node with [`StreamSetup::Existing`](super::StreamSetup::Existing) | yes |
/// | [`setup`](Self::setup) | the job that creates streams once per deployment | no, so it is a login of its own |
/// | [`for_card`](Self::for_card) | a node that creates its own streams | no |
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatsPermissions {
    /// The name of the identity: the service, or `setup`.
    pub identity: String,
    /// The subjects that it may publish to.
    pub publish: Vec<String>,
    /// The subjects that it may subscribe to.
    pub subscribe: Vec<String>,
}

impl NatsPermissions {
    /// Returns the permissions of a node that creates nothing ([`StreamSetup::Existing`](super::StreamSetup::Existing)): its own
    /// subjects, and reading and acknowledging the messages of its own consumers.
    ///
    /// With these a service cannot send, record or respond in the name of another, and cannot read messages to others.
    ///
    /// A service with leased shards creates and deletes the consumers of its shards itself, because their names contain the epoch
    /// of the owner. The permission names its own streams, and the filter of a new consumer, which is one of its own shards.
    pub fn runtime(card: &NodeCard, namespace: &Namespace) -> Self {
        let ns = namespace;
        let inbox = format!("_INBOX_{}.>", client_name(ns, &card.service));
        let mut publish = vec![inbox.clone()];
        let mut subscribe = vec![inbox, format!("{}.>", response_inbox(ns, card.service.as_str()))];
        if !card.owns.is_empty() || !card.answers.is_empty() {
            // Responses. The option `allow_responses` of the server would let this service publish to every subject: it may send a
            // request to itself, and the requester chooses the subject of the response.
            publish.push(format!("{}.>", response_inbox(ns, "*")));
        }
        // Commands and queries of external callers are open to all: the owner of the domain authorizes them.
        publish.push(format!("{ns}.cmd.*.*.outside"));
        publish.push(format!("{ns}.ask.*.cmd.*"));
        publish.push(format!("{ns}.qry.*.*"));
        if receives_messages(card) {
            publish.push(ns.refused_subject(&card.service));
            publish.push(stream_info(&ns.refused_stream(&card.service)));
        }
        if receives_messages(card) || !card.follows.is_empty() {
            // To find the store that holds the claim on a domain.
            publish.push(format!("$JS.API.STREAM.MSG.GET.{}", ns.claims_stream()));
        }
        if !card.owns.is_empty() {
            publish.push(stream_info(&ns.claims_stream()));
        }
        for (domain, _) in &card.owns {
            publish.push(ns.claim_subject(domain));
            subscribe.push(ns.claim_subject(domain));
            // Commands and replies to any domain, but only from its own shards.
            publish.push(format!("{ns}.cmd.*.*.{domain}.*"));
            publish.push(ns.event_filter(domain));
            publish.push(ns.head_filter(domain));
            publish.push(format!("{ns}.done.*.*.{domain}.*"));
            publish.push(format!("{ns}.ask.*.out.*.{domain}.*"));
            publish.push(format!("{ns}.ask.*.mark.*.{domain}.*"));
            publish.push(stream_info(&ns.event_stream(domain)));
            // To find unpublished events of its own log at start.
            publish.push(format!("$JS.API.STREAM.MSG.GET.{}", ns.event_stream(domain)));
            if card.has_leased_shards {
                publish.extend(own_shards(&ns.direct_stream(domain), &ns.shards_filter(domain)));
                // Streams of events of its own domain, whose shards other nodes of the service may own.
                publish.push(format!("{ns}.ask.{domain}.evt.*"));
                subscribe.push(ns.event_filter(domain));
                subscribe.push(ns.head_filter(domain));
            } else {
                publish.extend(read_stream(&ns.direct_stream(domain), &card.service));
            }
            subscribe.push(ns.request_filter(domain));
            subscribe.push(ns.committed_filter(domain));
        }
        for (domain, _, _) in &card.subscribes {
            publish.push(format!("{ns}.ask.{domain}.evt.*"));
            if card.has_leased_shards {
                subscribe.push(ns.event_filter(domain));
            } else {
                publish.extend(read_stream(&ns.event_stream(domain), &card.service));
            }
            subscribe.push(ns.head_filter(domain));
        }
        for domain in &card.follows {
            publish.push(format!("{ns}.ask.{domain}.evt.*"));
            subscribe.push(ns.event_filter(domain));
            subscribe.push(ns.head_filter(domain));
        }
        for (domain, query) in &card.answers {
            subscribe.push(ns.query_subject(domain, query));
        }
        Self::of(card.service.to_string(), publish, subscribe)
    }

    /// Returns the permissions of the identity that runs [`NatsBuilder::set_up`](super::NatsBuilder::set_up) for these services: it
    /// creates their streams and consumers and sends no messages.
    ///
    /// Through the streams that it may create it can still read and forge everything in its account: keep its login out of the
    /// services.
    pub fn setup(cards: &[NodeCard], namespace: &Namespace) -> Self {
        let ns = namespace;
        let inbox = format!("_INBOX_{ns}_setup.>");
        let mut publish = vec![inbox.clone()];
        publish.extend(create_stream(&ns.claims_stream()));
        for card in cards {
            if receives_messages(card) {
                publish.extend(create_stream(&ns.refused_stream(&card.service)));
            }
            for (domain, _) in &card.owns {
                publish.extend(create_stream(&ns.event_stream(domain)));
                publish.extend(create_stream(&ns.direct_stream(domain)));
                if !card.has_leased_shards {
                    publish.extend(create_consumer(&ns.direct_stream(domain), &card.service));
                    // To recreate a consumer that has left messages behind.
                    publish.push(format!("$JS.API.CONSUMER.DELETE.{}.{}", ns.direct_stream(domain), card.service));
                    // To name the consumers of an earlier service, beside which none can be created.
                    publish.push(format!("$JS.API.CONSUMER.NAMES.{}", ns.direct_stream(domain)));
                }
            }
            for (domain, _, _) in card.subscribes.iter().filter(|_| !card.has_leased_shards) {
                publish.push(stream_info(&ns.event_stream(domain)));
                publish.extend(create_consumer(&ns.event_stream(domain), &card.service));
            }
        }
        Self::of("setup".to_owned(), publish, vec![inbox])
    }

    /// Returns the permissions of a node that creates its own streams and consumers
    /// ([`StreamSetup::Create`](super::StreamSetup::Create)).
    ///
    /// **They do not isolate services from each other**: the server checks the names of streams, not their subjects. They keep a
    /// misconfigured service from disturbing others, and users without permissions out. For isolation use
    /// [`runtime`](Self::runtime) and [`setup`](Self::setup), or one account per service.
    pub fn for_card(card: &NodeCard, namespace: &Namespace) -> Self {
        let ns = namespace;
        let Self { mut publish, subscribe, identity } = Self::runtime(card, namespace);
        publish.extend(Self::setup(std::slice::from_ref(card), namespace).publish);
        publish.retain(|subject| !subject.starts_with(&format!("_INBOX_{ns}_setup")));
        // A stalled consumer is deleted and created again.
        let exclusive = || std::iter::once(card).filter(|card| !card.has_leased_shards);
        for (domain, _) in exclusive().flat_map(|card| &card.owns) {
            publish.push(format!("$JS.API.CONSUMER.DELETE.{}.{}", ns.direct_stream(domain), card.service));
        }
        for (domain, _, _) in exclusive().flat_map(|card| &card.subscribes) {
            publish.push(format!("$JS.API.CONSUMER.DELETE.{}.{}", ns.event_stream(domain), card.service));
        }
        Self::of(identity, publish, subscribe)
    }

    /// Sorts the subjects, so that the text is the same for the same services.
    fn of(identity: String, mut publish: Vec<String>, mut subscribe: Vec<String>) -> Self {
        for list in [&mut publish, &mut subscribe] {
            list.sort_unstable();
            list.dedup();
        }
        Self { identity, publish, subscribe }
    }
}

/// Returns the subject of the request that reads the state of a stream.
fn stream_info(stream: &str) -> String {
    format!("$JS.API.STREAM.INFO.{stream}")
}

/// Returns the subjects of the requests that create a stream and compare it.
fn create_stream(stream: &str) -> [String; 2] {
    [format!("$JS.API.STREAM.CREATE.{stream}"), stream_info(stream)]
}

/// Returns the subjects of the requests that create a consumer and compare it.
fn create_consumer(stream: &str, service: &Name) -> [String; 2] {
    [format!("$JS.API.CONSUMER.CREATE.{stream}.{service}"), format!("$JS.API.CONSUMER.INFO.{stream}.{service}")]
}

/// Returns the subjects of the requests by which a service takes, reads and releases its shards in its own stream. All consumers
/// of that stream are its own.
fn own_shards(stream: &str, filter: &str) -> [String; 8] {
    [
        stream_info(stream),
        format!("$JS.API.CONSUMER.CREATE.{stream}.*.{filter}"),
        format!("$JS.API.CONSUMER.DELETE.{stream}.*"),
        format!("$JS.API.CONSUMER.INFO.{stream}.*"),
        format!("$JS.API.CONSUMER.NAMES.{stream}"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"),
        format!("$JS.ACK.{stream}.*.>"),
        // To find messages that a consumer has left behind.
        format!("$JS.API.STREAM.MSG.GET.{stream}"),
    ]
}

/// Returns the subjects of the requests that read from a stream, through the consumer named after the service.
fn read_stream(stream: &str, service: &Name) -> [String; 4] {
    [
        stream_info(stream),
        format!("$JS.API.CONSUMER.INFO.{stream}.{service}"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{service}"),
        format!("$JS.ACK.{stream}.{service}.>"),
    ]
}

/// Formats a variable of the nats-server configuration, for the `permissions` of a user.
impl std::fmt::Display for NatsPermissions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |subjects: &[String]| {
            subjects.iter().fold(String::new(), |mut text, subject| {
                // Writing to a string does not fail.
                let _ = writeln!(text, "      \"{subject}\"");
                text
            })
        };
        let (service, publish, subscribe) = (&self.identity, list(&self.publish), list(&self.subscribe));
        write!(
            f,
            "# The permissions of `{service}`. Include this file inside `authorization` (or an account) and refer to it:\n\
             #   users: [ {{ user: {service}, password: …, permissions: $WHIZBANG_{service} }} ]\n\
             WHIZBANG_{service}: {{\n  publish: {{\n    allow: [\n{publish}    ]\n  }}\n  subscribe: {{\n    allow: [\n{subscribe}    ]\n  }}\n}}\n"
        )
    }
}
