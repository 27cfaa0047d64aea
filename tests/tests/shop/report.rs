//! The report: its JSON form, and its agreement with the logs.

use serde_json::{Value, json};

use crate::recount::Recount;
use crate::shop::{Shop, assert_balanced, said};

#[test]
fn report_equals_recount_of_raw_logs() {
    let shop = Shop::new();
    let report = shop.report(&["--orders", "400", "--seed", "11"], 0);
    let recount = Recount::of(&shop.data());
    recount.assert_holds();
    recount.assert_equals(&report);
}

#[test]
fn report_has_documented_json_form() {
    let report = Shop::new().report(&["--orders", "20"], 0);
    assert_eq!(
        shape(&report),
        json!({
            "orders": { "placed": "whole", "confirmed": "whole", "cancelled": "whole", "open": "whole" },
            "cancelled_because": shape(&report["cancelled_because"]),
            "stock": { "initial": "whole", "on_hand": "whole", "shipped": "whole", "reserved": "whole", "conserved": "bool" },
            "money": { "charged_cents": "whole", "refunded_cents": "whole", "revenue_cents": "whole", "conserved": "bool" },
            "emails": "whole",
            "analytics": { "revenue_cents": "whole", "matches_log": "bool" },
            "dead_letters": "whole",
            "rate_orders_per_s": "number",
            "running": "bool",
            "latency_ms": { "p50": "whole", "p99": "whole", "max": "whole", "max_answered": "whole" },
        })
    );
}

/// Replaces each value by its kind.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
        Value::Bool(_) => "bool".into(),
        Value::Number(number) if number.is_u64() => "whole".into(),
        Value::Number(_) => "number".into(),
        other => panic!("{other} in a report"),
    }
}

#[test]
fn ledger_that_differs_from_logs_is_a_fault() {
    let shop = Shop::new();
    shop.report(&["--orders", "20"], 0);
    let ledger = shop.data().join("provider.ledger");
    let mut text = std::fs::read_to_string(&ledger).unwrap();
    text.push_str("{\"key\":\"forged\",\"order\":\"ord-1-0000001\",\"cents\":1}\n");
    std::fs::write(&ledger, text).unwrap();
    let report = shop.report(&["report"], 1);
    assert_eq!(report["money"]["conserved"], false);
    let said = shop.says(&["report"], 1);
    assert!(said.contains("the money is off") && said.contains("OFF"), "{said}");
}

#[test]
fn missing_email_is_a_fault() {
    let shop = Shop::new();
    shop.report(&["--orders", "20"], 0);
    let mails = std::fs::read_dir(shop.data().join("mails")).unwrap().flatten().map(|file| file.path());
    let mail = mails.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "eml")).unwrap();
    std::fs::remove_file(mail).unwrap();
    let said = shop.says(&["report"], 1);
    assert!(said.contains("19 e-mails for 20 orders that ended"), "{said}");
}

#[test]
fn report_after_kill_counts_open_orders() {
    let shop = Shop::new();
    let run = shop.start(&["--orders", "400"]);
    shop.wait_for_mails(20);
    run.kill();
    let report = shop.report(&["report"], 1);
    assert!(report["orders"]["open"].as_u64().unwrap() > 0, "{report:#}");
    let said = shop.says(&["report"], 1);
    assert!(said.contains("orders are open"), "{said}");
}

#[test]
fn report_and_flow_work_while_services_run() {
    let shop = Shop::new();
    let run = shop.start(&["--orders", "600", "--processes"]);
    let (mut last, mut reports) = (0, 0);
    // Exit code 5: services are running and orders are in progress.
    while shop.mails() < 300 {
        let output = shop.run(&["report", "--json", shop.file("running.json").to_str().unwrap()]);
        if matches!(output.status.code(), Some(0 | 4)) && last == 0 {
            continue; // No data folder yet, or no order in it.
        }
        assert_eq!(output.status.code(), Some(5), "{}", said(&output));
        assert!(said(&output).contains("orders open") && !said(&output).contains("OFF"), "{}", said(&output));
        let report: Value = serde_json::from_slice(&std::fs::read(shop.file("running.json")).unwrap()).unwrap();
        assert_eq!(report["running"], true);
        let placed = report["orders"]["placed"].as_u64().unwrap();
        assert!(placed >= last, "{placed} orders after {last}");
        last = placed;
        reports += 1;
    }
    assert!(reports >= 2 && last > 0, "{reports} reports during the run");
    let flow = shop.says(&["flow", "ord-1-0000001"], 0);
    assert!(flow.contains("OrderPlaced") && flow.contains("Reserved"), "{flow}");
    assert_eq!(run.end(), Some(0), "reports do not disturb the run");
    assert_balanced(&shop.report(&["report"], 0), 600);
}

#[test]
fn report_survives_a_closed_pipe() {
    let shop = Shop::new();
    shop.report(&["--orders", "5"], 0);
    let mut command = shop.command(&["report"]);
    let mut report = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(report.stdout.take());
    let output = report.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
