//! What has really gone wrong in a simulated cluster, counted: a fault that hits nothing proves nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

macro_rules! troubles {
    ($($(#[$doc:meta])* $name:ident $told:literal,)*) => {
        /// Something that went wrong in a simulated cluster, where it hit.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum FaultEvent {
            $($(#[$doc])* $name,)*
        }

        impl FaultEvent {
            /// Everything that can go wrong.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }

        impl fmt::Display for FaultEvent {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $told,)*
                })
            }
        }
    };
}

troubles! {
    /// A message was lost on its way to the broker; its sender was told nothing.
    LostOnTheWayIn "lost on the way to the broker",
    /// A message was stored, and its sender was told nothing.
    AcknowledgementLost "stored, and the acknowledgement was lost",
    /// A message was acknowledged and never stored.
    LostByTheBroker "acknowledged by the broker and lost",
    /// A message was stored twice.
    StoredTwice "stored twice",
    /// A message was lost on its way from the broker to a node.
    LostOnTheWayOut "lost on the way from the broker",
    /// A delivery was brought twice.
    BroughtTwice "brought twice",
    /// A node's word about a message was lost on its way to the broker.
    WordLost "a node's word to the broker was lost",
    /// A question or its answer was lost.
    QuestionLost "a question or its answer was lost",
    /// A message came again because nobody had settled it within the ack wait.
    AckWaitOver "came again after the ack wait",
    /// A message came again behind newer ones.
    Overtaken "came again behind newer ones",
    /// A message waited because as many were in hand as may be.
    HandsFull "waited because too many were in hand",
    /// A message was dropped because its id was in the window.
    RepeatDropped "dropped because its id was in the window",
    /// A message was dropped because its id was in the window, though the stream did not have it any more.
    FalseDuplicate "dropped as a duplicate though it was not in the stream",
    /// A hostile client wrote a packet.
    Forged "written by a hostile client",
    /// A message was lost with everything in its stream.
    EmptiedAway "lost with all in its stream",
    /// A stream was lost with its consumers.
    StreamLost "a stream was lost",
    /// A message was refused because the broker's leader changed.
    RefusedByTheLeader "refused while the leader changed",
    /// A message was refused and stored all the same.
    RefusedAndStored "refused while the leader changed, and stored",
    /// The broker forgot that a message had been settled, and brought it again.
    WordForgotten "came again because the leader had forgotten it was settled",
    /// Something waited because the broker stood still.
    BrokerStoodStill "waited because the broker stood still",
    /// Something was lost between two services that were cut off from each other one way.
    CutOff "lost between two services",
    /// Something for a node that hears nothing was lost.
    Unheard "lost on the way to a node that hears nothing",
    /// Something from a node that is not heard was lost.
    Unsaid "lost on the way from a node that is not heard",
    /// A wall clock jumped.
    ClockJumped "a clock jumped",
    /// A handler panicked.
    HandlerPanicked "a handler panicked",
    /// A message waited for handlers that take their time.
    HandlerSlow "waited for a slow handler",
    /// A store failed.
    StoreFailed "a store failed",
    /// A node was killed while something waited for its commit.
    CrashInACommit "killed inside a commit",
    /// An append that waited for its commit was in the log after the crash, and nobody had been told.
    CommittedByACrash "committed by a crash without a word",
    /// An append that waited for its commit was lost in a crash.
    UncommittedByACrash "not committed because of a crash",
    /// A node was killed while it waited for the broker's answer to a message.
    CrashInAPublication "killed inside a publication",
    /// A node was killed while it handled a message that the broker had brought.
    CrashInADelivery "killed while it handled a delivery",
    /// A node was killed between the commit of a message's effect and the broker's hearing of it.
    CrashInAnAcknowledgement "killed inside an acknowledgement",
    /// A node was killed while it started.
    CrashWhileStarting "killed while it started",
    /// A job failed once its effect was done.
    JobFailed "a job failed after its effect",
    /// A job did not end once its effect was done, until its limit of time ended it.
    JobHung "a job hung after its effect",
    /// A node was killed between the effect of a job and its commit.
    CrashInAJob "killed between a job's effect and its commit",
    /// The effect of a job was done again.
    EffectRepeated "the effect of a job was done again",
    /// A message of an actor failed until an operator took care of it.
    MessagePoisoned "a message failed until an operator took care of it",
    /// A key could not be read for a while.
    KeyStuck "a key could not be read",
    /// A node on a second store was refused.
    RivalRefused "a node on a second store was refused",
    /// A service was replaced by another version of it.
    Upgraded "a service was upgraded",
    /// A client sent a command twice.
    CommandRepeated "a client sent a command twice",
    /// A client used an id again for another payload, and that was a conflict.
    IdReused "an id was used for another payload",
    /// A client used ids that were too old, or from the future.
    IdOutOfTime "an id was of another time",
    /// A client waited for a short time only.
    CallHurried "a client was in a hurry",
    /// The clock of the clients was wrong.
    ClientSkewed "the clock of the clients was wrong",
    /// A service was handed over to another node while the one before lived on.
    HandedOver "handed over while the old node lived on",
    /// A node that had lost its shards tried to commit and was refused.
    ZombieFenced "the old node was fenced",
}

impl FaultEvent {
    /// Returns whether only a cluster with versions can have it.
    pub(super) fn needs_version(self) -> bool {
        matches!(self, Self::Upgraded)
    }

    /// Returns whether only a cluster with workers can have it.
    pub(super) fn needs_worker(self) -> bool {
        matches!(self, Self::JobFailed | Self::JobHung | Self::CrashInAJob | Self::EffectRepeated)
    }
}

/// How often what has gone wrong. Clones count together.
#[derive(Clone, Default)]
pub(super) struct FaultCounts(Arc<Mutex<BTreeMap<FaultEvent, u64>>>);

impl FaultCounts {
    pub(super) fn one(&self, trouble: FaultEvent) {
        self.add(trouble, 1);
    }

    pub(super) fn add(&self, trouble: FaultEvent, times: u64) {
        if times > 0 {
            *self.0.lock().entry(trouble).or_default() += times;
        }
    }

    pub(super) fn counts(&self) -> BTreeMap<FaultEvent, u64> {
        self.0.lock().clone()
    }
}
