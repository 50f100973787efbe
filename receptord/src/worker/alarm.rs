//! A timer that moves without being set anew.
//!
//! Owns one registration with the runtime. Most deadlines only ever move away, with each sign of
//! life; a new registration for each move would wake the runtime's driver, a system call a time.
//! So a deadline that moves away is looked at again when the old one has passed.

use std::pin::Pin;
use std::time::Instant;

use tokio::time::{Sleep, sleep_until};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Waits until this moment, or for ever; now and then it returns earlier, so that the caller has
    /// to look at the clock. Can be dropped and called again without a cost.
    pub(super) async fn wait(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else {
            return std::future::pending().await;
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.is_elapsed() || sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn it_is_never_late_and_not_early_for_ever() {
        let mut alarm = Alarm::default();
        let start = Instant::now();
        let far = start + Duration::from_secs(3600);
        let moment = Duration::from_millis(1);
        assert!(timeout(moment, alarm.wait(Some(far))).await.is_err());
        assert!(timeout(moment, alarm.wait(None)).await.is_err());
        // Nearer than before.
        let near = start + Duration::from_millis(20);
        alarm.wait(Some(near)).await;
        assert!(Instant::now() >= near);
        // Farther than before: early at most once.
        let early = Instant::now() + Duration::from_millis(20);
        assert!(timeout(moment, alarm.wait(Some(early))).await.is_err());
        let late = Instant::now() + Duration::from_millis(60);
        let mut returns = 0;
        while Instant::now() < late {
            alarm.wait(Some(late)).await;
            returns += 1;
        }
        assert!(returns <= 2, "{returns}");
    }
}
