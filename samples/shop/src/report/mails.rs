//! Counts the e-mails that were written.

use std::io;
use std::path::Path;

/// Counts the e-mails in a folder.
///
/// # Errors
/// An I/O error if the folder cannot be read; a missing folder counts as zero.
pub fn mails_in(folder: &Path) -> io::Result<u64> {
    let files = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        files => files?,
    };
    let mut count = 0;
    for file in files {
        count += u64::from(file?.path().extension().is_some_and(|extension| extension == "eml"));
    }
    Ok(count)
}
