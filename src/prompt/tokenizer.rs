//! Text to token ids and back: one `tokenizer.json`, read by the `tokenizers` crate.
//!
//! Two rules of that crate are kept away from the rest of the program. It may panic on a hostile file
//! (an index out of its vocabulary, a pattern that does not compile), so every call passes a boundary that
//! turns a panic into an error naming the file. And a file may ask for truncation or padding, which would
//! silently change a prompt: both are switched off, as transformers does.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::byte_level;
use crate::error::{Error, Result};
use crate::format::read_bytes;

/// A vocabulary with the rules that cut text into its tokens.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    vocab_size: usize,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("vocab_size", &self.vocab_size).finish()
    }
}

impl Tokenizer {
    /// Opens the tokenizer of a checkpoint folder: its `tokenizer.json`, or the parts it can be made of.
    pub fn open(folder: &Path) -> Result<Self> {
        let whole = folder.join("tokenizer.json");
        if whole.exists() {
            return Self::load(whole);
        }
        if folder.join("vocab.json").exists() && folder.join("merges.txt").exists() {
            return Self::from_bytes(&byte_level::assembled(folder)?, folder);
        }
        let what =
            "holds neither tokenizer.json nor vocab.json with merges.txt; save the fast tokenizer there";
        Err(Error::file(folder, what))
    }

    /// Reads a `tokenizer.json`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(&read_bytes(path)?, path)
    }

    /// Reads the content of a `tokenizer.json`; `path` is how errors name it.
    pub fn from_bytes(bytes: &[u8], path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let (inner, vocab_size) = guarded(&path, "not a tokenizer.json this version can read", || {
            let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            let vocab_size = inner.get_vocab_size(true);
            Ok((inner, vocab_size))
        })?;
        Ok(Tokenizer { inner, path, vocab_size })
    }

    /// The file (or, made of parts, the folder) this tokenizer came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Token ids of a rendered template. Nothing is put around them: a template writes its own `bos_token`.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encoded(text, false)
    }

    /// Token ids of a raw prompt, with what the file puts around every text (Llama's begin-of-text). A text
    /// that already opens with that token does not get it twice.
    pub fn encode_raw(&self, text: &str) -> Result<Vec<u32>> {
        let bare = self.encoded(text, false)?;
        let full = self.encoded(text, true)?;
        let opened = full.len() > bare.len() && bare.first().is_some_and(|first| Some(first) == full.first());
        Ok(if opened { bare } else { full })
    }

    fn encoded(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        guarded(&self.path, "cannot encode a text", || {
            Ok(self.inner.encode_fast(text, add_special_tokens)?.get_ids().to_vec())
        })
    }

    /// Text of token ids, with or without the special tokens among them. Bytes that are not UTF-8 become
    /// U+FFFD. Ids beyond the vocabulary have no text: models have more rows than tokenizers have tokens, and
    /// may draw one.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(&self.path, "cannot decode token ids", || self.inner.decode(ids, skip_special))
    }

    /// A decoder that takes one token at a time.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream { tokenizer: self, skip_special, ids: Vec::new(), read: 0, emitted: 0 }
    }

    /// The id of a token given as text (`<|im_end|>`), if the vocabulary has it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// As [`Tokenizer::id`], where the caller cannot go on without it.
    pub fn require(&self, token: &str) -> Result<u32> {
        self.id(token)
            .ok_or_else(|| Error::file(&self.path, format!("the vocabulary has no token `{token}`")))
    }

    /// The token with this id, as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether the vocabulary has a token with this id (models often have more rows than that).
    pub fn contains(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some()
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// Runs `call` of the `tokenizers` crate; an error and a panic alike become an error that names the file.
fn guarded<T>(path: &Path, what: &str, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    // Unwind safety: a tokenizer's only interior state is its word cache, whose entries are whole.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Error::file_because(path, what, e)),
        Err(_) => Err(Error::file(path, format!("{what}: the file contradicts itself"))),
    }
}

/// Longest tail of tokens that may still be one unfinished character: UTF-8 has at most four bytes, a token
/// at least one.
const UNFINISHED_TOKENS: usize = 4;
/// A window this long without a clean end holds bytes that are not UTF-8; it is then cut where it may be.
const LONG_WINDOW: usize = 24;

/// Incremental decoding: text comes out as soon as it can no longer change, never half a character.
///
/// What was pushed out, with what [`TextStream::finish`] adds, is the whole decoding of the ids (for the
/// byte-level decoders of every family we run).
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The window: `ids[..read]` is context whose text is out, the rest is what text may still come from.
    ids: Vec<u32>,
    read: usize,
    /// Bytes of the window's text that are out.
    emitted: usize,
}

impl TextStream<'_> {
    /// Takes one token and returns the text that became certain with it (often one word, possibly nothing).
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        let certain = trim_unfinished(&text);
        let fresh = text.get(self.emitted..certain).unwrap_or_default().to_owned();
        self.emitted = self.emitted.max(certain);
        if fresh.is_empty() && self.read > 0 && certain == text.len() {
            // A skipped token is no context: behind it, what joins words would see the beginning of a text.
            self.ids.pop();
        } else if certain == text.len() {
            self.slide(self.ids.len())?;
        } else if self.ids.len() - self.read > LONG_WINDOW {
            self.cut_long_window(&text)?;
        }
        Ok(fresh)
    }

    /// The text still held back, as far as it can be read.
    pub fn finish(&self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(text.get(self.emitted..).unwrap_or_default().to_owned())
    }

    /// Makes `ids[read..end]` the context of what follows. Some context stays because a decoder may treat the
    /// first token of a text differently (a leading space).
    fn slide(&mut self, end: usize) -> Result<()> {
        self.ids.drain(..self.read);
        self.read = end - self.read;
        self.emitted = self.tokenizer.decode(&self.ids[..self.read], self.skip_special)?.len();
        Ok(())
    }

    /// Bounds the window on input that never ends cleanly: cuts at the last place that leaves the text as it
    /// is, with more behind it than one unfinished character can hold.
    fn cut_long_window(&mut self, text: &str) -> Result<()> {
        let last = self.ids.len() - UNFINISHED_TOKENS;
        for cut in (last.saturating_sub(UNFINISHED_TOKENS)..=last).rev() {
            let head = self.tokenizer.decode(&self.ids[..cut], self.skip_special)?;
            let tail = self.tokenizer.decode(&self.ids[cut..], self.skip_special)?;
            if text.strip_prefix(&head) == Some(&tail) && self.emitted >= head.len() {
                self.ids.drain(..cut);
                self.read = 0;
                self.emitted -= head.len();
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Length of `text` without the replacement characters at its end that an unfinished character may have left.
fn trim_unfinished(text: &str) -> usize {
    let mut certain = text;
    for _ in 0..UNFINISHED_TOKENS - 1 {
        match certain.strip_suffix(char::REPLACEMENT_CHARACTER) {
            Some(rest) => certain = rest,
            None => break,
        }
    }
    certain.len()
}
