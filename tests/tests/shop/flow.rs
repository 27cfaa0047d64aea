//! The way of one order: as text, and as a page that a browser shows.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shop::Shop;

/// The way of an order, as text and as a page.
fn flow(shop: &Shop, order: &str) -> (String, PathBuf) {
    let page = shop.file("flow.html");
    let text = shop.says(&["flow", order, "--html", page.to_str().unwrap()], 0);
    (text, page)
}

#[test]
fn the_way_of_an_order_is_told_with_its_causes() {
    let shop = Shop::new();
    shop.report(&["--orders", "5"], 0);
    let (text, _) = flow(&shop, "ord-1-0000001");
    // Who, what, and because of what, with causes before what they caused.
    let way = [
        ("order ord-1-0000001", "OrderPlaced", "a client"),
        ("fulfilment ord-1-0000001", "FulfilmentBegun, sends", "OrderPlaced of order"),
        ("stock prod-", "Reserved", "Reserve of fulfilment"),
        (
            "fulfilment ord-1-0000001",
            "LineReserved, sets the timer PaymentOverdue, sends TakePayment",
            "the reply to Reserve",
        ),
        ("payment ord-1-0000001", "PaymentBegun, sends Charge", "TakePayment of fulfilment"),
        ("cashier", "does it", "Charge of payment"),
        ("payment ord-1-0000001", "PaymentTaken", "the reply to Charge"),
        (
            "fulfilment ord-1-0000001",
            "FulfilmentPaid, clears the timer PaymentOverdue, sends Ship",
            "PaymentTaken of payment",
        ),
        ("shipment ord-1-0000001", "Shipped, ParcelSent", "Ship of fulfilment"),
        ("fulfilment ord-1-0000001", "sends ConfirmOrder, ends", "the reply to Ship"),
        ("order ord-1-0000001", "OrderConfirmed", "ConfirmOrder of fulfilment"),
        ("mailer", "does it", "OrderConfirmed of order"),
    ];
    let mut lines = text.lines();
    for (who, what, because) in way {
        let found = lines.find(|line| line.contains(who) && line.contains(what) && line.contains(because));
        assert!(found.is_some(), "{who}: {what} <- {because} is not there, or not in its place:\n{text}");
    }
    assert!(text.contains("TakenAway  <- ParcelSent of shipment"), "{text}");
    let moments: Vec<u64> = text.lines().filter_map(|line| line.split_once(" ms ")?.0.trim().parse().ok()).collect();
    assert!(moments.len() >= way.len() && moments.is_sorted(), "{text}");
}

#[test]
fn the_page_of_a_way_is_one_whole_document_with_a_row_for_each_step() {
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

/// The tags of a page that are not closed in the order in which they were opened.
fn unclosed(page: &str) -> Vec<&str> {
    let mut open = Vec::new();
    for tag in page.split('<').skip(1) {
        let name = tag.split(|c: char| c == '>' || c.is_whitespace()).next().unwrap_or_default();
        match name.strip_prefix('/') {
            Some(closed) if open.last() == Some(&closed) => drop(open.pop()),
            Some(closed) => return vec![closed],
            None if ["!doctype", "meta", "br"].contains(&name) => {}
            None => open.push(name),
        }
    }
    open
}

#[test]
fn a_browser_shows_the_page_of_a_way() {
    let shop = Shop::new();
    shop.report(&["--orders", "5"], 0);
    let (text, page) = flow(&shop, "ord-1-0000003");
    let Some(browser) = browser() else {
        // Its structure is what can be checked without one, which is another test's.
        let page = std::fs::read_to_string(page).unwrap();
        assert!(unclosed(&page).is_empty());
        eprintln!("no browser is installed: only the structure of the page was checked");
        return;
    };
    let address = format!("file://{}", page.display());
    let profile = format!("--user-data-dir={}", shop.file("profile").display());
    let shown = |what: &str| {
        let mut command = Command::new(&browser);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1200,1600",
            &profile,
            what,
            &address,
        ]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // The document as the browser has understood it.
    let document = shown("--dump-dom");
    let steps = text.lines().filter(|line| line.contains(" ms ")).count();
    assert_eq!(document.matches("class=\"step").count(), steps, "{document}");
    assert!(document.contains("<h1>The way of order ord-1-0000003</h1>"), "{document}");
    let picture = shop.file("flow.png");
    shown(&format!("--screenshot={}", picture.display()));
    let picture = std::fs::read(picture).unwrap();
    // An empty page of this size has some 8 kB.
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000, "{} bytes", picture.len());
}

/// A browser that can work without a screen.
fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
    let places = std::env::split_paths(&path).flat_map(|folder| names.map(|name| Path::new(&folder).join(name)));
    places.into_iter().find(|place| place.is_file())
}
