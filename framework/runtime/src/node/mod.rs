//! Node: the public type that runs a service, with its configuration, startup, shutdown and health.
//!
//! Called by users. Builds every other module and wires them. It also contains the private runtime of each thread
//! (`thread`) and the paths between threads and the bridge.

mod catalog;
mod config;
mod definition;
mod error;
mod health;
mod inbound;
mod lifecycle;
mod operations;
mod ownership;
mod relay;
mod shards;
mod singleton;
mod tasks;
mod thread;
mod thread_handles;
mod transport;

pub use config::{ConfigError, NodeConfig};
pub use error::{Error, NodeEnd, ShapeChange, StartError};
pub use health::{Health, Metrics};
pub use lifecycle::builder::NodeBuilder;
pub use lifecycle::handle::NodeHandle;
pub use lifecycle::node::Node;
pub use operations::waiting::{UnreadableTimer, WaitingMessage};
pub use ownership::cluster::{Cluster, ClusterMember, ClusterShard, ShardMove};
pub use singleton::Singleton;
