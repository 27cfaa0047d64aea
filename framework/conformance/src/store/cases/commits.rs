//! Commits: their order, their reports, and what readers see.
//!
//! An append gets a ticket at once and is durable later, when the store reports that ticket. Between the two it may be lost
//! in a crash, and no reply of it may leave the node.

use std::sync::Arc;

use super::super::turn_builder::{name, shard};
use super::super::{Fixture, Owner, RecordingListener, SHARDS, TurnBuilder};
use whizbang_core::store::StoreError;

/// Reported tickets increase, and the last report includes the last append.
///
/// Replies and messages leave a node when the report of their turn arrives. If a report came too early, a crash would
/// undo a turn whose reply was already sent; if the last one never came, callers would wait until their deadline.
pub async fn commits_are_reported_in_order(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let mut ticket = 0;
    let mut last = None;
    for turn in 0..500u64 {
        let draft = TurnBuilder::new("Account", "ada", turn).at(turn + 1, turn).event("Happened", "x");
        let appended = owner.append(&draft).unwrap();
        assert_eq!(appended.position, turn + 1);
        assert!(appended.ticket > ticket, "tickets rise");
        ticket = appended.ticket;
        last = Some(appended);
    }
    owner.settled(last.unwrap()).await;
    let reports = owner.listener.reports();
    assert!(reports.is_sorted());
    assert!(reports.last().is_none_or(|report| *report <= ticket), "nothing is reported that was not appended");
    assert_eq!(owner.reader.position(), 500);
    assert!(owner.listener.error().is_none());
}

/// Turns appended alone are mixed with turns that are not.
///
/// A node appends a turn alone when nothing else is waiting. A store may then make it durable at once and return it as
/// committed, which saves the report. It must not claim so for a turn that a crash can still take back.
pub async fn lone_turn_is_durable_if_reported_committed(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let bank = shard("bank", 0);
    let mut owner = Owner::take(&store, &bank).await;
    for turn in 0..200u64 {
        let draft = TurnBuilder::new("Account", "ada", turn).at(turn + 1, turn).event("Happened", turn.to_string());
        let alone = turn % 4 < 2;
        let appended = if alone { owner.append_alone(&draft) } else { owner.append(&draft) }.unwrap();
        assert_eq!(appended.position, turn + 1);
        if appended.committed {
            assert_eq!(owner.reader.position(), turn + 1);
        } else if alone {
            owner.settled(appended).await;
        }
    }
    assert!(owner.listener.error().is_none() && owner.listener.reports().is_sorted());
    store.close().await.unwrap();
    drop((store, owner));
    let store = fixture.store().await;
    let owner = Owner::take(&store, &bank).await;
    let events = owner.events(0, usize::MAX).await;
    let payloads = events.iter().map(|event| event.payload.to_vec());
    assert!(payloads.eq((0..200u64).map(|turn| turn.to_string().into_bytes())));
}

/// One number describes the progress of all shards of a listener.
///
/// A node waits for the commits of many shards with one listener and one queue of replies, ordered by ticket.
pub async fn shards_with_one_listener_share_ticket_sequence(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let listener = Arc::new(RecordingListener::default());
    let mut owners = Vec::new();
    for number in 0..SHARDS {
        owners.push(Owner::take_with(&store, &shard("bank", number), Arc::clone(&listener)).await);
    }
    let mut alone = Owner::take(&store, &shard("shop", 0)).await;
    let mut tickets = Vec::new();
    for turn in 0..50u64 {
        for owner in &mut owners {
            let draft = TurnBuilder::new("Account", "ada", turn).at(turn + 1, turn).event("Happened", "x");
            tickets.push(owner.append(&draft).unwrap());
        }
        alone.commit(&TurnBuilder::new("Order", "o", turn).at(turn + 1, 0)).await;
    }
    for (one, next) in tickets.iter().zip(tickets.iter().skip(1)) {
        assert_eq!(one.ticket + 1, next.ticket);
    }
    owners[0].settled(*tickets.last().unwrap()).await;
    for owner in &owners {
        assert_eq!(owner.reader.position(), 50);
    }
}

/// A listener remembers the highest ticket that was reported to it. An append whose ticket is not above it would count as
/// durable before it is.
///
/// It happens when all shards move to another node and come back.
pub async fn tickets_of_a_listener_rise_after_its_shards_closed(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let listener = Arc::new(RecordingListener::default());
    let mut last = 0;
    for opening in 0..3u64 {
        let number = u16::try_from(opening % 2).expect("small");
        let mut owner = Owner::take_with(&store, &shard("bank", number), Arc::clone(&listener)).await;
        for turn in 0..20u64 {
            let key = format!("ada-{opening}");
            let appended = owner.append(&TurnBuilder::new("Account", &key, turn).at(turn + 1, turn)).unwrap();
            assert!(appended.ticket > last, "ticket {} of opening {opening} comes after {last}", appended.ticket);
            last = appended.ticket;
            owner.settled(appended).await;
        }
        // Nothing else of the listener is open.
        drop(owner);
    }
}

/// A reported append is visible to every reader, and readers never see half a turn.
///
/// Queries, subscribers that catch up and the repair of the outbox read a shard while it is written. Half a turn would
/// be an event without its message, or a message without its event.
pub async fn reported_commits_are_readable(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let shop = shard("shop", 0);
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    for turn in 0..100u64 {
        let mut draft = TurnBuilder::new("Account", "ada", turn).at(turn + 1, 3 * turn).send(&shop, turn);
        for _ in 0..3 {
            draft = draft.event("Happened", turn.to_string());
        }
        let appended = owner.append(&draft).unwrap();
        // It may be committed or not; readers see complete turns in either case.
        let seen = owner.load("Account", "ada").await.turns.len() as u64;
        assert!(seen == turn || seen == turn + 1);
        assert!(owner.reader.position().is_multiple_of(3));
        let page = owner.events(0, usize::MAX).await.len() as u64;
        assert!(page == 3 * turn || page == 3 * turn + 3);
        owner.settled(appended).await;
        assert_eq!(owner.reader.position(), appended.position);
        assert_eq!(owner.load("Account", "ada").await.turns.len() as u64, turn + 1);
        assert_eq!(owner.events(appended.position - 3, 10).await.len(), 3);
        assert_eq!(owner.reader.outbox_heads(), [(shop.clone(), 0, turn + 1)]);
        assert_eq!(owner.reader.outbox(&shop, turn, 10).await.unwrap().len(), 1);
    }
}

/// Owners on different threads, each with its own shard, and readers on another thread.
///
/// A node has a thread per group of shards, and each of them uses the store without a lock around it.
pub async fn shards_on_many_threads_are_independent(fixture: &impl Fixture) {
    const TURNS: u64 = 2_000;
    let store = fixture.store().await;
    let mut owners = Vec::new();
    for number in 0..SHARDS {
        owners.push(Owner::take(&store, &shard("bank", number)).await);
    }
    let readers: Vec<_> = owners.iter().map(|owner| Arc::clone(&owner.reader)).collect();
    let threads: Vec<_> = owners
        .into_iter()
        .map(|mut owner| {
            std::thread::spawn(move || {
                futures_util::FutureExt::now_or_never(async {
                    for turn in 0..TURNS {
                        let key = ["ada", "bob"][usize::from(turn % 2 == 1)];
                        let draft = TurnBuilder::new("Account", key, turn).at(turn / 2 + 1, turn / 2);
                        let draft = draft.event("Happened", turn.to_string());
                        let alone = turn % 50 == 0;
                        let appended = if alone { owner.append_alone(&draft) } else { owner.append(&draft) };
                        appended.expect("the turn is appended");
                    }
                });
                owner
            })
        })
        .collect();
    while threads.iter().any(|thread| !thread.is_finished()) {
        for reader in &readers {
            let position = reader.position();
            let events = reader.events(position.saturating_sub(5), 10).await.unwrap();
            assert!(events.len() as u64 >= position.min(5));
            assert!(events.iter().all(|event| event.payload == (event.position - 1).to_string()));
        }
        tokio::task::yield_now().await;
    }
    for thread in threads {
        let mut owner = thread.join().expect("the thread does not panic");
        let last = owner.append(&TurnBuilder::new("Account", "end", 1)).unwrap();
        owner.settled(last).await;
        assert_eq!(owner.reader.position(), TURNS);
        for key in ["ada", "bob"] {
            let history = owner.reader.history(&name("Account"), key).await.unwrap();
            assert_eq!(history.len() as u64, TURNS / 2);
        }
    }
}

/// A closed store rejects appends, and earlier appends are committed.
///
/// A node closes its store as its last step. An append that was accepted before the closing has a caller that may have
/// its reply.
pub async fn closed_store_refuses_appends(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let bank = shard("bank", 0);
    let mut owner = Owner::take(&store, &bank).await;
    let draft = TurnBuilder::new("Account", "ada", 1).event("Happened", "x");
    let appended = owner.append(&draft).unwrap();
    store.close().await.unwrap();
    assert!(matches!(owner.append(&draft.at(2, 1)), Err(StoreError::Closed)));
    if !appended.committed {
        assert!(owner.listener.through() >= appended.ticket, "closing commits what was appended");
    }
    store.close().await.unwrap();
    drop((store, owner));
    let store = fixture.store().await;
    let owner = Owner::take(&store, &bank).await;
    assert_eq!(owner.reader.position(), 1);
}
