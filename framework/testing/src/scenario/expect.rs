//! The expectations on a step.
//!
//! Each one panics with the steps so far, the expectation and the effect. They may be called in any order; events and commands
//! are expected in the order in which the handler produced them.

use std::time::Duration;

use super::step::{Step, describe, describe_sent, describe_stored};
use super::{Run, Scenario, fail};
use whizbang_core::message::{Coded, Command, Document, Domain, Envelope, Event};
use whizbang_runtime::actor::{Stateful, named_timer, timer_name};
use whizbang_runtime::router::{DelayedMessage, Outcome};
use whizbang_runtime::saga::OnTimer;

impl<A: Stateful, C: Command> Scenario<A, C> {
    /// Expects this reply to the command.
    ///
    /// Replies are compared by their encoded bytes, so they need no `PartialEq`.
    ///
    /// # Panics
    /// If the reply differs, if the command was rejected, or if it was not handled.
    #[track_caller]
    pub fn replies(mut self, reply: C::Reply) -> Self {
        let mut wanted = Vec::new();
        let codec = C::Domain::CODEC;
        let written = C::Reply::write_reply(&Ok(reply), codec, &mut wanted);
        let run = &mut self.run;
        if let Err(error) = written {
            run.fail(&format!("failed to encode the expected reply: {error}\n"));
        }
        let step = run.handled_step();
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

    /// Expects a rejection of the command with this code.
    ///
    /// Text and fields of the rejection are not compared: the code is the stable part.
    ///
    /// # Panics
    /// If the command was rejected with another code, was accepted, or was not handled.
    #[track_caller]
    pub fn rejects(mut self, code: &str) -> Self {
        let step = self.run.handled_step();
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
    /// Expects this event as the next one. From the first call on, every recorded event must be expected.
    ///
    /// # Panics
    /// If the next recorded event differs, or if there is none.
    #[track_caller]
    pub fn records<E: Event>(mut self, event: E) -> Self {
        let run = &mut self.run;
        let step = run.handled_step();
        let at = step.compared_events.unwrap_or(0);
        step.compared_events = Some(at + 1);
        let found = step.turn.as_ref().and_then(|turn| turn.events.get(at));
        let Some(found) = found else {
            run.fail(&format!("expected it to record\n  {}\nbut it recorded no further event\n", describe(&event)));
        };
        let mut wanted = Vec::new();
        let written = event.encode(found.codec, &mut wanted);
        if written.is_err() || found.name.as_str() != E::NAME || found.payload != wanted {
            let got = describe_stored::<E>(&found.name, found.version, found.codec, &found.payload);
            run.fail(&format!("expected it to record\n  {}\nbut it recorded\n  {got}\n", describe(&event)));
        }
        self
    }

    /// Expects no event.
    ///
    /// # Panics
    /// If the step has recorded an event.
    #[track_caller]
    pub fn records_nothing(mut self) -> Self {
        let step = self.run.handled_step();
        step.compared_events.get_or_insert(0);
        self.run.assert_no_unexpected();
        self
    }

    /// Expects this command as the next one. From the first call on, every sent command must be expected.
    ///
    /// The destination domain, the key and the bytes are compared.
    ///
    /// # Panics
    /// If the next sent command differs, or if there is none.
    #[track_caller]
    pub fn sends<D: Command>(mut self, command: D) -> Self {
        let found = self.run.next_sent(&command);
        self.run.compare_sent(&found, &command);
        self
    }

    /// Expects this command as the next one, to be sent [later](whizbang_runtime::actor::Sent::after) by this time.
    ///
    /// # Panics
    /// If the next sent command differs, is sent at once or at another time, or if there is none.
    #[track_caller]
    pub fn sends_after<D: Command>(mut self, after: Duration, command: D) -> Self {
        let found = self.run.next_sent(&command);
        let time = self.run.handled_step().time;
        let Some((found, due)) = DelayedMessage::of(&found) else {
            let got = describe_sent(&found);
            self.run.fail(&format!(
                "expected it to send after {after:?}\n  {}\nbut it sent at once\n  {got}\n",
                describe(&command)
            ));
        };
        if due.since(time) != after {
            self.run.fail(&format!(
                "expected it to send {} after {after:?}\nbut it sends it after {:?}\n",
                D::NAME,
                due.since(time)
            ));
        }
        self.run.compare_sent(&found, &command);
        self
    }

    /// Expects no command.
    ///
    /// # Panics
    /// If the step has sent a command.
    #[track_caller]
    pub fn sends_nothing(mut self) -> Self {
        let step = self.run.handled_step();
        step.compared_sent.get_or_insert(0);
        self.run.assert_no_unexpected();
        self
    }

    /// Expects the step to set the timer `T` to fire after this time.
    ///
    /// # Panics
    /// If the step sets no such timer, or with another delay.
    #[track_caller]
    pub fn sets_timer<T: Document>(mut self, after: Duration) -> Self
    where
        A: OnTimer<T>,
    {
        self.run.expect_timer(&timer_name::<A, T>(), after);
        self
    }

    /// Expects the step to set the timer `T` of this [name](whizbang_runtime::Effects::set_named_timer).
    ///
    /// # Panics
    /// If the step sets no such timer, or with another delay.
    #[track_caller]
    pub fn sets_named_timer<T: Document>(mut self, name: &str, after: Duration) -> Self
    where
        A: OnTimer<T>,
    {
        self.run.expect_timer(&named_timer(&timer_name::<A, T>(), name), after);
        self
    }

    /// Expects the step to clear the timer `T`.
    ///
    /// # Panics
    /// If the step does not clear the timer.
    #[track_caller]
    pub fn clears_timer<T: Document>(mut self) -> Self
    where
        A: OnTimer<T>,
    {
        self.run.expect_cleared(&timer_name::<A, T>());
        self
    }

    /// Expects the step to clear the timer `T` of this name.
    ///
    /// # Panics
    /// If the step does not clear the timer.
    #[track_caller]
    pub fn clears_named_timer<T: Document>(mut self, name: &str) -> Self
    where
        A: OnTimer<T>,
    {
        self.run.expect_cleared(&named_timer(&timer_name::<A, T>(), name));
        self
    }

    /// Expects the saga to end without compensation in this step.
    ///
    /// # Panics
    /// If the saga continues or compensates.
    #[track_caller]
    pub fn ends_completed(mut self) -> Self {
        let step = self.run.handled_step();
        match (step.ended, step.begins_compensation) {
            (true, false) => self,
            (true, true) => self.run.fail("expected the saga to end completed\nbut it compensates\n"),
            (false, _) => self.run.fail("expected the saga to end\nbut it continues\n"),
        }
    }

    /// Expects the saga to begin its compensation.
    ///
    /// # Panics
    /// If the saga completes or continues.
    #[track_caller]
    pub fn compensates(mut self) -> Self {
        if self.run.handled_step().begins_compensation {
            return self;
        }
        self.run.fail("expected the saga to compensate\nbut it did not\n")
    }

    /// Expects the end of the saga after its compensation: in this step, or with the reply to its last compensating command.
    ///
    /// # Panics
    /// If a step of the compensation is still open, or if the saga completed.
    #[track_caller]
    pub fn ends_compensated(mut self) -> Self {
        let ended = self.run.handled_step().ended;
        if ended && self.run.harness.has_compensated() {
            return self;
        }
        self.run.fail("expected the saga to end compensated\nbut it did not\n")
    }

    /// Expects the saga to continue: it neither ends nor begins its compensation.
    ///
    /// # Panics
    /// If the saga ends or begins its compensation.
    #[track_caller]
    pub fn continues(mut self) -> Self {
        let step = self.run.handled_step();
        let (ended, begins_compensation) = (step.ended, step.begins_compensation);
        match (ended, begins_compensation) {
            (false, false) => self,
            (true, _) => self.run.fail("expected the saga to continue\nbut it ends\n"),
            (false, true) => self.run.fail("expected the saga to continue\nbut it compensates\n"),
        }
    }

    /// Expects the turn to fail with an error that contains this text: a panic, or a message that cannot be decoded or encoded.
    ///
    /// In a node such a message is retried and then becomes a dead letter; here it fails at once.
    ///
    /// # Panics
    /// If the turn succeeded, or if the error does not contain the text.
    #[track_caller]
    pub fn fails(mut self, text: &str) -> Self {
        let failure = self.run.last().failure();
        match failure {
            Some(failure) if failure.contains(text) => self,
            Some(failure) => self.run.fail(&format!("expected it to fail with\n  {text}\nbut {failure}\n")),
            None => self.run.fail(&format!("expected it to fail with\n  {text}\nbut it did not\n")),
        }
    }
}

impl<A: Stateful> Run<A> {
    /// Returns the next sent command that is not compared yet.
    #[track_caller]
    fn next_sent<D: Command>(&mut self, command: &D) -> Envelope {
        let step = self.handled_step();
        let at = step.compared_sent.unwrap_or(0);
        step.compared_sent = Some(at + 1);
        match step.sent.get(at) {
            Some(found) => found.clone(),
            None => {
                self.fail(&format!("expected it to send\n  {}\nbut it sent no further command\n", describe(command)))
            }
        }
    }

    /// Compares a sent command with the expected one.
    #[track_caller]
    fn compare_sent<D: Command>(&mut self, found: &Envelope, command: &D) {
        let mut wanted = Vec::new();
        let written = command.encode(found.codec, &mut wanted);
        let same = found.name.as_str() == D::NAME
            && found.domain.as_str() == D::Domain::NAME
            && found.key == command.key().as_str();
        if written.is_err() || !same || found.payload != wanted {
            let got = if same {
                describe_stored::<D>(&found.name, found.version, found.codec, &found.payload)
            } else {
                describe_sent(found)
            };
            self.fail(&format!("expected it to send\n  {}\nbut it sent\n  {got}\n", describe(command)));
        }
    }

    /// Checks that the step sets a timer with this delay.
    #[track_caller]
    fn expect_timer(&mut self, timer: &str, after: Duration) {
        let step = self.handled_step();
        let found = step.set.iter().find(|(name, _)| name == timer).map(|(_, due)| due.since(step.time));
        match found {
            Some(found) if found == after => {}
            Some(found) => {
                self.fail(&format!("expected the timer {timer} after {after:?}\nbut it is set after {found:?}\n"))
            }
            None => self.fail(&format!("expected it to set the timer {timer}\nbut it did not\n")),
        }
    }

    /// Checks that the step clears a timer.
    #[track_caller]
    fn expect_cleared(&mut self, timer: &str) {
        let step = self.handled_step();
        let timers = step.turn.as_ref().map_or(&[][..], |turn| &turn.timers);
        if !timers.iter().any(|(name, set)| name.as_str() == timer && !set) {
            self.fail(&format!("expected it to clear the timer {timer}\nbut it did not\n"))
        }
    }

    /// Fails the test with the steps so far and a difference.
    #[track_caller]
    fn fail(&self, difference: &str) -> ! {
        fail(&self.harness.report(), difference)
    }

    /// Returns the last step.
    #[track_caller]
    fn last(&mut self) -> &mut Step {
        if self.step.is_none() {
            self.fail("nothing has happened yet: begin with `when`, `on`, `on_reply` or `fire_timer`\n");
        }
        match &mut self.step {
            Some(step) => step,
            None => fail("", "no step"),
        }
    }

    /// Returns the last step, whose message must have been handled.
    #[track_caller]
    fn handled_step(&mut self) -> &mut Step {
        if let Some(failure) = self.last().failure() {
            self.fail(&format!("{failure}\n"));
        }
        self.last()
    }
}

/// Formats the content of a reply as JSON.
fn json_of<R: Coded>(codec: whizbang_core::message::Codec, reply: &[u8]) -> String {
    let mut json = Vec::new();
    match R::read_reply(codec, reply) {
        Ok(Ok(reply)) if reply.write(whizbang_core::message::Codec::Json, &mut json).is_ok() => {
            String::from_utf8_lossy(&json).into_owned()
        }
        _ => format!("{} bytes", reply.len()),
    }
}
