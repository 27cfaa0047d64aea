//! Tests of the identity of a store.

use std::io;

use super::*;
use crate::tests::memory_disk::MemoryDisk;

fn identity(bits: u128) -> StoreIdentity {
    StoreIdentity::new(StoreId::from_u128(bits))
}

#[test]
fn identity_is_created_once_and_then_kept() {
    let memory = MemoryDisk::default();
    memory.put("identity.new", b"unfinished");
    assert_eq!(load(&memory.disk()).unwrap(), None);
    open(&memory.disk(), || 5).unwrap();
    open(&memory.disk(), || panic!("it has an identity")).unwrap();
    assert_eq!(load(&memory.disk()).unwrap(), Some(identity(5)));
    let (claimed, _) = identity(5).trying(9);
    save(&memory.disk(), &claimed).unwrap();
    assert_eq!(load(&memory.disk()).unwrap(), Some(claimed));
    assert_eq!(memory.names(), ["identity"]);
}

#[test]
fn damaged_identity_is_an_error() {
    let memory = MemoryDisk::default();
    save(&memory.disk(), &identity(5)).unwrap();
    let whole = memory.bytes("identity");
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        memory.put("identity", &damaged);
        let error = load(&memory.disk()).unwrap_err();
        assert!(matches!(&error, StoreError::Corrupt { file, .. } if file.ends_with("identity")), "{at}: {error}");
        assert!(open(&memory.disk(), || 6).is_err(), "it is not replaced");
    }
}

#[test]
fn failed_save_keeps_the_former_identity() {
    let memory = MemoryDisk::default();
    save(&memory.disk(), &identity(5)).unwrap();
    memory.fail("write identity.new", io::ErrorKind::QuotaExceeded);
    assert!(matches!(save(&memory.disk(), &identity(6)), Err(StoreError::Full { .. })));
    memory.repair();
    memory.fail("sync", io::ErrorKind::Other);
    assert!(matches!(save(&memory.disk(), &identity(6)), Err(StoreError::Io { .. })));
    memory.repair();
    assert_eq!(load(&memory.disk()).unwrap(), Some(identity(5)));
}
