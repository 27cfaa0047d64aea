//! The configuration of a node: files and the environment.

use whizbang::NodeConfig;
use whizbang_tests::Fuzz;

const FILE: &str = "\
# A node's settings.
threads = 2
in_flight = 1_000
in_flight_per_key = 10
passivate_after_ms = 60000
live_actors = 5000
remember_ms = 86400000
retry_attempts = 3
retry_first_ms = 5
retry_longest_ms = 1000
";

#[test]
fn corrupt_file_is_rejected_with_reason_or_parsed() {
    Fuzz::new("config-file", [FILE.as_bytes().to_vec(), b"threads = 0".to_vec()]).rounds(20_000, 500_000).run(
        |input| match NodeConfig::default().toml(&String::from_utf8_lossy(input)) {
            Ok(_) => true,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                false
            }
        },
    );
}

#[test]
fn corrupt_environment_is_rejected_with_reason_or_parsed() {
    let sample = FILE.lines().skip(1).map(|line| format!("WHIZBANG_{}", line.to_uppercase().replace(" = ", "=")));
    let sample = sample.chain(["HOME=/".to_owned()]).collect::<Vec<_>>().join("\n");
    Fuzz::new("config-environment", [sample.into_bytes()]).rounds(20_000, 500_000).run(|input| {
        let text = String::from_utf8_lossy(input);
        let variables: Vec<(String, String)> = text
            .split('\n')
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let ours = variables.iter().filter(|(name, _)| name.starts_with("WHIZBANG_")).count();
        match NodeConfig::default().variables(variables.clone()) {
            Ok(config) => {
                // Variables without the prefix change nothing.
                assert!(ours > 0 || config == NodeConfig::default());
                true
            }
            Err(error) => {
                assert!(ours > 0 && !error.to_string().is_empty());
                false
            }
        }
    });
}
