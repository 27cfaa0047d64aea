//! Retries of requests, against a scripted transport in virtual time.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Client, SendError};
use crate::derive::derives::{Command, Domain, Query};
use crate::router::{CommandEndpoint, CommandMeta, LocalRoutes, Remote, RoutedJob, SentReply, Submission};
use whizbang_core::bridge::BridgeError;
use whizbang_core::clock::{Clock, Timestamp, instant};
use whizbang_core::message::{Codec, CodecError, Coded, Envelope, IdSource, MessageId, Rejection};
use whizbang_core::store::StoreError;

#[derive(Domain)]
#[domain(name = "bank")]
struct Bank;

#[derive(Command, Debug, Serialize, Deserialize)]
#[command(domain = Bank, reply = u32)]
struct Deposit {
    #[key]
    account: String,
}

#[derive(Query, Debug, Serialize, Deserialize)]
#[query(domain = Bank, reply = u32)]
struct Total;

/// Fails the attempts of requests with the errors of `script`, then replies with 7.
struct Scripted {
    script: Mutex<Box<dyn FnMut(u32) -> Option<SendError> + Send>>,
    attempts: Mutex<Vec<(Envelope, Duration, Instant)>>,
    /// The number of jobs for another thread that are refused; `usize::MAX` if there is no other thread.
    refused_jobs: AtomicUsize,
    has_ended: bool,
}

impl Scripted {
    fn answer(&self, envelope: Envelope, wait: Duration) -> BoxFuture<'static, Result<(), SendError>> {
        let number = {
            let mut attempts = self.attempts.lock();
            attempts.push((envelope, wait, instant()));
            attempts.len() as u32
        };
        match (self.script.lock())(number) {
            None => ready(Ok(())).boxed(),
            Some(error @ SendError::NoReply { .. }) => async move {
                tokio::time::sleep(wait).await;
                Err(error)
            }
            .boxed(),
            Some(error) => ready(Err(error)).boxed(),
        }
    }
}

impl Remote for Scripted {
    fn thread_of(&self, _domain: &str, _command: &str, _key: &str) -> Option<usize> {
        (self.refused_jobs.load(Ordering::Relaxed) != usize::MAX).then_some(3)
    }

    fn run_on(&self, home: usize, _bytes: usize, job: RoutedJob) {
        assert_eq!(home, 3);
        let refused = self.refused_jobs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if refused.is_ok() {
            return job(None);
        }
        let mut routes = LocalRoutes::default();
        routes.add::<Deposit>(Rc::new(OnlyAda));
        job(Some(&routes));
    }

    fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn send(&self, envelope: Envelope, wait: Duration) -> BoxFuture<'static, Result<Bytes, SendError>> {
        let answer = self.answer(envelope, wait);
        async move {
            answer.await?;
            let mut bytes = Vec::new();
            u32::write_reply(&Ok(7), Codec::Bincode, &mut bytes).unwrap();
            Ok(Bytes::from(bytes))
        }
        .boxed()
    }

    fn post_to_broker(&self, envelope: Envelope) -> BoxFuture<'static, Result<(), SendError>> {
        self.answer(envelope, Duration::from_secs(1))
    }

    fn query(&self, envelope: Envelope, wait: Duration) -> BoxFuture<'static, Result<Bytes, SendError>> {
        let answer = self.answer(envelope, wait);
        async move {
            answer.await?;
            let mut bytes = Vec::new();
            7u32.write(Codec::Bincode, &mut bytes).unwrap();
            Ok(Bytes::from(bytes))
        }
        .boxed()
    }
}

/// Accepts the deposit of one account.
struct OnlyAda;

impl CommandEndpoint<Deposit> for OnlyAda {
    fn submit(
        &self,
        command: Deposit,
        _meta: Option<Box<CommandMeta>>,
        reply: Option<oneshot::Sender<SentReply<Deposit>>>,
    ) -> Submission<Deposit> {
        assert_eq!(command.account, "ada");
        reply.unwrap().send(Ok(7)).unwrap();
        Submission::Forwarded
    }
}

fn scripted(script: impl FnMut(u32) -> Option<SendError> + Send + 'static) -> Scripted {
    Scripted {
        script: Mutex::new(Box::new(script)),
        attempts: Mutex::default(),
        refused_jobs: AtomicUsize::new(usize::MAX),
        has_ended: false,
    }
}

fn client(remote: Scripted) -> (Client, Arc<Scripted>) {
    let (remote, clock) = (Arc::new(remote), Clock::manual(Timestamp::from_millis(1_000)).0);
    (Client::new(1, remote.clone(), IdSource::seeded(clock, 7)), remote)
}

fn deposit() -> Deposit {
    Deposit { account: "ada".to_owned() }
}

fn busy() -> SendError {
    SendError::Busy { domain: "bank".to_owned() }
}

fn no_reply() -> SendError {
    SendError::no_reply("bank", Duration::from_secs(1), MessageId::from_u128(1))
}

fn io() -> StoreError {
    StoreError::io("writing", std::io::Error::other("gone"))
}

/// Every error that is retried.
fn retried() -> Vec<SendError> {
    let (domain, id) = ("bank".to_owned(), MessageId::from_u128(1));
    let library = BridgeError::Broker { doing: "publish".to_owned(), source: Arc::new(std::io::Error::other("gone")) };
    vec![
        busy(),
        SendError::NoOwner { domain: domain.clone(), reason: "away".to_owned() },
        no_reply(),
        SendError::Late,
        SendError::Refused(io()),
        SendError::Refused(StoreError::Full { at: "disk".to_owned() }),
        SendError::Unknown { id, source: io() },
        SendError::Stopped,
        SendError::Moved { domain: domain.clone() },
        SendError::Bridge { domain, source: Box::new(library) },
    ]
}

/// Every error that is not.
fn not_retried() -> Vec<SendError> {
    let (domain, name, reason) = ("bank".to_owned(), "Deposit".to_owned(), "no".to_owned());
    let decode = || CodecError::Decode { reason: "no".to_owned() };
    let denied = BridgeError::Refused { broker: "nats".to_owned(), reason: reason.clone() };
    vec![
        SendError::Rejected(Rejection::new("bank.closed", "closed")),
        SendError::Key { bytes: 0 },
        SendError::Encode(decode()),
        SendError::Undecodable { domain: domain.clone(), reason: reason.clone() },
        SendError::Shape { domain: domain.clone(), reason: reason.clone() },
        SendError::Unhandled { domain: domain.clone(), name: name.clone() },
        SendError::NoBridge { domain: domain.clone() },
        SendError::Bridge { domain: domain.clone(), source: Box::new(denied) },
        SendError::DeadLetter { reason: reason.clone() },
        SendError::Failed { reason: reason.clone() },
        SendError::Conflict,
        SendError::Expired,
        SendError::IdInFuture,
        SendError::EmptyIdempotencyKey,
        SendError::Refused(StoreError::Closed),
        SendError::Unanswered { domain, name, reason },
        SendError::Reply(decode()),
    ]
}

#[tokio::test(start_paused = true)]
async fn transient_error_is_retried_with_the_same_id() {
    for error in retried() {
        let (client, remote) = client(scripted({
            let error = error.clone();
            move |attempt| (attempt < 4).then(|| error.clone())
        }));
        assert_eq!(client.send(deposit()).await.unwrap(), 7, "{error}");
        client.post(deposit()).no_retry().await.unwrap();
        let mut attempts = remote.attempts.lock().clone();
        let posted = attempts.pop().unwrap();
        assert_eq!(attempts.len(), 4, "{error}");
        let id = attempts[0].0.id;
        assert!(attempts.iter().all(|(envelope, ..)| envelope.id == id) && posted.0.id != id, "{error}");
        assert!(attempts.windows(2).all(|pair| pair[0].2 < pair[1].2), "{error}: no wait between attempts");
        // The owner starts no turn of which the caller would not see the reply.
        let remaining = |envelope: &Envelope| envelope.deadline.unwrap().since(envelope.time);
        assert!(attempts.windows(2).all(|pair| remaining(&pair[0].0) > remaining(&pair[1].0)), "{error}");
        assert_eq!(posted.0.deadline, None);
    }
}

#[tokio::test(start_paused = true)]
async fn post_and_query_are_retried() {
    let (client, remote) = client(scripted(|attempt| (attempt % 3 != 0).then(busy)));
    client.post(deposit()).await.unwrap();
    assert_eq!(client.query(Total).await.unwrap(), 7);
    assert_eq!(remote.attempts.lock().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn final_error_is_returned_after_one_attempt() {
    for error in not_retried() {
        let (client, remote) = client(scripted({
            let error = error.clone();
            move |_| Some(error.clone())
        }));
        let returned = client.send(deposit()).await.unwrap_err();
        assert_eq!(returned.to_string(), error.to_string());
        assert_eq!(remote.attempts.lock().len(), 1, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn request_without_retry_is_sent_once() {
    let (client, remote) = client(scripted(|_| Some(busy())));
    assert!(matches!(client.send(deposit()).no_retry().await, Err(SendError::Busy { .. })));
    assert!(matches!(client.post(deposit()).no_retry().await, Err(SendError::Busy { .. })));
    assert!(matches!(client.query(Total).no_retry().await, Err(SendError::Busy { .. })));
    let attempts = remote.attempts.lock();
    assert_eq!(attempts.len(), 3);
    assert_eq!(attempts[0].1, Duration::from_secs(30), "one attempt waits for the whole deadline");
}

#[tokio::test(start_paused = true)]
async fn deadline_ends_the_retries_with_their_reason() {
    let (client, remote) = client(scripted(|_| Some(busy())));
    let begun = instant();
    let error = client.send(deposit()).deadline(Duration::from_secs(8)).await.unwrap_err();
    assert!(matches!(error, SendError::Busy { .. }) && !error.may_have_happened(), "{error}");
    let (took, attempts) = (begun.elapsed(), remote.attempts.lock().len());
    assert!(took > Duration::from_secs(6) && took <= Duration::from_secs(8), "{took:?}");
    assert!((8..40).contains(&attempts), "{attempts}");
}

#[tokio::test(start_paused = true)]
async fn lost_reply_is_requested_again_before_the_deadline() {
    let (client, remote) = client(scripted(|_| Some(no_reply())));
    let begun = instant();
    let error = client.send(deposit()).await.unwrap_err();
    assert!(matches!(error, SendError::NoReply { attempts: 4 | 5, source: None, .. }), "{error}");
    assert!(error.to_string().contains("within 30s"), "{error}");
    assert!(begun.elapsed() <= Duration::from_secs(30), "{:?}", begun.elapsed());
    let waits: Vec<_> = remote.attempts.lock().iter().map(|(_, wait, _)| wait.as_secs()).collect();
    assert_eq!(waits[..4], [2, 4, 8, 10]);
}

#[tokio::test(start_paused = true)]
async fn refusals_do_not_prolong_the_wait_for_a_reply() {
    let (client, remote) = client(scripted(|attempt| match attempt {
        1..=5 => Some(busy()),
        6 | 7 => Some(no_reply()),
        _ => None,
    }));
    assert_eq!(client.send(deposit()).await.unwrap(), 7);
    let waits: Vec<_> = remote.attempts.lock().iter().map(|(_, wait, _)| wait.as_secs()).collect();
    assert_eq!(waits, [2, 2, 2, 2, 2, 2, 4, 8]);
}

#[tokio::test(start_paused = true)]
async fn uncertain_attempt_stays_uncertain_in_the_final_error() {
    let later = |later: fn() -> SendError| move |attempt| Some(if attempt == 1 { no_reply() } else { later() });
    let failed = || SendError::Failed { reason: "panicked".to_owned() };
    for (script, is_transient) in [(later(busy), true), (later(failed), false), (later(|| SendError::Stopped), true)] {
        let (client, _) = client(scripted(script));
        let error = client.send(deposit()).await.unwrap_err();
        assert!(error.may_have_happened(), "{error}");
        assert_eq!(error.is_transient(), is_transient, "{error}");
        assert!(matches!(&error, SendError::NoReply { attempts: 2.., source: Some(_), .. }), "{error}");
    }
    // A query has no effect, and these outcomes are certain.
    let (client_of_query, _) = client(scripted(later(busy)));
    assert!(matches!(client_of_query.query(Total).await, Err(SendError::Busy { .. })));
    let (rejected, _) = client(scripted(later(|| SendError::Rejected(Rejection::new("bank.closed", "closed")))));
    assert!(matches!(rejected.send(deposit()).await, Err(SendError::Rejected(_))));
    let (used, _) = client(scripted(later(|| SendError::Conflict)));
    assert!(matches!(used.send(deposit()).await, Err(SendError::Conflict)));
}

#[tokio::test(start_paused = true)]
async fn command_refused_by_a_full_thread_is_sent_again() {
    let remote = scripted(|_| None);
    remote.refused_jobs.store(5, Ordering::Relaxed);
    let (client, remote) = client(remote);
    assert_eq!(client.send(deposit()).await.unwrap(), 7);
    assert_eq!(remote.refused_jobs.load(Ordering::Relaxed), 0);
    remote.refused_jobs.store(1, Ordering::Relaxed);
    assert!(matches!(client.send(deposit()).no_retry().await, Err(SendError::Busy { .. })));
    remote.refused_jobs.store(1_000_000, Ordering::Relaxed);
    let begun = instant();
    let error = client.send(deposit()).deadline(Duration::from_secs(3)).await.unwrap_err();
    assert!(matches!(error, SendError::Busy { .. }) && begun.elapsed() <= Duration::from_secs(3), "{error}");
    assert!(remote.attempts.lock().is_empty(), "it is never encoded");
}

#[tokio::test(start_paused = true)]
async fn stopped_node_is_not_asked_again() {
    let (client, remote) = client(Scripted { has_ended: true, ..scripted(|_| Some(SendError::Stopped)) });
    assert!(matches!(client.send(deposit()).await, Err(SendError::Stopped)));
    assert_eq!(remote.attempts.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn same_seed_retries_at_the_same_times() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let (client, remote) = client(scripted(|_| Some(busy())));
        let begun = instant();
        client.send(deposit()).await.unwrap_err();
        let times: Vec<_> = remote.attempts.lock().iter().map(|(_, _, at)| at.duration_since(begun)).collect();
        runs.push(times);
    }
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn request_outside_of_a_runtime_is_sent_once() {
    let (client, remote) = client(scripted(|_| Some(busy())));
    let error = futures_util::FutureExt::now_or_never(client.send(deposit())).unwrap();
    assert!(matches!(error, Err(SendError::Busy { .. })));
    assert_eq!(remote.attempts.lock().len(), 1);
}
