//! What can be expected of a step.

use std::time::Duration;

use super::step::{Step, addressed, named, stored};
use super::{Run, Scenario, fail};
use crate::actor::{Stateful, timer_name};
use crate::message::{Coded, Command, Document, Domain, Event};
use crate::router::Outcome;
use crate::saga::OnTimer;

impl<A: Stateful, C: Command> Scenario<A, C> {
    /// The command is replied to with this.
    #[track_caller]
    pub fn replies(mut self, reply: C::Reply) -> Self {
        let mut wanted = Vec::new();
        let codec = C::Domain::CODEC;
        let written = C::Reply::write_reply(&Ok(reply), codec, &mut wanted);
        let run = &mut self.run;
        if let Err(error) = written {
            run.fail(&format!("the expected reply {error}\n"));
        }
        let step = run.taken();
        let Outcome::Done(reply, _) = &step.outcome else { return self };
        if *reply == wanted {
            return self;
        }
        let got = match &step.rejection {
            Some(no) => format!("it was rejected: {no}"),
            None => format!("the reply was {}", json_of::<C::Reply>(codec, reply)),
        };
        let wanted = json_of::<C::Reply>(codec, &wanted);
        run.fail(&format!("expected the reply\n  {wanted}\nbut {got}\n"));
    }

    /// The command is rejected with this code.
    #[track_caller]
    pub fn rejects(mut self, code: &str) -> Self {
        let step = self.run.taken();
        match &step.rejection {
            Some(no) if no.code() == code => self,
            Some(no) => {
                let no = no.to_string();
                self.run.fail(&format!("expected the rejection\n  {code}\nbut it was rejected with\n  {no}\n"))
            }
            None => self.run.fail(&format!("expected the rejection\n  {code}\nbut it was not rejected\n")),
        }
    }
}

impl<A: Stateful, C> Scenario<A, C> {
    /// The next event it records is this. Once this is asked, the step must record nothing that is not expected.
    #[track_caller]
    pub fn records<E: Event>(mut self, event: E) -> Self {
        let run = &mut self.run;
        let step = run.taken();
        let at = step.compared_events.unwrap_or(0);
        step.compared_events = Some(at + 1);
        let found = step.turn.as_ref().and_then(|turn| turn.events.get(at));
        let Some(found) = found else {
            run.fail(&format!("expected it to record\n  {}\nbut it recorded nothing (more)\n", named(&event)));
        };
        let mut wanted = Vec::new();
        let written = event.encode(found.codec, &mut wanted);
        if written.is_err() || found.name.as_str() != E::NAME || found.payload != wanted {
            let got = stored::<E>(&found.name, found.version, found.codec, &found.payload);
            run.fail(&format!("expected it to record\n  {}\nbut it recorded\n  {got}\n", named(&event)));
        }
        self
    }

    /// It records no event.
    #[track_caller]
    pub fn records_nothing(mut self) -> Self {
        let step = self.run.taken();
        step.compared_events.get_or_insert(0);
        self.run.checked();
        self
    }

    /// The next command it sends is this. Once this is asked, the step must send nothing that is not expected.
    #[track_caller]
    pub fn sends<D: Command>(mut self, command: D) -> Self {
        let run = &mut self.run;
        let step = run.taken();
        let at = step.compared_sent.unwrap_or(0);
        step.compared_sent = Some(at + 1);
        let Some(found) = step.sent.get(at) else {
            run.fail(&format!("expected it to send\n  {}\nbut it sent nothing (more)\n", named(&command)));
        };
        let mut wanted = Vec::new();
        let written = command.encode(found.codec, &mut wanted);
        let same = found.name.as_str() == D::NAME
            && found.domain.as_str() == D::Domain::NAME
            && found.key == command.key().as_str();
        if written.is_err() || !same || found.payload != wanted {
            let got = if same {
                stored::<D>(&found.name, found.version, found.codec, &found.payload)
            } else {
                addressed(found)
            };
            run.fail(&format!("expected it to send\n  {}\nbut it sent\n  {got}\n", named(&command)));
        }
        self
    }

    /// It sends no command.
    #[track_caller]
    pub fn sends_nothing(mut self) -> Self {
        let step = self.run.taken();
        step.compared_sent.get_or_insert(0);
        self.run.checked();
        self
    }

    /// It sets the timer `T` to ring after this time.
    #[track_caller]
    pub fn sets_timer<T: Document>(mut self, after: Duration) -> Self
    where
        A: OnTimer<T>,
    {
        let run = &mut self.run;
        let step = run.taken();
        let found =
            step.set.iter().find(|(name, _)| *name == *timer_name::<A, T>()).map(|(_, due)| due.since(step.time));
        match found {
            Some(found) if found == after => self,
            Some(found) => {
                run.fail(&format!("expected the timer {} after {after:?}\nbut it is set after {found:?}\n", T::NAME))
            }
            None => run.fail(&format!("expected it to set the timer {}\nbut it did not\n", T::NAME)),
        }
    }

    /// It takes the timer `T` back.
    #[track_caller]
    pub fn clears_timer<T: Document>(mut self) -> Self
    where
        A: OnTimer<T>,
    {
        let step = self.run.taken();
        let timers = step.turn.as_ref().map_or(&[][..], |turn| &turn.timers);
        if timers.iter().any(|(name, set)| *name == *timer_name::<A, T>() && !set) {
            return self;
        }
        self.run.fail(&format!("expected it to clear the timer {}\nbut it did not\n", T::NAME))
    }

    /// The saga ends, and has undone nothing in this step.
    #[track_caller]
    pub fn ends_completed(mut self) -> Self {
        let step = self.run.taken();
        match (step.ended, step.begins_undo) {
            (true, false) => self,
            (true, true) => self.run.fail("expected the saga to end completed\nbut it compensates\n"),
            (false, _) => self.run.fail("expected the saga to end\nbut it goes on\n"),
        }
    }

    /// The saga begins to undo its steps.
    #[track_caller]
    pub fn compensates(mut self) -> Self {
        if self.run.taken().begins_undo {
            return self;
        }
        self.run.fail("expected the saga to compensate\nbut it did not\n")
    }

    /// The saga has ended after undoing its steps: in this step, or with the reply to its last undoing command.
    #[track_caller]
    pub fn ends_compensated(mut self) -> Self {
        let ended = self.run.taken().ended;
        if ended && self.run.bench.has_undone() {
            return self;
        }
        self.run.fail("expected the saga to end compensated\nbut it did not\n")
    }

    /// It goes on: the saga neither ends nor begins to undo its steps.
    #[track_caller]
    pub fn goes_on(mut self) -> Self {
        let step = self.run.taken();
        let (ended, begins_undo) = (step.ended, step.begins_undo);
        match (ended, begins_undo) {
            (false, false) => self,
            (true, _) => self.run.fail("expected the saga to go on\nbut it ends\n"),
            (false, true) => self.run.fail("expected the saga to go on\nbut it compensates\n"),
        }
    }

    /// The turn fails, and the error contains this text: a panic, a message that cannot be read or written.
    #[track_caller]
    pub fn fails(mut self, text: &str) -> Self {
        let trouble = self.run.last().trouble();
        match trouble {
            Some(trouble) if trouble.contains(text) => self,
            Some(trouble) => self.run.fail(&format!("expected it to fail with\n  {text}\nbut {trouble}\n")),
            None => self.run.fail(&format!("expected it to fail with\n  {text}\nbut it did not\n")),
        }
    }
}

impl<A: Stateful> Run<A> {
    #[track_caller]
    fn fail(&self, difference: &str) -> ! {
        fail(&self.bench.story(), difference)
    }

    /// The last step.
    #[track_caller]
    fn last(&mut self) -> &mut Step {
        if self.step.is_none() {
            self.fail("nothing has happened yet: begin with `when`, `on`, `on_reply` or `wake`\n");
        }
        match &mut self.step {
            Some(step) => step,
            None => fail("", "no step"),
        }
    }

    /// The last step, which was taken.
    #[track_caller]
    fn taken(&mut self) -> &mut Step {
        if let Some(trouble) = self.last().trouble() {
            self.fail(&format!("{trouble}\n"));
        }
        self.last()
    }
}

/// A reply's content as JSON.
fn json_of<R: Coded>(codec: crate::message::Codec, reply: &[u8]) -> String {
    let mut json = Vec::new();
    match R::read_reply(codec, reply) {
        Ok(Ok(reply)) if reply.write(crate::message::Codec::Json, &mut json).is_ok() => {
            String::from_utf8_lossy(&json).into_owned()
        }
        _ => format!("{} bytes", reply.len()),
    }
}
