//! A map that forgets what has not been used for long, so that it stays within a size.
//!
//! Two generations: what is used moves to the young one; when that is half of what there may be, the old one is
//! dropped and the young one takes its place. Each step is constant, whoever causes it.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;

#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    /// Hashed with a random seed; keys are ids that an authority certified, so nobody chooses many.
    young: HashMap<K, V, RandomState>,
    old: HashMap<K, V, RandomState>,
    half: usize,
}

impl<K: Hash + Eq + Clone, V> Cache<K, V> {
    /// A map of at most `limit` entries; the `limit / 2` that were used last are always there.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            young: HashMap::default(),
            old: HashMap::default(),
            half: (limit / 2).max(1),
        }
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.young.contains_key(key) {
            let (key, value) = self.old.remove_entry(key)?;
            self.insert(key, value);
        }
        self.young.get_mut(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.young.remove(key).or_else(|| self.old.remove(key))
    }

    /// Looks without counting as a use.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// The same.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.young.contains_key(key) || self.old.contains_key(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// All of them, without counting as a use.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.young.iter_mut().chain(self.old.iter_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::Cache;

    #[test]
    fn what_is_used_stays_and_the_size_is_bounded() {
        let mut cache = Cache::new(10);
        for n in 0..1000u32 {
            cache.insert(n, n);
            assert!(cache.len() <= 10, "{}", cache.len());
            assert_eq!(cache.get_mut(&0), Some(&mut 0), "{n}");
            let recent = (n.saturating_sub(3))..=n;
            assert!(recent.into_iter().all(|m| cache.contains(&m)), "{n}");
        }
        assert!(!cache.contains(&500));
        assert_eq!(cache.remove(&0), Some(0));
        assert!(cache.get_mut(&0).is_none());
        cache.insert(999, 1);
        assert_eq!(cache.get_mut(&999), Some(&mut 1));
        assert_eq!(cache.iter_mut().filter(|(k, _)| **k == 999).count(), 1);
    }
}
