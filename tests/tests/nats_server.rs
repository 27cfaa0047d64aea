//! The servers that the tests start: that they are what they claim, and do what tests ask of them.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use whizbang_tests::eventually;
use whizbang_tests::nats::{Certificates, NatsConfig, NatsServer, Release};

/// The first line a server says to whoever connects.
fn greeting(server: &NatsServer) -> serde_json::Value {
    let stream = TcpStream::connect(("127.0.0.1", server.port())).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("a greeting");
    serde_json::from_str(line.strip_prefix("INFO ").expect("an INFO line")).expect("JSON")
}

#[test]
fn both_releases_run_and_say_which_they_are() {
    for (release, version) in [(Release::Distribution, "2.9."), (Release::Pinned, "2.12.")] {
        let server = NatsServer::start(release);
        let found = greeting(&server)["version"].as_str().expect("a version").to_owned();
        println!("{release:?}: nats-server {found}");
        assert!(found.starts_with(version), "{release:?} is {found}");
        assert_eq!(greeting(&server)["jetstream"], true);
    }
}

#[test]
fn a_server_comes_back_at_its_port_after_a_kill() {
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
fn a_paused_server_takes_connections_and_says_nothing() {
    let server = NatsServer::start(Release::Distribution);
    server.pause();
    let stream = TcpStream::connect(("127.0.0.1", server.port())).expect("the kernel accepts");
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a limit");
    assert!(BufReader::new(&stream).read_line(&mut String::new()).is_err());
    server.resume();
    greeting(&server);
}

#[test]
fn a_server_dies_with_the_thread_that_started_it() {
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
        // A dead child that nobody has waited for is a zombie.
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
