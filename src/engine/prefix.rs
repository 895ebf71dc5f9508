//! What a page of keys and values was computed from.
//!
//! Keys and values at a position depend on every token before it, on the pictures among them and on the adapter. A
//! page's key is a hash over all of these, chained from page to page, so two pages with one key hold the same bits:
//! a placeholder token that stands for other pixels, or an adapter that has learned since, never matches.

/// The identity of a page's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

/// A picture among the tokens of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// A hash of its pixels.
    pub(super) content: [u8; 32],
    /// Where in the page its tokens begin; negative if they began on a page before.
    pub(super) start: i64,
    /// How many tokens it has.
    pub(super) tokens: u64,
}

impl Key {
    /// The key before the first page: of the base weights, or of one generation of one adapter.
    pub(super) fn root(adapter: Option<u64>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"adapter");
        hasher.update(&[u8::from(adapter.is_some())]);
        hasher.update(&adapter.unwrap_or(0).to_le_bytes());
        Key(*hasher.finalize().as_bytes())
    }

    /// The key of the page after this one.
    pub(super) fn page(&self, tokens: &[u32], pictures: &[Seen]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        for Seen { content, start, tokens } in pictures {
            hasher.update(content);
            hasher.update(&start.to_le_bytes());
            hasher.update(&tokens.to_le_bytes());
        }
        Key(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_a_page_depends_on_is_in_its_key() {
        let seen = Seen { content: [1; 32], start: 3, tokens: 4 };
        let base = Key::root(None);
        let page = base.page(&[1, 2, 3], &[seen]);
        assert_eq!(page, Key::root(None).page(&[1, 2, 3], &[seen]));
        let others = [
            Key::root(Some(0)).page(&[1, 2, 3], &[seen]),
            base.page(&[1, 2, 4], &[seen]),
            base.page(&[1, 2, 3], &[]),
            base.page(&[1, 2, 3], &[Seen { content: [2; 32], ..seen }]),
            base.page(&[1, 2, 3], &[Seen { start: -3, ..seen }]),
            base.page(&[1, 2, 3], &[Seen { tokens: 5, ..seen }]),
            base.page(&[0], &[]).page(&[1, 2, 3], &[seen]),
        ];
        for (at, other) in others.iter().enumerate() {
            assert_ne!(page, *other, "{at}");
            assert!(!others[..at].contains(other), "{at}");
        }
    }
}
