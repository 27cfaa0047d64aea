//! Limits of the number of messages in a time.

use std::hash::BuildHasher as _;
use std::num::NonZeroU32;
use std::time::Duration;

use foldhash::fast::FixedState;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;

use super::{Call, Layer, Refusal};
use whizbang_core::clock::Timestamp;

/// A layer that lets a number of messages pass in a second, and is [busy](Refusal::Busy) for the others until their time has come.
///
/// One value counts for all threads of its node, or for one client; several nodes have a limit each. It follows the clock of the
/// node, also in a simulation. A clock that is set back by more than a minute delays nothing; one that is set back by less delays
/// messages by that time.
///
/// ```
/// use std::num::NonZeroU32;
///
/// use whizbang::SendError;
/// # use bank_fixture as bank;
/// use bank::{Account, Deposit};
/// use whizbang::layer::RateLimit;
/// use whizbang::prelude::*;
///
/// # whizbang::derive::block_on(async {
/// let limit = RateLimit::per_second(NonZeroU32::MIN).by_header("tenant");
/// let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().layer_of::<Deposit>(limit).start().await?;
/// let deposit = || Deposit { account: "ada".into(), cents: 500 };
/// node.client().send(deposit()).header("tenant", "acme").await?;
/// let busy = node.client().send(deposit()).header("tenant", "acme").await;
/// assert!(matches!(busy, Err(SendError::Busy { .. })));
/// node.client().send(deposit()).header("tenant", "other").await?;
/// node.stop().await
/// # }).unwrap();
/// ```
pub struct RateLimit {
    quota: Quota,
    header: Option<String>,
    limiter: RateLimiter<u16, HashMapStateStore<u16>, CallClock, NoOpMiddleware<Duration>>,
}

impl RateLimit {
    /// Lets `messages` pass in a second, and as many at once after a pause.
    pub fn per_second(messages: NonZeroU32) -> Self {
        Self::of(Quota::per_second(messages), None)
    }

    /// Sets how many messages pass at once after a pause. Default: those of one second.
    pub fn burst(self, messages: NonZeroU32) -> Self {
        Self::of(self.quota.allow_burst(messages), self.header)
    }

    /// Counts for each value of a header. Default: for all messages together. Messages without the header count together.
    ///
    /// Memory is bounded: the values share 65,536 limits, by their hash.
    pub fn by_header(self, header: impl Into<String>) -> Self {
        Self::of(self.quota, Some(header.into()))
    }

    fn of(quota: Quota, header: Option<String>) -> Self {
        Self { quota, header, limiter: RateLimiter::new(quota, HashMapStateStore::default(), CallClock::default()) }
    }
}

impl Layer for RateLimit {
    fn before(&self, call: &Call<'_>) -> Result<(), Refusal> {
        let clock = self.limiter.clock();
        clock.advance(call.time());
        let value = self.header.as_deref().and_then(|header| call.header(header));
        let bucket = value.map_or(0, |value| FixedState::default().hash_one(value) & u64::from(u16::MAX));
        let refused = match self.limiter.check_key(&u16::try_from(bucket).unwrap_or(0)) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        Err(Refusal::Busy { after: refused.wait_time_from(clock.now()) })
    }
}

impl std::fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimit").field("quota", &self.quota).field("header", &self.header).finish_non_exhaustive()
    }
}

/// Longest step back that is not a clock set back. Threads read the clock before they come here, and a request may wait in an
/// outer layer after that, so calls arrive out of order.
const OUT_OF_ORDER: Duration = Duration::from_secs(60);

/// The time of the calls, which never runs backwards: the latest time of the wall clock, and the sum of its steps forwards.
#[derive(Debug, Default)]
struct CallClock(Mutex<(Timestamp, Duration)>);

impl CallClock {
    fn advance(&self, to: Timestamp) {
        let mut state = self.0.lock();
        let (last, now) = &mut *state;
        *now += to.since(*last);
        // If each earlier call set it back, the next one would count the same time again.
        if to > *last || last.since(to) > OUT_OF_ORDER {
            *last = to;
        }
    }
}

impl Clock for CallClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.lock().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_out_of_order_gain_no_time() {
        let (clock, start) = (CallClock::default(), Timestamp::from_millis(1_800_000_000_000));
        clock.advance(start);
        let begun = clock.now();
        // Two threads, of which one has read the clock earlier, or was delayed by an outer layer.
        for _ in 0..100 {
            clock.advance(start.after(Duration::from_millis(10)));
            clock.advance(start);
        }
        assert_eq!(clock.now() - begun, Duration::from_millis(10));
        clock.advance(start.before(Duration::from_secs(3600)));
        clock.advance(start.before(Duration::from_secs(3599)));
        assert_eq!(clock.now() - begun, Duration::from_millis(1010), "it was set back");
    }
}
