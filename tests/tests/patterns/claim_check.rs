//! Claim check: the message contains the digest of a large document, and the receiver fetches the document by it.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Random, Sim, World};
use whizbang::{Retry, SendError};

use crate::SEEDS;

#[derive(Domain)]
struct Archives;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Archives, reply = u64)]
struct Archive {
    #[key]
    document: String,
    /// The claim: the digest of the content.
    digest: u64,
}

/// A store of large documents that is unavailable at times: a directory, or a bucket of an object store.
#[derive(Clone)]
struct Blobs {
    random: Random,
    blobs: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
}

impl Blobs {
    async fn get(&self, digest: u64) -> Result<Vec<u8>, io::Error> {
        let stored = (!self.random.of(&digest.to_string()).chance(200) || !self.random.chance(700))
            .then(|| self.blobs.lock().unwrap().get(&digest).cloned());
        stored.ok_or(io::ErrorKind::TimedOut)?.ok_or(io::ErrorKind::NotFound.into())
    }
}

/// A stand-in: use a cryptographic digest where documents come from outside.
fn digest(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

#[derive(Worker)]
#[worker(domain = Archives, performs(Archive))]
struct Archivist {
    blobs: Blobs,
}

impl Perform<Archive> for Archivist {
    async fn perform(&self, archive: Archive, _job: Job) -> Result<u64, WorkError> {
        let content = self.blobs.get(archive.digest).await?;
        if digest(&content) != archive.digest {
            return Err(WorkError::permanent(io::Error::from(io::ErrorKind::InvalidData)));
        }
        Ok(content.len() as u64)
    }
}

/// Larger than any message.
const LARGE: usize = 600_000;

const PATIENT: Retry = Retry { attempts: 40, first: Duration::from_millis(100), longest: Duration::from_secs(2) };

#[test]
fn claim_check_finds_each_document() {
    let blobs = Arc::new(Mutex::new(BTreeMap::new()));
    let of_client = Arc::clone(&blobs);
    let cluster = move |sim: Sim| {
        let blobs = Blobs { random: sim.random("blobs"), blobs: Arc::clone(&blobs) };
        sim.service("archives", move |node| node.worker(Archivist { blobs: blobs.clone() }).retry(PATIENT))
    };
    let documents = (any::<u16>(), LARGE..LARGE + 100_000);
    let archive = async move |world: &World, (document, size): (u16, usize)| {
        let content = vec![document as u8; size];
        let digest = digest(&content);
        of_client.lock().unwrap().insert(digest, content);
        let sent = world.send(Archive { document: format!("document{document}"), digest }).await;
        assert_eq!(sent.expect("the document is archived"), size as u64);
    };
    let coverage = Flow::new("claim-check", cluster, documents, 1..5, archive).check(0..SEEDS);
    assert!(coverage.faults()["FailJobs"].fired > 0);
}

#[test]
fn damaged_document_is_a_dead_letter_and_missing_one_is_awaited() {
    let blobs = Arc::new(Mutex::new(BTreeMap::new()));
    let stored = Arc::clone(&blobs);
    let sim = Sim::new(1).allow_dead_letters();
    let archivist = Blobs { random: sim.random("blobs"), blobs };
    let sim = sim.service("archives", move |node| node.worker(Archivist { blobs: archivist.clone() }).retry(PATIENT));
    let run = sim.run(async |world| {
        let content = vec![7; LARGE];
        let claim = digest(&content);
        let archive = |document: &str| world.call(Archive { document: document.to_owned(), digest: claim });
        stored.lock().unwrap().insert(claim, vec![8; LARGE]);
        let damaged = archive("damaged").await;
        assert!(matches!(damaged, Err(SendError::DeadLetter { .. })), "{damaged:?}");
        stored.lock().unwrap().clear();
        let store = async {
            world.sleep(Duration::from_secs(5)).await;
            stored.lock().unwrap().insert(claim, content.clone());
        };
        let begun = world.now();
        let (archived, ()) = tokio::join!(archive("missing").into_future(), store);
        assert_eq!(archived.expect("the document has arrived"), LARGE as u64);
        assert!(world.now() - begun >= Duration::from_secs(5));
    });
    run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.trace));
}
