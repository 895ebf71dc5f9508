//! Replies kept in a file, under the names of their questions.
//!
//! The file is only ever added to, an entry at a time, and an entry *begins* with the line feed that sets it apart. So
//! whatever a process that was killed, or a disk that was full, left of an entry spoils that entry alone, also when
//! several processes write; and a file that begins otherwise is none of ours, and is left alone.

use super::body::Name;
use crate::error::{Error, Result};
use crate::rl::reply::Said;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How every entry begins.
const START: &str = "\n{\"reply\":\"";

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    reply: String,
    text: String,
    tokens: usize,
    truncated: bool,
}

/// An open file of replies.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    file: File,
    /// Where the line of a name begins, and its length.
    places: HashMap<Name, (u64, usize)>,
    /// Lines that are no entries.
    pub(super) torn: usize,
}

impl Cache {
    /// Opens a file, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let broken = |cause| Error::file_because(path, "the cache of replies cannot be opened", cause);
        let file = File::options().create(true).read(true).append(true).open(path).map_err(broken)?;
        let mut head = Vec::new();
        (&file).take(START.len() as u64).read_to_end(&mut head).map_err(broken)?;
        if !START.as_bytes().starts_with(&head) {
            return Err(Error::file(path, "is no cache of replies, and would be spoilt; name another file"));
        }
        let mut cache = Cache { path: path.to_owned(), file, places: HashMap::new(), torn: 0 };
        if head.len() < START.len() {
            // Not even a beginning; without it, what comes next can begin the file.
            cache.file.set_len(0).map_err(broken)?;
            cache.torn = usize::from(head.len() > 1);
        }
        cache.index().map_err(broken)?;
        Ok(cache)
    }

    fn index(&mut self) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(&self.file);
        let (mut place, mut line) = (0, Vec::new());
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            if length == 0 {
                return Ok(());
            }
            let bare = line.strip_suffix(b"\n").unwrap_or(&line);
            match entry(bare) {
                Some((name, _)) => drop(self.places.insert(name, (place, bare.len()))),
                None => self.torn += usize::from(!bare.is_empty()),
            }
            place += length as u64;
        }
    }

    /// The reply to a question, if it is there.
    pub(super) fn find(&mut self, name: Name) -> Result<Option<Said>> {
        let Some(&(place, length)) = self.places.get(&name) else { return Ok(None) };
        let broken = |cause| Error::file_because(&self.path, "the cache of replies cannot be read", cause);
        let mut line = vec![0; length];
        self.file.seek(SeekFrom::Start(place)).map_err(broken)?;
        self.file.read_exact(&mut line).map_err(broken)?;
        // Whoever changed the file meanwhile: what stands there now is no reply to this question.
        Ok(entry(&line).filter(|(found, _)| *found == name).map(|(_, said)| said))
    }

    /// Adds a reply.
    pub(super) fn keep(&mut self, name: Name, said: &Said) -> Result<()> {
        let broken = |cause| Error::file_because(&self.path, "a reply cannot be added to the cache", cause);
        let Said { text, tokens, truncated } = said.clone();
        let entry = Entry { reply: name.to_hex().to_string(), text, tokens, truncated };
        let line = format!("\n{}", serde_json::to_string(&entry).map_err(|e| broken(e.into()))?);
        self.file.write_all(line.as_bytes()).map_err(broken)?;
        // Appending moves to the end first, wherever others have moved it to.
        let end = self.file.stream_position().map_err(broken)?;
        let length = line.len() - 1;
        self.places.insert(name, (end - length as u64, length));
        Ok(())
    }
}

fn entry(line: &[u8]) -> Option<(Name, Said)> {
    let Entry { reply, text, tokens, truncated } = serde_json::from_slice(line).ok()?;
    Some((Name::from_hex(reply).ok()?, Said { text, tokens, truncated }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Said {
        Said { text: text.into(), tokens: text.len(), truncated: false }
    }

    fn name(text: &str) -> Name {
        blake3::hash(text.as_bytes())
    }

    #[test]
    fn whatever_a_killed_writer_left_costs_its_own_entry_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replies.jsonl");
        let mut cache = Cache::open(&path).unwrap();
        cache.keep(name("a"), &said("one\nline")).unwrap();
        cache.keep(name("b"), &said("two")).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let first = whole.len() - 1 - whole.iter().rev().position(|&b| b == b'\n').unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut cache = Cache::open(&path).unwrap();
            assert_eq!(cache.find(name("a")).unwrap().is_some(), cut >= first, "{cut}");
            assert_eq!(cache.find(name("b")).unwrap().is_some(), cut == whole.len(), "{cut}");
            let between = |at: usize, end: usize| cut > at + 1 && cut < end;
            assert_eq!(cache.torn, usize::from(between(0, first) || between(first, whole.len())), "{cut}");
            // And the next entry is whole, whatever stands before it.
            cache.keep(name("c"), &said("three")).unwrap();
            assert_eq!(cache.find(name("c")).unwrap(), Some(said("three")));
            let mut again = Cache::open(&path).unwrap();
            assert_eq!(again.find(name("c")).unwrap(), Some(said("three")), "{cut}");
            assert_eq!(again.find(name("a")).unwrap(), (cut >= first).then(|| said("one\nline")), "{cut}");
        }
    }

    #[test]
    fn two_writers_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replies.jsonl");
        let (mut one, mut two) = (Cache::open(&path).unwrap(), Cache::open(&path).unwrap());
        for i in 0..20 {
            one.keep(name(&format!("one {i}")), &said(&"é".repeat(i))).unwrap();
            two.keep(name(&format!("two {i}")), &said(&"x".repeat(i))).unwrap();
        }
        let mut both = Cache::open(&path).unwrap();
        for i in 0..20 {
            assert_eq!(one.find(name(&format!("one {i}"))).unwrap(), Some(said(&"é".repeat(i))));
            assert_eq!(both.find(name(&format!("two {i}"))).unwrap(), Some(said(&"x".repeat(i))));
        }
    }

    #[test]
    fn what_others_wrote_over_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replies.jsonl");
        let mut cache = Cache::open(&path).unwrap();
        cache.keep(name("a"), &said("one")).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let other = text.replace(&name("a").to_hex().to_string(), &name("b").to_hex());
        std::fs::write(&path, other).unwrap();
        assert_eq!(cache.find(name("a")).unwrap(), None);
        std::fs::write(&path, "").unwrap();
        assert!(cache.find(name("a")).is_err());
    }

    #[test]
    fn another_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, "{\"question\": 1}\n").unwrap();
        let error = Cache::open(&path).unwrap_err();
        assert!(error.to_string().contains("is no cache of replies"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"question\": 1}\n");
        assert!(Cache::open(folder.path()).is_err());
    }
}
