//! A TCP proxy that can lose requests or the server's answers.
//!
//! While it loses requests, the first one ends its connection, and new connections are refused. While it loses answers, requests
//! still reach the server; the first answer ends the connection instead of arriving.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Direction, Network, start};

/// A proxy in front of one server. Its threads end with the process.
#[derive(Debug)]
pub struct LossyProxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    loses_requests: AtomicBool,
    loses_answers: AtomicBool,
    /// The number of answers that were lost.
    lost: AtomicUsize,
}

impl LossyProxy {
    /// Starts a proxy for the server at this port on 127.0.0.1.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn start(server: u16) -> Self {
        let state = Arc::new(State::default());
        Self { port: start(server, &state), state }
    }

    /// Returns the port of the proxy on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Loses answers until [`restore`](Self::restore).
    pub fn lose_answers(&self) {
        self.state.loses_answers.store(true, Ordering::SeqCst);
    }

    /// Loses requests until [`restore`](Self::restore).
    pub fn lose_requests(&self) {
        self.state.loses_requests.store(true, Ordering::SeqCst);
    }

    /// Lets everything pass again.
    pub fn restore(&self) {
        self.state.loses_answers.store(false, Ordering::SeqCst);
        self.state.loses_requests.store(false, Ordering::SeqCst);
    }

    /// Returns the number of answers that were lost.
    pub fn lost(&self) -> usize {
        self.state.lost.load(Ordering::SeqCst)
    }
}

impl Network for State {
    fn accepts(&self) -> bool {
        !self.loses_requests.load(Ordering::SeqCst)
    }

    fn delivers(&self, direction: Direction) -> bool {
        match direction {
            Direction::Requests => !self.loses_requests.load(Ordering::SeqCst),
            Direction::Answers => {
                let is_lost = self.loses_answers.load(Ordering::SeqCst);
                self.lost.fetch_add(usize::from(is_lost), Ordering::SeqCst);
                !is_lost
            }
        }
    }
}
