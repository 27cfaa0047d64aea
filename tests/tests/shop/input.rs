//! What comes in wrong is named with its place, harms nothing else, and shows in the exit code.

use serde_json::{Value, json};

use crate::recount::Recount;
use crate::shop::{Shop, assert_balanced};

/// An order as a document on one line.
pub(crate) fn order(id: &str) -> Value {
    let text = include_str!("../../../samples/shop/orders/order-placed.json");
    let mut document: Value = serde_json::from_str(text).unwrap();
    document["eventId"] = json!(format!("evt-{id}"));
    document["payload"]["orderId"] = json!(id);
    document
}

/// The order with one thing in it changed.
fn with(id: &str, place: &str, value: Value) -> String {
    let mut document = order(id);
    *document.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = value;
    document.to_string()
}

/// The order with one thing missing.
fn without(id: &str, place: &str, field: &str) -> String {
    let mut document = order(id);
    document.pointer_mut(place).unwrap().as_object_mut().unwrap().remove(field).expect("it was there");
    document.to_string()
}

/// Places lines among which the first and the last are good and one is not; what the shop says of that one.
#[track_caller]
fn complaint(spoilt: &str) -> String {
    let shop = Shop::new();
    let (first, last) = (order("first").to_string(), order("last").to_string());
    let file = shop.write("orders.json", format!("{first}\n{spoilt}\n{last}\n"));
    let said = shop.says(&[&file], 3);
    assert!(said.contains("1 of the orders were refused"), "{said}");
    // The rest goes its way, and nothing is lost of it.
    let report = shop.report(&["report"], 0);
    assert_balanced(&report, 2);
    assert_eq!(report["orders"]["confirmed"], 2, "{report:#}");
    let place = format!("shop: {file}:2:");
    let complaint = said.lines().find_map(|line| line.strip_prefix(&place));
    complaint.unwrap_or_else(|| panic!("nothing said of line 2: {said}")).to_owned()
}

#[test]
fn a_malformed_document_is_named_with_line_and_column() {
    let whole = order("spoilt").to_string();
    let (cut, _) = whole.split_at(70);
    assert_eq!(complaint(cut), "70: EOF while parsing a string");
    assert_eq!(complaint("{\"eventType\": OrderPlaced}"), "15: expected value");
    assert_eq!(complaint("no json at all"), "2: expected ident");
    assert_eq!(complaint("{}"), "2: missing field `eventType`");
}

#[test]
fn a_quantity_that_is_none_is_named() {
    let quantity = |value: Value| complaint(&with("spoilt", "/payload/items/0/quantity", value));
    assert_eq!(quantity(json!(-2)), "1: order spoilt: -2 pieces of prod-001, allowed are 1 to 1000");
    assert_eq!(quantity(json!(0)), "1: order spoilt: 0 pieces of prod-001, allowed are 1 to 1000");
    assert_eq!(
        quantity(json!(1_000_000_000_000_u64)),
        "1: order spoilt: 1000000000000 pieces of prod-001, allowed are 1 to 1000"
    );
    let fraction = quantity(json!(2.5));
    assert!(fraction.ends_with("invalid type: floating point `2.5`, expected i64"), "{fraction}");
}

#[test]
fn an_absurd_price_is_named() {
    let price = |value: Value| complaint(&with("spoilt", "/payload/items/1/price", value));
    let allowed = "for prod-042, allowed are 0.01 to 100000.00 in whole cents";
    for (value, shown) in
        [(json!(1e15), "1000000000000000"), (json!(-1), "-1"), (json!(0), "0"), (json!(0.001), "0.001")]
    {
        assert_eq!(price(value), format!("1: order spoilt: a price of {shown} {allowed}"));
    }
    let total = complaint(&with("spoilt", "/payload/totalAmount", json!(1.00)));
    assert_eq!(total, "1: order spoilt: the totalAmount is 1, but the items cost 149.48");
}

#[test]
fn a_missing_address_is_named() {
    assert_eq!(
        complaint(&without("spoilt", "/payload", "shippingAddress")),
        "1: order spoilt: the shippingAddress is missing"
    );
    assert_eq!(
        complaint(&without("spoilt", "/payload/shippingAddress", "city")),
        "1: order spoilt: the city is missing"
    );
    assert_eq!(
        complaint(&with("spoilt", "/payload/shippingAddress/country", json!("Iran"))),
        "1: order spoilt: the country is `Iran`, expected two capital letters"
    );
}

#[test]
fn names_that_cannot_be_are_named() {
    assert_eq!(
        complaint(&with("spoilt", "/payload/orderId", json!("x".repeat(101)))).split(": ").last(),
        Some("the orderId has 101 bytes, allowed are 1 to 100")
    );
    assert_eq!(
        complaint(&with("spoilt", "/payload/items", json!([]))),
        "1: order spoilt: it has 0 items, allowed are 1 to 50"
    );
    let control = complaint(&with("spoilt", "/payload/customerId", json!("a\u{7}b")));
    assert_eq!(control, "1: order spoilt: the customerId contains a control character");
}

#[test]
fn a_doubled_order_id_is_refused_and_the_same_document_again_is_known() {
    let shop = Shop::new();
    let mut doubled = order("twice");
    doubled["eventId"] = json!("evt-another");
    let lines = [order("twice"), doubled, order("twice"), order("once")];
    let file = shop.write("orders.json", lines.map(|line| line.to_string()).join("\n"));
    let said = shop.says(&[&file], 3);
    assert!(said.contains("document evt-twice has already placed an order twice"), "{said}");
    assert!(said.contains("1 of these orders were known from before"), "{said}");
    let report = shop.report(&["report"], 0);
    assert_balanced(&report, 2);
    Recount::of(&shop.data()).assert_holds();
    assert_eq!(report["money"]["revenue_cents"], 2 * 14_948);
}

#[test]
fn an_order_for_an_unknown_product_is_cancelled_and_what_it_had_reserved_is_put_back() {
    let shop = Shop::new();
    let mut document = order("unknown");
    document["payload"]["items"][1]["productId"] = json!("prod-nobody-knows");
    let file = shop.write("orders.json", document.to_string());
    let report = shop.report(&[&file], 0);
    assert_eq!(report["orders"], json!({ "placed": 1, "confirmed": 0, "cancelled": 1, "open": 0 }));
    assert_eq!(report["cancelled_because"], json!({ "inventory.unknown-product": 1 }));
    let said = shop.says(&["flow", "unknown"], 0);
    assert!(said.contains("says no: there is no product prod-nobody-knows") && said.contains("Released"), "{said}");
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn a_file_without_orders_and_a_file_that_is_none_are_named() {
    let shop = Shop::new();
    let (empty, garbage) = (shop.write("empty.json", ""), shop.write("garbage.bin", [0xFF, 0xFE, 0, b'\n', 0x80]));
    let missing = shop.file("missing.json");
    let good = shop.write("good.json", order("good").to_string());
    let said = shop.says(&[&empty, &garbage, missing.to_str().unwrap(), &good], 3);
    assert!(said.contains(&format!("shop: {empty}:1:1: the file holds no order")), "{said}");
    for line in [1, 2] {
        assert!(said.contains(&format!("shop: {garbage}:{line}:1: expected value")), "{said}");
    }
    assert!(said.contains(&format!("shop: {}: No such file", missing.display())), "{said}");
    let report = shop.report(&["report"], 0);
    assert_balanced(&report, 1);
}

#[test]
fn documents_over_several_lines_and_lines_as_windows_writes_them_are_orders() {
    let shop = Shop::new();
    let pretty = serde_json::to_string_pretty(&order("pretty")).unwrap();
    let file = shop.write("orders.json", format!("{pretty}\r\n{}\r\n\r\n{pretty}", order("crlf")));
    let said = shop.says(&[&file], 0);
    assert!(said.contains("1 of these orders were known from before"), "{said}");
    assert_balanced(&shop.report(&["report"], 0), 2);
}

#[test]
fn a_name_with_everything_in_it_goes_through_all_services() {
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
fn a_call_that_is_wrong_is_told_so() {
    let shop = Shop::new();
    for (call, wrong) in [
        (["--orders", "many"].as_slice(), "--orders is `many`"),
        (&["--frobnicate"], "there is no option --frobnicate"),
        (&["serve", "kitchen", "--nats", "x"], "there is no service `kitchen`"),
        (&["place"], "--nats"),
        (&["flow"], "flow needs the id of an order"),
    ] {
        let said = String::from_utf8(shop.run_as_it_is(call).stderr).unwrap();
        assert!(said.contains(wrong) && said.contains("Exit code:"), "{said}");
        assert_eq!(shop.run_as_it_is(call).status.code(), Some(2));
    }
    let said = shop.says(&["report"], 4);
    assert!(said.contains("there is no shop in") && !shop.data().exists(), "{said}");
    assert!(shop.says(&["--help"], 0).contains("shop flow ORDER"));
    assert_eq!(shop.report(&["--orders", "0"], 0)["orders"]["placed"], 0);
    assert!(shop.says(&["flow", "ord-nobody-knows"], 1).contains("there is no order ord-nobody-knows"));
    let said = shop.says(&["report", "--json", "/nowhere/report.json"], 4);
    assert!(said.contains("shop: /nowhere/report.json: No such file"), "{said}");
}
