//! The report as a table of text.

use std::fmt;

use super::Report;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { orders, stock, money, latency_ms, .. } = self;
        let verdict = |holds: bool| match (holds, self.running) {
            (true, _) => "balanced",
            (false, true) => "in progress",
            (false, false) => "OFF",
        };
        let mut row = |name: &str, value: String, remark: &str| writeln!(f, "{name:<26}{value:>14}  {remark}");
        row("orders placed", number(orders.placed), "")?;
        row("  confirmed", number(orders.confirmed), "")?;
        row("  cancelled", number(orders.cancelled), "")?;
        for (code, count) in &self.cancelled_because {
            row(&format!("    {code}"), number(*count), "")?;
        }
        row(
            "  open",
            number(orders.open),
            match (orders.open, self.running) {
                (0, _) => "",
                (_, true) => "in progress",
                (_, false) => "OPEN",
            },
        )?;
        row("stock added", number(stock.initial), "")?;
        row("  shipped", number(stock.shipped), "")?;
        row("  on hand", signed(stock.on_hand), "")?;
        row("  reserved", signed(stock.reserved), verdict(stock.conserved))?;
        row("money charged", cents(money.charged_cents), "")?;
        row("  refunded", cents(money.refunded_cents), "")?;
        row("  revenue", cents(money.revenue_cents), verdict(money.conserved))?;
        row("  revenue by analytics", cents(self.analytics.revenue_cents), verdict(self.analytics.matches_log))?;
        row("e-mails", number(self.emails), "")?;
        if self.dead_letters > 0 {
            row("dead letters", number(self.dead_letters), "inspect them")?;
        }
        row("orders per second", format!("{:.0}", self.rate_orders_per_s), "")?;
        row("placing to end, p50", millis(latency_ms.p50), "")?;
        row("  p99", millis(latency_ms.p99), "")?;
        row("  max, answered", millis(latency_ms.max_answered), "")?;
        if latency_ms.max > latency_ms.max_answered {
            row("  max", millis(latency_ms.max), "the provider did not answer before the timer fired")?;
        }
        Ok(())
    }
}

fn millis(value: u64) -> String {
    format!("{} ms", number(value))
}

/// Formats a number with a comma after each thousand.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn signed(value: i64) -> String {
    let sign = if value < 0 { "-" } else { "" };
    format!("{sign}{}", number(value.unsigned_abs()))
}

fn cents(value: u64) -> String {
    format!("{}.{:02}", number(value / 100), value % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_with_commas() {
        assert_eq!([number(0), number(999), number(1_000), number(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!((signed(-1_500), cents(123_456)), ("-1,500".to_owned(), "1,234.56".to_owned()));
    }
}
