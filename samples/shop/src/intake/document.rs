//! One order as it comes in: a JSON document, checked line by line before it becomes a command.

use serde::Deserialize;

use crate::orders::{Cart, Line, PlaceOrder};

/// The most lines in an order.
const LINES: usize = 50;
/// The most pieces in a line.
const PIECES: i64 = 1_000;
/// The highest price of a piece.
const PRICE_CENTS: u64 = 10_000_000;
/// The most bytes in a name of anything.
const NAME_BYTES: usize = 100;

/// The document. What the shop does not need in it may be there.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    event_type: String,
    event_id: String,
    payload: Payload,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    order_id: String,
    customer_id: String,
    items: Vec<Item>,
    total_amount: f64,
    shipping_address: Option<Address>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    product_id: String,
    quantity: i64,
    price: f64,
}

#[derive(Debug, Deserialize)]
struct Address {
    city: Option<String>,
    country: Option<String>,
}

/// Why a document places no order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Objection {
    /// It is not JSON, or not of this form. Line and column count from the document's first.
    #[error("{reason}")]
    Form {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// The error.
        reason: String,
    },
    /// It is about something else.
    #[error("order {order}: {reason}")]
    Content {
        /// The order it would place.
        order: String,
        /// The error.
        reason: String,
    },
}

/// Checks a document.
///
/// # Errors
/// [`Objection`] says what is wrong and where.
pub fn check(text: &[u8]) -> Result<PlaceOrder, Objection> {
    let document: Document = serde_json::from_slice(text).map_err(|error| {
        let whole = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let reason = whole.strip_suffix(&place).unwrap_or(&whole).to_owned();
        Objection::Form { line: error.line(), column: error.column(), reason }
    })?;
    let order = document.payload.order_id.clone();
    read(document).map_err(|reason| Objection::Content { order, reason })
}

fn read(document: Document) -> Result<PlaceOrder, String> {
    let Document { event_type, event_id, payload } = document;
    let Payload { order_id, customer_id, items, total_amount, shipping_address } = payload;
    if event_type != "OrderPlaced" {
        return Err(format!("the document says `{event_type}`, expected `OrderPlaced`"));
    }
    for (what, name) in [("eventId", &event_id), ("orderId", &order_id), ("customerId", &customer_id)] {
        named(what, name)?;
    }
    let address = shipping_address.ok_or("the shippingAddress is missing")?;
    let city = address.city.filter(|city| !city.trim().is_empty()).ok_or("the city is missing")?;
    let country = address.country.ok_or("the country is missing")?;
    named("city", &city)?;
    if country.len() != 2 || !country.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("the country is `{country}`, expected two capital letters"));
    }
    if items.is_empty() || items.len() > LINES {
        return Err(format!("it has {} items, allowed are 1 to {LINES}", items.len()));
    }
    let lines = items.into_iter().map(line).collect::<Result<Vec<_>, _>>()?;
    let cart = Cart { customer: customer_id, lines, city, country };
    let total = cart.total_cents();
    if cents(total_amount) != Some(total) {
        let (whole, rest) = (total / 100, total % 100);
        return Err(format!("the totalAmount is {total_amount}, but the items cost {whole}.{rest:02}"));
    }
    Ok(PlaceOrder { order: order_id, document: event_id, cart })
}

fn line(item: Item) -> Result<Line, String> {
    let Item { product_id: product, quantity, price } = item;
    named("productId", &product)?;
    if !(1..=PIECES).contains(&quantity) {
        return Err(format!("{quantity} pieces of {product}, allowed are 1 to {PIECES}"));
    }
    let price_cents = cents(price).filter(|cents| (1..=PRICE_CENTS).contains(cents)).ok_or_else(|| {
        format!("a price of {price} for {product}, allowed are 0.01 to {}.00 in whole cents", PRICE_CENTS / 100)
    })?;
    // Checked above: it fits.
    Ok(Line { product, quantity: u32::try_from(quantity).unwrap_or(0), price_cents })
}

fn named(what: &str, name: &str) -> Result<(), String> {
    match name.len() {
        1..=NAME_BYTES if !name.chars().any(char::is_control) => Ok(()),
        1..=NAME_BYTES => Err(format!("the {what} contains a control character")),
        bytes => Err(format!("the {what} has {bytes} bytes, allowed are 1 to {NAME_BYTES}")),
    }
}

/// Whole cents; `None` if it is not an amount.
fn cents(amount: f64) -> Option<u64> {
    let cents = (amount * 100.0).round();
    // Two decimals survive the way through a float up to here and far beyond.
    let exact = (amount * 100.0 - cents).abs() < 1e-4;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (exact && (0.0..1e15).contains(&cents)).then_some(cents as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../orders/order-placed.json");

    fn objection(from: &str, to: &str) -> String {
        let spoilt = EXAMPLE.replacen(from, to, 1);
        assert_ne!(spoilt, EXAMPLE, "{from} is not in the example");
        check(spoilt.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_example_is_an_order() {
        let order = check(EXAMPLE.as_bytes()).unwrap();
        assert_eq!((order.order.as_str(), order.cart.total_cents()), ("ord-98765", 14_948));
        assert_eq!(order.cart.lines[1].product, "prod-042");
    }

    #[test]
    fn each_mistake_is_named() {
        assert!(objection("\"quantity\":2", "\"quantity\":-2").contains("-2 pieces of prod-001"));
        assert!(objection("29.99", "1e300").contains("a price of"));
        assert!(objection("29.99", "29.999").contains("whole cents"));
        assert!(objection("149.48", "149.47").contains("the items cost 149.48"));
        assert!(objection("ord-98765", "").contains("orderId"));
        assert!(objection("Tehran", " ").contains("city is missing"));
        assert!(
            objection(",\"shippingAddress\":{\"city\":\"Tehran\",\"country\":\"IR\"}", "").contains("shippingAddress")
        );
        assert!(objection("OrderPlaced", "OrderPacked").contains("`OrderPacked`"));
        assert!(objection("\"IR\"", "\"Iran\"").contains("two capital letters"));
    }

    #[test]
    fn a_malformed_document_is_named_with_line_and_column() {
        let error = check(b"{\"eventType\": \"OrderPlaced\",\n  oops}").unwrap_err();
        assert!(matches!(error, Objection::Form { line: 2, column: 3, .. }), "{error:?}");
    }
}
