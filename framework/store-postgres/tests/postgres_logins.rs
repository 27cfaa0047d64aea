//! Logins: TLS with verified certificates, and passwords that change while the store runs.

use std::sync::Arc;
use std::time::Duration;

use whizbang::error_chain;
use whizbang::message::{Name, ShardId};
use whizbang::store::Store;
use whizbang::testing::store::{Owner, TurnBuilder, run};
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::eventually;
use whizbang_tests::nats::Certificates;
use whizbang_tests::postgres::PostgresServer;

const PATIENCE: Duration = Duration::from_secs(60);

fn turn(number: u64) -> TurnBuilder {
    TurnBuilder::new("Account", "ada", number).at(number, number - 1).event("Happened", "1")
}

async fn take(store: PostgresStore) -> (Arc<dyn Store>, Owner) {
    let store: Arc<dyn Store> = Arc::new(store);
    let owner = Owner::take(&store, &ShardId::new(Name::new("bank").unwrap(), 0)).await;
    (store, owner)
}

#[test]
fn server_is_verified_with_the_given_authority() {
    let certificates = Certificates::generate();
    let server = PostgresServer::start_tls(&certificates);
    let url = format!("{}?sslmode=require", server.url());
    run(async {
        let builder = PostgresStore::builder(&url).certificate_authority(certificates.authority());
        let (store, mut owner) = take(builder.connect().await.unwrap()).await;
        owner.commit(&turn(1)).await;
        let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
            WHERE application_name = 'whizbang' AND NOT ssl";
        assert_eq!(server.sql(plain), "0");
        store.close().await.unwrap();

        let other = Certificates::generate();
        let builder = PostgresStore::builder(&url).certificate_authority(other.authority());
        let error = error_chain(&builder.connect().await.map(|_| ()).unwrap_err()).to_string();
        assert!(error.contains("certificate"), "{error}");
        assert!(PostgresStore::connect(&url).await.is_err(), "the system does not know the authority");
    });
}

#[test]
fn server_without_tls_is_rejected_if_tls_is_required() {
    let server = PostgresServer::start();
    let certificates = Certificates::generate();
    run(async {
        let url = format!("{}?sslmode=require", server.url());
        let builder = PostgresStore::builder(&url).certificate_authority(certificates.authority());
        let error = error_chain(&builder.connect().await.map(|_| ()).unwrap_err()).to_string();
        assert!(error.contains("does not support TLS"), "{error}");
    });
}

#[test]
fn changed_password_is_read_from_the_file_again() {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    server.sql("CREATE ROLE app LOGIN PASSWORD 'first'");
    server.sql("GRANT CREATE ON DATABASE postgres TO app");
    server.set_logins("host all postgres 127.0.0.1/32 trust\nhost all app 127.0.0.1/32 scram-sha-256\n");
    let url = server.url().replacen("postgres@", "app@", 1);
    run(async {
        std::fs::write(&file, "wrong\n").unwrap();
        let connect = || PostgresStore::builder(&url).password_file(&file).connect();
        let error = error_chain(&connect().await.map(|_| ()).unwrap_err()).to_string();
        assert!(error.contains("password authentication failed") && !error.contains("wrong"), "{error}");
        std::fs::write(&file, "first\n").unwrap();
        let (store, mut owner) = take(connect().await.unwrap()).await;
        owner.commit(&turn(1)).await;
        server.sql("ALTER ROLE app PASSWORD 'second'");
        server.terminate_sessions();
        let last = owner.append(&turn(2)).unwrap();
        eventually("the cause to be named", PATIENCE, || {
            store.issues().iter().any(|issue| error_chain(issue).to_string().contains("password")).then_some(())
        });
        std::fs::write(&file, "second\n").unwrap();
        owner.settled(last).await;
        let shown = format!("{:?}", PostgresStore::builder("postgres://app:secret@localhost/postgres"));
        assert!(!shown.contains("secret"), "{shown}");
    });
}
