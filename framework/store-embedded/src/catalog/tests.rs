//! Tests of the catalog.

use std::io;

use super::*;
use crate::tests::memory_disk::MemoryDisk;

fn entry(name: &str, version: u32) -> CatalogEntry {
    CatalogEntry {
        owner: "bank/account".to_owned(),
        kind: "event".to_owned(),
        name: name.to_owned(),
        version,
        codec: 1,
        shape: "{}".to_owned(),
    }
}

#[test]
fn catalog_is_read_as_it_was_saved() {
    let memory = MemoryDisk::default();
    memory.put("catalog.new", b"unfinished");
    assert_eq!(load(&memory.disk()).unwrap(), None, "none was ever saved");
    for entries in [vec![entry("Deposited", 1), entry("Withdrawn", 2)], Vec::new(), vec![entry("Deposited", 3)]] {
        save(&memory.disk(), &entries).unwrap();
        assert_eq!(load(&memory.disk()).unwrap(), Some(entries));
        assert_eq!(memory.names(), ["catalog"]);
    }
}

#[test]
fn damaged_catalog_is_an_error() {
    let memory = MemoryDisk::default();
    save(&memory.disk(), &[entry("Deposited", 1)]).unwrap();
    let whole = memory.bytes("catalog");
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        memory.put("catalog", &damaged);
        let error = load(&memory.disk()).unwrap_err();
        assert!(matches!(&error, StoreError::Corrupt { file, .. } if file.ends_with("catalog")), "{at}: {error}");
    }
    memory.put("catalog", &whole[..11]);
    assert!(matches!(load(&memory.disk()), Err(StoreError::Corrupt { .. })));
}

#[test]
fn failed_save_keeps_the_former_catalog() {
    let memory = MemoryDisk::default();
    save(&memory.disk(), &[entry("Deposited", 1)]).unwrap();
    memory.fail("sync catalog.new", io::ErrorKind::StorageFull);
    assert!(matches!(save(&memory.disk(), &[]), Err(StoreError::Full { .. })));
    memory.repair();
    memory.fail("rename", io::ErrorKind::PermissionDenied);
    assert!(matches!(save(&memory.disk(), &[]), Err(StoreError::Io { .. })));
    assert_eq!(load(&memory.disk()).unwrap(), Some(vec![entry("Deposited", 1)]));
    assert_eq!(memory.names(), ["catalog"], "no partial file is left");
}
