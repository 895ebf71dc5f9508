//! TensorBoard's event files, written without it.
//!
//! A file is records of `length (u64), its checksum, bytes, their checksum`, all little-endian; the bytes are protobuf
//! messages `Event { wall_time: 1, step: 2, file_version: 3, summary: 5, session_log: 7 }`. Only as much of protobuf is
//! here as scalars and texts need.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Writes a run's events. Each is on its way to the disk when its call returns.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Begins a file of its own in the run's folder. A run that goes on after so many steps says so: what other files say
    /// of later ones is then taken back.
    pub fn create(folder: &Path, taken: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|cause| Error::file_because(folder, "cannot be made", cause))?;
        let (now, process) = (since_epoch(), std::process::id());
        // The name is sorted by: later files come later. Its nanoseconds keep two files of one second apart.
        let name =
            format!("events.out.tfevents.{:010}.pellucid.{process}.{:09}", now.as_secs(), now.subsec_nanos());
        let path = folder.join(name);
        let file =
            File::create_new(&path).map_err(|cause| Error::file_because(&path, "cannot be made", cause))?;
        let mut writer = EventWriter { file, path };
        writer.write(&version(now))?;
        if taken > 0 {
            writer.write(&start(now, taken + 1))?;
        }
        Ok(writer)
    }

    /// Adds numbers of a step, each under its tag.
    pub fn scalars<'a>(&mut self, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Result<()> {
        self.write(&scalars(since_epoch(), step, values))
    }

    /// Adds a text of a step; it is shown as Markdown.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<()> {
        self.write(&words(since_epoch(), step, tag, text))
    }

    fn write(&mut self, event: &Message) -> Result<()> {
        let written = self.file.write_all(&record(&event.bytes));
        written.map_err(|cause| Error::file_because(&self.path, "cannot be written", cause))
    }
}

fn since_epoch() -> Duration {
    // A clock before 1970 is no reason to lose a run.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What a file begins with.
fn version(at: Duration) -> Message {
    event(at, 0, |event| event.text(3, "brain.Event:2"))
}

/// A run that begins anew with a step: it and all after it will be taken again.
fn start(at: Duration, step: u64) -> Message {
    const START: u64 = 1;
    event(at, step, |event| event.message(7, |session| session.number(1, START)))
}

fn scalars<'a>(at: Duration, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Message {
    summary(at, step, |summary| {
        for (tag, value) in values {
            summary.message(1, |entry| {
                entry.text(1, tag);
                entry.float(2, value as f32);
            });
        }
    })
}

fn words(at: Duration, step: u64, tag: &str, text: &str) -> Message {
    const STRING: u64 = 7;
    summary(at, step, |summary| {
        summary.message(1, |entry| {
            entry.text(1, tag);
            entry.message(8, |tensor| {
                tensor.number(1, STRING);
                tensor.message(2, |shape| shape.message(2, |side| side.number(1, 1)));
                tensor.text(8, text);
            });
            entry.message(9, |metadata| metadata.message(1, |plugin| plugin.text(1, "text")));
        });
    })
}

fn summary(at: Duration, step: u64, write: impl FnOnce(&mut Message)) -> Message {
    event(at, step, |event| event.message(5, write))
}

fn event(at: Duration, step: u64, write: impl FnOnce(&mut Message)) -> Message {
    let mut event = Message::default();
    event.double(1, at.as_secs_f64());
    if step > 0 {
        event.number(2, step);
    }
    write(&mut event);
    event
}

/// A protobuf message: fields in the order they are written.
#[derive(Debug, Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    const VARINT: u64 = 0;
    const EIGHT_BYTES: u64 = 1;
    const LENGTH_FIRST: u64 = 2;
    const FOUR_BYTES: u64 = 5;

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn key(&mut self, field: u64, kind: u64) {
        self.varint(field << 3 | kind);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.key(field, Message::VARINT);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, Message::EIGHT_BYTES);
        self.bytes.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, Message::FOUR_BYTES);
        self.bytes.extend(value.to_le_bytes());
    }

    fn text(&mut self, field: u64, text: &str) {
        self.key(field, Message::LENGTH_FIRST);
        self.varint(text.len() as u64);
        self.bytes.extend(text.as_bytes());
    }

    fn message(&mut self, field: u64, write: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        write(&mut inner);
        self.key(field, Message::LENGTH_FIRST);
        self.varint(inner.bytes.len() as u64);
        self.bytes.extend(inner.bytes);
    }
}

/// Bytes with their length and the checksums of both.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(bytes);
    record.extend(masked(crc32c(bytes)).to_le_bytes());
    record
}

/// A checksum of data that holds checksums would be weak; this one is turned and moved.
fn masked(checksum: u32) -> u32 {
    checksum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Castagnoli's checksum, bit by bit: a run writes a few kilobytes of events.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        (0..8).fold(
            sum ^ u32::from(*byte),
            |sum, _| {
                if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 }
            },
        )
    };
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_castagnolis() {
        // RFC 3720, B.4, and the usual check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
    }

    #[test]
    fn events_are_the_bytes_tensorboard_writes() {
        // SerializeToString of tensorboard 2.21's own Event, framed by its RecordWriter.
        let at = Duration::from_millis(1500);
        for (event, expected) in [
            (version(at), "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c"),
            (start(at, 300), "100000000000000095fbfe1809000000000000f83f10ac023a020801713b788a"),
            (
                scalars(at, 300, [("loss", 0.5)]),
                "1b000000000000001a0d9e1309000000000000f83f10ac022a0d0a0b0a046c6f7373150000003f69f9315b",
            ),
            (
                words(at, 300, "c", "red"),
                "2c00000000000000f4aecc4509000000000000f83f10ac022a1e0a1c0a0163420d08071204120208014203726564\
                 4a080a060a047465787420b3d632",
            ),
        ] {
            let written: String = record(&event.bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn a_run_that_goes_on_has_a_file_of_its_own() {
        let folder = tempfile::tempdir().expect("can be made");
        for step in [0, 40] {
            let mut writer = EventWriter::create(folder.path(), step).expect("can be made");
            writer.scalars(step + 1, [("reward", 0.5), ("loss", f64::NAN)]).expect("can be written");
            writer.text(step + 1, "caption", "red-circle 7 .").expect("can be written");
        }
        assert_eq!(fs::read_dir(folder.path()).expect("is there").count(), 2);
    }
}
