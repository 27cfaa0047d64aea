//! Types of a newer version of the program, while two versions of a service share a store.
//!
//! Called before a shard is opened under a lease, and for commands that this program cannot decode. The catalog of the store
//! decides: a node adds its types to it before it opens a shard. A shard whose log contains such a type is left to nodes that
//! know it, and a command of such a type waits for them. Never used by a node that has its store alone: no other node will
//! come.
//!
//! Costs one read of the catalog for each opening. The log of a shard is searched only if the catalog has an event that the
//! program lacks, and only the part that was not searched before.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::actor::own_timer_name;
use crate::inbox::HealthIssues;
use crate::node::catalog::{ACTOR, COMMAND, EVENT, TIMER, lacking};
use crate::router::Manifest;
use whizbang_core::clock::{Timestamp, instant};
use whizbang_core::message::{Envelope, Name, ShardId};
use whizbang_core::store::{CatalogEntry, ShardReader, Store, StoreError, TimerCursor};
use whizbang_core::telemetry::TARGET;

/// Number of events, timers or dead letters read at a time.
const PAGE: usize = 1024;
/// Most commands that are remembered as waiting or as unknown to every node.
const COMMANDS: usize = 1024;
/// A command that was not seen for so long no longer waits here: its shard has moved.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// Name of the health note.
const WAITING: &str = "commands of a newer version";

/// The types in the catalog that this program lacks.
pub(in crate::node) struct NewerTypes {
    manifest: Arc<Manifest>,
    retired: BTreeSet<String>,
    /// Longest wait of a command for a node that handles it.
    patience: Duration,
    read: tokio::sync::Mutex<CatalogRead>,
    searched: Mutex<HashMap<ShardId, Searched>>,
    commands: Mutex<Commands>,
}

/// The position up to which the log of a shard contains none of these types.
type Searched = (Arc<Vec<CatalogEntry>>, u64);

/// The last read of the catalog.
#[derive(Default)]
struct CatalogRead {
    begun: Option<Instant>,
    catalog: Vec<CatalogEntry>,
    lacking: Arc<Vec<CatalogEntry>>,
}

/// A command that the program cannot decode: domain, name and schema version.
type CommandKey = (Name, Name, u32);

#[derive(Default)]
struct Commands {
    /// Commands in the catalog: nodes of another version handle them. With the first and the last time one was seen.
    waiting: HashMap<CommandKey, (Instant, Instant)>,
    /// Commands that were not in the catalog when it was last read.
    unknown: HashSet<CommandKey>,
}

/// The treatment of a command that the program cannot decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum Judged {
    /// A node of another version handles it: it waits.
    Waits,
    /// It waits until the catalog was read.
    Unread,
    /// No version handles it, or none came in time.
    Unknown,
}

impl NewerTypes {
    pub(in crate::node) fn new(manifest: Arc<Manifest>, retired: BTreeSet<String>, patience: Duration) -> Self {
        Self {
            manifest,
            retired,
            patience,
            read: tokio::sync::Mutex::default(),
            searched: Mutex::default(),
            commands: Mutex::default(),
        }
    }

    /// Returns the types that the program lacks, from a catalog that was read after this call. Openings at the same time
    /// share a read.
    async fn read(&self, store: &dyn Store) -> Result<Arc<Vec<CatalogEntry>>, StoreError> {
        let called = instant();
        let mut read = self.read.lock().await;
        if read.begun.is_none_or(|begun| begun < called) {
            let begun = instant();
            let catalog = store.catalog().await?.unwrap_or_default();
            if catalog != read.catalog || read.begun.is_none() {
                read.lacking = Arc::new(lacking(store, &self.manifest, &self.retired, catalog.clone()));
                read.catalog = catalog;
            }
            read.begun = Some(begun);
        }
        Ok(Arc::clone(&read.lacking))
    }

    /// Returns a type in the log of a shard that the program lacks. The shard stays with its owner.
    pub(in crate::node) async fn in_store(
        &self,
        store: &dyn Store,
        shard: &ShardId,
    ) -> Result<Option<String>, StoreError> {
        if self.read(store).await?.is_empty() {
            return Ok(None);
        }
        match store.read(shard).await? {
            Some(reader) => self.in_shard(store, shard, &*reader).await,
            None => Ok(None),
        }
    }

    /// Returns a type in the log of an opened shard that the program lacks.
    pub(in crate::node) async fn in_shard(
        &self,
        store: &dyn Store,
        shard: &ShardId,
        reader: &dyn ShardReader,
    ) -> Result<Option<String>, StoreError> {
        let lacking = self.read(store).await?;
        if lacking.is_empty() {
            return Ok(None);
        }
        let before = self.searched.lock().get(shard).filter(|(types, _)| *types == lacking).map_or(0, |(_, at)| *at);
        let head = reader.position();
        let found = find(&lacking, shard, reader, before).await?;
        if found.is_none() {
            self.searched.lock().insert(shard.clone(), (lacking, head));
        }
        Ok(found)
    }

    /// Judges a command that the program cannot decode. Does not block.
    pub(in crate::node) fn judge(&self, envelope: &Envelope) -> Judged {
        let key = key_of(envelope);
        let mut commands = self.commands.lock();
        if let Some((first, last)) = commands.waiting.get_mut(&key) {
            *last = instant();
            return if first.elapsed() < self.patience { Judged::Waits } else { Judged::Unknown };
        }
        if commands.unknown.contains(&key) { Judged::Unknown } else { Judged::Unread }
    }

    /// Looks a command up in the catalog.
    ///
    /// # Errors
    /// The errors of reading the catalog. The command waits until it can be read.
    pub(in crate::node) async fn look_up(
        &self,
        store: &dyn Store,
        envelope: &Envelope,
        issues: &HealthIssues,
    ) -> Result<(), StoreError> {
        let lacking = self.read(store).await?;
        let key = key_of(envelope);
        let is_known = lacking.iter().any(|entry| {
            entry.kind == COMMAND
                && entry.owner == key.0.as_str()
                && entry.name == key.1.as_str()
                && entry.version == key.2
        });
        let mut commands = self.commands.lock();
        if commands.waiting.len() + commands.unknown.len() >= COMMANDS {
            *commands = Commands::default();
        }
        if !is_known {
            commands.unknown.insert(key);
            return Ok(());
        }
        let now = instant();
        let (domain, name, version) = &key;
        tracing::warn!(target: TARGET, %domain, %name, version, "command of a newer version: waiting for a node that handles it");
        commands.waiting.entry(key).or_insert((now, now));
        commands.show(issues);
        Ok(())
    }

    /// Returns the number of types of commands that wait.
    pub(in crate::node) fn waiting(&self) -> u64 {
        self.commands.lock().waiting.len() as u64
    }

    /// Called after each renewal. Forgets commands that no longer arrive, and everything if the members have `changed`: a
    /// new one may know more.
    pub(in crate::node) fn renewed(&self, issues: &HealthIssues, changed: bool) {
        let mut commands = self.commands.lock();
        if changed {
            commands.unknown.clear();
        }
        if commands.waiting.is_empty() {
            return;
        }
        commands.waiting.retain(|_, (_, last)| last.elapsed() < FORGOTTEN);
        commands.show(issues);
    }
}

impl Commands {
    fn show(&self, issues: &HealthIssues) {
        let oldest = self.waiting.iter().min_by_key(|(_, (first, _))| *first);
        let Some(((domain, name, version), (first, _))) = oldest else {
            return issues.clear_note(WAITING);
        };
        let reason = format!(
            "commands wait for a node with a newer program: {} types, among them `{domain}.{name}` version {version} since {:?}",
            self.waiting.len(),
            first.elapsed(),
        );
        issues.note(WAITING, reason);
    }
}

fn key_of(envelope: &Envelope) -> CommandKey {
    let domain = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain);
    (domain.clone(), envelope.name.clone(), envelope.version)
}

/// Searches a shard for the types, its events only above the position `after`.
async fn find(
    lacking: &[CatalogEntry],
    shard: &ShardId,
    reader: &dyn ShardReader,
    after: u64,
) -> Result<Option<String>, StoreError> {
    let domain = shard.domain.as_str();
    let of = |kind: &str| -> HashMap<(&str, u32), &CatalogEntry> {
        let mine = lacking.iter().filter(|entry| entry.kind == kind && entry.owner == domain);
        mine.map(|entry| ((entry.name.as_str(), entry.version), entry)).collect()
    };
    let (events, commands) = (of(EVENT), of(COMMAND));
    let mut after = after;
    while !events.is_empty() {
        let page = reader.events(after, PAGE).await?;
        let found = page.iter().find(|event| events.contains_key(&(event.name.as_str(), event.version)));
        if let Some(event) = found {
            return Ok(Some(format!("the event `{}` version {}", event.name, event.version)));
        }
        let Some(last) = page.last() else { break };
        after = last.position;
    }
    let actors: HashSet<&str> = of(ACTOR).into_keys().map(|(name, _)| name).collect();
    if !actors.is_empty() {
        let streams = reader.streams().await?;
        if let Some((actor, _)) = streams.iter().find(|(actor, _)| actors.contains(actor.as_str())) {
            return Ok(Some(format!("the actor type `{actor}`")));
        }
    }
    for entry in lacking.iter().filter(|entry| entry.kind == TIMER) {
        let Some((_, actor)) = entry.owner.split_once('/').filter(|(of, _)| *of == domain) else { continue };
        let Ok(actor) = Name::new(actor) else { continue };
        if has_timer(reader, &actor, entry) {
            return Ok(Some(format!("the timer `{}` of `{actor}`", entry.name)));
        }
    }
    let mut letter = None;
    while !commands.is_empty() {
        let page = reader.dead_letters(letter, PAGE).await?;
        let of_it = |envelope: &Envelope| {
            envelope.domain == shard.domain && commands.contains_key(&(envelope.name.as_str(), envelope.version))
        };
        if let Some(found) = page.iter().find(|letter| of_it(&letter.envelope)) {
            return Ok(Some(format!("the command `{}` version {}", found.envelope.name, found.envelope.version)));
        }
        let Some(last) = page.last() else { break };
        letter = Some(last.envelope.id);
    }
    Ok(None)
}

fn has_timer(reader: &dyn ShardReader, actor: &Name, entry: &CatalogEntry) -> bool {
    let mut after = TimerCursor::default();
    loop {
        let page = reader.timers_of(actor, after, Timestamp::from_millis(u64::MAX), PAGE);
        if page
            .due
            .iter()
            .any(|(_, timer)| own_timer_name(&timer.name).0 == entry.name && timer.version == entry.version)
        {
            return true;
        }
        match page.due.last() {
            Some((place, _)) => after = *place,
            None => return false,
        }
    }
}
