//! The routes: each HTTP request becomes a command or a query, and its reply becomes the response.

use axum::Router;
use whizbang::Node;
use whizbang::http::{Gateway, GatewayError, health_routes};

use crate::accounts::{BalanceOf, Deposit, Withdraw};

/// The routes of the gateway over a node.
pub(crate) fn routes(node: &Node) -> Result<Router, GatewayError> {
    let accounts = Gateway::new(node.client())
        .command::<Deposit>("/accounts/{account}/deposits")
        .command::<Withdraw>("/accounts/{account}/withdrawals")
        .query::<BalanceOf>("/accounts/{account}")
        .openapi("/openapi.json", "Accounts", env!("CARGO_PKG_VERSION"));
    Ok(accounts.router()?.merge(health_routes(node.handle())))
}
