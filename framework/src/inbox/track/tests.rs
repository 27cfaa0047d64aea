//! Tests of the counting of what is dispatched and appended.

use super::*;

fn track(dispatched: u64, stored: u64) -> (Rc<Track>, Rc<Cell<u64>>) {
    let shard = ShardId::new(Name::from_static("bank").unwrap(), 0);
    let last = Rc::new(Cell::new(dispatched));
    (Track::new(Rc::new(Source { shard, lane: Lane::Direct }), Rc::clone(&last), stored), last)
}

#[test]
fn the_floor_is_below_the_first_open_place() {
    let (track, last) = track(4, 4);
    assert_eq!((track.floor(), track.unstored(), track.stored()), (4, None, 4));
    for place in 5..=8 {
        last.set(place);
        track.opened(place);
    }
    assert_eq!((track.floor(), track.unstored()), (4, None));
    track.known(6);
    assert_eq!((track.floor(), track.once_appended(5), track.once_appended(7)), (4, 6, 4));
    track.known(5);
    assert_eq!((track.floor(), track.unstored(), track.stored()), (6, Some(6), 4));
    track.appended(7);
    assert_eq!((track.floor(), track.unstored(), track.stored()), (7, None, 7));
    // With the last one appended nothing is open.
    assert_eq!(track.once_appended(8), 8);
    track.set_stored(3);
    assert_eq!(track.stored(), 7, "the store forgets no floor");
}

#[test]
fn only_places_near_the_start_may_have_been_under_way() {
    let (track, _) = track(10, 10);
    assert!(track.is_near_start(10 + NEAR_START));
    assert!(!track.is_near_start(11 + NEAR_START));
}
