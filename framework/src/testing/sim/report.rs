//! What a flow's runs have reached, as a page: for people who call a test and want to see, not to assert.
//!
//! Written by [`Flow::check`](super::Flow::check) into the folder that the variable [`REPORT`] names.

use std::fmt::Write as _;
use std::path::Path;

use super::{Coverage, FaultEvent};

/// The variable that names the folder for the reports.
pub(super) const REPORT: &str = "WHIZBANG_SIM_REPORT";

/// Writes the report of a flow into the folder that the environment names, if it names one.
///
/// # Errors
/// What cannot be written, and why.
pub(super) fn write(flow: &str, coverage: &Coverage) -> Result<(), String> {
    let Some(folder) = std::env::var_os(REPORT) else { return Ok(()) };
    let folder = Path::new(&folder);
    let file = folder.join(format!("{flow}.md"));
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&file, page(flow, coverage)));
    written.map_err(|error| format!("{REPORT}: {}: {error}", file.display()))
}

/// The page: what was never reached, who sends what to whom, each saga, how often what came, and what went wrong.
fn page(flow: &str, coverage: &Coverage) -> String {
    let mut page = format!("# {flow}\n\n## Never reached\n\n");
    let never = coverage.never();
    // Writing into a text does not fail.
    if never.is_empty() {
        let _ = writeln!(page, "Everything was.");
    }
    for what in never {
        let _ = writeln!(page, "- {what}");
    }
    let _ = write!(page, "\n## Who sends what to whom\n\n```mermaid\n{}```\n", coverage.mermaid());
    for actor in coverage.actors.values().filter(|actor| actor.card.role == "saga") {
        let _ = write!(page, "\n## {}\n\n```mermaid\n{}```\n", actor.card.name, actor.mermaid());
    }
    let _ = write!(page, "\n## How often\n\n```text\n{coverage}```\n\n## What went wrong\n\n");
    for trouble in FaultEvent::ALL {
        let count = coverage.troubles().get(trouble).map_or_else(|| "never".to_owned(), u64::to_string);
        let _ = writeln!(page, "- {trouble}: {count}");
    }
    let _ = write!(page, "\n## Which faults struck\n\n");
    for (kind, count) in coverage.faults() {
        let _ = writeln!(page, "- {kind}: asked for {} times, struck {} times", count.asked, count.fired);
    }
    let waits = coverage.waits();
    let _ = write!(
        page,
        "\n## How long messages waited\n\n- measured, because nothing disturbed the cluster: {}\n- of them beside keys that were \
         stuck: {}\n- the longest wait: {:?}\n",
        waits.measured, waits.beside_stuck, waits.longest
    );
    page
}
