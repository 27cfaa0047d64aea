//! Tests of saved views.

use std::io;

use super::*;
use crate::tests::memory_disk::MemoryDisk;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn view(schema: u32, bytes: &'static [u8]) -> View {
    let checkpoint = vec![(ShardId::new(name("bank"), 0), 300), (ShardId::new(name("shop"), 7), 0)];
    View { schema, checkpoint, bytes: Bytes::from_static(bytes) }
}

#[test]
fn views_are_read_as_they_were_saved() {
    let memory = MemoryDisk::default();
    let disk = memory.disk();
    assert_eq!(load(&disk, &name("Balances")).unwrap(), None);
    assert_eq!(names(&disk).unwrap(), []);
    save(&disk, &name("Balances"), &view(1, b"old")).unwrap();
    save(&disk, &name("Balances"), &view(2, b"new")).unwrap();
    save(&disk, &name("Totals"), &view(3, &[7; 5000])).unwrap();
    memory.put("view-Balances.new", b"unfinished");
    memory.put("viewer", b"another file");
    assert_eq!(load(&disk, &name("Balances")).unwrap(), Some(view(2, b"new")));
    assert_eq!(load(&disk, &name("Totals")).unwrap(), Some(view(3, &[7; 5000])));
    assert_eq!(load(&disk, &name("Other")).unwrap(), None);
    assert_eq!(names(&disk).unwrap(), [name("Balances"), name("Totals")]);
    assert!(memory.names().contains(&"view-Totals".to_owned()));
}

#[test]
fn damaged_view_counts_as_missing() {
    let memory = MemoryDisk::default();
    save(&memory.disk(), &name("Balances"), &view(1, b"content")).unwrap();
    let whole = memory.bytes("view-Balances");
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        memory.put("view-Balances", &damaged);
        assert_eq!(load(&memory.disk(), &name("Balances")).unwrap(), None, "byte {at}");
    }
    memory.put("view-Balances", &[whole.clone(), vec![0]].concat());
    assert_eq!(load(&memory.disk(), &name("Balances")).unwrap(), None, "trailing bytes");
    memory.fail("open view-", io::ErrorKind::PermissionDenied);
    assert!(matches!(load(&memory.disk(), &name("Balances")), Err(StoreError::Io { .. })));
}

#[test]
fn failed_save_keeps_the_former_view() {
    let memory = MemoryDisk::default();
    save(&memory.disk(), &name("Balances"), &view(1, b"kept")).unwrap();
    memory.set_size(Some(memory.bytes("view-Balances").len() + 10));
    assert!(matches!(save(&memory.disk(), &name("Balances"), &view(2, b"lost")), Err(StoreError::Full { .. })));
    memory.fail("rename", io::ErrorKind::Other);
    memory.set_size(None);
    assert!(matches!(save(&memory.disk(), &name("Balances"), &view(2, b"lost")), Err(StoreError::Io { .. })));
    assert_eq!(load(&memory.disk(), &name("Balances")).unwrap(), Some(view(1, b"kept")));
}
