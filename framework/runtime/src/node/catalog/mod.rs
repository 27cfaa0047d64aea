//! Catalog check: compares the node's types with the store's catalog before any stored byte is decoded as something
//! else.
//!
//! Called once by the builder, before a shard is opened. Calls the store. Reads the catalog; a name in it that the
//! program does not know is looked up in the store, because forgetting a name only loses data if something is stored
//! under it. Writes the catalog if the node adds an entry. Costs one small read, and one small write after a change.
//! The whole log is read only if an event type was removed without being declared, and all streams are listed once
//! for a store without a catalog.

pub(in crate::node) mod described;
pub(in crate::node) mod found;
pub(in crate::node) mod hosted;
pub(in crate::node) mod newer_types;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::actor::{DEFERRED, stored_timer};
use crate::node::catalog::found::{has_command, has_event, has_timer, has_view, readers};
use crate::node::catalog::hosted::Unrouted;
use crate::node::error::{ShapeChange, StartError};
use crate::router::{ActorCard, DomainCard, Manifest, MessageCard};
use crate::router::{SCHEDULER, SCHEDULES};
use whizbang_core::message::{Codec, Name, Shape};
use whizbang_core::store::{CatalogEntry, Store};
use whizbang_core::telemetry::TARGET;
use whizbang_core::user_code::user_code;

const DOMAIN: &str = "domain";
const ACTOR: &str = "actor";
const PROJECTION: &str = "projection";
const EVENT: &str = "event";
const COMMAND: &str = "command";
const REPLY: &str = "reply";
const TIMER: &str = "timer";
const SNAPSHOT: &str = "snapshot";

/// Names that differ between the store and the program, and the known event names.
#[derive(Default)]
pub(in crate::node) struct StoredNames {
    /// Stored name of an actor type (or projection), by domain (or service) and current name.
    stored: HashMap<(String, String), Name>,
    /// Event names by domain: recorded or subscribed, former and retired ones.
    events: HashMap<String, Arc<HashSet<String>>>,
}

impl StoredNames {
    /// Returns the stored name of an actor type of a domain, or of a projection of a service.
    pub(in crate::node) fn stored(&self, owner: &str, name: &Name) -> Name {
        let place = (owner.to_owned(), name.to_string());
        self.stored.get(&place).unwrap_or(name).clone()
    }

    /// Returns the names that stored events of a domain may have.
    pub(in crate::node) fn events(&self, domain: &str) -> Arc<HashSet<String>> {
        self.events.get(domain).cloned().unwrap_or_default()
    }
}

/// Compares the node's types with the store's catalog, and updates the catalog.
///
/// # Errors
/// [`StartError::NoStatements`], [`StartError::Shape`], [`StartError::UnknownName`], [`StartError::TwoFormer`], and errors of
/// the store. The catalog is unchanged in that case.
pub(in crate::node) async fn check(
    store: &dyn Store,
    manifest: &Manifest,
    retired: &BTreeSet<String>,
) -> Result<StoredNames, StartError> {
    if let Some(card) = manifest.projections.iter().find(|card| card.needs_statements && !store.runs_statements()) {
        return Err(StartError::NoStatements { projection: card.name.clone() });
    }
    loop {
        let stored = store.catalog().await?;
        let catalog = match &stored {
            Some(entries) => entries.clone(),
            None => scan_store(store, manifest).await?,
        };
        let mut checking = CatalogCheck {
            store,
            manifest,
            retired,
            catalog,
            known: StoredNames::default(),
            expected: BTreeMap::new(),
        };
        checking.resolve_names()?;
        checking.collect();
        checking.compare()?;
        // Names that nodes with another version of the program have added, maybe before they have written anything.
        let gone = if store.leases().is_some() { HashSet::new() } else { checking.find_unknown().await? };
        let entries = checking.updated(&gone);
        // Another node of the service may have added entries in between: they are compared as well.
        if stored.as_ref() == Some(&entries) || store.replace_catalog(stored, entries).await? {
            return Ok(checking.known);
        }
    }
}

/// Returns the entries of a catalog whose bytes the program cannot decode: of an unknown name, or a newer version.
fn lacking(
    store: &dyn Store,
    manifest: &Manifest,
    retired: &BTreeSet<String>,
    catalog: Vec<CatalogEntry>,
) -> Vec<CatalogEntry> {
    let mut checking =
        CatalogCheck { store, manifest, retired, catalog, known: StoredNames::default(), expected: BTreeMap::new() };
    if checking.resolve_names().is_err() {
        return Vec::new();
    }
    checking.collect();
    let mine: Vec<StoredType<'_>> = manifest.domains.iter().flat_map(|domain| checking.messages(domain)).collect();
    let is_newer = |entry: &CatalogEntry| {
        let is_it = |mine: &&StoredType<'_>| {
            mine.kind == entry.kind && mine.owner == entry.owner && mine.names.contains(&entry.name)
        };
        mine.iter().find(is_it).is_some_and(|mine| mine.message.version < entry.version)
    };
    let stored = |entry: &&CatalogEntry| [ACTOR, EVENT, COMMAND, TIMER].contains(&&*entry.kind);
    let catalog = checking.catalog.iter().filter(stored);
    catalog.filter(|entry| checking.is_unknown(entry) || is_newer(entry)).cloned().collect()
}

/// Returns entries for a store without a catalog: actor types of the hosted domains, and projections with a saved view.
async fn scan_store(store: &dyn Store, manifest: &Manifest) -> Result<Vec<CatalogEntry>, StartError> {
    let mut actors = BTreeSet::new();
    for domain in &manifest.domains {
        for reader in readers(store, &domain.name, domain.shards).await? {
            for (actor, _) in reader.streams().await? {
                if ![Unrouted::NAME, DEFERRED, SCHEDULER, SCHEDULES].contains(&actor.as_str()) {
                    actors.insert((domain.name.clone(), actor.to_string()));
                }
            }
        }
    }
    let mut found: Vec<_> = actors.into_iter().map(|(domain, actor)| named(&domain, ACTOR, &actor)).collect();
    for projection in &manifest.projections {
        for name in std::iter::once(&*projection.name).chain(projection.formerly.iter().copied()) {
            if has_view(store, name).await? {
                found.push(named(&manifest.service, PROJECTION, name));
            }
        }
    }
    Ok(found)
}

fn named(owner: &str, kind: &str, name: &str) -> CatalogEntry {
    CatalogEntry {
        owner: owner.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        version: 0,
        codec: 0,
        shape: String::new(),
    }
}

/// Identity of an entry: owner, kind, name, version, codec.
type EntryId = (String, String, String, u32, u8);

fn entry_id(entry: &CatalogEntry) -> EntryId {
    (entry.owner.clone(), entry.kind.clone(), entry.name.clone(), entry.version, entry.codec)
}

/// Comparison of one node with one store.
struct CatalogCheck<'a> {
    store: &'a dyn Store,
    manifest: &'a Manifest,
    retired: &'a BTreeSet<String>,
    catalog: Vec<CatalogEntry>,
    known: StoredNames,
    /// Entries that the program would write.
    expected: BTreeMap<EntryId, Option<Arc<Shape>>>,
}

/// One type of the program whose bytes are stored.
struct StoredType<'a> {
    owner: String,
    kind: &'static str,
    message: &'a MessageCard,
    /// Names that it may be stored under, the current one first.
    names: Vec<String>,
}

impl<'a> CatalogCheck<'a> {
    /// Resolves the stored names of actor types and projections that were renamed.
    fn resolve_names(&mut self) -> Result<(), StartError> {
        let service = &self.manifest.service;
        let actors = self
            .manifest
            .domains
            .iter()
            .flat_map(|domain| domain.actors.iter().map(|actor| (domain.name.clone(), ACTOR, actor)));
        let projections = self.manifest.projections.iter().map(|card| (service.clone(), PROJECTION, card));
        for (owner, kind, card) in actors.chain(projections) {
            let has = |name: &str| {
                self.catalog.iter().any(|entry| entry.owner == owner && entry.kind == kind && entry.name == name)
            };
            let mut found = std::iter::once(&*card.name).chain(card.formerly.iter().copied()).filter(|name| has(name));
            let Some(name) = found.next() else { continue };
            if let Some(former) = found.next() {
                return Err(StartError::TwoFormer { name: name.to_owned(), former: former.to_owned() });
            }
            self.known.stored.insert((owner, card.name.clone()), Name::new(name)?);
        }
        Ok(())
    }

    fn stored_name(&self, owner: &str, card: &ActorCard) -> String {
        let place = (owner.to_owned(), card.name.clone());
        self.known.stored.get(&place).map_or_else(|| card.name.clone(), Name::to_string)
    }

    /// Returns the messages of a domain whose bytes are stored.
    fn messages(&self, domain: &'a DomainCard) -> Vec<StoredType<'a>> {
        let mut mine = Vec::new();
        for actor in &domain.actors {
            let stored = self.stored_name(&domain.name, actor);
            let lists = [(EVENT, &actor.records), (COMMAND, &actor.handles), (TIMER, &actor.timers)];
            for (kind, messages) in lists {
                for message in messages {
                    // A timer belongs to one actor type, whichever domain its document is of.
                    let owner = match kind {
                        TIMER => format!("{}/{stored}", domain.name),
                        _ => domain.name.clone(),
                    };
                    let name = |name| match kind {
                        TIMER => stored_timer(&domain.name, &message.domain, name).into_owned(),
                        _ => name.to_owned(),
                    };
                    mine.push(StoredType { owner, kind, message, names: message.names().map(name).collect() });
                }
            }
        }
        mine
    }

    /// Collects the entries that the program would write into an empty catalog, and the known events.
    fn collect(&mut self) {
        let manifest = self.manifest;
        for domain in &manifest.domains {
            let text = |text: &str| text.to_owned();
            let of = (manifest.service.clone(), text(DOMAIN), domain.name.clone(), u32::from(domain.shards), 0);
            self.expected.insert(of, None);
            for actor in &domain.actors {
                let stored = self.stored_name(&domain.name, actor);
                self.expected.insert((domain.name.clone(), text(ACTOR), stored.clone(), 0, 0), None);
                if let Some((schema, shape)) = state_of(actor) {
                    let codec = Codec::Bincode.id();
                    self.expected.insert((domain.name.clone(), text(SNAPSHOT), stored, schema, codec), Some(shape));
                }
            }
            for StoredType { owner, kind, message, names } in self.messages(domain) {
                let Some(name) = names.into_iter().next() else { continue };
                for version in 1..=message.version {
                    let shape = traced(|| message.shapes.of(version, message.codec));
                    let of = (owner.clone(), text(kind), name.clone(), version, message.codec.id());
                    self.expected.insert(of, shape);
                }
                if let (COMMAND, Some(reply)) = (kind, message.reply) {
                    let shape = traced(|| Some(reply.of(message.codec)));
                    self.expected.insert((owner, text(REPLY), name, message.version, message.codec.id()), shape);
                }
            }
            let mut events: HashSet<String> = HashSet::new();
            let cards = manifest.domains.iter().flat_map(|domain| &domain.actors).chain(&manifest.projections);
            for event in cards.flat_map(|card| card.records.iter().chain(&card.takes)) {
                if event.domain == domain.name {
                    events.extend(event.names().map(str::to_owned));
                }
            }
            events.extend(domain.retired.iter().map(|name| (*name).to_owned()));
            events.extend(self.retired.iter().cloned());
            self.known.events.insert(domain.name.clone(), Arc::new(events));
        }
        for projection in &manifest.projections {
            let stored = self.stored_name(&manifest.service, projection);
            let (schema, shape) = state_of(projection).map_or((0, None), |(schema, shape)| (schema, Some(shape)));
            let codec = Codec::Bincode.id();
            self.expected.insert((manifest.service.clone(), PROJECTION.to_owned(), stored, schema, codec), shape);
        }
    }

    /// Compares the shapes of everything that is in the catalog and in the program.
    fn compare(&self) -> Result<(), StartError> {
        for entry in self.catalog.iter().filter(|entry| !entry.shape.is_empty()) {
            let Some(codec) = Codec::from_id(entry.codec) else { continue };
            let Some((kind, type_name, found)) = self.counterpart(entry, codec) else { continue };
            let stored = Shape::from_text(&entry.shape);
            let Some(difference) = stored.difference(&found, codec) else { continue };
            return Err(StartError::Shape(Box::new(ShapeChange {
                kind,
                name: full_name(entry),
                version: entry.version,
                type_name,
                at: match &*difference.field {
                    "" => "it".to_owned(),
                    field => format!("`{field}`"),
                },
                stored: difference.stored,
                found: difference.found,
                remedy: match kind {
                    SNAPSHOT => "raise `schema` in its `snapshot(…)`, or restore the old shape",
                    "view" => "raise its `schema`, or restore the old shape",
                    REPLY => {
                        "raise the command's `version` and add `upcast(… = OldType)`, or restore the reply's old shape"
                    }
                    _ => "raise `version` and add `upcast(… = OldType)`, or restore the old shape",
                },
            })));
        }
        Ok(())
    }

    /// Returns the kind, type name and shape with which the program decodes the bytes of an entry.
    fn counterpart(&self, entry: &CatalogEntry, codec: Codec) -> Option<(&'static str, String, Arc<Shape>)> {
        let is = |card: &&ActorCard, owner: &str| self.stored_name(owner, card) == entry.name;
        let state = |kind, card: &ActorCard| {
            let (schema, shape) = state_of(card)?;
            (schema == entry.version).then(|| (kind, card.name.clone(), shape))
        };
        match &*entry.kind {
            SNAPSHOT => {
                let domain = self.manifest.domains.iter().find(|domain| domain.name == entry.owner)?;
                state(SNAPSHOT, domain.actors.iter().find(|card| is(card, &domain.name))?)
            }
            PROJECTION if entry.owner == self.manifest.service => {
                state("view", self.manifest.projections.iter().find(|card| is(card, &entry.owner))?)
            }
            // A reply has the version of its command; older ones are no longer written.
            REPLY => {
                let mut mine = self.manifest.domains.iter().flat_map(|domain| self.messages(domain));
                let of = mine.find(|mine| {
                    mine.kind == COMMAND && mine.owner == entry.owner && mine.names.contains(&entry.name)
                })?;
                let reply = of.message.reply.filter(|_| of.message.version == entry.version)?;
                Some((
                    REPLY,
                    format!("<{} as Command>::Reply", of.message.type_name),
                    traced(|| Some(reply.of(codec)))?,
                ))
            }
            kind => {
                let mut mine = self.manifest.domains.iter().flat_map(|domain| self.messages(domain));
                let of = mine
                    .find(|mine| mine.kind == kind && mine.owner == entry.owner && mine.names.contains(&entry.name))?;
                let shape = traced(|| of.message.shapes.of(entry.version, codec))?;
                Some((of.kind, of.message.type_name.to_owned(), shape))
            }
        }
    }

    /// Returns the entries whose names are unknown to the program and unused in the store.
    async fn find_unknown(&self) -> Result<HashSet<(String, String, String)>, StartError> {
        let mut unknown = BTreeSet::new();
        for entry in self.catalog.iter().filter(|entry| self.is_unknown(entry)) {
            unknown.insert((entry.owner.clone(), entry.kind.clone(), entry.name.clone()));
        }
        let mut gone = HashSet::new();
        for (owner, kind, name) in unknown {
            tracing::info!(target: TARGET, owner, kind, name, "unknown name in the catalog: searching the store");
            if self.is_stored(&owner, &kind, &name).await? {
                let remedy = match &*kind {
                    DOMAIN | PROJECTION => {
                        "restore it with `name = \"…\"`, or declare it with `NodeBuilder::retired` if it was removed on purpose"
                    }
                    _ => {
                        "declare `formerly = \"…\"` on the type it has become, or `retired(\"…\")` on the domain if it was \
                         removed on purpose"
                    }
                };
                let name = if matches!(&*kind, DOMAIN | PROJECTION) { name } else { format!("{owner}.{name}") };
                return Err(StartError::UnknownName { kind, name, remedy });
            }
            gone.insert((owner, kind, name));
        }
        Ok(gone)
    }

    fn is_unknown(&self, entry: &CatalogEntry) -> bool {
        if self.retired.contains(&entry.name) {
            return false;
        }
        let manifest = self.manifest;
        let service = entry.owner == manifest.service;
        let (owner, actor) =
            entry.owner.split_once('/').map_or((&*entry.owner, None), |(owner, actor)| (owner, Some(actor)));
        match (&*entry.kind, manifest.domains.iter().find(|domain| domain.name == owner)) {
            (DOMAIN, _) => service && !manifest.domains.iter().any(|domain| domain.name == entry.name),
            (PROJECTION, _) => {
                service && !manifest.projections.iter().any(|card| self.stored_name(&entry.owner, card) == entry.name)
            }
            // Nothing is known of a domain that this node does not host.
            (_, None) => false,
            (_, Some(domain)) if domain.retired.contains(&&*entry.name) => false,
            (ACTOR, Some(domain)) => {
                !domain.actors.iter().any(|card| self.stored_name(&domain.name, card) == entry.name)
            }
            // The timers of a removed actor type are reported once, as the actor type.
            (TIMER, Some(domain))
                if !domain.actors.iter().any(|card| Some(&*self.stored_name(&domain.name, card)) == actor) =>
            {
                false
            }
            (EVENT, Some(domain)) => !self.known.events(&domain.name).contains(&entry.name),
            (kind @ (COMMAND | TIMER), Some(domain)) => !self
                .messages(domain)
                .iter()
                .any(|mine| mine.kind == kind && mine.owner == entry.owner && mine.names.contains(&entry.name)),
            _ => false,
        }
    }

    /// Returns whether the store contains data under a name.
    async fn is_stored(&self, owner: &str, kind: &str, name: &str) -> Result<bool, StartError> {
        if kind == PROJECTION {
            return has_view(self.store, name).await;
        }
        if kind == DOMAIN {
            let is_it = |entry: &&CatalogEntry| entry.owner == owner && entry.kind == kind && entry.name == name;
            let shards = self.catalog.iter().find(is_it).and_then(|entry| u16::try_from(entry.version).ok());
            let readers = readers(self.store, name, shards.unwrap_or(0)).await?;
            for reader in readers {
                if !reader.streams().await?.is_empty() {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        let (domain, actor) = owner.split_once('/').unwrap_or((owner, ""));
        let Some(card) = self.manifest.domains.iter().find(|card| card.name == domain) else { return Ok(false) };
        for hosted in &self.manifest.domains {
            for reader in readers(self.store, &hosted.name, hosted.shards).await? {
                let found = match kind {
                    ACTOR if hosted.name == card.name => {
                        reader.streams().await?.iter().any(|(actor, _)| actor.as_str() == name)
                    }
                    EVENT if hosted.name == card.name => has_event(&*reader, name).await?,
                    TIMER if hosted.name == card.name => has_timer(&*reader, &Name::new(actor)?, name),
                    // A command may be in any outbox of this node, and among the dead letters of its owner.
                    COMMAND => has_command(&*reader, domain, name).await?,
                    _ => false,
                };
                if found {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Returns the catalog with the program's entries added and unused unknown ones removed.
    fn updated(&self, gone: &HashSet<(String, String, String)>) -> Vec<CatalogEntry> {
        let mut entries: BTreeMap<EntryId, CatalogEntry> = BTreeMap::new();
        for entry in &self.catalog {
            if !gone.contains(&(entry.owner.clone(), entry.kind.clone(), entry.name.clone())) {
                entries.insert(entry_id(entry), entry.clone());
            }
        }
        for (place, shape) in &self.expected {
            let (owner, kind, name, version, codec) = place.clone();
            let entry = entries.entry(place.clone()).or_insert_with(|| CatalogEntry {
                version,
                codec,
                ..named(&owner, &kind, &name)
            });
            if let Some(shape) = shape {
                entry.shape = match &*entry.shape {
                    "" => shape.to_text(),
                    stored => Shape::from_text(stored).merged(shape).to_text(),
                };
            }
        }
        entries.into_values().collect()
    }
}

fn full_name(entry: &CatalogEntry) -> String {
    format!("{}.{}", entry.owner, entry.name)
}

/// Returns a shape, or `None` if the type's own code panics while it is traced: nothing is known of it then.
fn traced(shape: impl FnOnce() -> Option<Arc<Shape>>) -> Option<Arc<Shape>> {
    user_code(shape).ok().flatten()
}

/// Returns the schema and the shape of a stored state.
fn state_of(card: &ActorCard) -> Option<(u32, Arc<Shape>)> {
    let state = card.state?;
    Some((state.schema, traced(state.shape)?))
}
