//! Who holds which page of a key/value cache.
//!
//! A page is held by as many sequences as list it, and may be written to while one does. A page nobody holds is free,
//! or idle: what it holds is known by its [`Key`], and the next sequence that begins the same takes it as it is. When
//! free pages run out the page that has been idle longest gives its contents up.

use super::prefix::Key;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};

/// The pages of one cache.
#[derive(Debug)]
pub(super) struct PagePool {
    pages: Vec<Page>,
    free: Vec<u32>,
    /// Pages nobody holds whose contents are known, the longest idle first.
    idle: BTreeMap<u64, u32>,
    known: HashMap<Key, u32>,
    clock: u64,
}

#[derive(Debug, Clone, Default)]
struct Page {
    holders: u32,
    key: Option<Key>,
    /// When it became idle.
    since: u64,
}

impl PagePool {
    pub(super) fn new(pages: usize) -> Self {
        PagePool {
            pages: vec![Page::default(); pages],
            free: (0..pages as u32).rev().collect(),
            idle: BTreeMap::new(),
            known: HashMap::new(),
            clock: 0,
        }
    }

    /// How many pages can be taken.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// How many sequences hold a page.
    pub(super) fn holders(&self, page: u32) -> u32 {
        self.pages[page as usize].holders
    }

    /// A page with nothing in it, held once.
    pub(super) fn take(&mut self) -> Result<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.idle.pop_first().ok_or_else(|| {
                    Error::internal("pages", format!("all {} pages are held", self.pages.len()))
                })?;
                self.forget(page);
                page
            }
        };
        self.pages[page as usize].holders = 1;
        Ok(page)
    }

    /// Lets one more sequence hold a page.
    pub(super) fn share(&mut self, page: u32) {
        let held = &mut self.pages[page as usize];
        if held.holders == 0 {
            self.idle.remove(&held.since);
        }
        held.holders += 1;
    }

    /// Takes a page out of a sequence's hands. Release a table from its end: then the pages others need first
    /// stay known longest.
    pub(super) fn release(&mut self, page: u32) {
        let held = &mut self.pages[page as usize];
        held.holders -= 1;
        if held.holders > 0 {
            return;
        }
        match held.key {
            None => self.free.push(page),
            Some(_) => {
                self.clock += 1;
                held.since = self.clock;
                self.idle.insert(self.clock, page);
            }
        }
    }

    /// Makes a page's contents known. It is full and never written to again. If another page holds the same, that
    /// one stays the known one.
    pub(super) fn publish(&mut self, page: u32, key: Key) {
        if self.known.contains_key(&key) {
            return;
        }
        self.known.insert(key, page);
        self.pages[page as usize].key = Some(key);
    }

    /// The page that holds this, whoever holds the page.
    pub(super) fn find(&self, key: &Key) -> Option<u32> {
        self.known.get(key).copied()
    }

    /// Forgets what pages hold that nobody uses.
    pub(super) fn reset(&mut self) {
        while let Some((_, page)) = self.idle.pop_first() {
            self.forget(page);
            self.free.push(page);
        }
    }

    fn forget(&mut self, page: u32) {
        if let Some(key) = self.pages[page as usize].key.take() {
            self.known.remove(&key);
        }
    }

    /// Whether the books agree with the tables of all sequences.
    pub(super) fn check<'t>(&self, tables: impl Iterator<Item = &'t [u32]>) -> Result<()> {
        let fault = |what: String| Err(Error::internal("pages", what));
        let mut holders = vec![0u32; self.pages.len()];
        for &page in tables.flatten() {
            holders[page as usize] += 1;
        }
        let mut unheld = vec![0u32; self.pages.len()];
        for &page in self.free.iter().chain(self.idle.values()) {
            unheld[page as usize] += 1;
        }
        for (number, page) in self.pages.iter().enumerate() {
            if page.holders != holders[number] {
                let what =
                    format!("page {number} counts {} holders, {} list it", page.holders, holders[number]);
                return fault(what);
            }
            if unheld[number] != u32::from(page.holders == 0) {
                return fault(format!("page {number} is held {} and free {}", page.holders, unheld[number]));
            }
            if page.key.is_some_and(|key| self.known.get(&key) != Some(&(number as u32))) {
                return fault(format!("page {number} is not where its key leads"));
            }
        }
        let keyed = self.pages.iter().filter(|page| page.key.is_some()).count();
        if keyed != self.known.len() {
            return fault(format!("{} keys for {keyed} pages", self.known.len()));
        }
        if let Some(page) = self.free.iter().find(|&&page| self.pages[page as usize].key.is_some()) {
            return fault(format!("page {page} is free and known"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(number: u8) -> Key {
        Key::root(Some(u64::from(number)))
    }

    #[test]
    fn an_idle_page_is_found_until_it_is_needed() {
        let mut pool = PagePool::new(2);
        let page = pool.take().unwrap();
        pool.publish(page, key(1));
        pool.release(page);
        assert_eq!((pool.find(&key(1)), pool.available()), (Some(page), 2));
        let other = pool.take().unwrap();
        assert_ne!(other, page, "free pages go first");
        assert_eq!(pool.take().unwrap(), page);
        assert_eq!(pool.find(&key(1)), None);
        assert!(pool.take().is_err());
    }

    #[test]
    fn the_longest_idle_goes_first() {
        let mut pool = PagePool::new(3);
        let pages = [(); 3].map(|()| pool.take().unwrap());
        for (number, &page) in pages.iter().enumerate() {
            pool.publish(page, key(number as u8));
        }
        for page in [pages[1], pages[2], pages[0]] {
            pool.release(page);
        }
        pool.share(pages[1]);
        pool.release(pages[1]);
        assert_eq!([(); 3].map(|()| pool.take().unwrap()), [pages[2], pages[0], pages[1]]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(usize),
        Fork(usize),
        Publish(usize, u8),
        Adopt(usize, u8),
        Drop(usize),
        Reset,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0usize..5).prop_map(Step::Take),
            2 => (0usize..5).prop_map(Step::Fork),
            2 => ((0usize..5), (0u8..6)).prop_map(|(s, k)| Step::Publish(s, k)),
            2 => ((0usize..5), (0u8..6)).prop_map(|(s, k)| Step::Adopt(s, k)),
            2 => (0usize..5).prop_map(Step::Drop),
            1 => Just(Step::Reset),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

        /// Tables of five sequences under random steps: no page is leaked, lost or counted wrongly.
        #[test]
        fn books_agree_with_tables(steps in steps()) {
            let mut pool = PagePool::new(7);
            let mut tables: Vec<Vec<u32>> = vec![Vec::new(); 5];
            for step in steps {
                match step {
                    Step::Take(s) if pool.available() > 0 => tables[s].push(pool.take().unwrap()),
                    Step::Take(_) => prop_assert!(pool.take().is_err()),
                    Step::Fork(s) => {
                        let pages = tables[s].clone();
                        pages.iter().for_each(|&page| pool.share(page));
                        tables.push(pages);
                    }
                    Step::Publish(s, k) => {
                        if let Some(&page) = tables[s].last()
                            && pool.pages[page as usize].key.is_none()
                        {
                            pool.publish(page, key(k));
                        }
                    }
                    Step::Adopt(s, k) => {
                        if let Some(page) = pool.find(&key(k)) {
                            pool.share(page);
                            tables[s].push(page);
                        }
                    }
                    Step::Drop(s) => {
                        let pages = if tables.len() > 5 { tables.pop().unwrap() } else { std::mem::take(&mut tables[s]) };
                        pages.into_iter().rev().for_each(|page| pool.release(page));
                    }
                    Step::Reset => pool.reset(),
                }
                pool.check(tables.iter().map(Vec::as_slice)).unwrap();
            }
            for table in std::mem::take(&mut tables) {
                table.into_iter().rev().for_each(|page| pool.release(page));
            }
            prop_assert_eq!(pool.available(), 7);
        }
    }
}
