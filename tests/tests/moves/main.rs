//! Moves of a store between the local disk and PostgreSQL: a service continues at the new place, a move that is interrupted at any
//! step never leaves two stores that can be used, and stores in use or with content are refused.

#[path = "../../../framework/whizbang/tests/bank/mod.rs"]
mod bank;
mod content;
mod continued;
mod interrupted;
mod memory;
mod refused;
mod service;

use std::path::Path;

use whizbang::PostgresStore;
use whizbang::store::embedded::{EmbeddedPlace, EmbeddedStore};
use whizbang::store::{MoveProgress, MovedStore, Store, StoreError, move_store};
use whizbang_tests::postgres::PostgresServer;

/// Opens the store in a folder.
pub(crate) fn open(folder: &Path) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open(folder)
}

/// Connects to the store in a schema.
pub(crate) async fn connect(server: &PostgresServer, schema: &str) -> Result<PostgresStore, StoreError> {
    PostgresStore::builder(&server.url()).schema(schema).exclusive().connect().await
}

/// Moves a store between two places.
pub(crate) async fn move_between(
    from: Place<'_>,
    to: Place<'_>,
    report: impl FnMut(&MoveProgress),
) -> Result<MovedStore, StoreError> {
    move_store(&*from.end(), &*to.end(), report).await
}

/// One place of a store, of either kind.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Folder(&'a Path),
    Schema(&'a PostgresServer, &'a str),
}

impl Place<'_> {
    /// Opens the store.
    pub(crate) async fn open(self) -> Result<Box<dyn Store>, StoreError> {
        match self {
            Self::Folder(folder) => open(folder).map(|store| Box::new(store) as Box<dyn Store>),
            Self::Schema(server, schema) => {
                connect(server, schema).await.map(|store| Box::new(store) as Box<dyn Store>)
            }
        }
    }

    /// The place as an end of a move.
    pub(crate) fn end(self) -> Box<dyn whizbang::store::StorePlace> {
        match self {
            Self::Folder(folder) => Box::new(EmbeddedPlace::new(folder)),
            Self::Schema(server, schema) => Box::new(PostgresStore::builder(&server.url()).schema(schema)),
        }
    }

    /// The place as an argument of the program.
    pub(crate) fn argument(self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Schema(server, schema) => format!("{}#{schema}", server.url()),
        }
    }

    /// Returns whether anything of a store is there. Opening creates a store where there is none.
    pub(crate) fn exists(self) -> bool {
        match self {
            Self::Folder(folder) => folder.join("whizbang").exists(),
            Self::Schema(server, schema) => {
                server.sql(&format!("SELECT to_regclass('{schema}.meta') IS NOT NULL")) == "t"
            }
        }
    }

    /// Deletes everything, as an operator does.
    pub(crate) fn delete(self) {
        match self {
            Self::Folder(folder) => std::fs::remove_dir_all(folder).unwrap(),
            Self::Schema(server, schema) => drop(server.sql(&format!("DROP SCHEMA {schema} CASCADE"))),
        }
    }
}
