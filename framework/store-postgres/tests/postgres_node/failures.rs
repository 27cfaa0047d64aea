//! A node whose database fails: its health names the cause, it is not ready, and it recovers without a restart.

use whizbang::SendError;
use whizbang_tests::postgres::PostgresServer;
use whizbang_tests::until;

use crate::bank::{Deposit, deposit};
use crate::world::start_at;

/// A failure of the server: its beginning, a part of the cause in health, and its end.
struct Failure {
    cause: &'static str,
    begin: fn(&mut PostgresServer),
    end: fn(&mut PostgresServer),
}

const FAILURES: [Failure; 5] = [
    Failure {
        cause: "too many connections",
        begin: |server| {
            server.sql("ALTER ROLE app CONNECTION LIMIT 0");
            server.terminate_sessions();
        },
        end: |server| {
            server.sql("ALTER ROLE app CONNECTION LIMIT -1");
        },
    },
    Failure {
        cause: "read-only",
        begin: |server| {
            server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
            server.sql("SELECT pg_reload_conf()");
            server.terminate_sessions();
        },
        end: |server| {
            server.sql("ALTER SYSTEM RESET default_transaction_read_only");
            server.sql("SELECT pg_reload_conf()");
        },
    },
    Failure { cause: "does not answer", begin: |server| server.pause(), end: |server| server.resume() },
    Failure { cause: "refused", begin: PostgresServer::stop, end: PostgresServer::run },
    Failure {
        cause: "no space left",
        // The server's own error, without a disk that really is full.
        begin: |server| {
            server.sql(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$; \
                 CREATE TRIGGER full_disk BEFORE INSERT ON whizbang.turns FOR EACH ROW EXECUTE FUNCTION full_disk()",
            );
        },
        end: |server| {
            server.sql("DROP TRIGGER full_disk ON whizbang.turns");
        },
    },
];

#[whizbang::test]
async fn failed_database_is_named_in_health_and_loses_nothing() {
    let mut server = PostgresServer::start();
    // The limit of connections is not checked for an administrator.
    server.sql("CREATE ROLE app LOGIN");
    server.sql("GRANT CREATE ON DATABASE postgres TO app");
    let node = start_at(&server.url().replacen("postgres@", "app@", 1), 0).await;
    let client = node.client();
    client.send(deposit("ada", 1)).await.unwrap();
    let mut balance = 1;
    for Failure { cause, begin, end } in FAILURES {
        begin(&mut server);
        let id = client.new_id();
        let sent = tokio::task::spawn_local(send_until_handled(client.clone(), id, deposit("ada", 1)));
        until(cause, async || {
            let health = node.health();
            !health.ready && health.reasons.iter().any(|reason| reason.to_lowercase().contains(cause))
        })
        .await;
        assert!(node.health().live, "{cause}: {:?}", node.health());
        end(&mut server);
        balance += 1;
        assert_eq!(sent.await.unwrap(), balance, "{cause}: decided once");
        until("a node that is ready again", async || node.health().ready).await;
        assert!(node.health().reasons.is_empty(), "{cause}: {:?}", node.health());
    }
    assert_eq!(node.ended(), None);
    node.stop().await.unwrap();
    assert_eq!(server.sql("SELECT count(*) FROM whizbang.events"), balance.to_string());
}

/// Sends a command under one id until there is a reply.
async fn send_until_handled(client: whizbang::Client, id: whizbang::message::MessageId, command: Deposit) -> u64 {
    loop {
        match client.send(command.clone()).id(id).await {
            Ok(balance) => return balance,
            Err(SendError::Rejected(rejection)) => panic!("{rejection:?}"),
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        tokio::task::yield_now().await;
    }
}
