//! The report of a flow as a Markdown page: reached and unreached paths, diagrams, faults and waiting times.
//!
//! Written by [`Flow::check`](super::Flow::check) to the folder in the variable [`REPORT`].

use std::fmt::Write as _;
use std::path::Path;

use super::{Coverage, FaultEvent};

/// The variable with the folder of the reports.
pub(super) const REPORT: &str = "WHIZBANG_SIM_REPORT";

/// Writes the report of a flow, if the variable is set.
///
/// # Errors
/// If the folder or the file cannot be written.
pub(super) fn write(flow: &str, coverage: &Coverage) -> Result<(), String> {
    let Some(folder) = std::env::var_os(REPORT) else { return Ok(()) };
    let folder = Path::new(&folder);
    let file = folder.join(format!("{flow}.md"));
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&file, page(flow, coverage)));
    written.map_err(|error| format!("{REPORT}: {}: {error}", file.display()))
}

/// Renders the page.
fn page(flow: &str, coverage: &Coverage) -> String {
    let mut page = format!("# {flow}\n\n## Never reached\n\n");
    let unreached = coverage.unreached();
    // Writing to a string does not fail.
    if unreached.is_empty() {
        let _ = writeln!(page, "None.");
    }
    for what in unreached {
        let _ = writeln!(page, "- {what}");
    }
    let _ = write!(page, "\n## Messages between actors\n\n```mermaid\n{}```\n", coverage.mermaid());
    for actor in coverage.actors.values().filter(|actor| actor.card.role == "saga") {
        let _ = write!(page, "\n## {}\n\n```mermaid\n{}```\n", actor.card.name, actor.mermaid());
    }
    let _ = write!(page, "\n## Coverage\n\n```text\n{coverage}```\n\n## Fault events\n\n");
    for event in FaultEvent::ALL {
        let count = coverage.fault_events().get(event).map_or_else(|| "never".to_owned(), u64::to_string);
        let _ = writeln!(page, "- {event}: {count}");
    }
    let _ = write!(page, "\n## Injected faults\n\n");
    for (kind, count) in coverage.faults() {
        let _ = writeln!(page, "- {kind}: injected {} times, hit {} times", count.requested, count.fired);
    }
    let wait_times = coverage.wait_times();
    let _ = write!(
        page,
        "\n## Waiting times\n\n- measured undisturbed messages: {}\n- of them beside keys that were \
         stuck: {}\n- longest wait: {:?}\n",
        wait_times.measured, wait_times.beside_stuck, wait_times.longest
    );
    page
}
