//! An HTTP gateway: a node behind axum, under a plain `#[tokio::main]`.
//!
//! ```text
//! gateway [--listen ADDRESS] [--data FOLDER]
//! ```
//!
//! It listens at 127.0.0.1:8080 by default, and keeps its accounts in memory unless a folder is given.

mod accounts;
mod api;

use std::error::Error;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use whizbang::prelude::*;

use accounts::{Account, Balances};

const USAGE: &str = "usage: gateway [--listen ADDRESS] [--data FOLDER]";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (mut listen, mut data) = ("127.0.0.1:8080".to_owned(), None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--listen", Some(address)) => listen = address,
            ("--data", Some(folder)) => data = Some(folder),
            _ => return Err(USAGE.into()),
        }
    }

    let node = match data {
        Some(folder) => Node::builder("accounts", EmbeddedStore::open(folder)?),
        None => Node::builder("accounts", MemoryStore::new()),
    };
    let node = node.aggregate::<Account>().projection::<Balances>().start().await?;

    let listener = TcpListener::bind(&listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    // Requests end before the node stops, so no request reaches a stopping node.
    axum::serve(listener, api::routes(&node)?).with_graceful_shutdown(shutdown).await?;
    node.stop().await?;
    Ok(())
}
