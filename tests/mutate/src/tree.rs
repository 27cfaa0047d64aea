//! The copy of the repository in which the mutants are built.
//!
//! An unchanged file keeps its modification time, so that cargo does not recompile it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::find::{self, Site};
use crate::rewrite::{Rewritten, SWITCH, rewrite};

/// The modules to mutate by default.
pub(crate) const FOLDERS: [&str; 6] = ["inbox", "actor", "relay", "saga", "log", "store-embedded"];

/// The crate that defines the switch.
const SWITCHES: &str = "framework/core/src";

/// The folders of the modules that are mutated.
const SOURCES: [(&str, &str); 6] = [
    ("inbox", "framework/runtime/src/inbox/"),
    ("actor", "framework/runtime/src/actor/"),
    ("relay", "framework/runtime/src/relay/"),
    ("saga", "framework/runtime/src/saga/"),
    ("log", "framework/log/src/"),
    ("store-embedded", "framework/store-embedded/src/"),
];

/// The roots of the mutated crates that import the switch.
const USERS: [&str; 3] =
    ["framework/runtime/src/lib.rs", "framework/log/src/lib.rs", "framework/store-embedded/src/lib.rs"];

/// One mutant of the product.
#[derive(Clone, Debug)]
pub(crate) struct Mutant {
    /// A unique key, which is the same in each run of the same code.
    pub(crate) key: String,
    pub(crate) number: u32,
    pub(crate) folder: &'static str,
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) function: String,
    pub(crate) change: String,
}

/// The repository, read once.
pub(crate) struct Tree {
    top: PathBuf,
    pub(crate) copy: PathBuf,
    files: Vec<String>,
    /// The sites of each mutated file, and the number of its first mutant.
    sites: BTreeMap<String, (u32, Vec<Site>)>,
    pub(crate) mutants: Vec<Mutant>,
}

impl Tree {
    /// Reads the repository at `top` and finds its mutants.
    pub(crate) fn read(top: &Path, copy: PathBuf) -> Result<Self, String> {
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(top)
            .output()
            .map_err(|error| format!("failed to run git: {error}"))?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let files = listed.split('\0').filter(|path| !path.is_empty() && top.join(path).is_file());
        let files: BTreeSet<String> = files.map(str::to_owned).collect();
        let mut tree = Self {
            top: top.to_owned(),
            copy,
            files: files.into_iter().collect(),
            sites: BTreeMap::new(),
            mutants: Vec::new(),
        };
        tree.find()?;
        Ok(tree)
    }

    fn find(&mut self) -> Result<(), String> {
        let sources: Vec<&String> = self.files.iter().filter(|path| folder_of(path).is_some()).collect();
        let mut tests = BTreeSet::new();
        let mut texts = Vec::new();
        for path in sources {
            let text = read(&self.top.join(path))?;
            let folder = path.trim_end_matches(".rs").trim_end_matches("/mod");
            let modules = find::test_modules(&text).map_err(|error| format!("failed to parse {path}: {error}"))?;
            // A `#[path]` is relative to the folder of the file that declares it.
            let beside = path.rsplit_once('/').map_or("", |(beside, _)| beside);
            tests.extend(modules.into_iter().map(|module| match module.strip_suffix(".rs") {
                Some(file) => format!("{beside}/{file}"),
                None => format!("{folder}/{module}"),
            }));
            texts.push((path, text));
        }
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut next = 1;
        for (path, text) in texts {
            let module = path.trim_end_matches(".rs").trim_end_matches("/mod");
            if tests.iter().any(|test| module == test || module.starts_with(&format!("{test}/"))) {
                continue;
            }
            let Some(folder) = folder_of(path) else { continue };
            let sites = find::sites(&text).map_err(|error| format!("failed to parse {path}: {error}"))?;
            let first = next;
            for site in &sites {
                for change in &site.changes {
                    let name = format!("{path} | {} | {}", site.function, change.text);
                    let count = seen.entry(name.clone()).and_modify(|count| *count += 1).or_insert(1);
                    let key = if *count == 1 { name } else { format!("{name} #{count}") };
                    self.mutants.push(Mutant {
                        key,
                        number: next,
                        folder,
                        file: path.clone(),
                        line: site.line,
                        function: site.function.clone(),
                        change: change.text.clone(),
                    });
                    next += 1;
                }
            }
            self.sites.insert(path.clone(), (first, sites));
        }
        Ok(())
    }

    /// Returns a digest of all mutants. Numbers of mutants are comparable between runs with the same digest.
    pub(crate) fn digest(&self) -> String {
        let all: Vec<String> = self.mutants.iter().map(|mutant| format!("{} {}", mutant.number, mutant.key)).collect();
        format!("{:016x}", hash(&all.join("\n")))
    }

    /// Writes the copy with switches for all mutants except `dropped`. Returns the files with switches.
    pub(crate) fn write(&self, dropped: &BTreeSet<u32>) -> Result<BTreeMap<String, Rewritten>, String> {
        let mut rewritten = BTreeMap::new();
        for path in &self.files {
            let from = self.top.join(path);
            let to = self.copy.join(path);
            if let Some((first, sites)) = self.sites.get(path) {
                let file = rewrite(&read(&from)?, sites, *first, dropped);
                update(&to, file.text.as_bytes())?;
                rewritten.insert(path.clone(), file);
            } else {
                let mut bytes = fs::read(&from).map_err(|error| format!("failed to read {path}: {error}"))?;
                if *path == format!("{SWITCHES}/lib.rs") {
                    bytes.extend_from_slice(b"\n#[doc(hidden)]\n#[allow(missing_docs)]\npub mod mutants;\n");
                }
                if USERS.contains(&path.as_str()) {
                    bytes.extend_from_slice(b"\npub(crate) use whizbang_core::mutants;\n");
                }
                update(&to, &bytes)?;
            }
        }
        let (doc, code) = SWITCH.split_once('\n').unwrap_or_default();
        let switch = format!("{doc}\nconst COUNT: usize = {};\n{code}", self.mutants.len() + 1);
        update(&self.copy.join(SWITCHES).join("mutants.rs"), switch.as_bytes())?;
        self.delete_stale(&self.copy, "")?;
        Ok(rewritten)
    }

    /// Deletes the files of the copy that are not in the repository.
    fn delete_stale(&self, folder: &Path, path: &str) -> Result<(), String> {
        let entries = fs::read_dir(folder).map_err(|error| format!("failed to list {}: {error}", folder.display()))?;
        for entry in entries.flatten() {
            let inner = format!("{path}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                self.delete_stale(&entry.path(), &format!("{inner}/"))?;
            } else if self.files.binary_search(&inner).is_err() && inner != format!("{SWITCHES}/mutants.rs") {
                fs::remove_file(entry.path()).map_err(|error| format!("failed to delete {inner}: {error}"))?;
            }
        }
        Ok(())
    }
}

/// Returns the mutated folder that contains a file.
pub(crate) fn folder_of(path: &str) -> Option<&'static str> {
    let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
    let is_code = path.ends_with(".rs") && !is_test && !USERS.contains(&path);
    SOURCES.into_iter().find(|(_, folder)| is_code && path.starts_with(folder)).map(|(name, _)| name)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("failed to read {}: {error}", path.display()))
}

/// Writes a file if it differs, with the permissions of a script.
fn update(path: &Path, bytes: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, bytes));
    written.map_err(|error| format!("failed to write {}: {error}", path.display()))?;
    #[cfg(unix)]
    if bytes.starts_with(b"#!") {
        use std::os::unix::fs::PermissionsExt as _;
        let permissions = fs::Permissions::from_mode(0o755);
        fs::set_permissions(path, permissions)
            .map_err(|error| format!("failed to change {}: {error}", path.display()))?;
    }
    Ok(())
}

/// The FNV-1a hash, which is the same on each machine.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
