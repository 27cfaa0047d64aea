//! Each world outside has one door: third-party crates, the wall clock, threads, files, the environment.

use crate::source::{File, Finding, assert_none, places, repository};

/// A name, and where in framework/src it may stand.
struct Door {
    /// As it is written in code.
    name: &'static str,
    /// Beginnings of paths below framework/src.
    inside: &'static [&'static str],
    /// Why nowhere else.
    why: &'static str,
}

const DOORS: &[Door] = &[
    Door { name: "async_nats", inside: &["bridge/nats"], why: "other brokers come behind the same trait" },
    Door { name: "nkeys", inside: &["bridge/nats"], why: "other brokers have other logins" },
    Door { name: "tokio_postgres", inside: &["store/postgres/"], why: "other stores come behind the same trait" },
    Door { name: "sqlx", inside: &["store/postgres/"], why: "other stores come behind the same trait" },
    Door { name: "redb", inside: &["store/embedded/"], why: "the engine of the caches can be replaced" },
    Door {
        name: "crc32fast",
        inside: &["store/", "message/domain.rs"],
        why: "the log's checksum and the hash of keys, both frozen",
    },
    Door { name: "bincode", inside: &["message/codec.rs"], why: "it is unmaintained: one file replaces it" },
    Door { name: "toml", inside: &["node/"], why: "only a node has a configuration file" },
    Door { name: "uuid", inside: &["message/id.rs", "message/key.rs"], why: "ids are made in one place, from a seed" },
    Door { name: "proptest", inside: &["testing/"], why: "product code is built without it" },
    Door { name: "SystemTime", inside: &["clock.rs"], why: "the simulation moves the wall clock" },
    Door {
        name: "Instant::now",
        inside: &["clock.rs"],
        why: "the simulation pauses time; a span is measured by the clock",
    },
    Door {
        name: "std::thread",
        // A story asks its thread for its name, nothing more.
        inside: &["store/embedded/", "spawn.rs", "testing/store/", "testing/scenario/", "testing/sim/story.rs"],
        why: "a simulated cluster runs on one thread",
    },
    Door {
        name: "catch_unwind",
        inside: &["user_code.rs"],
        why: "all user code is called through one function, which counts panics and sees blocked threads",
    },
    Door { name: "Arbiter", inside: &["node/"], why: "a simulated cluster runs on one thread" },
    Door { name: "spawn_blocking", inside: &[], why: "a simulated cluster runs on one thread" },
    Door {
        name: "std::fs",
        inside: &[
            "store/embedded/",
            "node/config.rs",
            "bridge/nats/credentials.rs",
            "testing/sim/regressions.rs",
            "testing/sim/report.rs",
        ],
        why: "the simulation has its own disk; on a real one lie the cases that it has found, and logins",
    },
    Door { name: "std::net", inside: &["admin/", "bridge/nats"], why: "the simulation has its own network" },
    Door { name: "tokio::net", inside: &["admin/", "bridge/nats"], why: "the simulation has its own network" },
    Door {
        name: "std::env",
        inside: &["node/", "testing/sim/"],
        why: "only a node's configuration reads the environment, and the line that replays a simulated case",
    },
    Door { name: "std::process", inside: &["node/"], why: "a library does not end its process" },
    Door { name: "tokio::signal", inside: &["node/"], why: "the node decides when to stop" },
    Door { name: "getrandom", inside: &[], why: "randomness comes from the seed" },
    Door {
        name: "RandomState",
        inside: &["message/id.rs", "bridge/nats/connection.rs"],
        why: "its order differs between runs",
    },
];

/// Names that stand outside their door.
fn outside_their_door(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_product()) {
        let code = file.product_code();
        let inside = file.path.trim_start_matches("framework/src/");
        for door in DOORS.iter().filter(|door| !door.inside.iter().any(|open| inside.starts_with(open))) {
            for at in places(&code, door.name) {
                findings.push(
                    file.finding(at, format!("`{}` outside its door {:?}: {}", door.name, door.inside, door.why)),
                );
            }
        }
    }
    findings
}

#[test]
fn the_outside_world_comes_in_through_its_doors() {
    assert_none(&outside_their_door(&repository()));
}

#[test]
fn a_name_outside_its_door_is_found() {
    for door in DOORS {
        let text = format!(
            "//! EventContext {0}.\nfn f() {{ {0}::x(); }}\n#[cfg(test)]\nmod tests {{ use {0}::y; }}",
            door.name
        );
        let found = |path: &str| outside_their_door(&[File::new(&format!("framework/src/{path}"), &text)]).len();
        assert_eq!(found("saga/mod.rs"), 1, "{}", door.name);
        for open in door.inside {
            let path = if open.ends_with(".rs") { (*open).to_owned() } else { format!("{open}/x.rs") };
            assert_eq!(found(&path), 0, "{} in {path}", door.name);
        }
    }
}
