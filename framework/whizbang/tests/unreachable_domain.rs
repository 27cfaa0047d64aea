//! Commands to a domain that the node neither hosts nor reaches: they stay in the outbox, and health reports them.

mod orders;

use orders::*;
use whizbang::prelude::*;

#[whizbang::test]
async fn send_to_unhosted_domain_shows_in_health() {
    let store = MemoryStore::new();
    for _start in 0..2 {
        let node = Node::builder("shop", store.clone()).threads(0).saga::<Order>().start().await.unwrap();
        if _start == 0 {
            assert_eq!(node.health().reasons, [""; 0]);
            place(&node, "o", &["a", "b"]).await.unwrap();
        }
        // Commands that cannot be delivered do not keep the node busy.
        node.wait_idle().await;
        let health = node.health();
        let [reason] = &health.reasons[..] else { panic!("{health:?}") };
        assert!(reason.contains("`stock`") && reason.contains("does not host"), "{reason}");
        assert!(!health.ready, "a node with a missing route is not ready");
        node.stop().await.unwrap();
    }
    // Nothing was lost.
    let node = start(&store).await;
    node.wait_idle().await;
    assert_eq!((taken(&node, "a").await, taken(&node, "b").await), (1, 1));
    assert_eq!(node.health().reasons, [""; 0]);
}
