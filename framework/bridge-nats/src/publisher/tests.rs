//! Tests of the publisher's queue, without a server.

use super::*;
use whizbang_core::message::Name;
use whizbang_wire::subject::Namespace;

fn publisher(link: watch::Receiver<LinkState>) -> Arc<PublisherLoop> {
    let inboxes = Inboxes::new("inbox", &Namespace::default(), &Name::new("bank").unwrap());
    Arc::new(PublisherLoop::new(inboxes, link, "broker".into()))
}

#[test]
fn rejected_message_is_not_kept() {
    let (_link, link) = watch::channel(LinkState { up: true, epoch: 1, ..LinkState::default() });
    let publisher = publisher(link);
    let publish = || publisher.publish("a".to_owned(), HeaderMap::new(), Bytes::new(), ReplyKind::Acknowledgement);
    let waiting: Vec<_> = (0..MAX_QUEUED).map(|_| publish().map_err(|error| error.to_string()).unwrap()).collect();
    for _ in 0..10 {
        assert!(matches!(publish().map(drop), Err(BridgeError::Busy { .. })));
    }
    assert_eq!(publisher.messages.len(), MAX_QUEUED);
    assert_eq!(publisher.pending.lock().entries.len(), waiting.len());
    publisher.abandon();
    assert!(matches!(publish().map(drop), Err(BridgeError::Closed)));
}

#[test]
fn restart_fails_everything_that_waits() {
    let (_link, link) = watch::channel(LinkState { up: true, epoch: 1, ..LinkState::default() });
    let publisher = publisher(link);
    let publish = |kind| publisher.publish("a".to_owned(), HeaderMap::new(), Bytes::new(), kind).ok().unwrap();
    let written = publish(ReplyKind::Acknowledgement);
    assert!(publisher.pending.lock().mark_written(written.number, &Subject::from("a"), 7).is_some());
    let waiting = [written, publish(ReplyKind::Acknowledgement), publish(ReplyKind::Response)];
    publisher.restart();
    for reply in waiting {
        assert!(reply.now_or_never().is_some_and(|reply| reply.is_err()), "its sender learns it and retries");
    }
    assert!(publisher.messages.is_empty() && publisher.urgent.is_empty());
    assert!(publisher.pending.lock().all_acknowledged() && publisher.pending.lock().has_capacity());
    assert_eq!(publisher.queued_bytes.load(Ordering::Relaxed), 0);
    drop(publish(ReplyKind::Acknowledgement));
}

#[test]
fn queued_messages_are_bounded_in_bytes() {
    let (_link, link) = watch::channel(LinkState { up: true, epoch: 1, ..LinkState::default() });
    let publisher = publisher(link);
    let large = Bytes::from(vec![0; MAX_QUEUED_BYTES / 4]);
    let publish = || publisher.publish("a".to_owned(), HeaderMap::new(), large.clone(), ReplyKind::Acknowledgement);
    let waiting: Vec<_> = (0..4).map(|_| publish().map_err(|error| error.to_string()).unwrap()).collect();
    assert!(matches!(publish().map(drop), Err(BridgeError::Busy { waiting: 4 })));
    let small = publisher.publish_unawaited("a".to_owned(), HeaderMap::new(), Bytes::new());
    assert!(small.is_ok(), "a small message still fits");
    assert!(publisher.dequeue(&publisher.messages).is_some());
    assert!(publish().is_ok());
    drop(waiting);
}
