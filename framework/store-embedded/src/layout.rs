//! The file that identifies a store's folder, with its format and its secret seed.
//!
//! A folder with logs and without this file is refused: the seed keys the hashes of streams in checkpoints and snapshots, and
//! a new one would not fit them.

use std::io;
use std::sync::Arc;

use super::disk::{Disk, read_all, replace};
use super::failure;
use whizbang_core::store::StoreError;

/// The newest format of this program, and the only one it writes.
pub(super) const FORMAT: u32 = 1;

/// The name of the file.
const NAME: &str = "whizbang";
/// The beginning of the first line, for people who look at the folder.
const TITLE: &str = "whizbang store";

/// Reads the seed of the store, or initializes the folder with `seed`. Safe to repeat: an existing file is only read.
///
/// # Errors
/// [`StoreError::Newer`] for the format of a later program, [`StoreError::Corrupt`] for a folder with logs and without this
/// file.
pub(super) fn open(disk: &Arc<dyn Disk>, seed: u64) -> Result<u64, StoreError> {
    let names = disk.names().map_err(failure("listing the store's folder"))?;
    if names.iter().any(|name| name == NAME) {
        return read(disk);
    }
    if names.iter().any(|name| name.starts_with("log-")) {
        return Err(damaged(disk, "the file is missing, but there are log files"));
    }
    let text = format!("{TITLE}\nformat {FORMAT}\nseed {seed:016x}\n");
    replace(&**disk, NAME, text.as_bytes()).map_err(|error| {
        if super::disk::is_full(&error) {
            StoreError::Full { at: disk.path("").display().to_string() }
        } else {
            StoreError::io("creating the store", error)
        }
    })?;
    Ok(seed)
}

/// Reads the seed of an existing store.
pub(super) fn read(disk: &Arc<dyn Disk>) -> Result<u64, StoreError> {
    let bytes = read_all(&**disk, NAME).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::Missing { at: disk.path("").display().to_string() },
        _ => StoreError::io("reading the store's format", error),
    })?;
    parse(disk, &bytes)
}

/// Returns the secret key for message digests.
pub(super) fn digest_key(seed: u64) -> u128 {
    // The finalizer of SplitMix64, applied twice: the seed itself keys the stream hashes, and neither key may be
    // derived from the other.
    let mixed = |salt: u64| {
        let mut z = seed ^ salt;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        u128::from(z ^ (z >> 31))
    };
    mixed(0x6469_6765_7374_2031) << 64 | mixed(0x6469_6765_7374_2032)
}

/// Checks title and version, and returns the seed.
fn parse(disk: &Arc<dyn Disk>, bytes: &[u8]) -> Result<u64, StoreError> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged(disk, "not UTF-8"))?;
    let mut lines = text.lines();
    if lines.next() != Some(TITLE) {
        return Err(damaged(disk, "its first line is wrong"));
    }
    let field = |line: Option<&str>, name: &str| {
        line.and_then(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
    };
    let format = field(lines.next(), "format").and_then(|number| number.parse().ok());
    match format {
        None => Err(damaged(disk, "its format is missing")),
        Some(found) if found > FORMAT => {
            Err(StoreError::Newer { at: disk.path("").display().to_string(), found, known: FORMAT })
        }
        // No older format exists.
        Some(found) if found < FORMAT => Err(damaged(disk, "its format is invalid")),
        Some(_) => field(lines.next(), "seed")
            .and_then(|seed| u64::from_str_radix(&seed, 16).ok())
            .ok_or_else(|| damaged(disk, "its seed is missing")),
    }
}

/// Returns the error for a file that is not one of this store.
fn damaged(disk: &Arc<dyn Disk>, reason: &str) -> StoreError {
    StoreError::Corrupt { file: disk.path(NAME), offset: 0, reason: reason.to_owned() }
}
