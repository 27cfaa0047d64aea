//! TCP proxies in front of a server on this machine, for faults of the network between a client and the server.
//!
//! Called by tests. The bytes pass unchanged; a proxy decides before each of them whether a connection continues. The threads
//! of a proxy end with the process.

mod lossy;
mod stalling;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;

pub use lossy::LossyProxy;
pub use stalling::StallingProxy;

/// A direction of a connection, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The direction to the server.
    Requests,
    /// The direction from the server.
    Answers,
}

/// The decisions of a proxy.
trait Network: Send + Sync + 'static {
    /// Returns true if a new connection is accepted.
    fn accepts(&self) -> bool {
        true
    }

    /// Returns true if bytes that were read may be written. They may be held back first. Otherwise the connection ends.
    fn delivers(&self, direction: Direction) -> bool;
}

/// Starts a proxy for the server at this port on 127.0.0.1, and returns the proxy's port.
fn start(server: u16, network: &Arc<impl Network>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    let network = Arc::clone(network);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if !network.accepts() {
                continue;
            }
            // A server that is down refuses the connection; the client sees it closed.
            let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
            // Small messages one after the other must not wait for each other.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { continue };
            let (there, back) = (Arc::clone(&network), Arc::clone(&network));
            std::thread::spawn(move || forward(&*there, Direction::Requests, from_client, to_server));
            std::thread::spawn(move || forward(&*back, Direction::Answers, server, client));
        }
    });
    port
}

fn forward(network: &impl Network, direction: Direction, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        if !network.delivers(direction) || to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    // The other direction ends with it, and may have done so already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
