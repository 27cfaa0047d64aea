//! The account of `tests/bench`, on a node in this thread.

use std::time::Instant;

use whizbang::store::Store;
use whizbang::{Client, Node};

use crate::account::{Account, deposit};

/// Sends `rounds` commands to each of `names`, in `tasks` tasks with an equal part of the names each. Returns seconds.
pub(crate) async fn measure(store: impl Store, names: &[String], rounds: usize, tasks: usize) -> f64 {
    let node = Node::builder("bank", store).aggregate::<Account>().threads(0).start().await.expect("it starts");
    let begun = Instant::now();
    let tasks = names.chunks(names.len().div_ceil(tasks)).map(|names| {
        let (client, names) = (node.client(), names.to_vec());
        tokio::task::spawn_local(async move { deposits(&client, &names, rounds).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("it ends");
    }
    let took = begun.elapsed().as_secs_f64();
    node.stop().await.expect("it stops");
    took
}

async fn deposits(client: &Client, names: &[String], rounds: usize) {
    for _ in 0..rounds {
        for name in names {
            client.send(deposit(name)).await.expect("it is handled");
        }
    }
}
