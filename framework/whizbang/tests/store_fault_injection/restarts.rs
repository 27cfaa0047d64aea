//! Runs of a store that end in different ways, and the check that nothing is lost afterwards.

use crate::machine::{Fault, Machine};
use crate::workload::{Run, Workload};

/// The way in which a run ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Kill,
    PowerCut,
}

impl End {
    pub(crate) fn apply(self, machine: &Machine) {
        match self {
            Self::Kill => machine.kill(),
            Self::PowerCut => machine.cut_power(),
        }
    }
}

/// The number of steps of the run in which the fault occurs.
pub(crate) const STEPS: usize = 120;

/// Returns a workload whose store was closed in order once.
pub(crate) fn closed_once(seed: u64) -> Workload {
    let mut workload = Workload::new(seed);
    let mut run = workload.open().unwrap();
    workload.run_steps(&mut run, STEPS / 4).unwrap();
    drop(run);
    workload.machine.kill();
    workload
}

/// Runs the store a second time with a fault at one of its calls. Returns the run if the store could be opened.
pub(crate) fn second_run(seed: u64, fault: Option<(usize, Fault)>) -> (Workload, Option<Run>) {
    let mut workload = closed_once(seed);
    if let Some((call, fault)) = fault {
        workload.machine.plan(call, fault);
    }
    let Ok(mut run) = workload.open_and_check() else { return (workload, None) };
    let outcome = workload.run_steps(&mut run, STEPS);
    // A turn does not wait for every call.
    assert!(outcome.is_ok() || workload.machine.has_faulted(), "{outcome:?}");
    workload.record_commits(&run);
    (workload, Some(run))
}

/// Returns the number of calls of a second run.
pub(crate) fn calls(seed: u64) -> usize {
    let (workload, run) = second_run(seed, None);
    drop(run);
    let calls = workload.machine.calls().len();
    assert!(calls > 150, "only {calls} calls");
    calls
}

/// Asserts that after the end of a run nothing is lost and the store still works.
pub(crate) fn assert_intact_and_usable(workload: &mut Workload, steps: usize) {
    let mut run = workload.open_and_check().unwrap();
    workload.run_steps(&mut run, steps).unwrap();
    // Before the store can close.
    workload.machine.cut_power();
    drop(run);
    drop(workload.open_and_check().unwrap());
}
