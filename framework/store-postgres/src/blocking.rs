//! Drives a connection on the calling thread, without a runtime.
//!
//! Called by the [writers](crate::writer), on a thread of the store or of an actor. A commit is one request and one answer;
//! a runtime would add two changes of threads, which cost as much as the server needs for the commit.
//!
//! The client library is asynchronous and generic over its stream. The stream given to it here waits in system calls, each
//! bounded by [`TICK`] or by the caller's limit. It waits with poll(2), because a timeout of the socket itself is rounded up
//! to the ticks of the kernel: 4 to 12 ms. A read is permitted only when the request has been sent, and once: otherwise the
//! library would ask for more after the answer, and block for a message that never comes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Connection};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::failure::Failure;

/// A wait for the socket ends after this time at the latest, so that it can be given up.
pub(crate) const TICK: Duration = Duration::from_millis(20);

/// A socket. No call on it blocks, except [`wait`](Self::wait).
#[derive(Debug)]
pub(crate) enum Socket {
    /// A connection over TCP, with or without TLS on top.
    Tcp(TcpStream),
    /// A connection over a Unix socket of the same machine.
    Unix(UnixStream),
}

impl Socket {
    /// Makes reads and writes return at once. The client library never sees a blocking call.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(true),
            Self::Unix(socket) => socket.set_nonblocking(true),
        }
    }

    /// Returns the descriptor for poll(2).
    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }

    /// Waits until the socket can be read or written, for at most `limit`.
    fn wait(&self, until: PollFlags, limit: Duration) {
        let mut wanted = [PollFd::from_borrowed_fd(self.descriptor(), until)];
        // A wait that fails or is interrupted ends early; the read or write that follows has the outcome.
        let _ = Timespec::try_from(limit).map(|limit| poll(&mut wanted, Some(&limit)));
    }

    /// Reads what has arrived. Fails with `WouldBlock` if nothing has.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buffer),
            Self::Unix(socket) => socket.read(buffer),
        }
    }

    /// Writes as much as fits into the buffer of the system. Fails with `WouldBlock` if it is full.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Unix(socket) => socket.write(bytes),
        }
    }
}

/// The permission for the next system calls of a stream.
#[derive(Debug, Default)]
struct Permit {
    /// The next read may wait for the socket. A read takes the permission away.
    may_read: AtomicBool,
    /// The longest wait for the socket, in microseconds.
    wait: AtomicU64,
}

impl Permit {
    /// Returns the longest wait for the socket.
    fn wait(&self) -> Duration {
        Duration::from_micros(self.wait.load(Ordering::Relaxed))
    }

    /// Sets the permission for the system calls of the next poll. `wait` is at most [`TICK`].
    fn set(&self, may_read: bool, wait: Duration) {
        self.may_read.store(may_read, Ordering::Relaxed);
        // Never beyond `TICK`.
        self.wait.store(wait.as_micros() as u64, Ordering::Relaxed);
    }
}

/// The stream for the client library.
#[derive(Debug)]
pub(crate) struct BlockingStream {
    /// The socket, which never blocks by itself.
    socket: Socket,
    /// Shared with the [`Driver`], which decides before each poll whether a read may wait.
    permit: Arc<Permit>,
}

/// Converts a call that would block into a pending poll. The driver polls again, so no waker is needed.
fn polled<T>(done: io::Result<T>) -> Poll<io::Result<T>> {
    match done {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Poll::Pending,
        done => Poll::Ready(done),
    }
}

impl AsyncRead for BlockingStream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.permit.may_read.swap(false, Ordering::Relaxed) {
            return Poll::Pending;
        }
        this.socket.wait(PollFlags::IN, this.permit.wait());
        let read = this.socket.read(buffer.initialize_unfilled());
        polled(read.map(|bytes| buffer.advance(bytes)))
    }
}

impl AsyncWrite for BlockingStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match polled(this.socket.write(bytes)) {
            Poll::Pending => {
                this.socket.wait(PollFlags::OUT, this.permit.wait());
                polled(this.socket.write(bytes))
            }
            written => written,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The TLS stream of the client library around a [`BlockingStream`].
type TlsStream = <MakeRustlsConnect as MakeTlsConnect<BlockingStream>>::Stream;

/// A connection that is driven by its user.
pub(crate) struct Driver {
    /// Sends requests. Their futures make progress only while the driver is driven.
    pub(crate) client: Arc<Client>,
    /// The connection; `None` once it has ended: dropping it fails every request that waits for an answer.
    connection: Option<Connection<BlockingStream, TlsStream>>,
    /// Shared with the stream of the connection.
    permit: Arc<Permit>,
}

impl Driver {
    /// Logs in over `socket`. `give_up` is asked about every [`TICK`]. Returns `None` if `give_up` returned `true`. The
    /// socket is closed then.
    ///
    /// # Errors
    /// The error of the client library: a refused login, a failed handshake, or a closed connection.
    pub(crate) fn connect(
        socket: Socket,
        config: &tokio_postgres::Config,
        tls: <MakeRustlsConnect as MakeTlsConnect<BlockingStream>>::TlsConnect,
        mut give_up: impl FnMut() -> bool,
    ) -> Option<Result<Self, tokio_postgres::Error>> {
        let permit = Arc::new(Permit::default());
        permit.set(true, TICK);
        let stream = BlockingStream { socket, permit: Arc::clone(&permit) };
        let mut connecting = Box::pin(config.connect_raw(stream, tls));
        let context = &mut Context::from_waker(Waker::noop());
        loop {
            match connecting.as_mut().poll(context) {
                Poll::Ready(connected) => {
                    return Some(connected.map(|(client, connection)| Self {
                        client: Arc::new(client),
                        connection: Some(connection),
                        permit,
                    }));
                }
                Poll::Pending if give_up() => return None,
                Poll::Pending => permit.set(true, TICK),
            }
        }
    }

    /// Waits for a future of this connection's client. None once `give_up` returns `true`, which is asked about every
    /// [`TICK`]; the future may be driven again later. The request is sent before the first question, so that a caller that
    /// gives up at once has sent it nevertheless.
    pub(crate) fn drive<T>(
        &mut self,
        mut future: Pin<&mut (dyn Future<Output = T> + Send)>,
        mut give_up: impl FnMut() -> bool,
    ) -> Option<T> {
        self.advance(future.as_mut(), |asked| (!asked || !give_up()).then_some(TICK))
    }

    /// Waits for a future of this connection's client for about `limit`. The future may be driven again later. Returns `None`
    /// when the time is over. The request is sent in any case.
    pub(crate) fn drive_for<T>(
        &mut self,
        future: Pin<&mut (dyn Future<Output = T> + Send)>,
        limit: Duration,
    ) -> Option<T> {
        let begun = Instant::now();
        self.advance(future, |asked| {
            let left = limit.saturating_sub(begun.elapsed());
            (!asked || !left.is_zero()).then_some(left.min(TICK))
        })
    }

    /// Waits for a future. `patience` returns the longest next wait, or `None` to give up; it is told whether the request was
    /// sent. No waker is registered: the loop polls again after each wait for the socket. The cost of a commit is therefore
    /// one write, one poll(2) and one read.
    fn advance<T>(
        &mut self,
        mut future: Pin<&mut (dyn Future<Output = T> + Send)>,
        mut patience: impl FnMut(bool) -> Option<Duration>,
    ) -> Option<T> {
        let context = &mut Context::from_waker(Waker::noop());
        let mut asked = false;
        loop {
            if let Poll::Ready(done) = future.as_mut().poll(context) {
                return Some(done);
            }
            let wait = patience(asked)?;
            // First the request goes out; then one read waits for the answer.
            self.permit.set(false, wait);
            self.pump(context);
            self.permit.set(true, wait);
            self.pump(context);
            self.permit.set(false, wait);
            asked = true;
        }
    }

    /// Returns whether the connection has ended. Every request fails then.
    pub(crate) fn is_ended(&self) -> bool {
        self.connection.is_none() || self.client.is_closed()
    }

    /// Sends what is queued and handles what has arrived, until nothing is left to do. An error ends the connection. Later
    /// requests fail with a closed connection, whose outcome is unknown.
    fn pump(&mut self, context: &mut Context<'_>) {
        while let Some(connection) = &mut self.connection {
            match connection.poll_message(context) {
                Poll::Pending => return,
                // A notice or a notification.
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(target: crate::TARGET, error = %Failure::from(error), "a connection to PostgreSQL ended");
                    self.connection = None;
                }
                Poll::Ready(None) => self.connection = None,
            }
        }
    }
}
