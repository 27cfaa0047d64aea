//! A TCP proxy in front of a server that can lose requests or the server's answers.
//!
//! While it loses requests, the first one ends its connection, and new connections are refused. While it loses answers, requests still reach the server; the first answer ends the connection instead of arriving.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub(crate) struct LossyProxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    loses_requests: AtomicBool,
    loses: AtomicBool,
    lost: AtomicUsize,
}

impl LossyProxy {
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        // The threads end with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.loses_requests.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                // Small messages one after the other must not wait for each other.
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { continue };
                let state = Arc::clone(&shared);
                std::thread::spawn(move || {
                    forward(from_client, to_server, || state.loses_requests.load(Ordering::SeqCst))
                });
                let state = Arc::clone(&shared);
                std::thread::spawn(move || forward(server, client, || state.loses_answer()));
            }
        });
        Self { port, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Loses answers until [`restore`](Self::restore).
    pub(crate) fn lose_answers(&self) {
        self.state.loses.store(true, Ordering::SeqCst);
    }

    /// Loses requests until [`restore`](Self::restore).
    pub(crate) fn lose_requests(&self) {
        self.state.loses_requests.store(true, Ordering::SeqCst);
    }

    pub(crate) fn restore(&self) {
        self.state.loses.store(false, Ordering::SeqCst);
        self.state.loses_requests.store(false, Ordering::SeqCst);
    }

    /// The number of answers that were lost.
    pub(crate) fn lost(&self) -> usize {
        self.state.lost.load(Ordering::SeqCst)
    }
}

impl State {
    fn loses_answer(&self) -> bool {
        let loses = self.loses.load(Ordering::SeqCst);
        self.lost.fetch_add(usize::from(loses), Ordering::SeqCst);
        loses
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, loses: impl Fn() -> bool) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        if loses() || to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    // The other direction ends with it, and may have done so already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
