//! Revenue per product and per city.

use std::collections::BTreeMap;

use whizbang::prelude::*;

use super::Analytics;
use crate::orders::OrderConfirmed;

/// Asks for the revenue.
#[derive(Query, Debug, Serialize, Deserialize)]
#[query(domain = Analytics, reply = Sales)]
pub struct AskRevenue;

/// The sales, in cents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sales {
    /// The number of orders.
    pub orders: u64,
    /// The total.
    pub cents: u64,
    /// By product.
    pub by_product: BTreeMap<String, u64>,
    /// By city.
    pub by_city: BTreeMap<String, u64>,
}

/// The view behind [`AskRevenue`].
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(OrderConfirmed), answers(AskRevenue))]
pub struct Revenue {
    sales: Sales,
}

impl Project<OrderConfirmed> for Revenue {
    fn project(&mut self, confirmed: &OrderConfirmed, _: &EventContext) {
        let cart = &confirmed.cart;
        for line in &cart.lines {
            let cents = u64::from(line.quantity) * line.price_cents;
            *self.sales.by_product.entry(line.product.clone()).or_default() += cents;
        }
        *self.sales.by_city.entry(cart.city.clone()).or_default() += cart.total_cents();
        self.sales.cents += cart.total_cents();
        self.sales.orders += 1;
    }
}

impl Answer<AskRevenue> for Revenue {
    fn answer(&self, _: AskRevenue) -> Sales {
        self.sales.clone()
    }
}
