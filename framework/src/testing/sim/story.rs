//! A failing case as people read it: what was done, what broke, what each actor did, what fell, and how to see it again.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::seen::{Phase, Taken};

/// The variable that names one case to play again.
pub(super) const REPLAY: &str = "WHIZBANG_SIM";
/// The variable that names the seeds to check instead of those in the code.
pub(super) const SEEDS: &str = "WHIZBANG_SIM_SEEDS";
/// How many lines of the end of what happened are shown.
const SHOWN: usize = 150;
/// How many lines of its beginning.
const BEGINNING: usize = 50;

/// The line that plays a case again, from any folder of the workspace.
pub(super) fn replay(flow: &str, seed: u64, path: &str) -> String {
    let mut line = format!("{REPLAY}={flow}/{seed}/{path} cargo test");
    // Cargo calls a test program by its name and a hash; library tests and programs are found without their name.
    let program = std::env::current_exe().ok();
    let stem = program.as_deref().and_then(|program| program.file_stem()?.to_str());
    let in_tests = std::env::current_dir().unwrap_or_default().join("tests");
    if let Some((name, _)) = stem.and_then(|stem| stem.rsplit_once('-'))
        && (in_tests.join(name).with_extension("rs").is_file() || in_tests.join(name).join("main.rs").is_file())
    {
        let _ = write!(line, " --test {name}");
    }
    // The test harness names the thread of a test after it, unless it runs all on its own.
    if let Some(test) = std::thread::current().name().filter(|name| *name != "main") {
        let _ = write!(line, " {test}");
    }
    line
}

/// What happened: all of it if it is short, or how it began and how it ended.
pub(super) fn ending(trace: &str) -> String {
    let lines: Vec<_> = trace.lines().collect();
    let Some(left_out) = lines.len().checked_sub(BEGINNING + SHOWN + 1) else { return lines.join("\n") };
    let beginning = lines.get(..BEGINNING).unwrap_or_default().join("\n");
    let shown = lines.get(BEGINNING + left_out + 1..).unwrap_or_default().join("\n");
    format!("{beginning}\n({} lines are left out)\n{shown}", left_out + 1)
}

/// What each actor did, actor by actor.
pub(super) fn deeds(turns: &[Taken]) -> String {
    let mut actors: BTreeMap<(&str, &str, &str), String> = BTreeMap::new();
    for turn in turns {
        let text = actors.entry((&turn.domain, &turn.actor, &turn.key)).or_default();
        let late = match turn.phase {
            Phase::Open => "",
            Phase::Undoing => " (while it undoes)",
            Phase::Ended => " (after its end)",
        };
        let mut came = turn.records.clone();
        came.extend(Some(turn.effects()).filter(|effects| !effects.is_empty()));
        let came = if came.is_empty() { "nothing".to_owned() } else { came.join(", ") };
        // Writing into a text does not fail.
        let _ = writeln!(text, "    {:>8.3} {}{late} -> {came}", turn.at.as_secs_f64(), turn.cause.told(&turn.domain));
    }
    let told = actors.into_iter().map(|((domain, actor, key), deeds)| format!("  {domain}.{actor} `{key}`\n{deeds}"));
    told.collect()
}
