//! The HTTP sample, and the command lines of docs/getting-started/http.md: commands, queries, repeated requests, invalid requests, and accounts that survive a restart.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use whizbang_tests::{HttpResponse, http_request, root, sample};

/// A running gateway; killed if the test fails.
struct Gateway {
    process: Child,
    address: String,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Gateway {
    fn start(folder: &Path) -> Self {
        let mut command = Command::new(sample("gateway"));
        command.args(["--listen", "127.0.0.1:0", "--data"]).arg(folder).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect("it listens").to_owned();
        Self { process, address }
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> HttpResponse {
        http_request(&self.address, method, path, headers, body)
    }

    fn post(&self, path: &str, headers: &str, cents: u64) -> HttpResponse {
        self.request("POST", path, headers, &json!({ "cents": cents }).to_string())
    }

    /// Sends SIGTERM, as a supervisor does, and waits for the end.
    fn stop(mut self) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(self.process.wait().unwrap().success(), "it stops gracefully");
    }
}

#[test]
fn http_sample_answers_commands_and_queries_and_keeps_accounts() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path());
    let answer = gateway.post("/accounts/ada/deposits", "", 500);
    assert_eq!((answer.status, &answer.body), (200, &json!(500)));
    let answer = gateway.post("/accounts/ada/withdrawals", "", 200);
    assert_eq!((answer.status, &answer.body), (200, &json!(300)));
    gateway.stop();

    let gateway = Gateway::start(folder.path());
    let answer = gateway.request("GET", "/accounts/ada", "", "");
    assert_eq!((answer.status, &answer.body), (200, &json!(300)));
    let answer = gateway.request("GET", "/accounts/bob", "", "");
    assert_eq!((answer.status, &answer.body["code"]), (404, &json!("gateway.not-found")));
    gateway.stop();
}

#[test]
fn command_lines_of_the_page_deposit_once() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path());
    let page = std::fs::read_to_string(root().join("docs/getting-started/http.md")).unwrap();
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in lines {
        let line = line.replace("127.0.0.1:8080", &gateway.address);
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            "500",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let balance = gateway.request("GET", "/accounts/ada", "", "");
    assert_eq!((balance.status, &balance.body), (200, &json!(500)));
    gateway.stop();
}

#[test]
fn http_sample_handles_repeated_requests_once() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path());
    let key = "Idempotency-Key: order-7-f3a1\r\n";
    for _ in 0..3 {
        let answer = gateway.post("/accounts/ada/deposits", key, 500);
        assert_eq!((answer.status, &answer.body), (200, &json!(500)));
    }
    let answer = gateway.post("/accounts/ada/deposits", key, 600);
    assert_eq!((answer.status, &answer.body["code"]), (409, &json!("gateway.idempotency-key-reused")));
    let answer = gateway.post("/accounts/ada/deposits", "Idempotency-Key: \r\n", 1);
    assert_eq!((answer.status, &answer.body["code"]), (400, &json!("gateway.empty-idempotency-key")));
    gateway.stop();
}

#[test]
fn http_sample_answers_bad_requests_with_problems() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path());
    let answer = gateway.post("/accounts/ada/withdrawals", "", 1);
    assert_eq!((answer.status, &answer.body["code"]), (422, &json!("accounts.insufficient-funds")));
    assert_eq!(answer.body["detail"], "the account holds 0 cents");
    assert_eq!(answer.body["data"], json!({ "cents": 0 }));
    assert!(answer.head.contains("content-type: application/problem+json"), "{}", answer.head);
    for body in ["", "{}", "{\"cents\": -1}", "{\"cents\": 1", "[]"] {
        let answer = gateway.request("POST", "/accounts/ada/deposits", "", body);
        assert!((400..500).contains(&answer.status), "{body}: {}", answer.status);
        assert_eq!(answer.body["code"], "gateway.invalid-request", "{body}");
    }
    let long = "a".repeat(300);
    let answer = gateway.post(&format!("/accounts/{long}/deposits"), "", 1);
    assert_eq!((answer.status, &answer.body["code"]), (400, &json!("gateway.invalid-key")));
    let answer = gateway.request("GET", "/health/ready", "", "");
    assert_eq!((answer.status, &answer.body["ready"]), (200, &json!(true)));
    assert_eq!(gateway.request("GET", "/health/live", "", "").status, 200);
    assert_eq!(gateway.request("GET", "/metrics", "", "").body["rejections"], 1);
    gateway.stop();
}
