//! A message that aborts the process becomes a dead letter after its attempts, and no other message is blamed.

use std::process::Command;

/// The number of deliveries of a message that `crash-node` configures.
const ATTEMPTS: usize = 3;

#[test]
fn message_that_aborts_process_becomes_dead_letter() {
    for place in ["job", "turn", "event"] {
        let folder = tempfile::tempdir().unwrap();
        let mut aborts = 0;
        let said = loop {
            let life = if aborts == 0 { "first" } else { "again" };
            let output = Command::new(env!("CARGO_BIN_EXE_crash-node"))
                .args([folder.path().to_str().unwrap(), place, life])
                .output()
                .unwrap();
            if output.status.success() {
                break String::from_utf8(output.stdout).unwrap();
            }
            assert_eq!(output.status.code(), None, "{place}: {}", String::from_utf8_lossy(&output.stderr));
            aborts += 1;
            assert!(aborts <= 3 * ATTEMPTS, "{place}: {aborts} aborts without a dead letter");
        };
        // The first delivery needs no record, so it is not counted.
        assert_eq!(aborts, ATTEMPTS + 1, "{place}: {said}");
        // The message parks its key, unless it is a job. No other key is blamed.
        let (ended, others): (Vec<_>, Vec<_>) = said.lines().partition(|line| line.contains("process ended"));
        let behind = |line: &&str| line.starts_with("bad ") && line.contains("parked behind a dead letter");
        assert!(ended.len() == 1 && ended[0].starts_with("bad ") && others.iter().all(behind), "{place}: {said}");
    }
}
