//! `TensorBoard` event files: the `TFRecord` framing and the few messages of `event.proto` that scalars need.
//!
//! Comes in: a step number and named values. Goes out: `events.out.tfevents.…` in the run's folder, one file a process.
//! A process that goes on from step n says so in its file (a session log `START` at step n), at which `TensorBoard` drops older points from n on.
//! Older is what stands in a file whose name comes before, so names have to come in the order of the starts, whatever the clock says.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use prost::Message;

/// What every event file begins with; with version 2 a session log `START` makes older points from its step on disappear.
const FILE_VERSION: &str = "brain.Event:2";

/// `tensorflow/core/util/event.proto`, the fields used here.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// Unix time in seconds.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    /// Step the values belong to.
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// What the event says.
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub what: Option<What>,
}

/// What an event says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    /// First event of a file.
    #[prost(string, tag = "3")]
    FileVersion(String),
    /// Values.
    #[prost(message, tag = "5")]
    Summary(Summary),
    /// Begin or end of a process.
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// `summary.proto`.
#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    /// The values.
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<SummaryValue>,
}

/// `Summary.Value` with its simple value.
#[derive(Clone, PartialEq, Message)]
pub struct SummaryValue {
    /// Name, with `/` between group and curve.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// The number.
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
}

/// `SessionLog`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SessionLog {
    /// 1 is `START`.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// `SessionLog.SessionStatus.START`.
const SESSION_START: i32 = 1;

/// Beginning of an event file's name, before the number that orders it.
pub const NAME_PREFIX: &str = "events.out.tfevents.";

/// Digits of that number. Unix time in seconds has as many from 2001 to 2286.
const DIGITS: usize = 10;

/// The year 2100: a clock that says more is wrong, and would leave no room for numbers above its own.
const LATEST: u64 = 4_102_444_800;
/// Events kept in memory while the volume takes none; one has about 300 bytes. As many as lines of metrics.
const MOST_PENDING: usize = 65_536;

/// An open event file.
#[derive(Debug)]
pub struct EventFile {
    /// `None`: what it is open as may lead nowhere any more.
    file: Option<File>,
    path: PathBuf,
    /// Bytes of whole records.
    length: u64,
    /// Records that are not in the file yet.
    pending: VecDeque<Vec<u8>>,
    folder: PathBuf,
    number: u64,
    unique: String,
}

impl EventFile {
    /// Creates the file of a process that goes on from `first_step`; `unique` tells its name from those of other processes, and its name
    /// comes after all of `before`, those of the files that the run's folder holds.
    ///
    /// `time` is Unix time in seconds.
    pub fn create(folder: &Path, before: &[String], time: f64, unique: &str, first_step: u64) -> io::Result<Self> {
        // TensorBoard reads every file whose name holds `tfevents`, in the order of the names.
        let mut events = Self::begin(folder, number_after(before, time), unique, time)?;
        let session = SessionLog { status: SESSION_START };
        events.write(&Event { wall_time: time, step: to_step(first_step), what: Some(What::SessionLog(session)) })?;
        Ok(events)
    }

    /// A file with nothing but its version.
    fn begin(folder: &Path, number: u64, unique: &str, time: f64) -> io::Result<Self> {
        let path = folder.join(format!("{NAME_PREFIX}{number:0DIGITS$}.{unique}"));
        // Appending: after a record that did not fit was cut off, the next one follows what stayed.
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let length = file.metadata()?.len();
        let (folder, unique) = (folder.to_owned(), unique.to_owned());
        let mut events = Self { file: Some(file), path, length, pending: VecDeque::new(), folder, number, unique };
        events.write(&Event { wall_time: time, step: 0, what: Some(What::FileVersion(FILE_VERSION.to_owned())) })?;
        Ok(events)
    }

    /// Goes on in another file, which readers take after this one, when this one has `most` bytes; gives the path of this one then. With records
    /// that wait nothing happens.
    pub fn continue_after(&mut self, most: u64, time: f64) -> io::Result<Option<PathBuf>> {
        if self.length < most || !self.pending.is_empty() {
            return Ok(None);
        }
        let next = Self::begin(&self.folder, self.number + 1, &self.unique, time)?;
        Ok(Some(std::mem::replace(self, next).path))
    }

    /// Adds one event with all values of a step.
    pub fn scalars(&mut self, time: f64, step: u64, values: &[(impl AsRef<str>, f64)]) -> io::Result<()> {
        let value =
            values.iter().map(|(tag, value)| SummaryValue { tag: tag.as_ref().to_owned(), simple_value: Some(*value as f32) }).collect();
        self.write(&Event { wall_time: time, step: to_step(step), what: Some(What::Summary(Summary { value })) })
    }

    /// Where the file lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        if self.pending.len() == MOST_PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back(frame(&event.encode_to_vec()));
        while let Some(record) = self.pending.front() {
            let mut file = match self.file.take() {
                Some(file) => file,
                None => OpenOptions::new().append(true).open(&self.path)?,
            };
            // Half a record of a write that failed must not stay: the next one would follow it. The file is this process's alone.
            if file.metadata()?.len() > self.length {
                file.set_len(self.length)?;
            }
            // One write, so that a kill between two cannot leave half a record.
            file.write_all(record)?;
            self.file = Some(file);
            self.length += record.len() as u64;
            self.pending.pop_front();
        }
        Ok(())
    }
}

/// The time, unless the clock has gone back since one of these files was made: then the number after it.
fn number_after(names: &[String], time: f64) -> u64 {
    let number = |name: &String| {
        let digits = name.strip_prefix(NAME_PREFIX)?.split('.').next().filter(|digits| digits.len() == DIGITS)?;
        digits.parse::<u64>().ok()
    };
    let next = names.iter().filter_map(number).max().map_or(0, |newest| newest + 1);
    next.max((time.max(0.0) as u64).min(LATEST))
}

fn to_step(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}

/// `TFRecord`: length (u64), masked CRC of the length, data, masked CRC of the data; little endian.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_crc(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and moved by a constant, as `TensorFlow`'s `crc32c.h` defines it.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C bit by bit, independent of the crate in use.
    fn plain_crc(data: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in data {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            }
        }
        !crc
    }

    fn plain_mask(crc: u32) -> u32 {
        crc.rotate_left(17).wrapping_add(0xa282_ead8)
    }

    /// Reads the protobuf wire format by hand: field number and raw value (varint and fixed numbers as u64, bytes as they are).
    enum Value {
        Number(u64),
        Bytes(Vec<u8>),
    }

    fn varint(data: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = data.split_first().unwrap();
            *data = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        unreachable!()
    }

    fn fields(mut data: &[u8]) -> Vec<(u64, Value)> {
        let mut found = Vec::new();
        while !data.is_empty() {
            let key = varint(&mut data);
            let value = match key & 7 {
                0 => Value::Number(varint(&mut data)),
                1 => {
                    let (number, rest) = data.split_at(8);
                    data = rest;
                    Value::Number(u64::from_le_bytes(number.try_into().unwrap()))
                }
                2 => {
                    let length = varint(&mut data) as usize;
                    let (bytes, rest) = data.split_at(length);
                    data = rest;
                    Value::Bytes(bytes.to_vec())
                }
                5 => {
                    let (number, rest) = data.split_at(4);
                    data = rest;
                    Value::Number(u32::from_le_bytes(number.try_into().unwrap()).into())
                }
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, value));
        }
        found
    }

    /// The records of a file, every checksum compared.
    fn records(mut data: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !data.is_empty() {
            let length = u64::from_le_bytes(data[..8].try_into().unwrap()) as usize;
            assert_eq!(u32::from_le_bytes(data[8..12].try_into().unwrap()), plain_mask(plain_crc(&data[..8])));
            let record = &data[12..12 + length];
            assert_eq!(u32::from_le_bytes(data[12 + length..16 + length].try_into().unwrap()), plain_mask(plain_crc(record)));
            found.push(record.to_vec());
            data = &data[16 + length..];
        }
        found
    }

    #[test]
    fn an_independent_reader_finds_version_session_and_values() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), &[], 1_700_000_000.5, "host.1", 7).unwrap();
        events.scalars(1_700_000_001.0, 8, &[("loss/total", 2.5), ("speed/samples_per_second", 1e6)]).unwrap();
        assert!(events.path().file_name().unwrap().to_str().unwrap().contains("tfevents.1700000000."));
        let records = records(&std::fs::read(events.path()).unwrap());
        assert_eq!(records.len(), 3);

        let version = fields(&records[0]);
        assert!(version.iter().any(|(number, value)| *number == 3 && matches!(value, Value::Bytes(bytes) if bytes == b"brain.Event:2")));
        assert!(version.iter().any(|(number, value)| *number == 1
            && matches!(value, Value::Number(bits) if (f64::from_bits(*bits) - 1_700_000_000.5).abs() < 1e-9)));
        let session = fields(&records[1]);
        assert!(session.iter().any(|(number, value)| *number == 2 && matches!(value, Value::Number(7))));
        assert!(session.iter().any(|(number, value)| *number == 7 && matches!(value, Value::Bytes(bytes) if bytes == &[8, 1])));

        let step = fields(&records[2]);
        assert!(step.iter().any(|(number, value)| *number == 2 && matches!(value, Value::Number(8))));
        let Some((_, Value::Bytes(summary))) = step.iter().find(|(number, _)| *number == 5) else { panic!("no summary") };
        let values: Vec<(String, f32)> = fields(summary)
            .iter()
            .map(|(number, value)| {
                assert_eq!(*number, 1);
                let Value::Bytes(value) = value else { panic!("no message") };
                let parts = fields(value);
                let [(1, Value::Bytes(tag)), (2, Value::Number(bits))] = parts.as_slice() else { panic!("other fields") };
                (String::from_utf8(tag.clone()).unwrap(), f32::from_bits(*bits as u32))
            })
            .collect();
        assert_eq!(values, [("loss/total".to_owned(), 2.5), ("speed/samples_per_second".to_owned(), 1e6)]);
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The steps whose points `TensorBoard` shows: it reads the files in the order of their names, and a `START` drops what it has read
    /// from that step on. (So do all of its readers: `EventAccumulator`, `plugin_event_accumulator`, and the data server.)
    fn shown(folder: &Path) -> Vec<u64> {
        let mut steps = Vec::new();
        for name in names(folder) {
            for record in records(&std::fs::read(folder.join(name)).unwrap()) {
                let fields = fields(&record);
                let step = fields.iter().find_map(|(number, value)| match value {
                    Value::Number(step) if *number == 2 => Some(*step),
                    _ => None,
                });
                let has = |wanted: u64| fields.iter().any(|(number, _)| *number == wanted);
                match step {
                    Some(step) if has(7) => steps.retain(|before| *before < step),
                    Some(step) if has(5) => steps.push(step),
                    _ => {}
                }
            }
        }
        steps
    }

    #[test]
    fn every_point_shows_whatever_the_clock_says_at_each_start() {
        let set_back_and_on = [1_700_000_100.0, 1_700_000_040.0, 1_700_000_040.0, -5.0, f64::NAN, 1e18, 1_700_000_200.0];
        let folder = tempfile::tempdir().unwrap();
        let mut last = String::new();
        for (start, time) in (0..).zip(set_back_and_on) {
            // Three steps beyond the checkpoint from which the next start goes on are trained anew.
            let first = 10 * start + 1;
            let mut events = EventFile::create(folder.path(), &names(folder.path()), time, "host.7", first).unwrap();
            (first..first + 13).for_each(|step| events.scalars(time, step, &[("loss/total", 1.0)]).unwrap());
            let name = events.path().file_name().unwrap().to_str().unwrap().to_owned();
            assert!(name > last, "{name} after {last}");
            last = name;
        }
        assert_eq!(shown(folder.path()), (1..=73).collect::<Vec<u64>>());
    }

    #[test]
    fn a_name_carries_the_time_of_its_start_where_that_is_in_order() {
        let number = |names: &[&str], time: f64| number_after(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), time);
        assert_eq!(number(&[], 1_700_000_000.5), 1_700_000_000);
        assert_eq!(number(&["events.out.tfevents.1700000000.host.1"], 1_700_000_007.0), 1_700_000_007);
        assert_eq!(number(&["events.out.tfevents.1700000009.host.1", "metrics.jsonl"], 1_700_000_007.0), 1_700_000_010);
        // Of other programs, and none of these numbers.
        assert_eq!(number(&["events.out.tfevents.1700000000123.h", "events.out.tfevents.x", "events.out.tfevents."], 3.0), 3);
    }
}
