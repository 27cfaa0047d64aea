//! An order document: JSON that is validated field by field before it becomes a command.

use serde::Deserialize;

use crate::orders::{Cart, Line, PlaceOrder};

/// The maximum number of lines in an order.
const MAX_LINES: usize = 50;
/// The maximum number of pieces in a line.
const MAX_PIECES: i64 = 1_000;
/// The maximum price of a piece, in cents.
const MAX_PRICE_CENTS: u64 = 10_000_000;
/// The maximum length of an id or name, in bytes.
const MAX_NAME_BYTES: usize = 100;

/// The document. Unknown fields are ignored.
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

/// The reason why a document is not an order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// It is not JSON or lacks fields. Line and column are relative to the start of the document.
    #[error("{reason}")]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// The error.
        reason: String,
    },
    /// A field has an invalid value.
    #[error("order {order}: {reason}")]
    Invalid {
        /// The id of the order.
        order: String,
        /// The error.
        reason: String,
    },
}

/// Parses and validates a document.
///
/// # Errors
/// [`DocumentError`] with the reason and, for malformed JSON, its line and column.
pub fn check(text: &[u8]) -> Result<PlaceOrder, DocumentError> {
    let document: Document = serde_json::from_slice(text).map_err(|error| {
        let whole = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let reason = whole.strip_suffix(&place).unwrap_or(&whole).to_owned();
        DocumentError::Malformed { line: error.line(), column: error.column(), reason }
    })?;
    let order = document.payload.order_id.clone();
    validate(document).map_err(|reason| DocumentError::Invalid { order, reason })
}

fn validate(document: Document) -> Result<PlaceOrder, String> {
    let Document { event_type, event_id, payload } = document;
    let Payload { order_id, customer_id, items, total_amount, shipping_address } = payload;
    if event_type != "OrderPlaced" {
        return Err(format!("the document says `{event_type}`, expected `OrderPlaced`"));
    }
    for (what, name) in [("eventId", &event_id), ("orderId", &order_id), ("customerId", &customer_id)] {
        check_name(what, name)?;
    }
    let address = shipping_address.ok_or("the shippingAddress is missing")?;
    let city = address.city.filter(|city| !city.trim().is_empty()).ok_or("the city is missing")?;
    let country = address.country.ok_or("the country is missing")?;
    check_name("city", &city)?;
    if country.len() != 2 || !country.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("the country is `{country}`, expected two capital letters"));
    }
    if items.is_empty() || items.len() > MAX_LINES {
        return Err(format!("it has {} items, allowed are 1 to {MAX_LINES}", items.len()));
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
    check_name("productId", &product)?;
    if !(1..=MAX_PIECES).contains(&quantity) {
        return Err(format!("{quantity} pieces of {product}, allowed are 1 to {MAX_PIECES}"));
    }
    let price_cents = cents(price).filter(|cents| (1..=MAX_PRICE_CENTS).contains(cents)).ok_or_else(|| {
        format!("a price of {price} for {product}, allowed are 0.01 to {}.00 in whole cents", MAX_PRICE_CENTS / 100)
    })?;
    // The range check above makes it fit.
    Ok(Line { product, quantity: u32::try_from(quantity).unwrap_or(0), price_cents })
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    match name.len() {
        1..=MAX_NAME_BYTES if !name.chars().any(char::is_control) => Ok(()),
        1..=MAX_NAME_BYTES => Err(format!("the {what} contains a control character")),
        bytes => Err(format!("the {what} has {bytes} bytes, allowed are 1 to {MAX_NAME_BYTES}")),
    }
}

/// Converts an amount to whole cents; `None` if it has fractions of a cent, is negative or too large.
fn cents(amount: f64) -> Option<u64> {
    let cents = (amount * 100.0).round();
    // An `f64` represents two decimals exactly enough up to this bound and far beyond.
    let exact = (amount * 100.0 - cents).abs() < 1e-4;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (exact && (0.0..1e15).contains(&cents)).then_some(cents as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../orders/order-placed.json");

    fn error(from: &str, to: &str) -> String {
        let invalid = EXAMPLE.replacen(from, to, 1);
        assert_ne!(invalid, EXAMPLE, "{from} is not in the example");
        check(invalid.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn example_document_is_an_order() {
        let order = check(EXAMPLE.as_bytes()).unwrap();
        assert_eq!((order.order.as_str(), order.cart.total_cents()), ("ord-98765", 14_948));
        assert_eq!(order.cart.lines[1].product, "prod-042");
    }

    #[test]
    fn each_invalid_field_is_reported() {
        assert!(error("\"quantity\":2", "\"quantity\":-2").contains("-2 pieces of prod-001"));
        assert!(error("29.99", "1e300").contains("a price of"));
        assert!(error("29.99", "29.999").contains("whole cents"));
        assert!(error("149.48", "149.47").contains("the items cost 149.48"));
        assert!(error("ord-98765", "").contains("orderId"));
        assert!(error("Tehran", " ").contains("city is missing"));
        assert!(error(",\"shippingAddress\":{\"city\":\"Tehran\",\"country\":\"IR\"}", "").contains("shippingAddress"));
        assert!(error("OrderPlaced", "OrderPacked").contains("`OrderPacked`"));
        assert!(error("\"IR\"", "\"Iran\"").contains("two capital letters"));
    }

    #[test]
    fn malformed_document_is_reported_with_line_and_column() {
        let error = check(b"{\"eventType\": \"OrderPlaced\",\n  oops}").unwrap_err();
        assert!(matches!(error, DocumentError::Malformed { line: 2, column: 3, .. }), "{error:?}");
    }
}
