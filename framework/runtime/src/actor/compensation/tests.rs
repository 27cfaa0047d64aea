//! The compensation log: its steps, their replies, and its stored formats.

use super::*;
use whizbang_core::message::Codec;

fn id(n: u128) -> MessageId {
    MessageId::from_u128(n)
}

fn command(name: &str) -> PlannedCommand {
    PlannedCommand {
        domain: "stock".into(),
        shard: 0,
        key: "k".into(),
        name: name.into(),
        version: 1,
        codec: 1,
        payload: Vec::new(),
        shape: None,
    }
}

/// A command whose type has this fingerprint.
fn shaped(name: &str, shape: u64) -> PlannedCommand {
    PlannedCommand { shape: Some(Fingerprint::from_u64(shape)), ..command(name) }
}

#[test]
fn fingerprints_survive_log_and_snapshot() {
    let begin = CompensationChange::Begin { finally: vec![command("a"), shaped("b", 8)] };
    let step = CompensationChange::Step { command: id(1), undo: shaped("undo", 7) };
    let plain = CompensationChange::Step { command: id(2), undo: command("undo") };
    assert_eq!(plain.shapes(), None, "nothing more is stored for a command inside the service");
    let mut live = Compensation::default();
    let mut replayed = Compensation::default();
    for change in [&step, &plain, &begin] {
        live.apply(change);
        for stored in [Some(change.clone()), change.shapes()].into_iter().flatten() {
            let mut bytes = Vec::new();
            Codec::Bincode.encode(&stored, &mut bytes).unwrap();
            replayed.apply(&Codec::Bincode.decode(&bytes).unwrap());
        }
    }
    assert_eq!(replayed, live);
    let mut bytes = Vec::new();
    Codec::Bincode.encode(&live, &mut bytes).unwrap();
    let mut restored: Compensation = Codec::Bincode.decode(&bytes).unwrap();
    assert_ne!(restored, live);
    restored.restore_shapes(live.saved_shapes());
    assert_eq!(restored, live);
}

#[test]
fn compensation_runs_in_reverse_and_skips_rejected_steps() {
    let mut undo = Compensation::default();
    for n in 1..=3 {
        undo.apply(&CompensationChange::Step { command: id(n), undo: command(&format!("undo{n}")) });
    }
    undo.apply(&CompensationChange::Done { command: id(1) });
    undo.apply(&CompensationChange::Done { command: id(3) });
    undo.apply(&CompensationChange::Begin { finally: vec![command("cancel")] });
    assert_eq!(undo.next(), NextCompensation::Wait, "the second step's reply is awaited");
    undo.apply(&CompensationChange::Rejected { command: id(2) });
    assert_eq!(undo.next(), NextCompensation::Send(command("undo3")));
    undo.apply(&CompensationChange::Sent { command: id(13) });
    assert_eq!(undo.next(), NextCompensation::Wait);
    undo.apply(&CompensationChange::Undone { command: id(13) });
    assert_eq!(undo.next(), NextCompensation::Send(command("undo1")));
    undo.apply(&CompensationChange::Sent { command: id(11) });
    undo.apply(&CompensationChange::Undone { command: id(99) });
    assert_eq!(undo.next(), NextCompensation::Wait, "a foreign reply changes nothing");
    undo.apply(&CompensationChange::Undone { command: id(11) });
    assert_eq!(undo.next(), NextCompensation::Finish(vec![command("cancel")]));
}

#[test]
fn repeated_compensation_undoes_each_step_once() {
    let mut undo = Compensation::default();
    undo.apply(&CompensationChange::Step { command: id(1), undo: command("undo1") });
    undo.apply(&CompensationChange::Done { command: id(1) });
    undo.apply(&CompensationChange::Begin { finally: Vec::new() });
    undo.apply(&CompensationChange::Sent { command: id(11) });
    // A command handled during compensation requests it once more and adds a step.
    undo.apply(&CompensationChange::Begin { finally: vec![command("cancel")] });
    undo.apply(&CompensationChange::Step { command: id(2), undo: command("undo2") });
    assert_eq!(undo.next(), NextCompensation::Wait, "the first step's undoing is awaited");
    undo.apply(&CompensationChange::Undone { command: id(11) });
    assert_eq!(undo.next(), NextCompensation::Wait, "the second step's reply is awaited");
    undo.apply(&CompensationChange::Done { command: id(2) });
    assert_eq!(undo.next(), NextCompensation::Send(command("undo2")));
    undo.apply(&CompensationChange::Sent { command: id(12) });
    undo.apply(&CompensationChange::Undone { command: id(12) });
    assert_eq!(undo.next(), NextCompensation::Finish(vec![command("cancel")]));
}

#[test]
fn abandoned_step_leaves_remaining_steps_to_undo() {
    let mut undo = Compensation::default();
    for n in 1..=2 {
        undo.apply(&CompensationChange::Step { command: id(n), undo: command(&format!("undo{n}")) });
        undo.apply(&CompensationChange::Done { command: id(n) });
    }
    undo.apply(&CompensationChange::Begin { finally: Vec::new() });
    undo.apply(&CompensationChange::Sent { command: id(12) });
    undo.apply(&CompensationChange::GivenUp { command: id(12) });
    assert_eq!(undo.next(), NextCompensation::Send(command("undo1")));
}

#[test]
fn compensations_are_equal_with_the_same_steps_in_order() {
    let of = |steps: &[(u128, StepState)]| {
        let step = |(n, state): &(u128, StepState)| Step { command: id(*n), undo: command("u"), state: *state };
        Steps::from(steps.iter().map(step).collect::<Vec<_>>())
    };
    let steps = [(1, StepState::Sent), (2, StepState::Done)];
    assert_eq!(of(&steps), of(&steps));
    for other in [&[][..], &steps[..1], &[steps[1], steps[0]], &[(1, StepState::Sent), (2, StepState::Sent)]] {
        assert_ne!(of(&steps), of(other));
    }
    assert_eq!((of(&steps).awaiting_reply, of(&[steps[0], steps[0]]).awaiting_reply), (1, 1), "a step sent again");
}

#[test]
fn replies_concern_their_own_steps_only() {
    let mut undo = Compensation::default();
    assert!(!undo.is_compensating() && undo.next() == NextCompensation::Wait);
    for n in 1..=2 {
        undo.apply(&CompensationChange::Step { command: id(n), undo: command(&format!("undo{n}")) });
    }
    undo.apply(&CompensationChange::Done { command: id(1) });
    assert_eq!([1, 2, 3].map(|n| undo.is_step(id(n))), [false, true, false], "only open ones");
    // A repeated reply counts once.
    undo.apply(&CompensationChange::Done { command: id(1) });
    undo.apply(&CompensationChange::Done { command: id(2) });
    undo.apply(&CompensationChange::Begin { finally: vec![command("cancel")] });
    undo.apply(&CompensationChange::Begin { finally: Vec::new() });
    undo.apply(&CompensationChange::Sent { command: id(12) });
    assert_eq!([12, 2].map(|n| undo.is_awaiting(id(n))), [true, false]);
    undo.apply(&CompensationChange::Retry { command: id(2) });
    assert_eq!(undo.next(), NextCompensation::Wait);
    undo.apply(&CompensationChange::Retry { command: id(12) });
    assert_eq!(undo.next(), NextCompensation::Send(command("undo2")), "sent again");
    for n in [2, 1] {
        undo.apply(&CompensationChange::Sent { command: id(20 + n) });
        undo.apply(&CompensationChange::Undone { command: id(20 + n) });
    }
    assert_eq!(undo.next(), NextCompensation::Finish(vec![command("cancel")]), "the later request had none");
    undo.apply(&CompensationChange::Finished);
    assert!(!undo.is_compensating() && !undo.is_restarted());
}

#[test]
fn restart_forgets_all_steps() {
    let mut undo = Compensation::default();
    undo.apply(&CompensationChange::Step { command: id(1), undo: command("undo1") });
    undo.apply(&CompensationChange::Begin { finally: Vec::new() });
    undo.apply(&CompensationChange::Finished);
    undo.apply(&CompensationChange::Restarted);
    assert!(undo.is_restarted() && !undo.is_compensating() && !undo.is_step(id(1)));
    undo.apply(&CompensationChange::Step { command: id(2), undo: command("undo2") });
    undo.apply(&CompensationChange::Done { command: id(2) });
    undo.apply(&CompensationChange::Begin { finally: Vec::new() });
    assert!(undo.is_compensating());
    assert_eq!(undo.next(), NextCompensation::Send(command("undo2")));
}

/// The format in which older versions stored it in snapshots.
#[derive(Serialize)]
struct Older {
    steps: Vec<Step>,
    undoing: Option<ActiveCompensation>,
    finished: bool,
}

#[test]
fn stored_format_matches_older_versions() {
    for (finished, run) in [(false, SagaRun::First), (true, SagaRun::Finished)] {
        let step = |n, state| Step { command: id(n), undo: command("u"), state };
        let list = vec![step(2, StepState::Done), step(1, StepState::Sent)];
        let undoing = Some(ActiveCompensation { finally: vec![command("f")], awaited: None });
        let (mut older, mut newer) = (Vec::new(), Vec::new());
        let undo = Compensation { steps: list.clone().into(), active: undoing.clone(), run };
        Codec::Bincode.encode(&Older { steps: list, undoing, finished }, &mut older).unwrap();
        Codec::Bincode.encode(&undo, &mut newer).unwrap();
        assert_eq!(older, newer);
        assert_eq!(Codec::Bincode.decode::<Compensation>(&older), Ok(undo));
    }
}
