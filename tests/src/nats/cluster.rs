//! Three nats-servers that form one cluster, for streams with three replicas.
//!
//! Called by the black-box tests. A stream has a leader on one of the servers; the test kills it by name.

use async_nats::Client;
use serde_json::Value;

use crate::ReservedPort;

use super::{NatsConfig, NatsServer, Release};

/// The number of servers, of which two are a quorum.
const SERVERS: usize = 3;

/// A running cluster, killed when it is dropped.
pub struct NatsCluster {
    servers: Vec<NatsServer>,
    // The ports at which the servers reach each other.
    _routes: Vec<ReservedPort>,
}

impl NatsCluster {
    /// Starts three servers on free ports. The cluster elects its leader afterwards, which takes a few seconds.
    ///
    /// # Panics
    /// If a server is not installed or does not start.
    pub fn start(release: Release) -> Self {
        let ports: Vec<_> = (0..SERVERS).map(|_| ReservedPort::new()).collect();
        let route = |port: &ReservedPort| format!("\"nats://127.0.0.1:{}\"", port.number());
        let routes: Vec<_> = ports.iter().map(route).collect();
        let server = |(number, port): (usize, &ReservedPort)| {
            let port = port.number();
            let more = format!(
                "server_name: \"{}\"\ncluster {{ name: tests, listen: \"127.0.0.1:{port}\", routes: [{}] }}\n",
                name(number),
                routes.join(", ")
            );
            NatsServer::start_with(release, NatsConfig { more, ..NatsConfig::default() })
        };
        let servers = ports.iter().enumerate().map(server).collect();
        Self { servers, _routes: ports }
    }

    /// Returns the addresses of all servers, separated by commas.
    pub fn url(&self) -> String {
        let urls: Vec<_> = self.servers.iter().map(NatsServer::url).collect();
        urls.join(",")
    }

    /// Returns the port of each server on 127.0.0.1.
    pub fn ports(&self) -> Vec<u16> {
        self.servers.iter().map(NatsServer::port).collect()
    }

    /// Kills a server with SIGKILL.
    pub fn kill(&mut self, number: usize) {
        self.servers[number].kill();
    }

    /// Starts a server again with the content of its store.
    pub fn restart(&mut self, number: usize) {
        self.servers[number].restart();
    }

    /// Connects an operator that observes.
    ///
    /// # Panics
    /// If no server accepts the connection.
    pub async fn operator(&self) -> Client {
        let urls: Vec<_> = self.servers.iter().map(NatsServer::url).collect();
        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        options.connect(urls).await.expect("connects")
    }
}

fn name(number: usize) -> String {
    format!("n{number}")
}

/// Returns the number of the server that leads a stream. `None` while there is no leader.
pub async fn stream_leader(operator: &Client, stream: &str) -> Option<usize> {
    let info = stream_info(operator, stream).await?;
    let leader = info.pointer("/cluster/leader")?.as_str()?;
    (0..SERVERS).find(|number| name(*number) == leader)
}

/// Returns true if all replicas of a stream are current.
pub async fn is_replicated(operator: &Client, stream: &str) -> bool {
    let Some(info) = stream_info(operator, stream).await else { return false };
    let replicas = info.pointer("/cluster/replicas").and_then(Value::as_array);
    let is_current = |replica: &Value| replica["current"] == true && replica["offline"] != true;
    replicas.is_some_and(|replicas| replicas.len() == SERVERS - 1 && replicas.iter().all(is_current))
}

async fn stream_info(operator: &Client, stream: &str) -> Option<Value> {
    let answer = operator.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await.ok()?;
    serde_json::from_slice(&answer.payload).ok()
}
