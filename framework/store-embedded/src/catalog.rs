//! The catalog, in a file of its own that is replaced as a whole.
//!
//! Compared at each start with the types that the program hosts, so that data under a removed name is not forgotten by
//! accident.

use std::sync::Arc;

use super::disk::{Disk, is_full, read_all, replace};
use super::failure;
use whizbang_core::store::{CatalogEntry, StoreError};

/// The first bytes of the file.
const MAGIC: [u8; 8] = *b"whizcata";
/// The name of the file.
const NAME: &str = "catalog";

/// Replaces the catalog, durably.
pub(super) fn save(disk: &Arc<dyn Disk>, entries: &[CatalogEntry]) -> Result<(), StoreError> {
    let doing = "saving the catalog";
    let content = serde_json::to_vec_pretty(entries).map_err(|error| StoreError::io(doing, error))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&content).to_le_bytes());
    bytes.extend_from_slice(&content);
    replace(&**disk, NAME, &bytes).map_err(|error| match is_full(&error) {
        true => StoreError::Full { at: disk.path("").display().to_string() },
        false => StoreError::io(doing, error),
    })
}

/// Reads the catalog, or `None` if none was ever saved. It is not a cache: a damaged catalog is an error.
pub(super) fn load(disk: &Arc<dyn Disk>) -> Result<Option<Vec<CatalogEntry>>, StoreError> {
    if !disk.names().map_err(failure("listing the store's folder"))?.iter().any(|name| name == NAME) {
        return Ok(None);
    }
    let bytes = read_all(&**disk, NAME).map_err(failure("reading the catalog"))?;
    parse(&bytes).map(Some).map_err(|reason| StoreError::Corrupt { file: disk.path(NAME), offset: 0, reason })
}

/// Parses the entries.
///
/// # Errors
/// The reason why the bytes are not a catalog. The store reports damage, because a catalog cannot be rebuilt from the log.
fn parse(bytes: &[u8]) -> Result<Vec<CatalogEntry>, String> {
    let content = bytes.strip_prefix(&MAGIC).and_then(|rest| rest.split_first_chunk::<4>());
    let (sum, content) = content.ok_or("its header is not that of a catalog")?;
    if crc32fast::hash(content) != u32::from_le_bytes(*sum) {
        return Err("its checksum is wrong; if the file is removed, the node writes a new one at start".to_owned());
    }
    serde_json::from_slice(content).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
