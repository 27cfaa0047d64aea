//! A TCP proxy that can stop one direction of its connections, as a network does that drops packets one way: nothing is closed,
//! and nothing arrives.
//!
//! Called by tests that cut a node off from a server. What was sent during a stall arrives after it, as with TCP.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use super::{Direction, Network, start};

/// A proxy in front of one server. Its threads end with the process.
#[derive(Debug)]
pub struct StallingProxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    stalled: Mutex<Option<Direction>>,
    ended: Condvar,
    /// The number of reads that were held back.
    held: AtomicUsize,
}

impl StallingProxy {
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

    /// Stops one direction until [`resume`](Self::resume).
    pub fn stall(&self, direction: Direction) {
        *self.state.stalled.lock() = Some(direction);
    }

    /// Lets everything pass again, what was held back first.
    pub fn resume(&self) {
        *self.state.stalled.lock() = None;
        self.state.ended.notify_all();
    }

    /// Returns how often bytes were held back so far.
    pub fn held(&self) -> usize {
        self.state.held.load(Ordering::Relaxed)
    }
}

impl Network for State {
    fn delivers(&self, direction: Direction) -> bool {
        let mut stalled = self.stalled.lock();
        if *stalled == Some(direction) {
            self.held.fetch_add(1, Ordering::Relaxed);
            self.ended.wait_while(&mut stalled, |stalled| *stalled == Some(direction));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    fn echo_server() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let mut byte = [0];
                while let Ok(1) = client.read(&mut byte) {
                    let _ = client.write_all(&byte);
                }
            }
        });
        port
    }

    #[test]
    fn stalled_direction_delivers_afterwards() {
        let proxy = StallingProxy::start(echo_server());
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).expect("connects");
        let mut byte = [0];
        for direction in [Direction::Requests, Direction::Answers] {
            let before = proxy.held();
            proxy.stall(direction);
            client.write_all(&[7]).expect("writes");
            crate::eventually("bytes to be held", Duration::from_secs(10), || (proxy.held() > before).then_some(()));
            client.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            assert!(client.read(&mut byte).is_err(), "an answer during the stall");
            proxy.resume();
            client.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            assert_eq!((client.read(&mut byte).expect("an answer"), byte), (1, [7]));
        }
    }
}
