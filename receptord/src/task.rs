//! Starting tasks.
//!
//! Owns the one way to start a task in the daemon, and the count of those that run, by
//! name. Every task runs on the one thread of the runtime, inside its `LocalSet`; never
//! start one in another way, or it is not among those that are told when the daemon has stopped.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::task::Poll;

use tokio::task::JoinHandle;

thread_local! {
    static RUNNING: RefCell<BTreeMap<&'static str, usize>> = const { RefCell::new(BTreeMap::new()) };
}

/// Starts a task on this thread's `LocalSet`. The name says what it does and is the same
/// for all tasks that do the same. Dropping the handle lets the task run on.
///
/// # Panics
///
/// Outside a `LocalSet`: the daemon runs inside one, and so must a test that starts tasks.
#[expect(
    clippy::disallowed_methods,
    reason = "the helper that everything else is to use"
)]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let counted = Counted::new(name);
    tokio::task::spawn_local(async move {
        let _counted = counted;
        future.await
    })
}

/// Lets the tasks of this thread go first that can. Unlike tokio's `yield_now` it does not ask the
/// system for news in between.
pub async fn behind_others() {
    let mut went = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut went, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// How many tasks of each name run on this thread.
#[must_use]
pub fn running() -> BTreeMap<&'static str, usize> {
    RUNNING.with_borrow(Clone::clone)
}

/// Counts a task for as long as it lives, however it ends.
struct Counted(&'static str);

impl Counted {
    fn new(name: &'static str) -> Self {
        RUNNING.with_borrow_mut(|running| *running.entry(name).or_default() += 1);
        Self(name)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // A task that outlives its thread's storage is not counted any more.
        let _ = RUNNING.try_with(|running| {
            let mut running = running.borrow_mut();
            if let Some(count) = running.get_mut(self.0) {
                *count -= 1;
                if *count == 0 {
                    running.remove(self.0);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[tokio::test(flavor = "current_thread")]
    async fn tasks_are_counted_until_they_end_or_are_aborted() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let ends = spawn("ends", async { 7 });
                let waits = spawn("waits", std::future::pending::<()>());
                let other = spawn("waits", std::future::pending::<()>());
                assert_eq!(running(), BTreeMap::from([("ends", 1), ("waits", 2)]));
                assert_eq!(ends.await.unwrap(), 7);
                waits.abort();
                assert!(waits.await.unwrap_err().is_cancelled());
                assert_eq!(running(), BTreeMap::from([("waits", 1)]));
                drop(other);
                assert_eq!(running(), BTreeMap::from([("waits", 1)]));
            })
            .await;
        drop(local);
        assert_eq!(running(), BTreeMap::new());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_goes_behind_others_finds_that_they_went() {
        let went = Rc::new(Cell::new(false));
        let seen = Rc::clone(&went);
        let local = tokio::task::LocalSet::new();
        let polite = async move {
            spawn("other", async move { went.set(true) });
            assert!(!seen.get());
            behind_others().await;
            assert!(seen.get());
        };
        local
            .run_until(async { spawn("polite", polite).await.unwrap() })
            .await;
    }
}
