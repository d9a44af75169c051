//! How many SandboxHealth objects there may be. Above the limit only a pod that something is wrong with gets one. It reads
//! neither store nor clock.

use std::collections::HashMap;
use std::hash::Hash;

use jiff::{SignedDuration, Timestamp};

use crate::waited::waited;

/// An object that was made is in the watch by then, or was deleted before.
const SEEN_WITHIN: SignedDuration = SignedDuration::from_secs(60);

/// Whether another object may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It may.
    Left,
    /// It may not. `first`: that was not so before.
    None {
        /// Whether this is news.
        first: bool,
    },
}

/// The objects that count against the limit.
#[derive(Debug)]
pub struct Population<K> {
    max: usize,
    /// Made, and not in the watch yet.
    made: HashMap<K, Timestamp>,
    full: bool,
}

impl<K: Eq + Hash> Population<K> {
    /// At most `max`.
    #[must_use]
    pub fn new(max: u32) -> Self {
        Self { max: usize::try_from(max).unwrap_or(usize::MAX), made: HashMap::new(), full: false }
    }

    /// Whether there is room for another object, when the watch has brought `known` and these are among them.
    pub fn room(&mut self, known: usize, is_known: impl Fn(&K) -> bool, now: Timestamp) -> Room {
        self.made.retain(|key, at| !is_known(key) && waited(*at, now) < SEEN_WITHIN);
        let count = known.saturating_add(self.made.len());
        if count >= self.max {
            return Room::None { first: !std::mem::replace(&mut self.full, true) };
        }
        // A few objects more or less are no news.
        if count < self.max - self.max / 10 {
            self.full = false;
        }
        Room::Left
    }

    /// An object is being made.
    pub fn making(&mut self, key: K, now: Timestamp) {
        self.made.insert(key, now);
    }

    /// It was not made after all.
    pub fn not_made(&mut self, key: &K) {
        self.made.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn objects_that_are_being_made_count() {
        let mut population = Population::new(3);
        for key in ["a", "b"] {
            assert_eq!(population.room(1, |_| false, at(0)), Room::Left);
            population.making(key, at(0));
        }
        assert_eq!(population.room(1, |_| false, at(0)), Room::None { first: true });
        assert_eq!(population.room(2, |key| *key == "a", at(0)), Room::None { first: false });
        population.not_made(&"b");
        assert_eq!(population.room(2, |key| *key == "a", at(0)), Room::Left);
    }

    #[test]
    fn an_object_that_the_watch_never_brings_counts_no_longer_than_a_minute() {
        let mut population = Population::new(1);
        population.making("a", at(0));
        assert_eq!(population.room(0, |_| false, at(59)), Room::None { first: true });
        assert_eq!(population.room(0, |_| false, at(60)), Room::Left);
    }

    #[test]
    fn it_is_news_once_until_there_is_ample_room_again() {
        let mut population = Population::<&str>::new(100);
        let mut is_news = |known| population.room(known, |_| false, at(0)) == Room::None { first: true };
        assert!(is_news(100) && !is_news(100));
        assert!(!is_news(95) && !is_news(100), "it is still about full");
        assert!(!is_news(89) && is_news(100));
    }
}
