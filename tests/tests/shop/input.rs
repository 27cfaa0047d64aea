//! Invalid input is reported with its position, affects no other order, and changes the exit code.

use serde_json::{Value, json};

use crate::recount::Recount;
use crate::shop::{Shop, assert_balanced};

/// Returns an order as a document on one line.
pub(crate) fn order(id: &str) -> Value {
    let text = include_str!("../../../samples/shop/orders/order-placed.json");
    let mut document: Value = serde_json::from_str(text).unwrap();
    document["eventId"] = json!(format!("evt-{id}"));
    document["payload"]["orderId"] = json!(id);
    document
}

/// Returns the order with one value replaced.
fn with(id: &str, place: &str, value: Value) -> String {
    let mut document = order(id);
    *document.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = value;
    document.to_string()
}

/// Returns the order without one field.
fn without(id: &str, place: &str, field: &str) -> String {
    let mut document = order(id);
    document.pointer_mut(place).unwrap().as_object_mut().unwrap().remove(field).expect("the field exists");
    document.to_string()
}

/// Places an invalid line between two valid orders. Returns the error that the shop prints for it.
#[track_caller]
fn error_of(invalid: &str) -> String {
    let shop = Shop::new();
    let (first, last) = (order("first").to_string(), order("last").to_string());
    let file = shop.write("orders.json", format!("{first}\n{invalid}\n{last}\n"));
    let said = shop.says(&[&file], 3);
    assert!(said.contains("1 of the orders were rejected"), "{said}");
    // The valid orders are processed completely.
    let report = shop.report(&["report"], 0);
    assert_balanced(&report, 2);
    assert_eq!(report["orders"]["confirmed"], 2, "{report:#}");
    let place = format!("shop: {file}:2:");
    let error = said.lines().find_map(|line| line.strip_prefix(&place));
    error.unwrap_or_else(|| panic!("no error for line 2: {said}")).to_owned()
}

#[test]
fn malformed_document_is_reported_with_line_and_column() {
    let whole = order("invalid").to_string();
    let (cut, _) = whole.split_at(70);
    assert_eq!(error_of(cut), "70: EOF while parsing a string");
    assert_eq!(error_of("{\"eventType\": OrderPlaced}"), "15: expected value");
    assert_eq!(error_of("no json at all"), "2: expected ident");
    assert_eq!(error_of("{}"), "2: missing field `eventType`");
}

#[test]
fn invalid_quantity_is_reported() {
    let quantity = |value: Value| error_of(&with("invalid", "/payload/items/0/quantity", value));
    assert_eq!(quantity(json!(-2)), "1: order invalid: -2 pieces of prod-001, allowed are 1 to 1000");
    assert_eq!(quantity(json!(0)), "1: order invalid: 0 pieces of prod-001, allowed are 1 to 1000");
    assert_eq!(
        quantity(json!(1_000_000_000_000_u64)),
        "1: order invalid: 1000000000000 pieces of prod-001, allowed are 1 to 1000"
    );
    let fraction = quantity(json!(2.5));
    assert!(fraction.ends_with("invalid type: floating point `2.5`, expected i64"), "{fraction}");
}

#[test]
fn invalid_price_is_reported() {
    let price = |value: Value| error_of(&with("invalid", "/payload/items/1/price", value));
    let allowed = "for prod-042, allowed are 0.01 to 100000.00 in whole cents";
    for (value, shown) in
        [(json!(1e15), "1000000000000000"), (json!(-1), "-1"), (json!(0), "0"), (json!(0.001), "0.001")]
    {
        assert_eq!(price(value), format!("1: order invalid: a price of {shown} {allowed}"));
    }
    let total = error_of(&with("invalid", "/payload/totalAmount", json!(1.00)));
    assert_eq!(total, "1: order invalid: the totalAmount is 1, but the items cost 149.48");
}

#[test]
fn missing_address_is_reported() {
    assert_eq!(
        error_of(&without("invalid", "/payload", "shippingAddress")),
        "1: order invalid: the shippingAddress is missing"
    );
    assert_eq!(
        error_of(&without("invalid", "/payload/shippingAddress", "city")),
        "1: order invalid: the city is missing"
    );
    assert_eq!(
        error_of(&with("invalid", "/payload/shippingAddress/country", json!("Iran"))),
        "1: order invalid: the country is `Iran`, expected two capital letters"
    );
}

#[test]
fn invalid_names_are_reported() {
    assert_eq!(
        error_of(&with("invalid", "/payload/orderId", json!("x".repeat(101)))).split(": ").last(),
        Some("the orderId has 101 bytes, allowed are 1 to 100")
    );
    assert_eq!(
        error_of(&with("invalid", "/payload/items", json!([]))),
        "1: order invalid: it has 0 items, allowed are 1 to 50"
    );
    let control = error_of(&with("invalid", "/payload/customerId", json!("a\u{7}b")));
    assert_eq!(control, "1: order invalid: the customerId contains a control character");
}

#[test]
fn duplicate_order_id_is_rejected_and_same_document_accepted() {
    let shop = Shop::new();
    let mut doubled = order("twice");
    doubled["eventId"] = json!("evt-another");
    let lines = [order("twice"), doubled, order("twice"), order("once")];
    let file = shop.write("orders.json", lines.map(|line| line.to_string()).join("\n"));
    let said = shop.says(&[&file], 3);
    assert!(said.contains("document evt-twice has already placed an order twice"), "{said}");
    assert!(said.contains("1 of these orders were placed before"), "{said}");
    let report = shop.report(&["report"], 0);
    assert_balanced(&report, 2);
    Recount::of(&shop.data()).assert_holds();
    assert_eq!(report["money"]["revenue_cents"], 2 * 14_948);
}

#[test]
fn order_of_unknown_product_is_cancelled_and_releases_stock() {
    let shop = Shop::new();
    let mut document = order("unknown");
    document["payload"]["items"][1]["productId"] = json!("prod-unknown");
    let file = shop.write("orders.json", document.to_string());
    let report = shop.report(&[&file], 0);
    assert_eq!(report["orders"], json!({ "placed": 1, "confirmed": 0, "cancelled": 1, "open": 0 }));
    assert_eq!(report["cancelled_because"], json!({ "inventory.unknown-product": 1 }));
    let said = shop.says(&["flow", "unknown"], 0);
    assert!(said.contains("rejects: there is no product prod-unknown") && said.contains("Released"), "{said}");
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn empty_invalid_and_missing_files_are_reported() {
    let shop = Shop::new();
    let (empty, garbage) = (shop.write("empty.json", ""), shop.write("garbage.bin", [0xFF, 0xFE, 0, b'\n', 0x80]));
    let missing = shop.file("missing.json");
    let good = shop.write("good.json", order("good").to_string());
    let said = shop.says(&[&empty, &garbage, missing.to_str().unwrap(), &good], 3);
    assert!(said.contains(&format!("shop: {empty}:1:1: the file contains no order")), "{said}");
    for line in [1, 2] {
        assert!(said.contains(&format!("shop: {garbage}:{line}:1: expected value")), "{said}");
    }
    assert!(said.contains(&format!("shop: {}: No such file", missing.display())), "{said}");
    let report = shop.report(&["report"], 0);
    assert_balanced(&report, 1);
}

#[test]
fn multi_line_documents_and_crlf_lines_are_accepted() {
    let shop = Shop::new();
    let pretty = serde_json::to_string_pretty(&order("pretty")).unwrap();
    let file = shop.write("orders.json", format!("{pretty}\r\n{}\r\n\r\n{pretty}", order("crlf")));
    let said = shop.says(&[&file], 0);
    assert!(said.contains("1 of these orders were placed before"), "{said}");
    assert_balanced(&shop.report(&["report"], 0), 2);
}

#[test]
fn order_with_special_characters_passes_all_services() {
    let shop = Shop::new();
    let (id, city) = ("ord <b>&\"é 漢 */ord", "São <script> \"Paulo\"");
    let mut document = order(id);
    document["payload"]["shippingAddress"]["city"] = json!(city);
    document["payload"]["customerId"] = json!("Zoë \"<x@y>\"");
    let file = shop.write("orders.json", document.to_string());
    let report = shop.report(&[&file], 0);
    assert_eq!(report["orders"]["confirmed"], 1, "{report:#}");
    let page = shop.file("flow.html");
    let said = shop.says(&["flow", id, "--html", page.to_str().unwrap()], 0);
    assert!(said.contains(id), "{said}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("ord &lt;b&gt;&amp;&quot;é 漢 */ord") && !page.contains("<b>"), "{page}");
}

#[test]
fn invalid_arguments_are_reported_with_exit_code() {
    let shop = Shop::new();
    for (arguments, error) in [
        (["--orders", "many"].as_slice(), "--orders is `many`"),
        (&["--frobnicate"], "unknown option --frobnicate"),
        (&["serve", "kitchen", "--nats", "x"], "unknown service `kitchen`"),
        (&["place"], "--nats"),
        (&["flow"], "flow needs the id of an order"),
    ] {
        let said = String::from_utf8(shop.run_as_it_is(arguments).stderr).unwrap();
        assert!(said.contains(error) && said.contains("Exit code:"), "{said}");
        assert_eq!(shop.run_as_it_is(arguments).status.code(), Some(2));
    }
    let said = shop.says(&["report"], 4);
    assert!(said.contains("no shop data in") && !shop.data().exists(), "{said}");
    assert!(shop.says(&["--help"], 0).contains("shop flow ORDER"));
    assert_eq!(shop.report(&["--orders", "0"], 0)["orders"]["placed"], 0);
    assert!(shop.says(&["flow", "ord-unknown"], 1).contains("order ord-unknown not found"));
    let said = shop.says(&["report", "--json", "/nowhere/report.json"], 4);
    assert!(said.contains("shop: /nowhere/report.json: No such file"), "{said}");
}
