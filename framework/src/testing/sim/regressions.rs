//! Cases that did not hold once: kept in a file beside the test, and run first from then on.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What stands at the top of a new file.
const HEAD: &str = "\
# Cases of flows that did not hold once. They are run before any others; keep this file with the sources.
# flow/seed/what-is-kept   what did not hold
";

/// The file with the regressions of one source file.
pub(super) struct Regressions(Option<PathBuf>);

impl Regressions {
    /// No file.
    pub(super) const fn nowhere() -> Self {
        Self(None)
    }

    /// The file beside a source file, as the compiler names it: from the workspace's folder, in which or below which tests run.
    pub(super) fn beside(source: &str) -> Self {
        let here = std::env::current_dir().unwrap_or_default();
        let found = here.ancestors().map(|folder| folder.join(source)).find(|file| file.is_file());
        Self(found.map(|file| file.with_extension("regressions")))
    }

    /// The file at `path`.
    pub(super) fn at(path: &Path) -> Self {
        Self(Some(path.to_owned()))
    }

    /// The cases of a flow: seeds, and what is kept of them.
    ///
    /// # Errors
    /// What reading a file that is there can meet, and lines that are no cases.
    pub(super) fn of(&self, flow: &str) -> Result<Vec<(u64, String)>, String> {
        let Some(file) = self.0.as_deref().filter(|file| file.exists()) else { return Ok(Vec::new()) };
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let cases = lines.filter_map(|line| {
            let case = line.split_whitespace().next().unwrap_or_default();
            let mut parts = case.split('/');
            let (of, seed, path) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
            if of != Some(flow) {
                return None;
            }
            Some(match seed.map(str::parse) {
                Some(Ok(seed)) => Ok((seed, path.to_owned())),
                _ => Err(format!(
                    "{}: `{case}` is no case: a flow, a seed and what is kept belong there",
                    file.display()
                )),
            })
        });
        cases.collect()
    }

    /// Adds a case, if it is not there yet. What has become of it, as a line for people.
    pub(super) fn keep(&self, flow: &str, seed: u64, path: &str, reason: &str) -> String {
        let Some(file) = &self.0 else { return String::new() };
        let case = format!("{flow}/{seed}/{path}");
        let mut text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => HEAD.to_owned(),
            Err(error) => return format!("the case cannot be kept in {}: {error}\n", file.display()),
        };
        if text.lines().any(|line| line.split_whitespace().next() == Some(&case)) {
            return String::new();
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let reason = reason.lines().next().unwrap_or_default();
        // Writing into a text does not fail.
        let _ = writeln!(text, "{case}   {reason}");
        match std::fs::write(file, text) {
            Ok(()) => format!("the case is kept in {}\n", file.display()),
            Err(error) => format!("the case cannot be kept in {}: {error}\n", file.display()),
        }
    }
}
