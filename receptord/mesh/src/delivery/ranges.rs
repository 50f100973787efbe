//! A set of sequence numbers as runs: what a recipient remembers of a flow.
//!
//! Costs memory by the number of gaps, not of members. Never decides how many gaps are too
//! many; its owner asks [`Ranges::adds_run`] first.

use alloc::vec::Vec;

/// Runs in ascending order, with at least one number between any two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// From runs in any order, overlapping or not; those that end before they begin are left out.
    pub(crate) fn from_runs(mut runs: Vec<(u64, u64)>) -> Self {
        runs.retain(|(first, last)| first <= last);
        runs.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(runs.len());
        for (first, last) in runs {
            match merged.last_mut() {
                Some(top) if first <= top.1.saturating_add(1) => top.1 = top.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// The first run that ends at `value` or later; news mostly extend the last run.
    fn position(&self, value: u64) -> usize {
        match self.0.last() {
            Some((_, last)) if *last < value => self.0.len(),
            _ => self.0.partition_point(|(_, last)| *last < value),
        }
    }

    /// The run that holds `value`.
    pub(crate) fn run(&self, value: u64) -> Option<(u64, u64)> {
        self.0
            .get(self.position(value))
            .copied()
            .filter(|(first, _)| *first <= value)
    }

    pub(crate) fn contains(&self, value: u64) -> bool {
        self.run(value).is_some()
    }

    /// Whether `value` is no member and touches no run, so that inserting it makes one more.
    pub(crate) fn adds_run(&self, value: u64) -> bool {
        let at = self.position(value);
        let after = self.0.get(at);
        let before = at.checked_sub(1).and_then(|at| self.0.get(at));
        after.is_none_or(|(first, _)| value < *first && value.saturating_add(1) < *first)
            && before.is_none_or(|(_, last)| last.saturating_add(1) < value)
    }

    pub(crate) fn insert(&mut self, value: u64) {
        let at = self.position(value);
        let joins_after = match self.0.get(at) {
            Some((first, _)) if *first <= value => return,
            Some((first, _)) => *first == value.saturating_add(1),
            None => false,
        };
        let joins_before = at > 0 && self.0[at - 1].1.saturating_add(1) == value;
        match (joins_before, joins_after) {
            (true, true) => {
                self.0[at - 1].1 = self.0[at].1;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].1 = value,
            (false, true) => self.0[at].0 = value,
            (false, false) => self.0.insert(at, (value, value)),
        }
    }

    /// Forgets everything below `floor`.
    pub(crate) fn drop_below(&mut self, floor: u64) {
        let gone = self.0.partition_point(|(_, last)| *last < floor);
        self.0.drain(..gone);
        if let Some(first) = self.0.first_mut() {
            first.0 = first.0.max(floor);
        }
    }

    /// How many runs.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn runs(&self) -> &[(u64, u64)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    fn naive(set: &BTreeSet<u64>) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for &value in set {
            match runs.last_mut() {
                Some(run) if run.1 + 1 == value => run.1 = value,
                _ => runs.push((value, value)),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(values in proptest::collection::vec(0u64..60, 0..80), floor in 0u64..60) {
            let mut ranges = Ranges::default();
            let mut set = BTreeSet::new();
            for value in values {
                let runs = ranges.len();
                let adds = ranges.adds_run(value);
                ranges.insert(value);
                set.insert(value);
                prop_assert_eq!(adds, ranges.len() > runs);
                prop_assert_eq!(ranges.runs(), &naive(&set)[..]);
            }
            prop_assert_eq!(&Ranges::from_runs(ranges.runs().to_vec()), &ranges);
            ranges.drop_below(floor);
            set.retain(|value| *value >= floor);
            prop_assert_eq!(ranges.runs(), &naive(&set)[..]);
            for value in 0..60 {
                prop_assert_eq!(ranges.contains(value), set.contains(&value));
            }
        }

        #[test]
        fn runs_of_any_order_are_merged(runs in proptest::collection::vec((0u64..40, 0u64..40), 0..20)) {
            let mut set = BTreeSet::new();
            for (first, last) in &runs {
                set.extend(*first..=*last);
            }
            let ranges = Ranges::from_runs(runs);
            prop_assert_eq!(ranges.runs(), &naive(&set)[..]);
        }
    }

    #[test]
    fn the_ends_of_the_numbers_do_no_harm() {
        let mut ranges = Ranges::from_runs(Vec::from([(u64::MAX - 1, u64::MAX), (0, 0)]));
        ranges.insert(u64::MAX);
        assert!(!ranges.adds_run(u64::MAX));
        assert!(ranges.adds_run(u64::MAX / 2));
        ranges.drop_below(u64::MAX);
        assert_eq!(ranges.runs(), &[(u64::MAX, u64::MAX)]);
    }
}
