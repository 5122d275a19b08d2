//! A map whose copies share what has not changed: a new view of 10,000 volumes costs about as much as one of ten, and what differs from
//! the view before is found without looking at the rest.
//!
//! Invariant: a key is in the part that its [`Key::part`] names, and in no other.

use std::{borrow::Borrow, collections::BTreeMap, ops::Index, sync::Arc};

use holdfast_replica::ids::VolumeId;

const PARTS: usize = 256;

/// What keys of a [`SharedMap`] are spread by. A borrowed form of a key gives the same part.
pub trait Key: Ord {
    /// Number of its part.
    fn part(&self) -> u8;
}

impl Key for VolumeId {
    fn part(&self) -> u8 {
        // Ids are drawn at random.
        self.0[0]
    }
}

impl Key for str {
    fn part(&self) -> u8 {
        // FNV-1a, folded.
        let hash = self
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        hash.to_le_bytes().into_iter().fold(0, |part, byte| part ^ byte)
    }
}

impl Key for String {
    fn part(&self) -> u8 {
        self.as_str().part()
    }
}

type Part<K, V> = Arc<BTreeMap<K, V>>;

/// See the module. A copy is as cheap as that of an [`Arc`].
#[derive(Debug)]
pub struct SharedMap<K, V> {
    parts: Arc<[Part<K, V>]>,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        SharedMap { parts: Arc::clone(&self.parts) }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        let empty = Part::<K, V>::default();
        SharedMap { parts: (0..PARTS).map(|_| Arc::clone(&empty)).collect() }
    }
}

impl<K: Key + Clone, V: Clone> SharedMap<K, V> {
    fn part_of<Q: Key + ?Sized>(&self, key: &Q) -> Option<&Part<K, V>> {
        self.parts.get(usize::from(key.part()))
    }

    fn part_mut(&mut self, part: u8) -> Option<&mut BTreeMap<K, V>> {
        Arc::make_mut(&mut self.parts).get_mut(usize::from(part)).map(Arc::make_mut)
    }

    /// The value of a key.
    pub fn get<Q: Key + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.part_of(key)?.get(key)
    }

    /// True if there is one.
    pub fn contains_key<Q: Key + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Sets the value of a key. Copies that were made before do not change.
    pub fn insert(&mut self, key: K, value: V) {
        if let Some(part) = self.part_mut(key.part()) {
            part.insert(key, value);
        }
    }

    /// Removes a key, likewise.
    pub fn remove<Q: Key + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        if self.contains_key(key)
            && let Some(part) = self.part_mut(key.part())
        {
            part.remove(key);
        }
    }

    /// All pairs, part by part.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// True if there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.is_empty())
    }

    /// True if this is a copy of the other, unchanged since.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.parts, &other.parts)
    }
}

impl<K: Key + Clone, V> SharedMap<K, Arc<V>> {
    /// Keys that were added, removed, or have got another value since `before`, of which this is a changed copy.
    pub fn changed_since(&self, before: &Self) -> Vec<K> {
        let mut changed = Vec::new();
        let parts = self.parts.iter().zip(before.parts.iter());
        for (now, then) in parts.filter(|(now, then)| !Arc::ptr_eq(now, then)) {
            let same = |key: &K, value: &Arc<V>| then.get(key).is_some_and(|old| Arc::ptr_eq(old, value));
            changed.extend(now.iter().filter(|(key, value)| !same(key, value)).map(|(key, _)| key.clone()));
            changed.extend(then.keys().filter(|key| !now.contains_key(*key)).cloned());
        }
        changed
    }
}

impl<K: Key + Clone, V: Clone> Index<&K> for SharedMap<K, V> {
    type Output = V;

    /// # Panics
    /// When the key is not there.
    fn index(&self, key: &K) -> &V {
        #[allow(clippy::expect_used, reason = "as of the maps of the standard library")]
        self.get(key).expect("a key of the map")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_copies_stay_as_they_were_and_the_difference_is_exact(
            steps in proptest::collection::vec((0u16..600, any::<bool>(), any::<bool>()), 0..200),
        ) {
            let id = |n: u16| VolumeId([(n / 3) as u8, n as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let mut before = (map.clone(), model.clone());
            for (n, set, copy) in steps {
                if copy {
                    before = (map.clone(), model.clone());
                }
                if set {
                    let value = Arc::new(n);
                    map.insert(id(n), Arc::clone(&value));
                    model.insert(id(n), value);
                } else {
                    map.remove(&id(n));
                    model.remove(&id(n));
                }
                let of = |map: &SharedMap<_, _>| map.iter().map(|(k, v)| (*k, Arc::clone(v))).collect::<BTreeMap<_, _>>();
                prop_assert_eq!(&of(&map), &model);
                prop_assert_eq!(&of(&before.0), &before.1);
                let changed: BTreeSet<_> = map.changed_since(&before.0).into_iter().collect();
                let same = |id: &VolumeId| match (model.get(id), before.1.get(id)) {
                    (Some(now), Some(then)) => Arc::ptr_eq(now, then),
                    (now, then) => now.is_none() && then.is_none(),
                };
                let all = model.keys().chain(before.1.keys());
                prop_assert_eq!(changed, all.filter(|id| !same(id)).copied().collect::<BTreeSet<_>>());
            }
        }
    }

    #[test]
    fn a_change_copies_one_part_only() {
        let mut map = SharedMap::default();
        (0..10_000u16).for_each(|n| map.insert(format!("host-{n}"), n));
        let before = map.clone();
        assert!(map.is_same(&before));
        map.insert("host-7".to_owned(), 0);
        let shared = map.parts.iter().zip(before.parts.iter()).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!((shared, map.get("host-7"), before.get("host-7")), (PARTS - 1, Some(&0), Some(&7)));
        assert!(before.parts.iter().all(|part| part.len() < 200), "keys are spread");
    }
}
