//! Writes an e-mail for every order that has ended.

use std::io;
use std::path::{Path, PathBuf};

use lettre::message::header::ContentType;
use lettre::{FileTransport, Message, Transport};
use whizbang::prelude::*;

use super::Notifications;
use crate::orders::{OrderCancelled, OrderConfirmed};

/// Writes e-mails into a folder.
#[derive(Worker)]
#[worker(domain = Notifications, on(OrderConfirmed, OrderCancelled))]
pub struct Mailer {
    folder: PathBuf,
    drafts: PathBuf,
    transport: FileTransport,
}

impl Mailer {
    /// Creates a mailer that writes into `folder`, and the folder if it is missing.
    ///
    /// # Errors
    /// An I/O error if the folder cannot be created.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let drafts = folder.join("drafts");
        std::fs::create_dir_all(&drafts)?;
        Ok(Self { folder: folder.to_owned(), transport: FileTransport::new(&drafts), drafts })
    }

    /// Writes one e-mail. An e-mail with the same key replaces the first, so a job that runs twice sends one e-mail.
    fn mail(&self, customer: &str, subject: String, text: String, job: &Job) -> Result<(), WorkError> {
        let key = job.idempotency_key;
        let message = Message::builder()
            .from(mailbox("The shop", "orders")?)
            .to(mailbox(customer, &address(customer))?)
            .subject(subject)
            .message_id(Some(format!("<{key}@shop.example>")))
            .header(ContentType::TEXT_PLAIN)
            .body(text)
            .map_err(|error| WorkError::Fail(error.into()))?;
        let draft = self.transport.send(&message).map_err(|error| WorkError::Retry(error.into()))?;
        let draft = self.drafts.join(format!("{draft}.eml"));
        std::fs::rename(draft, self.folder.join(format!("{key}.eml"))).map_err(|error| WorkError::Retry(error.into()))
    }
}

impl OnEvent<OrderConfirmed> for Mailer {
    async fn on_event(&self, confirmed: OrderConfirmed, job: Job) -> Result<(), WorkError> {
        let OrderConfirmed { cart, tracking } = confirmed;
        let order = &job.key;
        let total = cart.total_cents();
        let mut text = format!("Hello {},\n\nyour order {order} is on its way to {}:\n\n", cart.customer, cart.city);
        for line in &cart.lines {
            text.push_str(&format!("  {} x {}\n", line.quantity, line.product));
        }
        text.push_str(&format!("\nTotal {}.{:02}, tracking number {tracking}.\n", total / 100, total % 100));
        self.mail(&cart.customer, format!("Order {order} is on its way"), text, &job)
    }
}

impl OnEvent<OrderCancelled> for Mailer {
    async fn on_event(&self, cancelled: OrderCancelled, job: Job) -> Result<(), WorkError> {
        let OrderCancelled { customer, reason } = cancelled;
        let order = &job.key;
        let text = format!(
            "Hello {customer},\n\nwe are sorry, your order {order} was cancelled: {}.\nYou pay nothing.\n",
            reason.text()
        );
        self.mail(&customer, format!("Order {order} was cancelled"), text, &job)
    }
}

fn mailbox(name: &str, local: &str) -> Result<lettre::message::Mailbox, WorkError> {
    let address = lettre::Address::new(local, "shop.example").map_err(|error| WorkError::Fail(error.into()))?;
    Ok(lettre::message::Mailbox::new(Some(name.to_owned()), address))
}

/// Returns the address of a customer: the ASCII letters and digits of the name, which may contain any character.
fn address(customer: &str) -> String {
    let plain: String = customer.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    let plain = plain.trim_matches('-');
    if plain.is_empty() { "customer".to_owned() } else { plain.to_owned() }
}
