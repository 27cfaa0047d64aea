//! The derives and attributes, as users meet them.
pub use whizbang_macros::{
    Aggregate, Command, Deserialize, Document, Domain, Event, Projection, Query, Saga, Serialize, Worker, main, test,
};
