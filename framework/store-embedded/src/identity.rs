//! The store's identity and its claims, in a file of its own that is replaced as a whole.
//!
//! Peers remember it with the positions that they have seen. A folder that was restored from a backup keeps its identity, and
//! the positions reveal that its log is older.

use std::sync::Arc;

use super::disk::{Disk, is_full, read_all, replace};
use super::failure;
use whizbang_core::message::{StoreId, StoreIdentity};
use whizbang_core::store::StoreError;

/// The first bytes of the file.
const MAGIC: [u8; 8] = *b"whizself";
/// The name of the file.
const NAME: &str = "identity";

/// Creates an identity if the store has none, because it is new or was created by an older version.
pub(super) fn open(disk: &Arc<dyn Disk>, bits: impl FnOnce() -> u128) -> Result<(), StoreError> {
    match load(disk)? {
        Some(_) => Ok(()),
        None => save(disk, &StoreIdentity::new(StoreId::from_u128(bits()))),
    }
}

/// Replaces the file, durably.
pub(super) fn save(disk: &Arc<dyn Disk>, identity: &StoreIdentity) -> Result<(), StoreError> {
    let doing = "saving the store's identity";
    let content = serde_json::to_vec_pretty(identity).map_err(|error| StoreError::io(doing, error))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&content).to_le_bytes());
    bytes.extend_from_slice(&content);
    replace(&**disk, NAME, &bytes).map_err(|error| match is_full(&error) {
        true => StoreError::Full { at: disk.path("").display().to_string() },
        false => StoreError::io(doing, error),
    })
}

/// Reads the identity, or `None` if the store has none yet. It is not a cache: a damaged file is an error.
pub(super) fn load(disk: &Arc<dyn Disk>) -> Result<Option<StoreIdentity>, StoreError> {
    if !disk.names().map_err(failure("listing the store's folder"))?.iter().any(|name| name == NAME) {
        return Ok(None);
    }
    let bytes = read_all(&**disk, NAME).map_err(failure("reading the store's identity"))?;
    parse(&bytes).map(Some).map_err(|reason| StoreError::Corrupt { file: disk.path(NAME), offset: 0, reason })
}

/// Parses the identity.
///
/// # Errors
/// The reason why the bytes are not an identity. The store reports damage: peers would take a new identity for another store.
fn parse(bytes: &[u8]) -> Result<StoreIdentity, String> {
    let content = bytes.strip_prefix(&MAGIC).and_then(|rest| rest.split_first_chunk::<4>());
    let (sum, content) = content.ok_or("its header is not that of an identity")?;
    if crc32fast::hash(content) != u32::from_le_bytes(*sum) {
        return Err("its checksum is wrong; if the file is removed, peers see another store".to_owned());
    }
    serde_json::from_slice(content).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
