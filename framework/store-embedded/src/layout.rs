//! The file that identifies a store's folder, with its format, its secret seed, and its mark if it is a part of a move.
//!
//! A folder with logs and without this file is refused: the seed keys the hashes of streams in checkpoints and snapshots, and
//! a new one would not fit them.

use std::io;
use std::sync::Arc;

use super::disk::{Disk, read_all, replace};
use super::failure;
use whizbang_core::store::StoreError;
use whizbang_log::transfer::{MoveMark, MoveState};

/// The newest format of this program. Only stores that were moved have it: it adds the key of the digests and the mark.
pub(super) const FORMAT: u32 = 2;

/// The format of a store that was never moved.
const FIRST_FORMAT: u32 = 1;

/// The name of the file.
const NAME: &str = "whizbang";
/// The beginning of the first line, for people that look at the folder.
const TITLE: &str = "whizbang store";

/// The first characters of the names of all files that only a store has.
const PREFIXES: [&str; 8] = [NAME, "log-", "index-", "snapshots-", "view-", "ids", "identity", "catalog"];

/// The content of the file.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The secret seed of the hashes of streams. A copy has its own.
    pub(super) seed: u64,
    /// The key of the digests, if it is not derived from the seed: the store was copied from another one.
    digest: Option<u128>,
    /// The mark of a part of a move. A store without it can be used.
    mark: Option<MoveMark>,
}

impl Layout {
    /// Creates the layout of a new store.
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, digest: None, mark: None }
    }

    /// Creates the layout of a store into which another one is copied.
    pub(super) fn copied(seed: u64, digest: u128, number: u128) -> Self {
        Self { seed, digest: Some(digest), mark: Some(MoveMark::new(number, MoveState::Copying)) }
    }

    /// Returns the secret key for message digests.
    pub(super) fn digest_key(&self) -> u128 {
        self.digest.unwrap_or_else(|| digest_key(self.seed))
    }

    /// Returns the mark, if the store is a part of a move.
    pub(super) fn mark(&self) -> Option<&MoveMark> {
        self.mark.as_ref()
    }

    /// Returns the same layout with another mark.
    pub(super) fn marked(&self, mark: Option<MoveMark>) -> Self {
        Self { mark, ..self.clone() }
    }

    /// Returns the layout if the store can be used.
    ///
    /// # Errors
    /// [`StoreError::Moved`] or [`StoreError::Unfinished`] for a part of a move.
    pub(super) fn usable(self, disk: &Arc<dyn Disk>) -> Result<Self, StoreError> {
        match &self.mark {
            Some(mark) => Err(mark.refusal(place(disk))),
            None => Ok(self),
        }
    }

    /// Replaces the file, durably. `doing` names the operation in the error; the file is the old or the new one then.
    pub(super) fn save(&self, disk: &Arc<dyn Disk>, doing: &'static str) -> Result<(), StoreError> {
        replace(&**disk, NAME, self.text().as_bytes()).map_err(|error| match super::disk::is_full(&error) {
            true => StoreError::Full { at: place(disk) },
            false => StoreError::io(doing, error),
        })
    }

    /// Returns the content of the file. A store that was never moved is written as by the first version.
    fn text(&self) -> String {
        let format = if self.digest.is_some() || self.mark.is_some() { FORMAT } else { FIRST_FORMAT };
        let mut text = format!("{TITLE}\nformat {format}\nseed {:016x}\n", self.seed);
        if let Some(digest) = self.digest {
            text += &format!("digest {digest:032x}\n");
        }
        if let Some(mark) = &self.mark {
            text += &format!("move {mark}\n");
        }
        if format > FIRST_FORMAT {
            text += &format!("sum {:08x}\n", crc32fast::hash(text.as_bytes()));
        }
        text
    }

    /// Reads the lines after the format. The last line of all formats but the first is a checksum.
    fn parse<'a>(format: u32, mut lines: impl Iterator<Item = &'a str>) -> Option<Self> {
        let seed = u64::from_str_radix(lines.next()?.strip_prefix("seed ")?, 16).ok()?;
        let mut layout = Self::new(seed);
        for line in lines.take_while(|_| format > FIRST_FORMAT) {
            match line.split_once(' ')? {
                ("digest", key) => layout.digest = Some(u128::from_str_radix(key, 16).ok()?),
                ("move", mark) => layout.mark = Some(MoveMark::parse(mark)?),
                ("sum", _) => {}
                _ => return None,
            }
        }
        Some(layout)
    }
}

/// Returns the folder, for messages.
pub(super) fn place(disk: &Arc<dyn Disk>) -> String {
    disk.path("").display().to_string()
}

/// Reads the layout of a store that can be used, or initializes the folder with `seed`. Safe to repeat: an existing file is only
/// read.
///
/// # Errors
/// [`StoreError::Newer`] for the format of a later program, [`StoreError::Corrupt`] for a folder with logs and without this
/// file, and those of a store that is a part of a move.
pub(super) fn open(disk: &Arc<dyn Disk>, seed: u64) -> Result<Layout, StoreError> {
    let names = disk.names().map_err(failure("listing the store's folder"))?;
    if names.iter().any(|name| name == NAME) {
        return read(disk)?.usable(disk);
    }
    if names.iter().any(|name| name.starts_with("log-")) {
        return Err(damaged(disk, "the file is missing, but there are log files"));
    }
    let layout = Layout::new(seed);
    layout.save(disk, "creating the store")?;
    Ok(layout)
}

/// Initializes a folder without a store.
///
/// # Errors
/// [`StoreError::NotEmpty`] if the folder contains anything of a store, also the copy of an interrupted move. Nothing was changed.
pub(super) fn create(disk: &Arc<dyn Disk>, layout: Layout) -> Result<Layout, StoreError> {
    let names = disk.names().map_err(failure("listing the store's folder"))?;
    if names.iter().any(|name| name == NAME)
        && let Some(mark) = read(disk)?.mark
    {
        return Err(mark.occupies(place(disk)));
    }
    if names.iter().any(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix))) {
        return Err(StoreError::NotEmpty { at: place(disk) });
    }
    layout.save(disk, "creating the store")?;
    Ok(layout)
}

/// Reads the layout of an existing store.
pub(super) fn read(disk: &Arc<dyn Disk>) -> Result<Layout, StoreError> {
    let bytes = read_all(&**disk, NAME).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::Missing { at: place(disk) },
        _ => StoreError::io("reading the store's format", error),
    })?;
    parse(disk, &bytes)
}

/// Derives the secret key for message digests.
fn digest_key(seed: u64) -> u128 {
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

/// Checks title and version, and returns the content.
fn parse(disk: &Arc<dyn Disk>, bytes: &[u8]) -> Result<Layout, StoreError> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged(disk, "not UTF-8"))?;
    let mut lines = text.lines();
    if lines.next() != Some(TITLE) {
        return Err(damaged(disk, "its first line is wrong"));
    }
    let format = lines.next().and_then(|line| line.strip_prefix("format ")?.parse().ok());
    match format {
        None => Err(damaged(disk, "its format is missing")),
        Some(found) if found > FORMAT => Err(StoreError::Newer { at: place(disk), found, known: FORMAT }),
        // No older format exists.
        Some(found) if found < FIRST_FORMAT => Err(damaged(disk, "its format is invalid")),
        Some(format) if format > FIRST_FORMAT && !is_whole(text) => Err(damaged(disk, "its checksum is wrong")),
        Some(format) => Layout::parse(format, lines).ok_or_else(|| match text.contains("\nseed ") {
            true => damaged(disk, "a line is invalid"),
            false => damaged(disk, "its seed is missing"),
        }),
    }
}

/// Returns whether the text ends with the checksum of everything before it.
fn is_whole(text: &str) -> bool {
    text.rsplit_once("sum ").is_some_and(|(content, sum)| {
        u32::from_str_radix(sum.trim_end(), 16).is_ok_and(|sum| sum == crc32fast::hash(content.as_bytes()))
    })
}

/// Returns the error for a file that is not one of this store.
fn damaged(disk: &Arc<dyn Disk>, reason: &str) -> StoreError {
    StoreError::Corrupt { file: disk.path(NAME), offset: 0, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::disk::Folder;
    use super::*;

    fn disk(folder: &tempfile::TempDir) -> Arc<dyn Disk> {
        Arc::new(Folder::at(folder.path()))
    }

    #[test]
    fn store_that_never_moved_keeps_the_first_format() {
        let folder = tempfile::tempdir().unwrap();
        open(&disk(&folder), 0x1234).unwrap();
        let text = std::fs::read_to_string(folder.path().join(NAME)).unwrap();
        assert_eq!(text, "whizbang store\nformat 1\nseed 0000000000001234\n");
    }

    #[test]
    fn moved_store_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder);
        let mut layout = create(&disk, Layout::copied(3, 4, 5)).unwrap();
        // Frozen, like every format.
        let lines = "whizbang store\nformat 2\nseed 0000000000000003\ndigest 00000000000000000000000000000004\n\
            move copying 00000000000000000000000000000005\nsum c26ecccb\n";
        assert_eq!(std::fs::read_to_string(folder.path().join(NAME)).unwrap(), lines);
        assert!(matches!(open(&disk, 9), Err(StoreError::Unfinished { .. })));
        let occupied = create(&disk, Layout::new(9)).unwrap_err().to_string();
        assert!(occupied.contains("delete it if its source was the same"), "{occupied}");
        for state in [Some(MoveState::Complete), None, Some(MoveState::Away("sum of\nseed 7".to_owned()))] {
            layout = layout.marked(state.map(|state| MoveMark::new(5, state)));
            layout.save(&disk, "testing").unwrap();
            let found = read(&disk).unwrap();
            assert_eq!((found.seed, found.digest_key(), found.text()), (3, 4, layout.text()));
        }
        assert!(matches!(open(&disk, 9), Err(StoreError::Moved { to, .. }) if to == "sum of seed 7"));
        assert!(matches!(create(&disk, Layout::new(9)), Err(StoreError::NotEmpty { .. })));
    }

    #[test]
    fn changed_byte_of_a_moved_store_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder);
        let text = create(&disk, Layout::copied(3, 4, 5)).unwrap().text();
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            std::fs::write(folder.path().join(NAME), &bytes).unwrap();
            let error = read(&disk).unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. } | StoreError::Newer { .. }), "{at}: {error}");
        }
    }

    #[test]
    fn digest_key_of_a_known_seed_is_frozen() {
        // Computed by another program.
        assert_eq!(Layout::new(0).digest_key(), 0x6996_4D90_2470_71E4_EBF0_E9B5_208B_695A);
        assert_eq!(Layout::new(0x1234).digest_key(), 0x1FBF_A878_5D9D_80C6_43B3_5D1E_F30E_FBDE);
        assert_eq!(Layout::new(u64::MAX).digest_key(), 0xCB17_0E1E_684C_337A_8954_6424_BACF_02F8);
        assert_eq!(Layout::copied(1, 77, 5).digest_key(), 77, "a copy keeps the key of its source");
    }

    #[test]
    fn mark_of_a_store_that_never_moved_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder);
        let away = MoveMark::new(5, MoveState::Away("elsewhere".to_owned()));
        open(&disk, 7).unwrap().marked(Some(away.clone())).save(&disk, "testing").unwrap();
        let found = read(&disk).unwrap();
        assert_eq!((found.seed, found.mark(), found.digest_key()), (7, Some(&away), digest_key(7)));
        assert!(matches!(open(&disk, 8), Err(StoreError::Moved { to, .. }) if to == "elsewhere"));
    }

    #[test]
    fn invalid_files_are_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder);
        for (text, reason) in [
            ("another store\nformat 1\nseed 1\n", "its first line is wrong"),
            ("whizbang store\nseed 1\n", "its format is missing"),
            ("whizbang store\nformat one\nseed 1\n", "its format is missing"),
            ("whizbang store\nformat 0\nseed 1\n", "its format is invalid"),
            ("whizbang store\nformat 1\n", "its seed is missing"),
            ("whizbang store\nformat 1\nseed x\n", "a line is invalid"),
            ("whizbang store\nformat 2\nseed 1\n", "its checksum is wrong"),
        ] {
            std::fs::write(folder.path().join(NAME), text).unwrap();
            match read(&disk) {
                Err(StoreError::Corrupt { file, reason: found, .. }) => {
                    assert_eq!((found.as_str(), file), (reason, folder.path().join(NAME)), "{text}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
        std::fs::write(folder.path().join(NAME), "whizbang store\nformat 3\n").unwrap();
        assert!(matches!(read(&disk), Err(StoreError::Newer { found: 3, known: 2, .. })));
    }

    #[test]
    fn only_the_seed_of_the_first_format_is_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), "whizbang store\nformat 1\nseed ff\ndigest 5\nanything\n").unwrap();
        let found = open(&disk(&folder), 9).unwrap();
        assert_eq!((found.seed, found.digest_key()), (255, digest_key(255)));
    }

    #[test]
    fn unknown_line_of_a_moved_store_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let content = "whizbang store\nformat 2\nseed 1\ncolor red\n";
        let text = format!("{content}sum {:08x}\n", crc32fast::hash(content.as_bytes()));
        std::fs::write(folder.path().join(NAME), text).unwrap();
        assert!(
            matches!(read(&disk(&folder)), Err(StoreError::Corrupt { reason, .. }) if reason == "a line is invalid")
        );
    }

    #[test]
    fn folder_with_files_of_a_store_is_not_initialized() {
        for name in ["log-0000000001", "index-0000000001", "snapshots-1", "view-x", "ids", "identity", "catalog"] {
            let folder = tempfile::tempdir().unwrap();
            let disk = disk(&folder);
            std::fs::write(folder.path().join("notes.txt"), "kept").unwrap();
            std::fs::write(folder.path().join(name), "kept").unwrap();
            let at = folder.path().display().to_string();
            assert!(matches!(create(&disk, Layout::new(1)), Err(StoreError::NotEmpty { at: found }) if found == at));
            assert!(!folder.path().join(NAME).exists(), "{name}");
        }
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder);
        assert!(matches!(read(&disk), Err(StoreError::Missing { .. })));
        std::fs::write(folder.path().join("notes.txt"), "kept").unwrap();
        assert_eq!(create(&disk, Layout::new(1)).unwrap().text(), read(&disk).unwrap().text());
        assert!(matches!(create(&disk, Layout::new(1)), Err(StoreError::NotEmpty { .. })), "it has a store now");
    }

    #[test]
    fn log_without_its_seed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("log-0000000001"), "x").unwrap();
        let error = open(&disk(&folder), 1).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert!(!folder.path().join(NAME).exists());
    }
}
