//! The history of one order: as text, and as a page in a browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shop::Shop;

/// Runs `shop flow`. Returns its text and the file of its page.
fn flow(shop: &Shop, order: &str) -> (String, PathBuf) {
    let page = shop.file("flow.html");
    let text = shop.says(&["flow", order, "--html", page.to_str().unwrap()], 0);
    (text, page)
}

#[test]
fn flow_lists_steps_of_order_with_their_causes() {
    let shop = Shop::new();
    shop.report(&["--orders", "5"], 0);
    let (text, _) = flow(&shop, "ord-1-0000001");
    // Actor, results and cause of each step; a cause comes before its results.
    let expected = [
        ("order ord-1-0000001", "OrderPlaced", "a client"),
        ("fulfilment ord-1-0000001", "FulfilmentBegun, sends", "OrderPlaced of order"),
        ("stock prod-", "Reserved", "Reserve of fulfilment"),
        (
            "fulfilment ord-1-0000001",
            "LineReserved, sets the timer PaymentOverdue, sends TakePayment",
            "the reply to Reserve",
        ),
        ("payment ord-1-0000001", "PaymentBegun, sends Charge", "TakePayment of fulfilment"),
        ("cashier", "done", "Charge of payment"),
        ("payment ord-1-0000001", "PaymentTaken", "the reply to Charge"),
        (
            "fulfilment ord-1-0000001",
            "FulfilmentPaid, clears the timer PaymentOverdue, sends Ship",
            "PaymentTaken of payment",
        ),
        ("shipment ord-1-0000001", "Shipped, ParcelSent", "Ship of fulfilment"),
        ("fulfilment ord-1-0000001", "sends ConfirmOrder, ends", "the reply to Ship"),
        ("order ord-1-0000001", "OrderConfirmed", "ConfirmOrder of fulfilment"),
        ("mailer", "done", "OrderConfirmed of order"),
    ];
    let mut lines = text.lines();
    for (actor, results, cause) in expected {
        let found = lines.find(|line| line.contains(actor) && line.contains(results) && line.contains(cause));
        assert!(found.is_some(), "{actor}: {results} <- {cause} is missing or out of order:\n{text}");
    }
    assert!(text.contains("TakenAway  <- ParcelSent of shipment"), "{text}");
    let times: Vec<u64> = text.lines().filter_map(|line| line.split_once(" ms ")?.0.trim().parse().ok()).collect();
    assert!(times.len() >= expected.len() && times.is_sorted(), "{text}");
}

#[test]
fn flow_page_has_a_row_for_each_step_and_loads_nothing() {
    let shop = Shop::new();
    shop.report(&["--orders", "5"], 0);
    let (text, page) = flow(&shop, "ord-1-0000003");
    let page = std::fs::read_to_string(page).unwrap();
    let open = unclosed(&page);
    assert!(open.is_empty(), "not closed: {open:?}");
    let steps = text.lines().filter(|line| line.contains(" ms ")).count();
    assert!(steps > 8, "{text}");
    assert_eq!(page.matches("<tr><td").count(), steps);
    assert_eq!(page.matches("class=\"step").count(), steps);
    // One file: nothing is loaded, nothing runs.
    for foreign in ["<script", "<link", "src=", "url(", "@import"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}

/// Returns the tags of a page that are not closed in the reverse order of their opening.
fn unclosed(page: &str) -> Vec<&str> {
    let mut open = Vec::new();
    for tag in page.split('<').skip(1) {
        let name = tag.split(|c: char| c == '>' || c.is_whitespace()).next().unwrap_or_default();
        match name.strip_prefix('/') {
            Some(closed) if open.last() == Some(&closed) => {
                open.pop();
            }
            Some(closed) => return vec![closed],
            None if ["!doctype", "meta", "br"].contains(&name) => {}
            None => open.push(name),
        }
    }
    open
}

#[test]
fn browser_renders_flow_page() {
    let shop = Shop::new();
    shop.report(&["--orders", "5"], 0);
    let (text, page) = flow(&shop, "ord-1-0000003");
    let Some(browser) = browser() else {
        // Without a browser only the structure can be checked.
        let page = std::fs::read_to_string(page).unwrap();
        assert!(unclosed(&page).is_empty());
        eprintln!("no browser is installed: only the structure of the page was checked");
        return;
    };
    let address = format!("file://{}", page.display());
    let profile = format!("--user-data-dir={}", shop.file("profile").display());
    let render = |mode: &str| {
        let mut command = Command::new(&browser);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1200,1600",
            &profile,
            mode,
            &address,
        ]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // The document as parsed by the browser.
    let document = render("--dump-dom");
    let steps = text.lines().filter(|line| line.contains(" ms ")).count();
    assert_eq!(document.matches("class=\"step").count(), steps, "{document}");
    assert!(document.contains("<h1>History of order ord-1-0000003</h1>"), "{document}");
    let picture = shop.file("flow.png");
    render(&format!("--screenshot={}", picture.display()));
    let picture = std::fs::read(picture).unwrap();
    // A screenshot of an empty page of this size has about 8 kB.
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000, "{} bytes", picture.len());
}

/// Finds a browser with a headless mode in the PATH.
fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
    let places = std::env::split_paths(&path).flat_map(|folder| names.map(|name| Path::new(&folder).join(name)));
    places.into_iter().find(|place| place.is_file())
}
