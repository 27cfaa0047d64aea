//! Logins and TLS: accepted and refused connections, and their errors.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use whizbang::bridge::nats::{NatsBridge, NatsBuilder};
use whizbang::bridge::{Bridge, BridgeError};
use whizbang::testing::bridge::cases::sample::{command, shard};
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, named, service};
use whizbang::testing::bridge::{SHARDS, run};
use whizbang_tests::nats::{Certificates, NatsConfig, NatsServer, Operator, Release, user_key};

const BOTH: [Release; 2] = [Release::Distribution, Release::Pinned];

/// Connects and sends a command.
async fn works(builder: NatsBuilder) {
    let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
    let bank = TestNode::attach(bridge, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default())
        .await
        .expect("attaches");
    bank.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 1)).await.expect("sends");
    bank.wait_until("the command", |received| received.direct.len() == 1).await;
    bank.stop().await;
}

async fn refused(builder: NatsBuilder) -> String {
    match builder.connect().await.map(|_| ()) {
        Err(BridgeError::Refused { broker, reason }) => {
            assert!(broker.starts_with("nats://127.0.0.1:") || broker.starts_with("tls://localhost:"), "{broker}");
            reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn right_password_connects_and_wrong_one_is_refused() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start_with(release, NatsConfig::authorization("user: ada\npassword: lovelace"));
            let builder = || NatsBridge::builder(&server.url());
            works(builder().user("ada", "lovelace")).await;
            for login in [builder(), builder().user("ada", "hunter2-secret"), builder().token("lovelace")] {
                let reason = refused(login).await;
                assert!(reason.contains("authorization violation"), "{reason}");
                assert!(!reason.contains("hunter2"), "{reason}");
            }
        });
    }
}

#[test]
fn password_in_the_address_works_and_is_never_shown() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start_with(release, NatsConfig::authorization("user: ada\npassword: lovelace"));
            let address = |password: &str| format!("nats://ada:{password}@127.0.0.1:{}", server.port());
            works(NatsBridge::builder(&address("lovelace"))).await;
            let builder = NatsBridge::builder(&address("hunter2"));
            assert!(!format!("{builder:?}").contains("hunter2"));
            let error = builder.connect().await.map(|_| ()).expect_err("is refused");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        });
    }
}

#[test]
fn client_with_token_connects() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start_with(release, NatsConfig::authorization("token: \"s3cret\""));
            works(NatsBridge::builder(&server.url()).token("s3cret")).await;
            refused(NatsBridge::builder(&server.url()).token("guessed")).await;
        });
    }
}

#[test]
fn right_nkey_connects_and_wrong_one_is_refused() {
    for release in BOTH {
        run(async {
            let (public, seed) = user_key();
            let config = NatsConfig::authorization(&format!("users: [ {{ nkey: {public} }} ]"));
            let server = NatsServer::start_with(release, config);
            works(NatsBridge::builder(&server.url()).nkey(seed)).await;
            refused(NatsBridge::builder(&server.url()).nkey(user_key().1)).await;
            refused(NatsBridge::builder(&server.url()).nkey("no seed")).await;
        });
    }
}

#[test]
fn credentials_of_another_operator_are_refused() {
    for release in BOTH {
        run(async {
            let (operator, other) = (Operator::generate(), Operator::generate());
            let server = NatsServer::start_with(release, NatsConfig { more: operator.config, ..NatsConfig::default() });
            works(NatsBridge::builder(&server.url()).credentials(operator.credentials)).await;
            refused(NatsBridge::builder(&server.url()).credentials(other.credentials)).await;
            let reason = refused(NatsBridge::builder(&server.url()).credentials("nothing")).await;
            assert!(reason.contains("credentials"), "{reason}");
        });
    }
}

#[test]
fn tls_requires_the_configured_authority() {
    for release in BOTH {
        run(async {
            let (certificates, strangers) = (Certificates::generate(), Certificates::generate());
            let server = NatsServer::start_with(release, NatsConfig::tls(&certificates));
            works(NatsBridge::builder(&server.url()).root_certificate(certificates.authority())).await;
            let reason = refused(NatsBridge::builder(&server.url()).root_certificate(strangers.authority())).await;
            assert!(reason.contains("certificate"), "{reason}");
            // The authorities of the system do not include it either.
            refused(NatsBridge::builder(&server.url())).await;
        });
    }
}

#[test]
fn client_certificate_is_presented() {
    run(async {
        let certificates = Certificates::generate();
        let config = NatsConfig { verify_clients: true, ..NatsConfig::tls(&certificates) };
        let server = NatsServer::start_with(Release::Pinned, config);
        let builder = || NatsBridge::builder(&server.url()).root_certificate(certificates.authority());
        works(builder().certificate(certificates.client_certificate(), certificates.client_key())).await;
        assert!(builder().connect().await.is_err());
    });
}

#[test]
fn server_without_tls_is_refused_when_tls_is_required() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let start = tokio::time::Instant::now();
            let error =
                NatsBridge::builder(&server.url()).require_tls().connect().await.map(|_| ()).expect_err("fails");
            assert!(matches!(error, BridgeError::Refused { .. } | BridgeError::Unreachable { .. }), "{error:?}");
            assert!(start.elapsed() < Duration::from_secs(10));
        });
    }
}

/// A server without TLS that records the bytes of its clients and closes their connections after the first line.
struct RecordingServer {
    port: u16,
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl RecordingServer {
    /// Starts a server. `requires_tls` is the untrue claim in its greeting.
    fn start(requires_tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = listener.local_addr().expect("an address").port();
        let connections = Arc::default();
        let server = Self { port, connections: Arc::clone(&connections) };
        let info = format!(
            r#"INFO {{"server_id":"x","server_name":"x","version":"2.12.8","go":"go1","host":"127.0.0.1","port":{port},"headers":true,"max_payload":1048576,"proto":1,"auth_required":true,"jetstream":true,"tls_required":{requires_tls},"tls_available":{requires_tls}}}"#
        );
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let received = Self::receive(stream.expect("a connection"), &info);
                connections.lock().expect("no thread has panicked").push(received);
            }
        });
        server
    }

    /// Returns the first line of a client, or the first bytes of its TLS handshake.
    fn receive(mut stream: TcpStream, info: &str) -> Vec<u8> {
        let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
        stream.write_all(format!("{info}\r\n").as_bytes()).expect("greets");
        let is_handshake = |received: &[u8]| received.first() == Some(&0x16);
        while !received.contains(&b'\n') && !is_handshake(&received) {
            match stream.read(&mut buffer) {
                Ok(length) if length > 0 => received.extend_from_slice(&buffer[..length]),
                _ => break,
            }
        }
        received
    }

    /// Waits for a connection and returns what all connections since the last call have sent.
    async fn received(&self) -> Vec<u8> {
        let received = async {
            loop {
                let received = std::mem::take(&mut *self.connections.lock().expect("no thread has panicked"));
                if !received.is_empty() {
                    return received.concat();
                }
                whizbang_tests::poll_interval().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), received).await.expect("a connection")
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn no_login_is_sent_in_clear_if_tls_is_configured() {
    run(async {
        let (certificates, folder) = (Certificates::generate(), tempfile::tempdir().expect("a folder"));
        let file = folder.path().join("password");
        std::fs::write(&file, "hunter2").expect("writes");
        for requires_tls in [false, true] {
            let server = RecordingServer::start(requires_tls);
            let (here, dead) = (format!("127.0.0.1:{}", server.port), NatsServer::start(Release::Distribution).port());
            let builder = |address: &str| NatsBridge::builder(address);
            let plain = || builder(&format!("nats://{here}"));
            // The control: without a sign of TLS the server records the password.
            if !requires_tls {
                assert!(plain().user("ada", "hunter2").connect().await.is_err());
                let sent = server.received().await;
                assert!(contains(&sent, "CONNECT") && contains(&sent, "hunter2"), "{}", String::from_utf8_lossy(&sent));
            }
            let (certificate, key) = (certificates.client_certificate(), certificates.client_key());
            for (sign, builder) in [
                ("an authority", plain().root_certificate(certificates.authority()).user("ada", "hunter2")),
                ("a certificate", plain().certificate(certificate, key).user("ada", "hunter2")),
                ("a requirement", plain().require_tls().user("ada", "hunter2")),
                ("a token", plain().require_tls().token("hunter2")),
                ("a file", plain().require_tls().password_file("ada", &file)),
                ("a login in the address", builder(&format!("nats://ada:hunter2@{here}")).require_tls()),
                ("an address", builder(&format!("tls://{here}")).user("ada", "hunter2")),
                ("another address", builder(&format!("tls://127.0.0.1:{dead},nats://{here}")).user("ada", "hunter2")),
            ] {
                let error = builder.connect().await.map(|_| ()).expect_err(sign);
                assert!(
                    matches!(error, BridgeError::Refused { .. } | BridgeError::Unreachable { .. }),
                    "{sign}: {error:?}"
                );
                let sent = server.received().await;
                let text = String::from_utf8_lossy(&sent);
                assert!(!contains(&sent, "hunter2") && !contains(&sent, "CONNECT"), "{sign}: {text}");
            }
        }
    });
}

#[test]
fn missing_server_is_reported_with_address_and_reason() {
    run(async {
        // A port that was free a moment ago.
        let port = NatsServer::start(Release::Pinned).port();
        let start = tokio::time::Instant::now();
        match NatsBridge::connect(&format!("nats://127.0.0.1:{port}")).await.map(|_| ()) {
            Err(BridgeError::Unreachable { broker, reason }) => {
                assert_eq!(broker, format!("nats://127.0.0.1:{port}"));
                assert!(reason.contains("refused"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        for address in
            ["nats://no-such-host.invalid:4222", "", "nats://", "http://127.0.0.1:1", "nats://127.0.0.1:99999"]
        {
            let error = NatsBridge::connect(address).await.map(|_| ()).expect_err("fails");
            assert!(
                matches!(error, BridgeError::Unreachable { .. } | BridgeError::Refused { .. }),
                "{address}: {error:?}"
            );
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    });
}

#[test]
fn server_failure_during_start_is_reported_in_time() {
    run(async {
        let mut server = NatsServer::start(Release::Distribution);
        let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
        server.pause();
        let start = tokio::time::Instant::now();
        let attached =
            TestNode::attach(bridge, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
        assert!(matches!(attached.map(|_| ()), Err(BridgeError::Unreachable { .. })));
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        server.resume();

        let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
        server.kill();
        let attached =
            TestNode::attach(bridge, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default()).await;
        assert!(matches!(attached.map(|_| ()), Err(BridgeError::Unreachable { .. })));
    });
}

#[test]
fn changed_password_disconnects_until_it_is_right_again() {
    run(async {
        let right = NatsConfig::authorization("user: ada\npassword: lovelace");
        let mut server = NatsServer::start_with(Release::Pinned, right.clone());
        let builder = NatsBridge::builder(&server.url()).user("ada", "lovelace");
        let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
        let bank = TestNode::attach(bridge, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default())
            .await
            .expect("attaches");
        server.restart_with(NatsConfig::authorization("user: ada\npassword: changed"));
        let refused = bank.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 1)).await;
        assert!(refused.is_err());
        server.restart_with(right);
        let send = || bank.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 2));
        bank.retry_until("a command", send, |received| !received.direct.is_empty()).await;
        bank.stop().await;
    });
}

#[test]
fn connect_waits_for_a_late_server_but_not_after_a_refusal() {
    run(async {
        let mut server = NatsServer::start(Release::Distribution);
        let url = server.url();
        server.kill();
        assert!(matches!(NatsBridge::connect(&url).await.map(|_| ()), Err(BridgeError::Unreachable { .. })));
        let minute = Duration::from_secs(60);
        let waits = tokio::task::spawn_local(NatsBridge::builder(&url).wait_for_server(minute).connect());
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        server.restart();
        waits.await.expect("the task ends").expect("the server is up");

        server.restart_with(NatsConfig::authorization("user: ada\npassword: lovelace"));
        let begun = tokio::time::Instant::now();
        let refused = NatsBridge::builder(&url).user("ada", "wrong").wait_for_server(minute).connect().await;
        assert!(matches!(refused.map(|_| ()), Err(BridgeError::Refused { .. })));
        assert!(begun.elapsed() < minute / 2, "{:?}", begun.elapsed());
    });
}

/// An operator replaces the file of a login while the node runs: the next connection uses the new one.
#[test]
fn replaced_login_files_are_read_at_the_next_connection() {
    for release in BOTH {
        run(async {
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("login");
            let write = |text: &str| std::fs::write(&file, text).expect("writes");
            let password = |text: &str| NatsConfig::authorization(&format!("user: ada\npassword: \"{text}\""));
            let (first, second) = (Operator::generate(), Operator::generate());
            let operated = |operator: &Operator| NatsConfig { more: operator.config.clone(), ..NatsConfig::default() };
            let logins: [(NatsConfig, NatsConfig, &str, &str); 2] = [
                (password("lovelace"), password("byron"), "lovelace\n", "byron\n"),
                (operated(&first), operated(&second), &first.credentials, &second.credentials),
            ];
            for (at, (before, after, old, new)) in logins.into_iter().enumerate() {
                write(old);
                let mut server = NatsServer::start_with(release, before);
                let builder = NatsBridge::builder(&server.url());
                let builder =
                    if at == 0 { builder.password_file("ada", &file) } else { builder.credentials_file(&file) };
                let bridge: Arc<dyn Bridge> = Arc::new(builder.clone().connect().await.expect("connects"));
                let bank =
                    TestNode::attach(bridge, service("bank").owning(named("bank"), SHARDS), NodeBehavior::default())
                        .await;
                let bank = bank.expect("attaches");
                write(new);
                server.restart_with(after);
                let send = || bank.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 2));
                bank.retry_until("a command", send, |received| !received.direct.is_empty()).await;
                bank.stop().await;
                // A missing file is an error at start, and is named.
                std::fs::remove_file(&file).expect("removes");
                let reason = refused(builder).await;
                assert!(reason.contains("login"), "{reason}");
            }
        });
    }
}
