//! Dead letter channel: a message that fails in every attempt waits for an operator, and delays only its own key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use whizbang::SendError;
use whizbang::prelude::*;

#[derive(Domain)]
struct Printing;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Printing)]
struct Print {
    #[key]
    page: String,
}

#[derive(Worker)]
#[worker(domain = Printing, performs(Print))]
struct Printer {
    has_paper: Arc<AtomicBool>,
}

impl Perform<Print> for Printer {
    async fn perform(&self, print: Print, _job: Job) -> Result<(), WorkError> {
        if print.page == "torn" && !self.has_paper.load(Ordering::Relaxed) {
            return Err(WorkError::permanent(std::io::Error::other("no paper")));
        }
        Ok(())
    }
}

#[tokio::test]
async fn dead_letter_waits_for_an_operator() {
    let has_paper = Arc::new(AtomicBool::new(false));
    let printer = Printer { has_paper: Arc::clone(&has_paper) };
    let node = Node::builder("printing", MemoryStore::new()).worker(printer).start().await.unwrap();
    let failed = node.client().send(Print { page: "torn".into() }).await;
    assert!(matches!(failed, Err(SendError::DeadLetter { .. })), "{failed:?}");
    node.client().send(Print { page: "other".into() }).await.unwrap();

    let letters = node.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 1);
    has_paper.store(true, Ordering::Relaxed);
    for letter in &letters {
        node.redrive(letter).await.unwrap();
    }
    node.wait_idle().await;
    assert!(node.dead_letters().await.unwrap().is_empty());
    node.stop().await.unwrap();
}
