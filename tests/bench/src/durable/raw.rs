//! The limit of a durable log: bytes written to a preallocated file and flushed, either alone or grouped by a thread behind raw
//! actors.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use actix::{Actor, Context, Handler, Message, ResponseFuture};
use tokio::sync::oneshot;

const FILE_BYTES: u64 = 256 * 1024 * 1024;

/// A preallocated file like those of the store, written as a ring.
pub(crate) struct RawLog {
    file: File,
    offset: u64,
}

impl RawLog {
    pub(crate) fn new(folder: &Path) -> Self {
        let path = folder.join("raw");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).expect("a file");
        let zeros = vec![0; 1024 * 1024];
        for offset in (0..FILE_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, offset).expect("enough disk space");
        }
        file.sync_all().expect("it is flushed");
        Self { file, offset: 0 }
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) {
        if self.offset + bytes.len() as u64 > FILE_BYTES {
            self.offset = 0;
        }
        self.file.write_all_at(bytes, self.offset).expect("it is written");
        self.file.sync_data().expect("it is flushed");
        self.offset += bytes.len() as u64;
    }
}

/// Measures `count` appends of `bytes` bytes, one after the other. Returns the time of each in microseconds.
pub(crate) fn alone(folder: &Path, bytes: usize, count: usize) -> Vec<f64> {
    let mut log = RawLog::new(folder);
    let payload = vec![7; bytes];
    let one = |_| {
        let begun = Instant::now();
        log.append(&payload);
        begun.elapsed().as_secs_f64() * 1e6
    };
    (0..count).map(one).collect()
}

/// The data to write.
#[derive(Default)]
struct Gathered {
    bytes: Vec<u8>,
    waiting: Vec<oneshot::Sender<()>>,
    end: bool,
}

/// A thread that writes and flushes queued data, and notifies the waiting actors.
pub(crate) struct Gatherer {
    queue: Arc<(Mutex<Gathered>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Gatherer {
    pub(crate) fn start(folder: &Path) -> Self {
        let queue: Arc<(Mutex<Gathered>, Condvar)> = Arc::default();
        let mut log = RawLog::new(folder);
        let shared = Arc::clone(&queue);
        let thread = std::thread::spawn(move || {
            loop {
                let (lock, wake) = &*shared;
                let mut gathered = lock.lock().expect("no thread panics");
                while gathered.waiting.is_empty() && !gathered.end {
                    gathered = wake.wait(gathered).expect("no thread panics");
                }
                let Gathered { bytes, waiting, .. } = &mut *gathered;
                let (bytes, waiting) = (std::mem::take(bytes), std::mem::take(waiting));
                drop(gathered);
                if waiting.is_empty() {
                    return;
                }
                log.append(&bytes);
                for tell in waiting {
                    let _ = tell.send(());
                }
            }
        });
        Self { queue, thread: Some(thread) }
    }

    pub(crate) fn writer(&self, bytes: usize) -> RawWriter {
        RawWriter { queue: Arc::clone(&self.queue), payload: vec![7; bytes] }
    }
}

impl Drop for Gatherer {
    fn drop(&mut self) {
        self.queue.0.lock().expect("no thread panics").end = true;
        self.queue.1.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it ends");
        }
    }
}

/// A raw actor that writes the same bytes for every message and replies once they are durable.
pub(crate) struct RawWriter {
    queue: Arc<(Mutex<Gathered>, Condvar)>,
    payload: Vec<u8>,
}

impl Actor for RawWriter {
    type Context = Context<Self>;
}

/// A request for one append.
pub(crate) struct Append;

impl Message for Append {
    type Result = ();
}

impl Handler<Append> for RawWriter {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Append, _: &mut Self::Context) -> Self::Result {
        let (tell, told) = oneshot::channel();
        let (lock, wake) = &*self.queue;
        let mut gathered = lock.lock().expect("no thread panics");
        gathered.bytes.extend_from_slice(&self.payload);
        gathered.waiting.push(tell);
        drop(gathered);
        wake.notify_one();
        Box::pin(async move { told.await.expect("it is written") })
    }
}
