//! Paired measurements, printed as JSON.

use std::time::Duration;

/// The number of times that anchor and framework are measured in alternation.
pub(crate) const REPETITIONS: usize = 5;

/// Prints the medians of the pairs (value, anchor value) and of their ratios.
pub(crate) fn report(bench: &str, unit: &str, anchor: &str, pairs: &[(f64, f64)]) {
    let row = serde_json::json!({
        "bench": bench,
        "value": round(median(pairs.iter().map(|pair| pair.0))),
        "unit": unit,
        "anchor": anchor,
        "anchor_value": round(median(pairs.iter().map(|pair| pair.1))),
        "ratio": round(median(pairs.iter().map(|pair| pair.0 / pair.1))),
    });
    println!("{row}");
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn round(value: f64) -> f64 {
    if value.abs() < 10.0 { (value * 1000.0).round() / 1000.0 } else { (value * 10.0).round() / 10.0 }
}

/// Returns nanoseconds per item.
pub(crate) fn nanos_each(span: Duration, count: usize) -> f64 {
    span.as_nanos() as f64 / count as f64
}
