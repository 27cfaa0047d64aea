//! Checks of received messages against the address to which they were published.
//!
//! Called by bridges after decoding. The permissions of a broker decide which service may publish to a subject, so the subject
//! reveals a forged sender, destination or name inside a message. Every bridge makes the same checks.

use super::BridgeError;
use super::subject::Address;
use whizbang_core::bridge::{Notification, Request};
use whizbang_core::message::{Envelope, Kind, Name, ShardId, shard_of};

impl Address {
    /// Checks a command or a reply that arrived at this address, and sets its destination. `owns` lists the domains of the node
    /// with their numbers of shards.
    ///
    /// ```
    /// use whizbang::bridge::subject::Address;
    /// use whizbang::clock::Timestamp;
    /// use whizbang::message::{Envelope, Kind, MessageId, Name, ShardId, shard_of};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (bank, id) = (Name::new("bank")?, MessageId::from_u128(7));
    /// let mut command = Envelope::new(id, Kind::Command, bank.clone(), Name::new("Deposit")?, Timestamp::from_millis(0));
    /// command.key = "ada".to_owned();
    /// let to = ShardId::new(bank.clone(), shard_of("ada", 16));
    /// let (here, owns) = (Address::Direct { to: to.clone(), from: None }, [(bank.clone(), 16)]);
    /// assert_eq!(here.accept_message(command.clone(), &owns)?.to, Some(to));
    /// // Published to the subject of another domain.
    /// command.domain = Name::new("shop")?;
    /// assert!(here.accept_message(command, &owns).is_err());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] if the message contradicts the address: move it to the refused messages.
    pub fn accept_message(&self, mut envelope: Envelope, owns: &[(Name, u16)]) -> Result<Envelope, BridgeError> {
        let Self::Direct { to, from } = self else { return Err(unexpected_subject()) };
        // A reply answers a command that an actor sent, so it comes from a shard.
        let is_direct = match from {
            Some(_) => matches!(envelope.kind, Kind::Command | Kind::Reply | Kind::Document),
            None => matches!(envelope.kind, Kind::Command | Kind::Document),
        };
        check(is_direct, "kind")?;
        let shards = shards_of(&to.domain, owns).filter(|shards| to.shard < *shards);
        let shards = shards.ok_or_else(|| subject_mismatch("destination"))?;
        check(envelope.to.as_ref().is_none_or(|claimed| claimed == to), "destination")?;
        check(envelope.kind != Kind::Command || envelope.domain == to.domain, "domain")?;
        check(envelope.origin.as_ref().map(|origin| &origin.shard) == from.as_ref(), "origin")?;
        let is_own_reply = from.as_ref().is_none_or(|from| from.domain == envelope.domain);
        check(envelope.kind != Kind::Reply || is_own_reply, "domain")?;
        // A key that is handled in another shard than its own would have two histories. A message of an actor is not refused
        // here, because it has a number in the sequence of its sender: it becomes a dead letter.
        check(from.is_some() || shard_of(&envelope.key, shards) == to.shard, "shard of the key")?;
        envelope.to = Some(to.clone());
        Ok(envelope)
    }

    /// Checks the events that arrived at this address: one, or those of a pack. The shard may be unknown to the node, which
    /// reports it.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] if an event contradicts the address: move the whole packet to the refused messages.
    pub fn accept_events(&self, events: &[Envelope]) -> Result<(), BridgeError> {
        let (shard, name) = match self {
            Self::Event { shard, name } if events.len() == 1 => (shard, Some(name)),
            Self::Events(shard) => (shard, None),
            _ => return Err(unexpected_subject()),
        };
        for event in events {
            check(event.kind == Kind::Event, "kind")?;
            check(event.origin.as_ref().is_some_and(|origin| origin.shard == *shard), "origin")?;
            check(event.domain == shard.domain, "domain")?;
            check(name.is_none_or(|name| event.name == *name), "name")?;
        }
        Ok(())
    }

    /// Checks a request that arrived at this address. A command whose caller does not know the number of shards gets the shard of
    /// its key; `owns` lists the domains of the node with their numbers of shards.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] if the request contradicts the address: respond with
    /// [`RequestError::Undecodable`](whizbang_core::bridge::RequestError::Undecodable).
    pub fn accept_request(&self, mut request: Request, owns: &[(Name, u16)]) -> Result<Request, BridgeError> {
        let claimed = Self::for_request(&request);
        let agrees = match (&claimed, self) {
            // A caller that does not know the number of shards leaves the shard out.
            (Self::CommandRequest { domain, shard: None }, Self::CommandRequest { domain: other, .. }) => {
                domain == other
            }
            _ => claimed == *self,
        };
        if !agrees {
            return Err(unexpected_subject());
        }
        if let Request::Command(envelope) | Request::Query(envelope) = &request {
            // The caller is not an actor: actors send one-way messages and receive replies as messages.
            check(envelope.origin.is_none(), "origin")?;
        }
        if let Request::Command(envelope) = &mut request {
            let shards = shards_of(&envelope.domain, owns);
            let shard = shards.map(|shards| ShardId::new(envelope.domain.clone(), shard_of(&envelope.key, shards)));
            check(envelope.to.is_none() || envelope.to == shard, "shard of the key")?;
            envelope.to = shard;
        }
        Ok(request)
    }

    /// Checks a notification that arrived at this address.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] if the notification contradicts the address: drop it.
    pub fn accept_notification(&self, notification: &Notification) -> Result<(), BridgeError> {
        if Self::for_notification(notification) == *self { Ok(()) } else { Err(unexpected_subject()) }
    }
}

/// Returns the number of shards of an owned domain.
fn shards_of(domain: &Name, owns: &[(Name, u16)]) -> Option<u16> {
    owns.iter().find(|(owned, _)| owned == domain).map(|(_, shards)| *shards)
}

/// Returns an error that names the field that contradicts the subject.
fn check(agrees: bool, what: &str) -> Result<(), BridgeError> {
    if agrees { Ok(()) } else { Err(subject_mismatch(what)) }
}

/// Returns the error for a message on a subject of another kind.
fn unexpected_subject() -> BridgeError {
    BridgeError::Malformed { reason: "the subject does not fit the content of the message".to_owned() }
}

/// Returns the error for a field that contradicts the subject.
fn subject_mismatch(what: &str) -> BridgeError {
    BridgeError::Malformed { reason: format!("the {what} contradicts the subject of the message") }
}

#[cfg(test)]
mod tests {
    use whizbang_core::clock::Timestamp;
    use whizbang_core::message::{MessageId, Origin};

    use super::*;

    fn shard(domain: &'static str, number: u16) -> ShardId {
        ShardId::new(Name::from_static(domain).unwrap(), number)
    }

    /// Returns a command of the shop for shard 0 of the bank, which has one shard, with its address.
    fn command() -> (Envelope, Address) {
        let (bank, name) = (Name::from_static("bank").unwrap(), Name::from_static("Deposit").unwrap());
        let mut command = Envelope::new(MessageId::from_u128(1), Kind::Command, bank, name, Timestamp::from_millis(0));
        command.key = "ada".to_owned();
        command.origin = Some(Origin {
            shard: shard("shop", 3),
            actor: Name::from_static("Order").unwrap(),
            key: "7".to_owned(),
            sequence: 1,
            version: 0,
            store: None,
        });
        (command, Address::Direct { to: shard("bank", 0), from: Some(shard("shop", 3)) })
    }

    /// Returns the reason for which a changed command is refused.
    fn refused(change: impl FnOnce(&mut Envelope, &mut Address)) -> String {
        let (mut command, mut address) = command();
        change(&mut command, &mut address);
        let owns = [(Name::from_static("bank").unwrap(), 1)];
        address.accept_message(command, &owns).unwrap_err().to_string()
    }

    #[test]
    fn message_that_contradicts_its_address_is_refused() {
        let owns = [(Name::from_static("bank").unwrap(), 1)];
        let (good, address) = command();
        assert_eq!(address.accept_message(good, &owns).unwrap().to, Some(shard("bank", 0)));
        assert!(refused(|command, _| command.kind = Kind::Event).contains("kind"));
        assert!(refused(|command, _| command.to = Some(shard("bank", 1))).contains("destination"));
        assert!(refused(|_, at| *at = Address::Direct { to: shard("bank", 1), from: None }).contains("destination"));
        assert!(refused(|command, _| command.domain = shard("shop", 0).domain).contains("domain"));
        assert!(refused(|command, _| command.origin = None).contains("origin"));
        assert!(refused(|command, _| command.kind = Kind::Reply).contains("domain"), "a reply of another domain");
        assert!(refused(|_, at| *at = Address::Head(shard("bank", 0))).contains("subject"));
    }

    #[test]
    fn caller_is_not_an_actor_and_sends_to_the_shard_of_its_key() {
        let owns = [(Name::from_static("bank").unwrap(), 16)];
        let (mut command, _) = command();
        let forged = Request::Command(command.clone());
        let at = Address::CommandRequest { domain: shard("bank", 0).domain, shard: None };
        assert!(at.accept_request(forged, &owns).unwrap_err().to_string().contains("origin"));
        command.origin = None;
        let Request::Command(accepted) = at.accept_request(Request::Command(command.clone()), &owns).unwrap() else {
            panic!("another request")
        };
        assert_eq!(accepted.to, Some(shard("bank", shard_of("ada", 16))));
        let elsewhere = shard("bank", (shard_of("ada", 16) + 1) % 16);
        let at = Address::CommandRequest { domain: elsewhere.domain.clone(), shard: Some(elsewhere.shard) };
        command.to = Some(elsewhere);
        assert!(at.accept_request(Request::Command(command), &owns).unwrap_err().to_string().contains("shard of"));
    }

    #[test]
    fn event_of_another_shard_or_name_is_refused() {
        let (mut event, _) = command();
        event.kind = Kind::Event;
        event.domain = shard("shop", 3).domain;
        let at = |number, name| Address::Event { shard: shard("shop", number), name: Name::from_static(name).unwrap() };
        assert!(at(3, "Deposit").accept_events(&[event.clone()]).is_ok());
        assert!(Address::Events(shard("shop", 3)).accept_events(&[event.clone(), event.clone()]).is_ok());
        assert!(at(4, "Deposit").accept_events(&[event.clone()]).is_err());
        assert!(at(3, "Withdraw").accept_events(&[event.clone()]).is_err());
        assert!(at(3, "Deposit").accept_events(&[event.clone(), event.clone()]).is_err(), "not a pack");
        event.domain = shard("bank", 0).domain;
        assert!(at(3, "Deposit").accept_events(&[event]).is_err());
    }
}
