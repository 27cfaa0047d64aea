//! The shop, run as a person runs it: its balances hold, whoever is killed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use whizbang_tests::eventually;
use whizbang_tests::nats::{NatsServer, Release};

/// A shop with a folder of its own.
struct Shop {
    program: PathBuf,
    folder: TempDir,
}

impl Shop {
    fn new() -> Self {
        Self { program: program(), folder: tempfile::tempdir().unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--data").arg(self.data());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it, and reads the report that it writes. Its exit code must be `code`.
    fn report(&self, arguments: &[&str], code: i32) -> Value {
        let file = self.folder.path().join("report.json");
        let mut command = self.command(arguments);
        let output = command.arg("--json").arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).spawn().unwrap()
    }

    /// How many e-mails were written: a sign of how far it is that can be seen from outside.
    fn mails(&self) -> usize {
        std::fs::read_dir(self.data().join("mails")).map_or(0, |files| files.count())
    }

    fn wait_for_mails(&self, count: usize) {
        eventually("e-mails are written", Duration::from_secs(120), || (self.mails() >= count).then_some(()));
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Builds the shop and says where it is.
fn program() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--locked", "--package", "shop", "--message-format=json-render-diagnostics"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", said(&built));
    let messages = String::from_utf8(built.stdout).unwrap();
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    programs.next().expect("cargo names the program")
}

/// Everything has ended and everything balances.
#[track_caller]
fn assert_balanced(report: &Value, placed: u64) {
    assert_eq!(report["orders"]["placed"], placed, "{report:#}");
    assert_eq!(report["orders"]["open"], 0, "{report:#}");
    assert_eq!(report["stock"]["reserved"], 0, "{report:#}");
    for part in ["stock", "money"] {
        assert_eq!(report[part]["conserved"], true, "{report:#}");
    }
    assert_eq!(report["analytics"]["matches_log"], true, "{report:#}");
    assert_eq!(report["emails"], placed, "{report:#}");
    assert!(report["orders"]["confirmed"].as_u64().unwrap() > placed / 2, "{report:#}");
}

#[test]
fn in_one_process_every_order_ends_and_all_balances_hold() {
    let shop = Shop::new();
    let report = shop.report(&["--orders", "300", "--seed", "7"], 0);
    assert_balanced(&report, 300);
    for code in ["payments.declined", "shipping.unserved"] {
        assert!(report["cancelled_because"][code].as_u64().unwrap() > 0, "{report:#}");
    }
}

#[test]
fn over_nats_every_order_ends_and_all_balances_hold() {
    let server = NatsServer::start(Release::Distribution);
    let report = Shop::new().report(&["--orders", "200", "--nats", &server.url()], 0);
    assert_balanced(&report, 200);
}

#[test]
fn as_processes_every_order_ends_and_all_balances_hold() {
    let report = Shop::new().report(&["--orders", "200", "--processes"], 0);
    assert_balanced(&report, 200);
}

#[test]
fn killed_at_any_moment_and_started_again_it_goes_on_and_ends_with_the_same_balance() {
    let shop = Shop::new();
    for mails in [0, 1, 20, 60, 120] {
        let mut killed = shop.start(&["--orders", "300", "--seed", "3"]);
        shop.wait_for_mails(mails);
        killed.kill().unwrap();
        killed.wait().unwrap();
    }
    let report = shop.report(&["--orders", "300", "--seed", "3"], 0);
    assert_balanced(&report, 300);
    // Once more: nothing is left to do, and the report is the same.
    assert_eq!(shop.report(&["--orders", "300", "--seed", "3"], 0), report);
    assert_eq!(shop.report(&["report"], 0), report);
}

#[test]
fn each_service_in_turn_is_killed_in_mid_run_and_the_balances_hold() {
    let shop = Shop::new();
    let mut run = shop.start(&["--orders", "300", "--processes"]);
    let mut mails = 10;
    for service in ["orders", "inventory", "payments", "shipping", "notifications", "analytics"] {
        shop.wait_for_mails(mails);
        let pid = std::fs::read_to_string(shop.data().join(format!("{service}.pid"))).unwrap();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        mails += 30;
    }
    assert_eq!(run.wait().unwrap().code(), Some(0));
    assert_balanced(&shop.report(&["report"], 0), 300);
}

#[test]
fn orders_of_a_file_are_placed_and_each_mistake_is_named() {
    let shop = Shop::new();
    let example =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/shop/orders/order-placed.json"));
    let example = example.unwrap().trim().to_owned();
    let spoilt = |from: &str, to: &str| {
        assert!(example.contains(from));
        example.replacen(from, to, 1)
    };
    let file = shop.folder.path().join("orders.json");
    let lines = [
        example.clone(),
        spoilt("\"quantity\":2", "\"quantity\":-2"),
        example[..70].to_owned(),
        spoilt("evt-a1b2c3d4", "evt-other"),
        spoilt("29.99", "99999999999"),
        spoilt("\"city\":\"Tehran\",", ""),
        spoilt("ord-98765", "ord-2").replace("evt-a1b2c3d4", "evt-2").replace("prod-001", "prod-nobody-knows"),
        spoilt("ord-98765", "ord-3").replace("evt-a1b2c3d4", "evt-3"),
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    let output = shop.run(&[file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let said = said(&output);
    for (line, what) in [(2, "-2 pieces"), (3, "EOF"), (5, "a price of"), (6, "the city is missing")] {
        assert!(said.contains(&format!("orders.json:{line}:")) && said.contains(what), "{what}: {said}");
    }
    assert!(said.contains("document evt-a1b2c3d4 has already placed an order ord-98765"), "{said}");
    let report = shop.report(&["report"], 0);
    assert_eq!((&report["orders"]["placed"], &report["orders"]["confirmed"]), (&Value::from(3), &Value::from(2)));
    assert_eq!(report["cancelled_because"]["inventory.unknown-product"], 1);
    assert_eq!(report["money"]["revenue_cents"], 2 * 14_948);
}

#[test]
fn the_way_of_an_order_is_told_with_its_causes() {
    let shop = Shop::new();
    shop.report(&["--orders", "5"], 0);
    let page = shop.folder.path().join("flow.html");
    let output = shop.run(&["flow", "ord-1-0000001", "--html", page.to_str().unwrap()]);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    for step in ["OrderPlaced  <- a client", "Reserved", "PaymentBegun", "Shipped", "OrderConfirmed"] {
        assert!(said.contains(step), "{step}: {said}");
    }
    assert!(std::fs::read_to_string(page).unwrap().contains("<table>"));
    assert_eq!(shop.run(&["flow", "ord-nobody-knows"]).status.code(), Some(1));
}
