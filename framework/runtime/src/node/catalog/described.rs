//! The manifest of a node that is about to start: what its types describe, checked against each other.
//!
//! Called by the builder.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::actor::DEFERRED;
use crate::node::catalog::hosted::{HostedType, Unrouted};
use crate::node::error::StartError;
use crate::projection::ViewType;
use crate::router::{ActorCard, DomainCard, Manifest, MessageCard};
use crate::router::{SCHEDULER, SCHEDULES};
use whizbang_core::message::{Codec, Name};

/// Builds the manifest and rejects contradictions between the hosted types.
pub(in crate::node) fn manifest(
    service: &str,
    types: &[Arc<dyn HostedType>],
    views: &[Arc<dyn ViewType>],
) -> Result<Manifest, StartError> {
    let mut domains: BTreeMap<&'static str, DomainCard> = BTreeMap::new();
    let mut handlers: HashMap<(String, String), String> = HashMap::new();
    let mut names: HashMap<(String, String), &'static str> = HashMap::new();
    let mut facts: HashMap<String, (u16, Codec)> = HashMap::new();
    let mut answers: HashMap<(String, String), String> = HashMap::new();
    for hosted in types {
        let (name, count) = hosted.domain();
        Name::from_static(name)?;
        check_domain(&mut facts, name, count, hosted.codec())?;
        let card = hosted.card();
        Name::new(&card.name)?;
        let domain = domains.entry(name).or_insert_with(|| DomainCard {
            name: name.to_owned(),
            shards: count,
            actors: Vec::new(),
            retired: hosted.retired(),
        });
        if card.name == Unrouted::NAME
            || card.name == DEFERRED
            || card.name == SCHEDULER
            || card.name == SCHEDULES
            || domain.actors.iter().any(|actor| actor.shares_a_name(&card))
        {
            return Err(StartError::DoubleActor { domain: name.to_owned(), actor: card.name });
        }
        let lists = [&card.handles, &card.records, &card.takes, &card.replies, &card.timers, &card.answers];
        let messages = lists.into_iter().flatten();
        for message in messages {
            check_type(&mut names, message)?;
            check_domain(&mut facts, &message.domain, message.shards, message.codec)?;
        }
        for command in &card.handles {
            let place = (command.domain.clone(), command.name.clone());
            if let Some(one) = handlers.insert(place, card.name.clone()) {
                return Err(StartError::DoubleHandler {
                    domain: command.domain.clone(),
                    command: command.name.clone(),
                    one,
                    other: card.name,
                });
            }
        }
        add_answers(&mut answers, &card)?;
        domain.actors.push(card);
    }
    let mut projections: Vec<ActorCard> = Vec::new();
    for card in views.iter().map(|hosted| hosted.card()) {
        Name::new(&card.name)?;
        if projections.iter().any(|known| known.shares_a_name(&card)) {
            return Err(StartError::DoubleProjection { projection: card.name });
        }
        for message in card.takes.iter().chain(&card.answers) {
            check_type(&mut names, message)?;
            check_domain(&mut facts, &message.domain, message.shards, message.codec)?;
        }
        add_answers(&mut answers, &card)?;
        projections.push(card);
    }
    Ok(Manifest { service: service.to_owned(), domains: domains.into_values().collect(), projections })
}

/// Rejects two types that answer one query.
fn add_answers(known: &mut HashMap<(String, String), String>, card: &ActorCard) -> Result<(), StartError> {
    for query in &card.answers {
        let place = (query.domain.clone(), query.name.clone());
        if let Some(one) = known.insert(place, card.name.clone()) {
            let (domain, query, other) = (query.domain.clone(), query.name.clone(), card.name.clone());
            return Err(StartError::DoubleAnswer { domain, query, one, other });
        }
    }
    Ok(())
}

/// Rejects two types that describe one domain differently.
fn check_domain(
    known: &mut HashMap<String, (u16, Codec)>,
    domain: &str,
    shards: u16,
    codec: Codec,
) -> Result<(), StartError> {
    let (one_shards, one_codec) = *known.entry(domain.to_owned()).or_insert((shards, codec));
    if one_shards != shards {
        return Err(StartError::Shards { domain: domain.to_owned(), one: one_shards, other: shards });
    }
    if one_codec != codec {
        return Err(StartError::Codecs { domain: domain.to_owned(), one: one_codec, other: codec });
    }
    Ok(())
}

fn check_type(known: &mut HashMap<(String, String), &'static str>, message: &MessageCard) -> Result<(), StartError> {
    for name in message.names() {
        Name::new(name)?;
        let place = (message.domain.clone(), name.to_owned());
        let one = *known.entry(place).or_insert(message.type_name);
        if one != message.type_name {
            let (domain, name, other) = (message.domain.clone(), name.to_owned(), message.type_name);
            return Err(StartError::DoubleName { domain, name, one, other });
        }
    }
    Ok(())
}

/// Returns the names by which messages from outside find an actor, those of its commands and of the queries of its keys, with
/// the newest schema version of each.
pub(in crate::node) fn handled<'a>(
    messages: impl Iterator<Item = &'a MessageCard>,
) -> Result<Vec<(Name, u32)>, StartError> {
    let names = messages.flat_map(|message| message.names().map(|name| (name, message.version)));
    names.map(|(name, version)| Ok((Name::new(name)?, version))).collect()
}

/// Returns the subscribed domains that are not `owned`: their events arrive over the bridge.
pub(in crate::node) fn subscribes(
    taken: &[(Name, Name)],
    sources: &BTreeMap<Name, u16>,
    owned: &BTreeMap<Name, u16>,
) -> Vec<(Name, u16, Vec<Name>)> {
    sources
        .iter()
        .filter(|(domain, _)| !owned.contains_key(*domain))
        .map(|(domain, shards)| {
            let names = taken.iter().filter(|(source, _)| source == domain).map(|(_, name)| name.clone());
            let names: BTreeSet<_> = names.collect();
            (domain.clone(), *shards, names.into_iter().collect())
        })
        .collect()
}
