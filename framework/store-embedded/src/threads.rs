//! The threads of a store: one that writes the log, one that prepares segments, one for the caches, one for long reads.
//!
//! Started and joined by the store. Each ends by itself when its queue is closed, after the work in the queue.
//! None ends by a panic: one in the log writer stops the store, and any other shows in [`Store::issues`](whizbang_core::store::Store::issues).

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::flusher::Flusher;
use super::inner::Inner;
use super::log_source::ReadJob;
use whizbang_core::user_code::user_code;

/// The threads of an open store. They end in the order in which the store joins them: each may need the later ones.
pub(super) struct Threads {
    /// Writes and flushes batches.
    pub(super) writer: JoinHandle<()>,
    /// Creates the next segment before it is needed.
    pub(super) preallocator: JoinHandle<()>,
    /// Writes checkpoints, snapshots and views.
    pub(super) flusher: JoinHandle<()>,
    /// Reads long histories, which would block the threads of actors.
    pub(super) reader: JoinHandle<()>,
}

impl Threads {
    /// Starts all threads.
    ///
    /// # Errors
    /// If one cannot be started, those before it end.
    pub(super) fn start(inner: &Arc<Inner>, flusher: &Arc<Flusher>) -> io::Result<Self> {
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let [preparing, keeping, reading, writing] = std::array::from_fn(|_| Arc::clone(inner));
        let flushing = Arc::clone(flusher);
        // If one of the later threads cannot be started, closing the buffer ends the earlier ones.
        let started = (|| {
            let preallocator = thread("whizbang-alloc").spawn(move || preparing.preallocator.run())?;
            let flusher = thread("whizbang-flush").spawn(move || flushing.run(&keeping))?;
            let (reads, jobs) = std::sync::mpsc::channel::<ReadJob>();
            // The thread ends when the sender is dropped.
            let reader = thread("whizbang-read").spawn(move || {
                for job in jobs {
                    // Its caller gets an error, because the job was dropped without a result.
                    if let Err(panicked) = user_code(job) {
                        reading.record_panic("reading a long history", &panicked);
                    }
                }
            })?;
            *inner.reads.lock() = Some(reads);
            let writer = thread("whizbang-log").spawn(move || writing.run_writer())?;
            Ok(Self { writer, preallocator, flusher, reader })
        })();
        if started.is_err() {
            inner.write_buffer.close();
            inner.flush_queue.stop();
            *inner.reads.lock() = None;
        }
        started
    }
}
