//! The tasks of one simulated process, which can be paused and ended as a whole.
//!
//! Used for the nodes of services with [several nodes](super::Sim::nodes). A pause is that of SIGSTOP: virtual time continues, and
//! no task of the process is polled. An end is that of SIGKILL: all tasks are dropped at once.
//!
//! A process has a number, so that a store or a broker that is called knows which node calls. The number is set while the
//! tasks of the process are polled.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use tokio::task::LocalSet;

thread_local! {
    /// The process whose task is polled.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
    /// The tasks of the broker and of the stores, in a cluster with paused processes.
    static OUTSIDE: RefCell<Option<Rc<NodeTasks>>> = const { RefCell::new(None) };
}

/// The tasks of one process.
pub(super) struct NodeTasks {
    /// The number of the process, for [`NodeTasks::current`]. `None` for tasks that are not nodes.
    number: Option<usize>,
    /// `None` once the process has ended.
    tasks: RefCell<Option<Rc<LocalSet>>>,
    /// No task is polled while it is true.
    is_paused: Cell<bool>,
    /// Wakes the task that polls all others.
    waker: RefCell<Option<Waker>>,
}

impl NodeTasks {
    /// Starts a process without tasks. `number` is that of its node within the service.
    pub(super) fn start(number: Option<usize>) -> Rc<Self> {
        let tasks = Rc::new(LocalSet::new());
        let started = Rc::new(Self {
            number,
            tasks: RefCell::new(Some(Rc::clone(&tasks))),
            is_paused: Cell::new(false),
            waker: RefCell::default(),
        });
        whizbang_core::spawn::alone("simulated process", Rc::clone(&started).run(tasks));
        started
    }

    /// Polls the tasks of the process until it is ended.
    async fn run(self: Rc<Self>, tasks: Rc<LocalSet>) {
        let mut tasks = pin!(tasks.run_until(pending::<()>()));
        poll_fn(|cx| {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            if self.tasks.borrow().is_none() {
                return Poll::Ready(());
            }
            if !self.is_paused.get() {
                let before = CURRENT.replace(self.number);
                let polled = tasks.as_mut().poll(cx);
                CURRENT.set(before);
                return polled;
            }
            Poll::Pending
        })
        .await;
    }

    /// Starts a task of the process, unless it has ended.
    pub(super) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let tasks = self.tasks.borrow().clone();
        if let Some(tasks) = tasks {
            let _inside = tasks.enter();
            whizbang_core::spawn::alone(name, task);
        }
    }

    /// Runs a future as a task of the process. Returns `None` if the process ends before.
    pub(super) async fn run_inside<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Option<T> {
        let (done, result) = tokio::sync::oneshot::channel();
        self.spawn("simulated process", async move { drop(done.send(future.await)) });
        result.await.ok()
    }

    /// Pauses or continues the process.
    pub(super) fn pause(&self, is_paused: bool) {
        self.is_paused.set(is_paused);
        self.wake();
    }

    /// Returns true while the process is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused.get()
    }

    /// Ends the process. Its tasks are dropped when the caller's task has yielded.
    pub(super) fn end(&self) {
        let tasks = self.tasks.borrow_mut().take();
        self.wake();
        // The last owner is the task that runs them: they may be running now.
        drop(tasks);
    }

    /// Wakes the process, which looks at its state again.
    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Returns the number of the node whose task is polled now.
    pub(super) fn current() -> Option<usize> {
        CURRENT.get()
    }
}

/// Starts or ends the tasks outside of all processes, which continue while a process is paused.
pub(super) fn set_outside(outside: Option<Rc<NodeTasks>>) {
    if let Some(before) = OUTSIDE.replace(outside) {
        before.end();
    }
}

/// Starts a task of the broker or of a store. It belongs to no process.
pub(super) fn spawn_outside(name: &'static str, task: impl Future<Output = ()> + 'static) {
    match OUTSIDE.with_borrow(Clone::clone) {
        Some(outside) => outside.spawn(name, task),
        None => whizbang_core::spawn::alone(name, task),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn settle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[test]
    fn paused_process_runs_no_task_until_it_is_resumed() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (process, steps) = (NodeTasks::start(Some(3)), Rc::new(Cell::new(0)));
            let counted = Rc::clone(&steps);
            process.spawn("counter", async move {
                loop {
                    assert_eq!(NodeTasks::current(), Some(3));
                    counted.set(counted.get() + 1);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
            settle().await;
            assert_eq!((steps.get(), NodeTasks::current()), (1, None));
            process.pause(true);
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(steps.get(), 1);
            process.pause(false);
            settle().await;
            assert_eq!(steps.get(), 2);
            process.end();
            settle().await;
            assert_eq!(Rc::strong_count(&steps), 1, "the tasks of an ended process are dropped");
        });
    }
}
