//! The command lines and the SQL of the documentation run as written; commands that take long print their help.
//!
//! `tests/tests/tidy/commands.rs` lists them and names the tests of the others.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use whizbang::PostgresStore;
use whizbang_tests::postgres::PostgresServer;
use whizbang_tests::{root, sample};

/// Returns the lines of a page that begin with `start`, without it and without trailing comments.
fn shown(page: &str, start: &str) -> Vec<String> {
    let page = fs::read_to_string(root().join(page)).expect("a page");
    let lines = page.lines().filter_map(|line| line.trim_start().strip_prefix(start));
    lines.map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned()).collect()
}

fn run(program: impl AsRef<OsStr>, arguments: &str, folder: &Path) -> Output {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace()).current_dir(folder).output().expect("starts")
}

fn succeeds(program: impl AsRef<OsStr>, arguments: &str, folder: &Path) -> String {
    let output = run(program, arguments, folder);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {}: {errors}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// The crate is not published yet, so `cargo add whizbang` names the folder of this repository. Nothing is fetched: axum has the
/// features that this workspace uses, whose dependencies are there.
#[test]
fn new_project_is_set_up_as_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    succeeds(&cargo, "new bank", folder.path());
    let project = folder.path().join("bank");
    let steps = ["hello", "http", "nats"].map(|step| format!("docs/getting-started/{step}.md"));
    let pages = std::iter::once("README.md").chain(steps.iter().map(String::as_str));
    let adds = pages.flat_map(|page| shown(page, "cargo add ")).collect::<Vec<_>>();
    assert!(adds.len() >= 7, "{adds:?}");
    for add in adds {
        let path = format!("whizbang --path {}", root().join("framework/whizbang").display());
        let add =
            add.replace("whizbang", &path).replace("axum", "axum --no-default-features --features http1,json,tokio");
        succeeds(&cargo, &format!("add --offline {add}"), &project);
    }
    let manifest = fs::read_to_string(project.join("Cargo.toml")).expect("a manifest");
    for dependency in ["axum", "tokio", "whizbang"] {
        assert!(manifest.contains(&format!("\n{dependency} = ")), "{dependency} is missing:\n{manifest}");
    }
}

#[test]
fn tour_commands_run_one_after_the_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let shop = sample("shop");
    let commands = shown("docs/tour.md", "cargo run --release -p shop -- ");
    assert_eq!(commands.len(), 2, "{commands:?}");
    for command in commands {
        assert!(!succeeds(&shop, &command, folder.path()).is_empty());
    }
    assert!(folder.path().join("flow.html").exists());
    for command in shown("samples/shop/README.md", "cargo run --release -p shop -- ") {
        assert!(succeeds(&shop, &command, folder.path()).contains("--orders N"));
    }
}

#[test]
fn scripts_explain_themselves() {
    let steps = succeeds(root().join("tests/run"), "--list", &root());
    for step in ["fmt", "clippy", "test", "doctest"] {
        assert!(steps.contains(&format!("  {step} ")), "{steps}");
    }
    assert!(succeeds(root().join("tests/run"), "--help", &root()).contains("tests/run --long"));
    assert_eq!(run(root().join("tests/run"), "no-such-step", &root()).status.code(), Some(2));
    assert!(succeeds(root().join("tests/package"), "--help", &root()).contains("target/package"));
    assert_eq!(run(root().join("tests/mutants"), "no-such-mutation", &root()).status.code(), Some(2));
    // A measurement takes minutes.
    assert!(succeeds(root().join("tests/compile-cost"), "--help", &root()).contains("COMMANDS [AGGREGATES]"));
}

/// The tables are created by hand, as the page describes, and the role of the rights exists.
#[test]
fn sql_of_the_postgres_page_runs_as_written() {
    let server = PostgresServer::start();
    server.sql(&PostgresStore::migrations());
    server.sql("CREATE ROLE app LOGIN");
    let page = fs::read_to_string(root().join("docs/postgres.md")).expect("a page");
    let blocks: Vec<&str> = page.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 2, "{blocks:?}");
    for block in blocks {
        // The page abbreviates an id.
        server.sql(&block.replace("0190…", "01900000-0000-7000-8000-000000000000"));
    }
    let rights = "SELECT bool_and(has_table_privilege('app', oid, 'SELECT, INSERT')) FROM pg_class WHERE relnamespace = \
                  'whizbang'::regnamespace AND relkind = 'r'";
    assert_eq!(server.sql(rights), "t", "the role has rights on every table");
}
