//! Failures of requests that read.

use whizbang_tests::postgres::Session;

use super::*;

#[test]
fn requests_on_terminated_sessions_are_repeated_on_new_ones() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        let (mut owner, _) = take(&store).await;
        fill(&mut owner, 1, 1).await;
        let account = Name::new("Account").unwrap();
        let mut session = Session::start(&server);
        for round in 0..200 {
            // A request that is under way then is answered with the reason, and the connection ends a moment later.
            session.sql(
                "DO $$ BEGIN PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND query NOT LIKE 'WITH owned%'; END $$",
            );
            let turns = owner.reader.history(&account, "0").await;
            assert_eq!(
                turns.map_err(|error| error_chain(&error).to_string()).map(|turns| turns.len()),
                Ok(1),
                "round {round}"
            );
        }
    });
}

#[test]
fn failing_readers_are_named_until_they_work() {
    let server = PostgresServer::start();
    server.sql("CREATE ROLE app LOGIN");
    server.sql("GRANT CREATE ON DATABASE postgres TO app");
    let url = server.url().replacen("postgres@", "app@", 1);
    run(async {
        let store = connect(&url).await;
        let (mut owner, _) = take(&store).await;
        fill(&mut owner, 1, 1).await;
        server.sql("ALTER ROLE app CONNECTION LIMIT 0");
        // The sessions that commit stay.
        server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' AND query NOT LIKE 'WITH owned%'",
        );
        let account = Name::new("Account").unwrap();
        let error = owner.reader.history(&account, "0").await.map(|_| ()).unwrap_err();
        assert!(error_chain(&error).to_string().contains("too many connections"), "{error}");
        assert!(store.issues().iter().any(|issue| error_chain(issue).to_string().contains("too many connections")));
        fill(&mut owner, 2, 2).await;
        assert!(!store.issues().is_empty(), "commits say nothing about readers");
        server.sql("ALTER ROLE app CONNECTION LIMIT -1");
        // Without another request.
        eventually("the store to be well", PATIENCE, || store.issues().is_empty().then_some(()));
        assert_eq!(owner.reader.history(&account, "0").await.unwrap().len(), 2);
    });
}
