//! Views, each in a file of its own that is replaced as a whole.
//!
//! A view is one file that is replaced as a whole. A crash leaves the former one, whose checkpoint tells the projection which
//! events to apply again.

use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, is_full, read_all, replace};
use super::failure;
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{StoreError, View};
use whizbang_log::record::decode::Decoder;
use whizbang_log::record::{Malformed, Names, encode};

/// The first bytes of a view.
const MAGIC: [u8; 8] = *b"whizview";
const PREFIX: &str = "view-";

/// Returns the name of a view's file.
fn file(projection: &Name) -> String {
    format!("{PREFIX}{projection}")
}

/// Returns the names of the saved views.
pub(super) fn names(disk: &Arc<dyn Disk>) -> Result<Vec<Name>, StoreError> {
    let files = disk.names().map_err(failure("listing the store's folder"))?;
    // The file of an interrupted replacement is not a view.
    Ok(files.iter().filter_map(|name| Name::new(name.strip_prefix(PREFIX)?).ok()).collect())
}

/// Replaces a view, durably.
pub(super) fn save(disk: &Arc<dyn Disk>, projection: &Name, view: &View) -> Result<(), StoreError> {
    let mut content = Vec::with_capacity(view.bytes.len() + 256);
    encode::number(&mut content, u64::from(view.schema));
    encode::number(&mut content, view.checkpoint.len() as u64);
    for (shard, position) in &view.checkpoint {
        encode::text(&mut content, &shard.domain);
        encode::number(&mut content, u64::from(shard.shard));
        encode::number(&mut content, *position);
    }
    encode::bytes(&mut content, &view.bytes);
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&content).to_le_bytes());
    bytes.extend_from_slice(&content);
    replace(&**disk, &file(projection), &bytes).map_err(|error| {
        if is_full(&error) {
            StoreError::Full { at: disk.path("").display().to_string() }
        } else {
            StoreError::io(format!("saving the view `{projection}`"), error)
        }
    })
}

/// Reads a view. A damaged view counts as missing, because it can be rebuilt.
pub(super) fn load(disk: &Arc<dyn Disk>, projection: &Name) -> Result<Option<View>, StoreError> {
    let name = file(projection);
    if !disk.names().map_err(failure("listing the store's folder"))?.contains(&name) {
        return Ok(None);
    }
    let bytes = Bytes::from(read_all(&**disk, &name).map_err(failure("reading a view"))?);
    match parse(&bytes) {
        Ok(view) => Ok(Some(view)),
        Err(Malformed(reason)) => {
            tracing::warn!(target: whizbang_core::telemetry::TARGET, %projection, reason, "saved view discarded: it cannot be read");
            Ok(None)
        }
    }
}

/// Parses a view, whose checksum must match.
fn parse(bytes: &Bytes) -> Result<View, Malformed> {
    let decoder = &mut Decoder(bytes);
    if decoder.array()? != MAGIC {
        return Err(Malformed("its header is not that of a view"));
    }
    let sum: [u8; 4] = decoder.array()?;
    if crc32fast::hash(decoder.0) != u32::from_le_bytes(sum) {
        return Err(Malformed("its checksum is wrong"));
    }
    let mut names = Names::default();
    let schema = decoder.small()?;
    let count = decoder.count()?;
    let mut checkpoint = Vec::with_capacity(count);
    for _ in 0..count {
        checkpoint.push((ShardId::new(names.get(decoder.text()?)?, decoder.shard()?), decoder.number()?));
    }
    let bytes = bytes.slice_ref(decoder.bytes()?);
    if decoder.is_empty() { Ok(View { schema, checkpoint, bytes }) } else { Err(Malformed("trailing bytes")) }
}

#[cfg(test)]
mod tests;
