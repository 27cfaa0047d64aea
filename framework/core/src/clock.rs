//! Time source of product code, so that a whole cluster can run on simulated time.
//!
//! Used by every module. Waiting uses tokio's timer, which the simulation pauses; the wall clock is read here. The
//! wall clock never orders messages, detects duplicates or holds a lease: it is recorded for people.

#[doc(hidden)]
pub mod rfc3339;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in wall-clock time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Creates a timestamp from milliseconds since 1970-01-01T00:00:00Z.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since 1970-01-01T00:00:00Z.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the timestamp `span` later, saturating at the largest one.
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Returns the timestamp `span` earlier, saturating at the smallest one.
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Returns how much later `self` is than `earlier`; zero if it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A source of wall-clock time. Cheap to clone.
///
/// Never used for waiting: loops wait on tokio's monotonic timer.
#[derive(Clone, Debug)]
pub struct Clock(TimeSource);

#[derive(Clone, Debug)]
enum TimeSource {
    System,
    Manual(Arc<AtomicU64>),
    Ticking { start: Timestamp, began: tokio::time::Instant, jumped: Arc<std::sync::atomic::AtomicI64> },
}

impl Clock {
    /// The clock of the operating system.
    pub const fn system() -> Self {
        Self(TimeSource::System)
    }

    /// Creates a clock that does not advance until it is [set](ManualClock::set).
    pub fn manual(start: Timestamp) -> (Self, ManualClock) {
        let millis = Arc::new(AtomicU64::new(start.0));
        (Self(TimeSource::Manual(Arc::clone(&millis))), ManualClock(millis))
    }

    /// Creates a clock that reads `start` now and advances with tokio's timer, which simulations pause, until it
    /// [jumps](ClockJumps::jump).
    pub fn ticking(start: Timestamp) -> (Self, ClockJumps) {
        let jumped = Arc::new(std::sync::atomic::AtomicI64::new(0));
        (Self(TimeSource::Ticking { start, began: monotonic(), jumped: Arc::clone(&jumped) }), ClockJumps(jumped))
    }

    /// Returns the current time.
    #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            // A clock before 1970 reads as 1970: only people read it.
            TimeSource::System => Timestamp(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |span| span.as_secs().saturating_mul(1000) + u64::from(span.subsec_millis())),
            ),
            TimeSource::Manual(millis) => Timestamp(millis.load(Ordering::Relaxed)),
            TimeSource::Ticking { start, began, jumped } => {
                Timestamp(start.after(began.elapsed()).0.saturating_add_signed(jumped.load(Ordering::Relaxed)))
            }
        }
    }
}

/// Time of a running node that ignores jumps of the wall clock: the wall clock at the start plus the monotonic timer.
/// Timers use it. It counts like `CLOCK_MONOTONIC` on Linux: without the time during which the machine is suspended.
#[derive(Clone, Debug)]
pub struct MonotonicTime {
    clock: Clock,
    start: Timestamp,
    began: tokio::time::Instant,
}

impl MonotonicTime {
    /// Starts counting from the clock's current time.
    pub fn of(clock: &Clock) -> Self {
        Self { clock: clock.clone(), start: clock.now(), began: monotonic() }
    }

    /// Returns the current time. A [manual clock](Clock::manual) is the only time of its test, so it is used as it is.
    pub fn now(&self) -> Timestamp {
        match &self.clock.0 {
            TimeSource::Manual(_) => self.clock.now(),
            _ => self.start.after(self.began.elapsed()),
        }
    }
}

/// Makes a [ticking clock](Clock::ticking) jump, as an administrator or a time server may.
#[derive(Clone, Debug)]
pub struct ClockJumps(Arc<std::sync::atomic::AtomicI64>);

impl ClockJumps {
    /// Moves the clock by this many milliseconds, forward or back.
    pub fn jump(&self, millis: i64) {
        self.0.fetch_add(millis, Ordering::Relaxed);
    }

    /// Undoes all jumps.
    pub fn undo(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Returns the current instant of the timer that loops wait on. The simulation pauses it; it never steps back.
#[doc(hidden)]
pub fn monotonic() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// Sets a [manual clock](Clock::manual). Jumps in both directions are allowed.
///
/// ```
/// use std::time::Duration;
/// use whizbang::clock::{Clock, Timestamp};
///
/// let (clock, hand) = Clock::manual(Timestamp::from_millis(1_000));
/// hand.advance(Duration::from_millis(500));
/// assert_eq!(clock.now(), Timestamp::from_millis(1_500));
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Moves the clock to `now`.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::Relaxed);
    }

    /// Moves the clock forward.
    pub fn advance(&self, span: Duration) {
        let now = Timestamp(self.0.load(Ordering::Relaxed)).after(span);
        self.set(now);
    }
}

/// Returns the current instant of tokio's monotonic timer, for measuring durations. Simulations pause it.
#[doc(hidden)]
pub fn instant() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
