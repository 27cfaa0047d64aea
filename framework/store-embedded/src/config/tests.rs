//! Tests of the configuration.

use super::*;

fn sizes(config: &EmbeddedConfig) -> Vec<u64> {
    (0..6).map(|number| config.size_of_segment(number)).collect()
}

#[test]
fn segments_grow_fourfold_up_to_their_limit() {
    const MIB: u64 = 1 << 20;
    let config = EmbeddedConfig::default();
    assert_eq!(sizes(&config), [4, 4, 16, 64, 64, 64].map(|size| size * MIB));
    let large = config.segment_bytes(1000 * MIB);
    assert_eq!(sizes(&large), [4, 4, 16, 64, 256, 1000].map(|size| size * MIB));
    assert_eq!(large.size_of_segment(u64::MAX), 1000 * MIB);
    assert_eq!(sizes(&large.segment_bytes(3 * MIB)), [3 * MIB; 6], "the first one is not larger than the others");
}

#[test]
fn sizes_have_lower_limits() {
    let config = EmbeddedConfig::default().segment_bytes(1).checkpoint_bytes(0);
    assert_eq!((sizes(&config), config.checkpoint_bytes), (vec![4096; 6], 1));
    let config = EmbeddedConfig::default().segment_bytes(4097).checkpoint_bytes(2);
    assert_eq!((sizes(&config), config.checkpoint_bytes), (vec![4097; 6], 2));
}
