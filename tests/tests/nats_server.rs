//! The test servers: their releases, and the operations that tests use.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use whizbang_tests::eventually;
use whizbang_tests::nats::{Certificates, NatsConfig, NatsServer, Release};

/// Returns the first line that a server sends to a new connection.
fn greeting(server: &NatsServer) -> serde_json::Value {
    let stream = TcpStream::connect(("127.0.0.1", server.port())).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("a greeting");
    serde_json::from_str(line.strip_prefix("INFO ").expect("an INFO line")).expect("JSON")
}

#[test]
fn both_releases_run_and_report_their_version() {
    for (release, version) in [(Release::Distribution, "2.9."), (Release::Pinned, "2.12.")] {
        let server = NatsServer::start(release);
        let found = greeting(&server)["version"].as_str().expect("a version").to_owned();
        println!("{release:?}: nats-server {found}");
        assert!(found.starts_with(version), "{release:?} is {found}");
        assert_eq!(greeting(&server)["jetstream"], true);
    }
}

#[test]
fn killed_server_restarts_at_its_port() {
    let mut server = NatsServer::start(Release::Distribution);
    let (port, pid) = (server.port(), server.pid());
    server.kill();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    server.restart();
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    server.restart_empty();
    greeting(&server);
}

#[test]
fn paused_server_accepts_connections_and_is_silent() {
    let server = NatsServer::start(Release::Distribution);
    server.pause();
    let stream = TcpStream::connect(("127.0.0.1", server.port())).expect("the kernel accepts");
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a limit");
    assert!(BufReader::new(&stream).read_line(&mut String::new()).is_err());
    server.resume();
    greeting(&server);
}

#[test]
fn server_dies_with_the_thread_that_started_it() {
    let pid = std::thread::spawn(|| {
        let server = NatsServer::start(Release::Distribution);
        let pid = server.pid();
        std::mem::forget(server);
        pid
    })
    .join()
    .expect("starts a server");
    eventually("the server to die", Duration::from_secs(10), || {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A dead child that was not awaited is a zombie.
        (state.is_empty() || state.contains(") Z ")).then_some(())
    });
}

#[test]
fn certificates_are_signed_by_their_authority() {
    let certificates = Certificates::generate();
    for certificate in [certificates.server_certificate(), certificates.client_certificate()] {
        let output = Command::new("openssl")
            .args(["verify", "-CAfile"])
            .args([certificates.authority(), certificate])
            .output()
            .expect("openssl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let server = NatsServer::start_with(Release::Pinned, NatsConfig::tls(&certificates));
    assert_eq!(greeting(&server)["tls_required"], true);
}
