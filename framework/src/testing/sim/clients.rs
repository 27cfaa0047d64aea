//! What the clients of a simulated cluster have sent and were told, and what they do wrong while a fault says so.
//!
//! Written by [calls](super::call); read by the [checks](super::answers) at the end of a run.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::payload::Payload;
use crate::actor::Count;
use crate::client::SendError;
use crate::clock::{Clock, Jumps, Timestamp, instant};
use crate::message::{Codec, Command, Domain, Envelope, Kind, MessageId, Name, ShardId, shard_of};

/// A command as a client has written it, so that it can be sent once more.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) id: MessageId,
    pub(super) domain: &'static str,
    pub(super) name: &'static str,
    pub(super) key: String,
    pub(super) bytes: Bytes,
    version: u32,
    codec: Codec,
    shards: u16,
}

impl Written {
    pub(super) fn of<C: Command>(id: MessageId, command: &C) -> Result<Self, SendError> {
        let codec = C::Domain::CODEC;
        let mut bytes = Vec::new();
        command.encode(codec, &mut bytes).map_err(SendError::Encode)?;
        Ok(Self {
            id,
            domain: C::Domain::NAME,
            name: C::NAME,
            key: command.key().as_str().to_owned(),
            bytes: Bytes::from(bytes),
            version: C::VERSION,
            codec,
            shards: C::Domain::SHARDS,
        })
    }

    /// The command once more, as a value: not all of them can be cloned.
    pub(super) fn read<C: Command>(&self) -> Result<C, SendError> {
        C::decode(self.version, self.codec, &self.bytes).map_err(SendError::Encode)
    }

    /// The same with another id.
    pub(super) fn under(&self, id: MessageId) -> Self {
        Self { id, ..self.clone() }
    }

    /// Another command under the same id.
    pub(super) fn changed(&self) -> Self {
        let bytes = self.bytes.iter().copied().chain([0]).collect();
        Self { bytes, ..self.clone() }
    }

    pub(super) fn payload(&self) -> Payload {
        Payload::new(self.name, self.version, self.codec, self.bytes.clone())
    }

    /// The envelope of a caller that waits until `deadline`.
    pub(super) fn envelope(&self, now: Timestamp, deadline: Duration) -> Envelope {
        let name = |text: &'static str| Name::from_static(text).expect("the derive has checked the name");
        let domain = name(self.domain);
        Envelope {
            version: self.version,
            to: Some(ShardId::new(domain.clone(), shard_of(&self.key, self.shards))),
            key: self.key.clone(),
            deadline: Some(now.after(deadline)),
            codec: self.codec,
            payload: self.bytes.clone(),
            ..Envelope::new(self.id, Kind::Command, domain, name(self.name), now)
        }
    }
}

/// What a client was told.
#[derive(Clone)]
pub(super) struct Ack {
    pub(super) written: Written,
    pub(super) reply: Bytes,
    pub(super) at: Instant,
}

/// A command that was handed over without a reply.
#[derive(Clone)]
pub(super) struct Post {
    pub(super) written: Written,
    /// When it was handed over first.
    pub(super) begun: Instant,
    pub(super) accepted: bool,
}

/// Something that a client does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mischief {
    /// Sends a command twice.
    Repeats,
    /// Uses an id for another command.
    Reuses,
    /// Uses ids of another time.
    OutOfTime,
    /// Waits so long only.
    Hurries(Duration),
}

struct Armed {
    mischief: Mischief,
    left: u8,
    count: Count,
}

/// The attempts with one id.
#[derive(Default)]
struct Tries {
    open: u32,
    /// One of them may have had an effect.
    doubt: bool,
    abandoned: bool,
}

/// All clients of a cluster.
pub(super) struct Clients {
    pub(super) clock: Clock,
    pub(super) jumps: Jumps,
    acks: RefCell<Vec<Ack>>,
    /// Where an acknowledgement stands, by the id of the command and its target.
    told: RefCell<BTreeMap<(MessageId, &'static str, String), usize>>,
    posts: RefCell<Vec<Post>>,
    tries: RefCell<BTreeMap<MessageId, Tries>>,
    armed: RefCell<Vec<Armed>>,
    /// Commands whose ids are to be used again once they are acknowledged.
    reuses: RefCell<BTreeMap<MessageId, Count>>,
    probes: RefCell<Vec<oneshot::Receiver<()>>>,
    /// How many operators are about to redrive dead letters.
    operators: Cell<u32>,
}

impl Clients {
    pub(super) fn new(clock: Clock, jumps: Jumps) -> Self {
        Self {
            clock,
            jumps,
            acks: RefCell::default(),
            told: RefCell::default(),
            posts: RefCell::default(),
            tries: RefCell::default(),
            armed: RefCell::default(),
            reuses: RefCell::default(),
            probes: RefCell::default(),
            operators: Cell::new(0),
        }
    }

    pub(super) fn acks(&self) -> Vec<Ack> {
        self.acks.borrow().clone()
    }

    pub(super) fn posts(&self) -> Vec<Post> {
        self.posts.borrow().clone()
    }

    /// Lets the clients of the next commands do something wrong.
    pub(super) fn arm(&self, mischief: Mischief, times: u8, count: &Count) {
        self.armed.borrow_mut().push(Armed { mischief, left: times, count: Rc::clone(count) });
    }

    /// An operator begins to look after dead letters, or ends.
    pub(super) fn operator(&self, begins: bool) {
        let operators = self.operators.get();
        self.operators.set(if begins { operators + 1 } else { operators.saturating_sub(1) });
    }

    /// Returns whether dead letters are going to be redriven.
    pub(super) fn is_tended(&self) -> bool {
        self.operators.get() > 0
    }

    /// Lets clients do nothing wrong any more.
    pub(super) fn disarm(&self) {
        self.armed.borrow_mut().clear();
        self.jumps.mend();
    }

    /// What goes wrong with the next command, each kind once.
    pub(super) fn mischief(&self, is: impl Fn(Mischief) -> bool) -> Vec<(Mischief, Count)> {
        let mut taken: Vec<(Mischief, Count)> = Vec::new();
        for armed in self.armed.borrow_mut().iter_mut().filter(|armed| armed.left > 0 && is(armed.mischief)) {
            let kind = std::mem::discriminant(&armed.mischief);
            if !taken.iter().any(|(of, _)| std::mem::discriminant(of) == kind) {
                armed.left -= 1;
                taken.push((armed.mischief, Rc::clone(&armed.count)));
            }
        }
        taken
    }

    /// The id of a command is to be used again once that is acknowledged.
    pub(super) fn reuse(&self, id: MessageId, count: Count) {
        self.reuses.borrow_mut().insert(id, count);
    }

    pub(super) fn take_reuse(&self, id: MessageId) -> Option<Count> {
        self.reuses.borrow_mut().remove(&id)
    }

    /// Something goes on beside the story, and ends by itself.
    pub(super) fn probe(&self, probe: impl Future<Output = ()> + 'static) {
        let (end, wait) = oneshot::channel();
        self.probes.borrow_mut().push(wait);
        crate::spawn::alone("simulated client", async move {
            probe.await;
            let _ = end.send(());
        });
    }

    /// Ends once nothing goes on beside the story.
    pub(super) async fn probed(&self) {
        loop {
            let next = self.probes.borrow_mut().pop();
            let Some(probe) = next else { return };
            drop(probe.await);
        }
    }

    /// An attempt begins.
    pub(super) fn begins(&self, id: MessageId) {
        self.tries.borrow_mut().entry(id).or_default().open += 1;
    }

    /// An attempt has ended; it may have had an effect or not. Returns whether no attempt with this id can have had one.
    pub(super) fn ends(&self, id: MessageId, doubt: bool) -> bool {
        let mut tries = self.tries.borrow_mut();
        let tries = tries.entry(id).or_default();
        tries.open = tries.open.saturating_sub(1);
        tries.doubt |= doubt;
        tries.open == 0 && !tries.doubt
    }

    /// Gives an id up if no attempt with it can have had an effect. Returns whether it is given up.
    pub(super) fn abandon(&self, id: MessageId) -> bool {
        let mut tries = self.tries.borrow_mut();
        let tries = tries.entry(id).or_default();
        tries.abandoned |= tries.open == 0 && !tries.doubt;
        tries.abandoned
    }

    pub(super) fn is_abandoned(&self, id: MessageId) -> bool {
        self.tries.borrow().get(&id).is_some_and(|tries| tries.abandoned)
    }

    /// A client hears a reply. What is wrong, if it heard another one before.
    pub(super) fn heard(&self, written: &Written, reply: Bytes) -> Result<(), String> {
        let mut acks = self.acks.borrow_mut();
        let target = (written.id, written.domain, written.key.clone());
        let known = self.told.borrow().get(&target).and_then(|at| acks.get(*at)).map(|ack| ack.reply == reply);
        match known {
            Some(true) => Ok(()),
            Some(false) => Err(format!(
                "I4: {}.{} {} for `{}` was sent again and replied to with something else than the first time",
                written.domain, written.name, written.id, written.key
            )),
            None => {
                self.told.borrow_mut().insert(target, acks.len());
                acks.push(Ack { written: written.clone(), reply, at: instant() });
                Ok(())
            }
        }
    }

    /// A command was handed over, or that was tried.
    pub(super) fn posted(&self, written: &Written, begun: Instant, accepted: bool) {
        let mut posts = self.posts.borrow_mut();
        let same = |post: &&mut Post| post.written.id == written.id && post.written.key == written.key;
        match posts.iter_mut().find(same) {
            Some(post) => post.accepted |= accepted,
            None => posts.push(Post { written: written.clone(), begun, accepted }),
        }
    }
}
