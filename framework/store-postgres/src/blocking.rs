//! Drives a connection on the calling thread, without a runtime.
//!
//! Called by the [writers](crate::writer), on a thread of the store or of an actor. A commit is one request and one answer;
//! a runtime would add two changes of threads, which cost as much as the server needs for the commit.
//!
//! The client library is asynchronous and generic over its stream. The stream given to it here does blocking system calls,
//! each bounded by [`TICK`]. A read is permitted only when the request has been sent, and once: otherwise the library would
//! ask for more after the answer, and block for a message that never comes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Connection};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A system call on the socket returns after this time at the latest, so that waiting can be given up.
pub(crate) const TICK: Duration = Duration::from_millis(20);

/// A socket in blocking mode.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Bounds each call by [`TICK`].
    pub(crate) fn bound(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_read_timeout(Some(TICK)).and(socket.set_write_timeout(Some(TICK))),
            Self::Unix(socket) => socket.set_read_timeout(Some(TICK)).and(socket.set_write_timeout(Some(TICK))),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buffer),
            Self::Unix(socket) => socket.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Unix(socket) => socket.write(bytes),
        }
    }
}

/// The stream for the client library.
#[derive(Debug)]
pub(crate) struct BlockingStream {
    socket: Socket,
    may_read: Arc<AtomicBool>,
}

fn polled<T>(done: io::Result<T>) -> Poll<io::Result<T>> {
    match done {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Poll::Pending,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Poll::Pending,
        done => Poll::Ready(done),
    }
}

impl AsyncRead for BlockingStream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.may_read.swap(false, Ordering::Relaxed) {
            return Poll::Pending;
        }
        let read = this.socket.read(buffer.initialize_unfilled());
        polled(read.map(|bytes| buffer.advance(bytes)))
    }
}

impl AsyncWrite for BlockingStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        polled(self.get_mut().socket.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

type TlsStream = <MakeRustlsConnect as MakeTlsConnect<BlockingStream>>::Stream;

/// A connection that is driven by its user.
pub(crate) struct Driver {
    pub(crate) client: Arc<Client>,
    /// None once it has ended: dropping it fails every request that waits for an answer.
    connection: Option<Connection<BlockingStream, TlsStream>>,
    may_read: Arc<AtomicBool>,
}

impl Driver {
    /// Logs in over `socket`. `give_up` is asked about every [`TICK`].
    pub(crate) fn connect(
        socket: Socket,
        config: &tokio_postgres::Config,
        tls: <MakeRustlsConnect as MakeTlsConnect<BlockingStream>>::TlsConnect,
        mut give_up: impl FnMut() -> bool,
    ) -> Option<Result<Self, tokio_postgres::Error>> {
        let may_read = Arc::new(AtomicBool::new(true));
        let stream = BlockingStream { socket, may_read: Arc::clone(&may_read) };
        let mut connecting = Box::pin(config.connect_raw(stream, tls));
        let context = &mut Context::from_waker(Waker::noop());
        loop {
            match connecting.as_mut().poll(context) {
                Poll::Ready(connected) => {
                    return Some(connected.map(|(client, connection)| Self {
                        client: Arc::new(client),
                        connection: Some(connection),
                        may_read,
                    }));
                }
                Poll::Pending if give_up() => return None,
                Poll::Pending => may_read.store(true, Ordering::Relaxed),
            }
        }
    }

    /// Waits for a future of this connection's client. None once `give_up` returns `true`, which is asked about every
    /// [`TICK`]; the future may be driven again later.
    pub(crate) fn drive<T>(
        &mut self,
        mut future: Pin<&mut (dyn Future<Output = T> + Send)>,
        mut give_up: impl FnMut() -> bool,
    ) -> Option<T> {
        let context = &mut Context::from_waker(Waker::noop());
        let mut asked = false;
        loop {
            if let Poll::Ready(done) = future.as_mut().poll(context) {
                return Some(done);
            }
            if asked && give_up() {
                return None;
            }
            // First the request goes out; then one read waits for the answer.
            self.may_read.store(false, Ordering::Relaxed);
            self.pump(context);
            self.may_read.store(true, Ordering::Relaxed);
            self.pump(context);
            self.may_read.store(false, Ordering::Relaxed);
            asked = true;
        }
    }

    /// Returns whether the connection has ended. Every request fails then.
    pub(crate) fn is_ended(&self) -> bool {
        self.connection.is_none() || self.client.is_closed()
    }

    fn pump(&mut self, context: &mut Context<'_>) {
        while let Some(connection) = &mut self.connection {
            match connection.poll_message(context) {
                Poll::Pending => return,
                // A notice or a notification.
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(target: crate::TARGET, %error, "a connection to PostgreSQL ended");
                    self.connection = None;
                }
                Poll::Ready(None) => self.connection = None,
            }
        }
    }
}
