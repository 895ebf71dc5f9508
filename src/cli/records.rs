//! JSONL requests: a prompt per line, in the three shapes a prompt can have.

use anyhow::{Context, Result, anyhow, bail};
use pellucid::prompt::message::{ImageReference, Message};
use pellucid::prompt::reader::Words;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader},
    marker::PhantomData,
    path::{Path, PathBuf},
};

/// The longest line that is read; pictures as data URLs are the largest thing one holds.
const LONGEST: u64 = 1 << 30;

/// The prompt of a request.
#[derive(Debug, Deserialize)]
pub(crate) struct PromptRecord {
    id: Option<Value>,
    messages: Option<Value>,
    prompt: Option<String>,
    prompt_token_ids: Option<Vec<u32>>,
    #[serde(alias = "image")]
    images: Option<Images>,
}

/// Pictures beside the words; a lone one is as common as a list, and under either name.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a picture's path or data URL, or a list of them")]
enum Images {
    One(String),
    Many(Vec<String>),
}

impl PromptRecord {
    /// The id (`number` where there is none), the words, and the pictures beside them.
    pub(crate) fn into_parts(self, number: u64) -> Result<(Value, Words, Vec<ImageReference>)> {
        let words = match (self.messages, self.prompt, self.prompt_token_ids) {
            (Some(messages), None, None) => Words::Messages(Message::list_from_json(messages)?),
            (None, Some(text), None) => Words::Text(text),
            (None, None, Some(ids)) => Words::Ids(ids),
            _ => bail!("give exactly one of messages, prompt and prompt_token_ids"),
        };
        let images = match &self.images {
            None => &[][..],
            Some(Images::One(image)) => std::slice::from_ref(image),
            Some(Images::Many(images)) => images,
        };
        let images = images.iter().map(|image| ImageReference::parse(image)).collect::<Result<_, _>>()?;
        Ok((self.id.unwrap_or(Value::from(number)), words, images))
    }
}

/// Where a record stands: `answers.jsonl line 3`.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    file: PathBuf,
    line: u64,
}

impl Place {
    pub(crate) fn new(file: &Path, line: u64) -> Self {
        Place { file: file.to_owned(), line }
    }

    pub(crate) fn line(&self) -> u64 {
        self.line
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}", self.file.display(), self.line)
    }
}

/// The records of a file, one per line that is not blank.
pub(crate) struct Lines<R> {
    reader: BufReader<File>,
    place: Place,
    record: PhantomData<R>,
}

impl<R: DeserializeOwned> Lines<R> {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let place = Place { file: path.to_owned(), line: 0 };
        Ok(Lines { reader: BufReader::new(file), place, record: PhantomData })
    }

    /// The next record, or none at the end.
    fn read(&mut self) -> Result<Option<(Place, R)>> {
        loop {
            let mut line = Vec::new();
            self.place.line += 1;
            let place = &self.place;
            let mut limited = std::io::Read::take(&mut self.reader, LONGEST);
            let read = limited.read_until(b'\n', &mut line).with_context(|| place.to_string())?;
            if read == 0 {
                return Ok(None);
            }
            if read as u64 == LONGEST {
                bail!("{place}: longer than {LONGEST} bytes");
            }
            if !line.trim_ascii().is_empty() {
                let record = serde_json::from_slice(&line).map_err(|broken| fault(place, &broken))?;
                return Ok(Some((place.clone(), record)));
            }
        }
    }
}

/// What is wrong with a line. The parser took it for a file of one line, which would read as another place.
fn fault(place: &Place, broken: &serde_json::Error) -> anyhow::Error {
    let what = broken.to_string();
    let what = what.split(" at line 1 column").next().unwrap_or_default();
    anyhow!("{place}, column {}: {what}", broken.column())
}

impl<R: DeserializeOwned> Iterator for Lines<R> {
    type Item = Result<(Place, R)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
