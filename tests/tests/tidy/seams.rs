//! Each external API is used in few places: the wall clock, threads, files, sockets, the environment.
//!
//! docs/dependencies.md has the same list for third-party crates.

use crate::source::{File, Finding, assert_none, places, repository};

/// A name, and the only files of the framework that may contain it.
struct Seam {
    /// The name as it is written in code.
    name: &'static str,
    /// Prefixes of paths, as [`File::inside`] gives them.
    inside: &'static [&'static str],
    /// The reason why it is not used elsewhere.
    reason: &'static str,
}

const SEAMS: &[Seam] = &[
    Seam { name: "SystemTime", inside: &["clock.rs"], reason: "the simulation moves the wall clock" },
    Seam {
        name: "Instant::now",
        inside: &["clock.rs", "store-postgres/"],
        reason: "the simulation pauses time; durations are measured by the clock",
    },
    Seam {
        name: "std::thread",
        // The failure report only reads the name of its thread.
        inside: &[
            "store-embedded/",
            "spawn.rs",
            "conformance/store/",
            "testing/scenario/",
            "testing/sim/failure_report.rs",
            "store-postgres/",
        ],
        reason: "a simulated cluster runs on one thread",
    },
    Seam {
        name: "catch_unwind",
        inside: &["user_code.rs"],
        reason: "all user code is called through one function, which counts panics and detects blocked threads",
    },
    Seam { name: "Arbiter", inside: &["node/"], reason: "a simulated cluster runs on one thread" },
    Seam { name: "spawn_blocking", inside: &[], reason: "a simulated cluster runs on one thread" },
    Seam {
        name: "std::fs",
        inside: &[
            "store-embedded/",
            "node/config/",
            "bridge-nats/credentials.rs",
            "testing/sim/regressions.rs",
            "testing/sim/report.rs",
            "store-postgres/",
        ],
        reason: "the simulation has its own disk; only configuration, logins and failing cases are on a real one",
    },
    Seam {
        name: "std::net",
        inside: &["bridge-nats", "store-postgres/"],
        reason: "the simulation has its own network",
    },
    Seam {
        name: "tokio::net",
        inside: &["bridge-nats", "store-postgres/"],
        reason: "the simulation has its own network",
    },
    Seam {
        name: "std::env",
        inside: &["node/", "testing/sim/", "store-postgres/"],
        reason: "only the node's configuration and the replay of a simulated case read the environment",
    },
    Seam { name: "std::process", inside: &["node/"], reason: "a library does not end its process" },
    Seam { name: "tokio::signal", inside: &["node/"], reason: "the node decides when to stop" },
    Seam { name: "getrandom", inside: &[], reason: "randomness comes from the seed" },
    Seam {
        name: "RandomState",
        inside: &["message/id.rs", "bridge-nats/connection.rs", "bridge-nats/inboxes.rs"],
        reason: "its order differs between runs",
    },
];

/// Names outside of their seam.
fn outside_of_seams(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_product()) {
        let code = file.product_code();
        let Some(path) = file.inside() else { continue };
        for seam in SEAMS.iter().filter(|seam| !seam.inside.iter().any(|prefix| path.starts_with(prefix))) {
            for at in places(&code, seam.name) {
                let text = format!("`{}` is only allowed in {:?}: {}", seam.name, seam.inside, seam.reason);
                findings.push(file.finding(at, text));
            }
        }
    }
    findings
}

#[test]
fn external_apis_are_used_in_their_seams_only() {
    assert_none(&outside_of_seams(&repository()));
}

#[test]
fn name_outside_of_its_seam_is_found() {
    for seam in SEAMS {
        let text =
            format!("//! About {0}.\nfn f() {{ {0}::x(); }}\n#[cfg(test)]\nmod tests {{ use {0}::y; }}", seam.name);
        let found = |path: &str| {
            let crates = ["store-embedded/", "store-postgres/", "bridge-nats/", "conformance/", "testing/"];
            let path = match crates.iter().find(|name| path.starts_with(**name)) {
                Some(name) => format!("framework/{name}src/{}", path.trim_start_matches(name)),
                None => format!("framework/runtime/src/{path}"),
            };
            outside_of_seams(&[File::new(&path, &text)]).len()
        };
        assert_eq!(found("saga/mod.rs"), 1, "{}", seam.name);
        for prefix in seam.inside {
            let path = if prefix.ends_with(".rs") { (*prefix).to_owned() } else { format!("{prefix}/x.rs") };
            assert_eq!(found(&path), 0, "{} in {path}", seam.name);
        }
    }
}
