//! Generates orders. The same seed generates the same orders.

use crate::orders::{Cart, Line, PlaceOrder};

/// The number of products: `prod-001` to `prod-050`.
pub const CATALOG: u32 = 50;

const CITIES: [(&str, &str); 10] = [
    ("Tehran", "IR"),
    ("Isfahan", "IR"),
    ("Lisbon", "PT"),
    ("Nairobi", "KE"),
    ("Osaka", "JP"),
    ("Bogota", "CO"),
    ("Berlin", "DE"),
    ("Chicago", "US"),
    ("Hanoi", "VN"),
    ("Tbilisi", "GE"),
];

/// Returns the id of a product by its number.
pub fn product(number: u32) -> String {
    format!("prod-{number:03}")
}

/// An iterator over generated orders.
pub struct Generator {
    seed: u64,
    next: u64,
    orders: u64,
}

impl Generator {
    /// Creates a generator of `orders` orders from a seed.
    pub fn new(seed: u64, orders: u64) -> Self {
        Self { seed, next: 0, orders }
    }
}

impl Iterator for Generator {
    type Item = PlaceOrder;

    fn next(&mut self) -> Option<PlaceOrder> {
        if self.next == self.orders {
            return None;
        }
        self.next += 1;
        let (seed, number) = (self.seed, self.next);
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number);
        let lines = (0..1 + random.below(3))
            .map(|_| {
                // The lower of two random numbers: some products are more popular than others and sell out.
                let number = 1 + random.below(u64::from(CATALOG)).min(random.below(u64::from(CATALOG)));
                let number = u32::try_from(number).unwrap_or(1);
                let quantity = 1 + u32::try_from(random.below(3)).unwrap_or(0);
                Line { product: product(number), quantity, price_cents: 499 + u64::from(number) * 150 }
            })
            .collect();
        let at = usize::try_from(random.below(CITIES.len() as u64)).unwrap_or(0);
        let (city, country) = match random.below(50) {
            0 => ("McMurdo Station", "AQ"),
            _ => CITIES.get(at).copied().unwrap_or(("Tehran", "IR")),
        };
        let customer = format!("cust-{:05}", random.below(20_000));
        Some(PlaceOrder {
            order: format!("ord-{seed}-{number:07}"),
            document: format!("evt-{seed}-{number:07}"),
            cart: Cart { customer, lines, city: city.to_owned(), country: country.to_owned() },
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.orders - self.next).unwrap_or(usize::MAX);
        (left, Some(left))
    }
}

/// A SplitMix64 generator: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_generates_same_orders() {
        let orders = |seed| Generator::new(seed, 20).map(|order| format!("{order:?}")).collect::<Vec<_>>();
        assert_eq!(orders(1), orders(1));
        assert_ne!(orders(1), orders(2));
        assert_eq!(orders(1).len(), 20);
    }
}
