//! The files of docs/how-to/deploy.md agree with the repository and with each other: the version of Rust, the paths of the probes, the
//! time that a node gets to stop.
//!
//! No test runs systemd, a container or Kubernetes.

use crate::source::{File, Finding, assert_none, file};

/// The block of a page in a language.
fn block<'a>(page: &'a File, language: &str) -> &'a str {
    let rest = page.text.split(&format!("```{language}\n")).nth(1).unwrap_or_default();
    rest.split("```").next().unwrap_or_default()
}

/// The text between the first `start` and the next character of `ends`.
fn between<'a>(text: &'a str, start: &str, ends: &[char]) -> &'a str {
    text.split_once(start).map_or("", |(_, rest)| rest.split(ends).next().unwrap_or_default()).trim()
}

fn faults(page: &File, manifest: &File, health: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut check = |holds: bool, text: String| {
        if !holds {
            findings.push(page.finding_at_top(text));
        }
    };
    let (unit, image, cluster) = (block(page, "ini"), block(page, "dockerfile"), block(page, "yaml"));
    let known = between(&manifest.text, "rust-version = \"", &['"']);
    let shown = between(image, "FROM rust:", &['-']);
    check(!shown.is_empty() && shown == known, format!("the image has Rust `{shown}`, the workspace `{known}`"));
    let seconds = between(unit, "TimeoutStopSec=", &['\n']);
    let grace = between(cluster, "terminationGracePeriodSeconds:", &['\n']);
    check(!seconds.is_empty() && seconds == grace, format!("a node has `{seconds}` s and `{grace}` s to stop"));
    check(page.text.contains(&format!("Give it {seconds} s")), format!("the text has another time than `{seconds}` s"));
    let probes: Vec<&str> =
        cluster.split("httpGet: { path: ").skip(1).filter_map(|rest| rest.split(',').next()).collect();
    check(probes.len() == 3, format!("expected three probes: {probes:?}"));
    for path in probes {
        check(health.text.contains(&format!(".route(\"{path}\"")), format!("the gateway has no `{path}`"));
    }
    for line in cluster.lines() {
        let indent = line.len() - line.trim_start().len();
        check(indent % 2 == 0 && !line.contains('\t'), format!("`{line}` is not indented by twos"));
        let count = |sign: char| line.matches(sign).count();
        check(count('{') == count('}') && count('[') == count(']'), format!("`{line}` has an open bracket"));
    }
    for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let is_section = line.starts_with('[') && line.ends_with(']');
        check(is_section || line.contains('='), format!("`{line}` is neither a section nor a setting"));
    }
    findings
}

#[test]
fn files_for_deployment_agree_with_the_repository() {
    let (manifest, health) = (file("Cargo.toml"), file("framework/http/src/health.rs"));
    assert_none(&faults(&file("docs/how-to/deploy.md"), &manifest, &health));
}

#[test]
fn contradiction_in_files_for_deployment_is_found() {
    let (manifest, health) = (file("Cargo.toml"), file("framework/http/src/health.rs"));
    let found = |from: &str, to: &str| {
        let page = file("docs/how-to/deploy.md");
        assert!(page.text.contains(from), "{from}");
        faults(&File::new(&page.path, &page.text.replacen(from, to, 1)), &manifest, &health).len()
    };
    assert_eq!(found("FROM rust:1", "FROM rust:2"), 1);
    assert_eq!(found("terminationGracePeriodSeconds: 3", "terminationGracePeriodSeconds: 1"), 1);
    assert_eq!(found("path: /health/ready", "path: /ready"), 1);
    assert_eq!(found("  selector: { matchLabels", "   selector: matchLabels"), 2);
    assert_eq!(found("Restart=always", "Restart always"), 1);
}
