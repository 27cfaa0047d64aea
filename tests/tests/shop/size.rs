//! Large files of orders, in bounded memory.

use std::fmt::Write;

use serde_json::json;
use whizbang_tests::{brief_or_long, eventually, is_long};

use crate::input::order;
use crate::shop::{Running, Shop, assert_balanced};

/// Writes a file of `count` orders, each for one piece of one product.
fn file_of_orders(shop: &Shop, count: u64) -> String {
    let mut document = order("template");
    document["eventId"] = json!("evt-NUMBER");
    document["payload"]["orderId"] = json!("ord-NUMBER");
    document["payload"]["items"] = json!([{ "productId": "prod-0PP", "quantity": 1, "price": 1.25 }]);
    document["payload"]["totalAmount"] = json!(1.25);
    let template = document.to_string();
    let mut text = String::new();
    for number in 0..count {
        let product = format!("prod-{:03}", 1 + number % 50);
        writeln!(text, "{}", template.replace("NUMBER", &number.to_string()).replace("prod-0PP", &product)).unwrap();
    }
    shop.write("orders.json", text)
}

/// Waits for the end of a process. Returns its peak memory in MiB and its exit code.
fn peak_mib(mut run: Running) -> (u64, Option<i32>) {
    let status = format!("/proc/{}/status", run.pid());
    let mut peak = 0;
    eventually("the shop to end", std::time::Duration::from_secs(brief_or_long(240, 7200)), || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0).max(peak);
        (!run.is_running()).then_some(())
    });
    (peak / 1024, run.end())
}

#[test]
fn large_file_of_orders_uses_bounded_memory() {
    let count = brief_or_long(3_000, 1_000_000);
    let shop = Shop::new();
    let file = file_of_orders(&shop, count);
    let (peak, code) = peak_mib(shop.start(&[&file]));
    assert_eq!(code, Some(0));
    assert_balanced(&shop.report(&["report"], 0), count);
    let bound = brief_or_long(100, 1_000);
    println!("{count} orders: at most {peak} MiB");
    assert!(peak < bound, "{peak} MiB for {count} orders, limit {bound}");
}

#[test]
fn large_file_of_invalid_orders_uses_bounded_memory() {
    let count = if is_long() { 5_000_000 } else { 300_000 };
    let shop = Shop::new();
    let line = order("invalid").to_string().replace("29.99", "-29.99") + "\n";
    let file = shop.write("orders.json", line.repeat(count));
    let (peak, code) = peak_mib(shop.start(&[&file]));
    assert_eq!(code, Some(3));
    assert!(peak < 100, "{peak} MiB for {count} documents");
    let said = shop.says(&[&file], 3);
    assert!(said.contains(&format!("{count} of the orders were rejected, all others were processed")), "{said}");
    assert!(said.contains(&format!("{} more input errors", count - 20)), "{said}");
}
