//! The move of a store to another place, such as from the local disk to PostgreSQL and back.
//!
//! Called by programs of operators while no node uses the store. Reads the turns of the source in their order and appends
//! them to the target, which assigns the same positions and sequences again. It never changes a turn of the source.
//!
//! At no moment can nodes open both stores:
//! 1. The target is created with a mark: the copy is not complete. The source can still be opened after an interruption.
//! 2. Everything is copied and compared, and the mark of the target says so.
//! 3. The source gets a mark: it has moved. From here on the move can only be finished.
//! 4. The mark of the target is removed.

mod compare;
mod flow;
mod mark;
mod place;
mod turn;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use self::compare::{Digests, compare, differs};
use self::flow::Flow;
#[doc(hidden)]
pub use self::mark::{MoveMark, MoveState};
pub use self::place::StorePlace;
#[doc(hidden)]
pub use self::place::{CopiedShard, FoundSource, MoveEnd, MoveSource, MoveTarget, NewStore, TurnPages};
#[doc(hidden)]
pub use self::turn::CopiedTurn;
use whizbang_core::clock::Clock;
use whizbang_core::message::{IdSource, Name, ShardId};
use whizbang_core::store::{ShardHandle, ShardReader, StoreError};

/// The result of a move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MovedStore {
    /// The number of shards that were copied.
    pub shards: usize,
    /// The number of turns that were copied.
    pub turns: u64,
    /// The number of events that were copied.
    pub events: u64,
    /// The number of views of projections that were copied.
    pub views: usize,
    /// An earlier run had copied everything and was interrupted; this one has finished it and copied nothing.
    pub is_resumed: bool,
}

/// A step of a move that is about to begin, or that continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MoveStep {
    /// The target is created.
    Create,
    /// Turns are copied. Reported after each page.
    Copy,
    /// The turns of the target are read and compared with those of the source. Reported after each page.
    Compare,
    /// Views of projections and the catalog are copied.
    CopyViews,
    /// The target is marked as complete.
    Complete,
    /// The source is marked as moved. Until then it can be used again if the move is interrupted.
    GiveUpSource,
    /// The mark of the target is removed: nodes can open it.
    Activate,
    /// The move has ended.
    Done,
}

impl MoveStep {
    /// Returns a stable name for logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Copy => "copy",
            Self::Compare => "compare",
            Self::CopyViews => "copy-views",
            Self::Complete => "complete",
            Self::GiveUpSource => "give-up-source",
            Self::Activate => "activate",
            Self::Done => "done",
        }
    }
}

/// The progress of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MoveProgress {
    /// The step.
    pub step: MoveStep,
    /// The number of events that the step has handled.
    pub events: u64,
    /// The number of events in the source; 0 while it is not known.
    pub of: u64,
}

/// Moves a store to another place, with all positions and ids and with its identity. From then on the new place is the store,
/// and opening the old one fails with [`StoreError::Moved`].
///
/// Stop every node of the service first. Copied are events, marks of handled messages with their replies, outboxes, timers,
/// notes, dead letters, headers, progress, views of projections, the catalog, the identity and the key of digests. Snapshots are
/// not copied: the first message of a key reads its whole stream. Tables of projections that run their own statements are not
/// part of the store and are not copied.
///
/// `report` is called at the beginning of each step, and after each page of turns. Its time delays the move.
///
/// The function reads the local disk on the calling thread. Call it in a program of its own, or on a thread that may block. Its
/// memory use is that of the two opened stores, and a few MiB for turns on their way. PostgreSQL as the target adds 24 bytes for
/// each message id in the history of the source, because ids are only forgotten by a node.
///
/// ```no_run
/// use whizbang::store::embedded::EmbeddedPlace;
/// use whizbang::store::{StoreError, move_store};
///
/// #[whizbang::main]
/// async fn main() -> Result<(), StoreError> {
///     // For PostgreSQL the place is a builder: `PostgresStore::builder(url)`.
///     let (from, to) = (EmbeddedPlace::new("/var/lib/bank"), EmbeddedPlace::new("/mnt/new/bank"));
///     let moved = move_store(&from, &to, |progress| println!("{progress:?}")).await?;
///     println!("{} events", moved.events);
///     Ok(())
/// }
/// ```
///
/// # Errors
/// [`StoreError::InUse`] if a node uses the source, [`StoreError::Missing`] if there is no store, [`StoreError::NotEmpty`] if the
/// target has content, [`StoreError::Moved`] if the source has moved already, and the errors of reading and writing.
/// [`StoreError::NotEmpty`] also if an earlier move to the target was interrupted before the source was given up: if its source was
/// the same, delete the target and call it again. [`StoreError::Unfinished`] if the source is itself the copy of an interrupted
/// move: do not delete it, and finish that move first. [`StoreError::Corrupt`] if the source is damaged or the copy differs from
/// it; the source then can still be used.
///
/// Dropping the future, a crash of the program and an error leave one store that can be opened, or none: then the same call
/// finishes the move.
pub async fn move_store(
    from: &dyn StorePlace,
    to: &dyn StorePlace,
    mut report: impl FnMut(&MoveProgress),
) -> Result<MovedStore, StoreError> {
    let mut tell = |step, events, of| report(&MoveProgress { step, events, of });
    let source = match from.source().await? {
        FoundSource::Ready(source) => source,
        FoundSource::Moved { at, mark } => {
            tell(MoveStep::Activate, 0, 0);
            if !to.finish(mark.number).await? {
                return Err(mark.refusal(at));
            }
            tell(MoveStep::Done, 0, 0);
            return Ok(MovedStore { is_resumed: true, ..MovedStore::default() });
        }
    };
    let ids = IdSource::random(Clock::system());
    let number = u128::from(ids.next_u64()) << 64 | u128::from(ids.next_u64());
    let identity = source.store().identity().await?;
    tell(MoveStep::Create, 0, 0);
    let target = to.create(NewStore { number, digest_key: source.store().digest_key(), identity }).await?;
    let moved = copy(&*source, &*target, &mut tell).await?;
    tell(MoveStep::Complete, moved.events, moved.events);
    target.complete().await?;
    tell(MoveStep::GiveUpSource, moved.events, moved.events);
    source.mark_moved(&MoveMark::new(number, MoveState::Away(target.at()))).await?;
    tell(MoveStep::Activate, moved.events, moved.events);
    target.activate().await?;
    tell(MoveStep::Done, moved.events, moved.events);
    Ok(moved)
}

/// A shard of the target while it is copied.
struct CopyOfShard {
    original: Arc<dyn ShardReader>,
    handle: ShardHandle,
    /// The sequence up to which each destination has committed, in the source.
    confirmed: HashMap<ShardId, u64>,
}

/// Copies and compares everything.
async fn copy(
    source: &dyn MoveSource,
    target: &dyn MoveTarget,
    tell: &mut impl FnMut(MoveStep, u64, u64),
) -> Result<MovedStore, StoreError> {
    let mut moved = MovedStore::default();
    let (mut flow, mut copies, mut of) = (Flow::default(), BTreeMap::new(), 0);
    for shard in source.shards().await? {
        let Some(original) = source.store().read(&shard.id).await? else { continue };
        of += original.position();
        let confirmed = original.outbox_heads().into_iter().map(|(to, confirmed, _)| (to, confirmed)).collect();
        let handle = target.open(&shard, flow.listener()).await?;
        copies.insert(shard.id, CopyOfShard { original, handle, confirmed });
    }
    moved.shards = copies.len();
    let mut expected = Digests::default();
    let mut pages = source.turns();
    tell(MoveStep::Copy, 0, of);
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            break;
        }
        // The entries that were confirmed do not wait in the memory of the target.
        let mut settled = BTreeMap::new();
        for (id, turn) in &page {
            let Some(copy) = copies.get_mut(id) else { return Err(differs(target, id, "shards")) };
            let appended = turn.write(|turn| copy.handle.writer.append(turn))?;
            if appended.position != turn.position() {
                return Err(differs(target, id, "positions"));
            }
            flow.appended(appended.ticket, turn.bytes()).await?;
            expected.add(id, turn);
            moved.turns += 1;
            moved.events += turn.events() as u64;
            for (to, sequence) in turn.sent() {
                if copy.confirmed.get(to).is_some_and(|confirmed| sequence <= *confirmed) {
                    settled.insert((id.clone(), to.clone()), sequence);
                }
            }
        }
        for ((id, to), through) in settled {
            if let Some(copy) = copies.get_mut(&id) {
                flow.appended(copy.handle.writer.sent(&to, through)?.ticket, 64).await?;
            }
        }
        tell(MoveStep::Copy, moved.events, of);
    }
    drop(pages);
    copy_progress(&mut copies, &mut flow).await?;
    flow.finish().await?;
    compare_turns(target, &expected, |events| tell(MoveStep::Compare, events, of)).await?;
    for (id, copy) in &copies {
        if let Err(part) = compare(&*copy.original, &*copy.handle.reader) {
            return Err(differs(target, id, part));
        }
    }
    tell(MoveStep::CopyViews, moved.events, of);
    for name in source.views().await? {
        moved.views += usize::from(copy_view(source, target, &name).await?);
    }
    if let Some(catalog) = source.store().catalog().await?
        && !target.store().replace_catalog(None, catalog).await?
    {
        return Err(StoreError::NotEmpty { at: target.at() });
    }
    Ok(moved)
}

/// Copies the watermarks of sources and the confirmations of destinations, as they are at the end.
async fn copy_progress(copies: &mut BTreeMap<ShardId, CopyOfShard>, flow: &mut Flow) -> Result<(), StoreError> {
    for copy in copies.values_mut() {
        for watermark in copy.original.watermarks() {
            flow.appended(copy.handle.writer.advance(&watermark)?.ticket, 64).await?;
        }
        for (to, confirmed) in copy.confirmed.iter().filter(|(_, confirmed)| **confirmed > 0) {
            flow.appended(copy.handle.writer.sent(to, *confirmed)?.ticket, 64).await?;
        }
    }
    Ok(())
}

/// Reads all turns of the target and compares them with those that were copied.
async fn compare_turns(
    target: &dyn MoveTarget,
    expected: &Digests,
    mut report: impl FnMut(u64),
) -> Result<(), StoreError> {
    let (mut found, mut events) = (Digests::default(), 0);
    report(0);
    let mut pages = target.turns();
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            break;
        }
        for (id, turn) in &page {
            found.add(id, turn);
            events += turn.events() as u64;
        }
        report(events);
    }
    match expected.first_difference(&found) {
        Some(id) => Err(differs(target, &id, "turns")),
        None => Ok(()),
    }
}

/// Copies the view of a projection with its checkpoint. Returns `false` if it was never saved.
async fn copy_view(source: &dyn MoveSource, target: &dyn MoveTarget, name: &Name) -> Result<bool, StoreError> {
    let Some(view) = source.store().view(name).await? else { return Ok(false) };
    let epoch = target.store().claim_view(name).await?;
    target.store().save_view(name, epoch, view).await?;
    Ok(true)
}
