//! Regression files: failing cases, stored beside the test and run first from then on.
//!
//! Called by [`Flow::check`](super::Flow::check).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The first lines of a new file.
const HEAD: &str = "\
# Failed cases of flows. They run before all other cases; commit this file with the sources.
# flow/seed/path   violation
";

/// The regressions file of one source file.
pub(super) struct Regressions(Option<PathBuf>);

impl Regressions {
    /// Returns a value without a file.
    pub(super) const fn disabled() -> Self {
        Self(None)
    }

    /// Returns the file beside a source file. The compiler names it relative to the workspace; tests run there or in a subfolder.
    pub(super) fn beside(source: &str) -> Self {
        let here = std::env::current_dir().unwrap_or_default();
        let found = here.ancestors().map(|folder| folder.join(source)).find(|file| file.is_file());
        Self(found.map(|file| file.with_extension("regressions")))
    }

    /// Returns the file at `path`.
    pub(super) fn at(path: &Path) -> Self {
        Self(Some(path.to_owned()))
    }

    /// Returns the cases of a flow: seeds and paths.
    ///
    /// # Errors
    /// If the file exists and cannot be read, or contains an invalid line.
    pub(super) fn cases(&self, flow: &str) -> Result<Vec<(u64, String)>, String> {
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
                _ => Err(format!("{}: invalid case `{case}`; expected flow/seed/path", file.display())),
            })
        });
        cases.collect()
    }

    /// Adds a case, unless it is present. Returns a line for the failure report.
    pub(super) fn add(&self, flow: &str, seed: u64, path: &str, reason: &str) -> String {
        let Some(file) = &self.0 else { return String::new() };
        let case = format!("{flow}/{seed}/{path}");
        let mut text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => HEAD.to_owned(),
            Err(error) => return format!("failed to add the case to {}: {error}\n", file.display()),
        };
        if text.lines().any(|line| line.split_whitespace().next() == Some(&case)) {
            return String::new();
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let reason = reason.lines().next().unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(text, "{case}   {reason}");
        match std::fs::write(file, text) {
            Ok(()) => format!("the case was added to {}\n", file.display()),
            Err(error) => format!("failed to add the case to {}: {error}\n", file.display()),
        }
    }
}
