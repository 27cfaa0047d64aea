//! Setting and removing the cron schedules of a domain.
//!
//! Called by users. Sends the commands for the [actor of a schedule](crate::aggregate).

use std::time::Duration;

use super::delay::ask;
use super::encode::of_command;
use super::retry::{Attempts, Effect, RetryMode};
use super::{Client, DEADLINE};
use crate::router::SendError;
use crate::schedule::{Cron, REMOVE_SCHEDULE, SET_SCHEDULE, SetSchedule, to};
use whizbang_core::message::{Codec, CodecError, Command, Domain, Envelope, Key, Kind, Name};

/// The time that all attempts together may take.
const ALL: Duration = DEADLINE;

impl Client {
    /// Sets the schedule `name` of a domain: the command is sent at each occurrence of the cron expression, by the owner of
    /// the schedule. Await the returned future to know that it is stored.
    ///
    /// A schedule of that name is replaced. One that is the same is left as it is, so that a service can set its schedules at
    /// each start. The name is a key of the domain; it decides which shard holds the schedule.
    ///
    /// Each occurrence is sent once, less than a second late while a node of the domain runs, and after the next start as
    /// [`Missed`](crate::schedule::Missed) says. The header `schedule-occurrence` of the command has the time of the occurrence.
    /// The next occurrence is stored as a time: while the node runs, the monotonic clock measures the wait for it.
    ///
    /// ```
    /// # use bank_fixture as bank;
    /// use bank::{Account, Bank, Deposit};
    /// use whizbang::prelude::*;
    /// use whizbang::{Cron, Overlap};
    ///
    /// # whizbang::derive::block_on(async {
    /// let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await?;
    /// let monthly = Cron::new("0 6 1 * *").unwrap().zone("Europe/Berlin").unwrap().overlap(Overlap::Skip);
    /// let interest = Deposit { account: "ada".into(), cents: 5 };
    /// node.client().schedule("interest of ada", monthly, interest).await?;
    /// assert_eq!(node.schedules()?.remove(0).unwrap().name, "interest of ada");
    /// assert!(node.client().unschedule::<Bank>("interest of ada").await?);
    /// node.stop().await
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Same as [`send`](Self::send). [`SendError::Rejected`] with the code `whizbang.schedule`: the owner cannot use the schedule, for
    /// instance because its program does not know the time zone. [`SendError::Unhandled`]: its program was built without the
    /// feature `schedules`.
    pub async fn schedule<C: Command>(&self, name: &str, cron: Cron, command: C) -> Result<(), SendError> {
        let envelope = of_command(self, &command, None, ALL)?;
        set(self.clone(), name, C::Domain::SHARDS, cron, &envelope).await
    }

    /// Removes the schedule `name` of the domain `D`. Returns true if it was set. Commands that it has sent are handled; an
    /// occurrence that waits for an earlier one is not sent.
    ///
    /// # Errors
    /// Same as [`schedule`](Self::schedule).
    pub async fn unschedule<D: Domain>(&self, name: &str) -> Result<bool, SendError> {
        remove(self.clone(), name, D::NAME, D::SHARDS, D::CODEC).await
    }
}

async fn set(client: Client, name: &str, shards: u16, cron: Cron, envelope: &Envelope) -> Result<(), SendError> {
    check(name)?;
    let set = SetSchedule::new(cron, envelope);
    let mut payload = Vec::new();
    envelope.codec.encode(&set, &mut payload).map_err(SendError::Encode)?;
    ask(client, to(name, SET_SCHEDULE, shards, payload, envelope), attempts()).await
}

async fn remove(
    client: Client,
    name: &str,
    domain: &'static str,
    shards: u16,
    codec: Codec,
) -> Result<bool, SendError> {
    check(name)?;
    let no_name = |_| SendError::Encode(CodecError::Encode { reason: format!("invalid name `{domain}`") });
    let domain = Name::from_static(domain).map_err(no_name)?;
    let now = client.now();
    let like = Envelope {
        codec,
        deadline: Some(now.after(ALL)),
        ..Envelope::new(client.new_id(), Kind::Command, domain.clone(), domain, now)
    };
    ask(client, to(name, REMOVE_SCHEDULE, shards, Vec::new(), &like), attempts()).await
}

/// Checks the name of a schedule, which is a key.
fn check(name: &str) -> Result<(), SendError> {
    if Key::from(name).is_valid() { Ok(()) } else { Err(SendError::Key { bytes: name.len() }) }
}

fn attempts() -> Attempts {
    Attempts::new(RetryMode::UntilDeadline, Effect::Possible, ALL)
}
