//! Tests of the deduplication state: a handled message is never new again, and memory is bounded.

use super::*;
use whizbang_core::clock::{Clock, Timestamp};
use whizbang_core::message::IdSource;

const RECENT: usize = 8;

fn ids() -> IdSource {
    IdSource::seeded(Clock::manual(Timestamp::from_millis(1_700_000_000_000)).0, 3)
}

fn digest(payload: &[u8]) -> Digest<'_> {
    Digest::new(1, "deposit", 1, Codec::Bincode, payload)
}

const AT: Timestamp = Timestamp::from_millis(5_000);

fn remember<const RECENT: usize>(seen: &mut DedupStateOf<RECENT>, id: MessageId, reply: &[u8]) {
    seen.id(id, AT, digest(b"one").value(), reply, Codec::Bincode);
}

fn admit<const RECENT: usize>(seen: &DedupStateOf<RECENT>, id: MessageId) -> Admission {
    seen.admit_id(id, &digest(b"one"), AT)
}

fn yes() -> Admission {
    Admission::Duplicate(Bytes::from_static(b"yes"), Codec::Bincode)
}

#[test]
fn every_id_is_a_duplicate_or_looked_up_and_never_new_again() {
    let ids = ids();
    let all: Vec<_> = (0..10 * RECENT).map(|_| ids.message_id()).collect();
    let mut seen: DedupState = DedupStateOf::default();
    // Out of order, as the clocks of several callers make it.
    for chunk in all.chunks(7) {
        for id in chunk.iter().rev() {
            assert_eq!(admit(&seen, *id), Admission::New, "{id}");
            remember(&mut seen, *id, b"yes");
            assert_eq!(admit(&seen, *id), yes());
            assert_eq!(seen.admit_id(*id, &digest(b"two"), AT), Admission::Conflict);
        }
    }
    for seen in [&seen, &DedupState::restore(seen.save()).unwrap()] {
        for id in &all {
            assert_ne!(admit(seen, *id), Admission::New, "{id}");
        }
    }
    assert_eq!(admit(&seen, ids.message_id()), Admission::New);
}

#[test]
fn memory_grows_for_ids_far_out_of_order() {
    let ids = ids();
    let mut seen: DedupState = DedupStateOf::default();
    let mut looked_up = 0;
    // Concurrent callers, and rounds.
    let (callers, rounds) = (100, 20);
    for _ in 0..rounds {
        let chunk: Vec<_> = (0..callers).map(|_| ids.message_id()).collect();
        for id in chunk.iter().rev() {
            match admit(&seen, *id) {
                Admission::New => {}
                Admission::LookUp => {
                    looked_up += 1;
                    seen.grow();
                }
                known => panic!("{known:?}"),
            }
            remember(&mut seen, *id, b"yes");
        }
    }
    assert!(looked_up > 0 && looked_up <= callers, "{looked_up} of {} ids", callers * rounds);
    assert!(seen.recent.len() <= MAX_RECENT);
}

#[test]
fn idempotency_keys_are_kept_apart_and_never_new_again() {
    let ids = ids();
    let mut seen: DedupState = DedupStateOf::default();
    let key = |n: usize| MessageId::from_idempotency_key("bank", "ada", &n.to_string());
    for n in 0..KEYED_CAPACITY + 10 {
        assert!(matches!(admit(&seen, key(n)), Admission::New | Admission::LookUp));
        remember(&mut seen, key(n), b"yes");
        assert_eq!(admit(&seen, key(n)), yes());
    }
    assert_eq!(admit(&seen, key(0)), Admission::LookUp);
    assert_eq!(admit(&seen, ids.message_id()), Admission::New);
    let again = DedupState::restore(seen.save()).unwrap();
    for n in 0..KEYED_CAPACITY + 10 {
        assert_eq!(admit(&again, key(n)), Admission::LookUp, "{n}");
    }
}

#[test]
fn idempotency_key_expires_in_memory() {
    let mut seen: DedupState = DedupStateOf::default();
    let key = MessageId::from_idempotency_key("bank", "ada", "1");
    remember(&mut seen, key, b"yes");
    assert_eq!(seen.admit_id(key, &digest(b"one"), AT), yes());
    assert_eq!(seen.admit_id(key, &digest(b"two"), AT.after(std::time::Duration::from_millis(1))), Admission::New);
}

#[test]
fn memory_and_snapshot_are_bounded_in_bytes() {
    let ids = ids();
    let mut seen: DedupStateOf<4096> = DedupStateOf::default();
    let reply = vec![7; 400 * 1024];
    let mut all = Vec::new();
    for n in 0..5_000 {
        let id =
            if n % 2 == 0 { ids.message_id() } else { MessageId::from_idempotency_key("bank", "ada", &n.to_string()) };
        remember(&mut seen, id, &reply);
        all.push(id);
    }
    assert!(seen.recent.iter().all(|seen| seen.reply == SmallReply::Stored));
    assert!(seen.keyed.iter().flat_map(|keyed| &keyed.ids).all(|(_, seen)| seen.reply == SmallReply::Stored));
    let saved = seen.save();
    assert!(saved.recent.is_empty() && saved.keyed.is_empty());
    for seen in [&seen, &DedupStateOf::restore(saved).unwrap()] {
        for id in &all {
            assert_eq!(admit(seen, *id), Admission::LookUp, "{id}");
        }
    }
}

#[test]
fn sequence_is_admitted_once() {
    let shard = ShardId::new(Name::from_static("bank").unwrap(), 3);
    let direct = Source { shard: shard.clone(), kind: SourceKind::Direct };
    let events = Source { shard, kind: SourceKind::Events { subscriber: Name::from_static("saga").unwrap() } };
    let mut seen: DedupState = DedupStateOf::default();
    assert!(seen.admit_sequence(&direct, 1));
    seen.place(&direct, 5);
    assert!(!seen.admit_sequence(&direct, 5));
    assert!(!seen.admit_sequence(&direct, 1));
    assert!(seen.admit_sequence(&direct, 6));
    assert!(seen.admit_sequence(&events, 1));
    let again = DedupState::restore(seen.save()).unwrap();
    assert!(!again.admit_sequence(&direct, 5));
    assert!(again.admit_sequence(&events, 1));
}

#[test]
fn replies_in_memory_are_bounded_and_unchanged() {
    let ids = ids();
    for codec in [Codec::Bincode, Codec::Json] {
        for length in [0, 1, 21, 22, MAX_CACHED_REPLY, MAX_CACHED_REPLY + 1] {
            let reply: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            let mut seen: DedupState = DedupStateOf::default();
            let id = ids.message_id();
            seen.id(id, AT, digest(b"one").value(), &reply, codec);
            let expected = if length > MAX_CACHED_REPLY {
                Admission::LookUp
            } else {
                Admission::Duplicate(Bytes::from(reply), codec)
            };
            assert_eq!(admit(&seen, id), expected, "{length} bytes");
            assert_eq!(admit(&DedupState::restore(seen.save()).unwrap(), id), expected, "{length} bytes");
        }
    }
}

#[test]
fn redriven_dead_letter_replaces_its_reply() {
    let ids = ids();
    let timed: Vec<_> = (0..3).map(|_| ids.message_id()).collect();
    let keyed: Vec<_> = ["1", "2", "3"].map(|key| MessageId::from_idempotency_key("bank", "ada", key)).into();
    for all in [timed, keyed] {
        let mut seen: DedupState = DedupStateOf::default();
        all.iter().for_each(|id| remember(&mut seen, *id, b"no"));
        remember(&mut seen, all[1], b"yes");
        let no = Admission::Duplicate(Bytes::from_static(b"no"), Codec::Bincode);
        assert_eq!([0, 1, 2].map(|n| admit(&seen, all[n])), [no.clone(), yes(), no]);
    }
}

#[test]
fn newest_ids_are_kept_in_memory() {
    let ids = ids();
    let all: Vec<_> = (0..=RECENT).map(|_| ids.message_id()).collect();
    let mut seen: DedupState = DedupStateOf::default();
    all.iter().take(RECENT).for_each(|id| remember(&mut seen, *id, b"yes"));
    assert!(all.iter().take(RECENT).all(|id| admit(&seen, *id) == yes()));
    remember(&mut seen, all[RECENT], b"yes");
    assert_eq!(admit(&seen, all[0]), Admission::LookUp);
    assert!(all.iter().skip(1).all(|id| admit(&seen, *id) == yes()));
    // A late id is kept too, unless all kept ids are newer.
    remember(&mut seen, all[0], b"yes");
    assert_eq!(admit(&seen, all[0]), Admission::LookUp);
    assert!(all.iter().skip(1).all(|id| admit(&seen, *id) == yes()));
    assert_eq!(seen.recent.len(), RECENT);
}

#[test]
fn late_id_replaces_the_oldest() {
    let ids = ids();
    let all: Vec<_> = (0..RECENT + 2).map(|_| ids.message_id()).collect();
    let mut seen: DedupState = DedupStateOf::default();
    let late = all[RECENT - 1];
    all.iter().filter(|id| **id != late).for_each(|id| remember(&mut seen, *id, b"yes"));
    assert_eq!(admit(&seen, late), Admission::New);
    remember(&mut seen, late, b"yes");
    assert_eq!([0, 1].map(|n| admit(&seen, all[n])), [Admission::LookUp, Admission::LookUp]);
    assert!(all.iter().skip(2).all(|id| admit(&seen, *id) == yes()));
    assert!(seen.recent.iter().is_sorted_by_key(|seen| seen.id));
}

#[test]
fn memory_doubles_up_to_its_bound_and_survives_a_snapshot() {
    let ids = ids();
    let mut seen: DedupState = DedupStateOf::default();
    let mut kept = Vec::new();
    for _ in 0..6 {
        seen.grow();
        (0..2 * MAX_RECENT).for_each(|_| remember(&mut seen, ids.message_id(), b"yes"));
        kept.push(seen.recent.len());
    }
    assert_eq!(kept, [16, 32, 64, 128, 128, 128]);
    let mut again = DedupState::restore(seen.save()).unwrap();
    remember(&mut again, ids.message_id(), b"yes");
    assert_eq!(again.recent.len(), 128);
}

#[test]
fn idempotency_keys_in_memory_are_bounded() {
    let mut seen: DedupState = DedupStateOf::default();
    let key = |n: usize| MessageId::from_idempotency_key("bank", "ada", &n.to_string());
    (0..KEYED_CAPACITY).for_each(|n| remember(&mut seen, key(n), b"yes"));
    assert!((0..KEYED_CAPACITY).all(|n| admit(&seen, key(n)) == yes()));
    // Nothing was evicted, so an unknown key is new without a lookup.
    assert_eq!(admit(&seen, key(KEYED_CAPACITY)), Admission::New);
    remember(&mut seen, key(KEYED_CAPACITY), b"yes");
    assert_eq!((admit(&seen, key(0)), admit(&seen, key(1))), (Admission::LookUp, yes()));
}
