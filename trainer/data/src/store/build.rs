//! Making a table.
//!
//! Comes in: the shards of a store. Goes out: the table's file, complete or not at all, and a report. The same shards give the same bytes,
//! whatever the memory and the number of threads.

use std::{
    collections::BTreeMap,
    io,
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use lcl_objects::Stop;

use crate::{
    retry::{hearing, sleep, with_retries},
    store::{
        LeftOut, StoreError, folder_of,
        layout::ShardEntry,
        record::{Hash, Record, digest},
        scan::{Scanned, scan},
        sort::Sorter,
        writer::TableWriter,
    },
};

/// Records that a thread hands over at once: 96 KiB.
const CHUNK_RECORDS: usize = 4_096;

/// Addresses between two reports of [`Progress::Written`]: a few a second.
const WRITTEN_STEP: u64 = 1 << 20;

/// How a table is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildOptions {
    /// Most bytes of addresses that are held in memory at once, 24 each. Beside them there are buffers (200 kB and 300 kB a thread), and
    /// 8 bytes for 170 addresses of the table.
    pub memory_bytes: usize,
    /// Shards that are read at once.
    pub threads: NonZero<usize>,
}

impl Default for BuildOptions {
    fn default() -> Self {
        // 2 GiB: all of OBELICS (298 million addresses, 7 GB) is then sorted in four pieces, and any machine that trains has it to spare.
        Self { memory_bytes: 2 << 30, threads: thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN) }
    }
}

/// How far a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many shards are read.
    Scanned {
        /// Shards so far.
        shards: usize,
        /// All shards.
        of: usize,
        /// Images with an address so far.
        images: u64,
    },
    /// So many addresses are written; the last such report comes before the file gets its name.
    Written {
        /// Addresses so far.
        addresses: u64,
        /// Images with an address, those of repeated addresses included.
        of: u64,
    },
}

/// Samples that gave no record for one cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOutSamples {
    /// How many.
    pub count: u64,
    /// The first one: its shard and its key there.
    pub first: String,
}

/// What was found in a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildReport {
    /// Addresses in the table.
    pub addresses: u64,
    /// Further images of addresses that the table has already.
    pub repeated: u64,
    /// Samples that gave no record.
    pub left_out: BTreeMap<LeftOut, LeftOutSamples>,
}

/// Makes the table of a store's shards at `table`, whose folder has to exist. A file of that name is replaced at the end.
///
/// An address that the store has twice is taken from the first shard that has it, and there from the sample that comes first. Working files
/// lie in the table's folder, without names; a process that is killed leaves at most a hidden `.lcl-….part`, which is no table.
pub fn build_table(
    shards: &[PathBuf],
    table: &Path,
    options: &BuildOptions,
    progress: impl FnMut(Progress),
) -> Result<BuildReport, StoreError> {
    build_with(shards, table, options, digest, progress)
}

/// As [`build_table`], with another hash.
pub(crate) fn build_with(
    shards: &[PathBuf],
    table: &Path,
    options: &BuildOptions,
    hash: Hash,
    mut progress: impl FnMut(Progress),
) -> Result<BuildReport, StoreError> {
    let folder = folder_of(table);
    let mut sorter = Sorter::new(folder, options.memory_bytes);
    let scanned = collect(shards, options.threads, hash, &mut sorter, &mut progress)?;
    let mut report = BuildReport { left_out: left_out(shards, &scanned.shards), ..BuildReport::default() };
    let entries: Vec<ShardEntry> = shards.iter().zip(&scanned.shards).map(|(path, shard)| ShardEntry::new(path, shard.stamp)).collect();
    if scanned.images == 0 {
        let first = shards.first().cloned().unwrap_or_default();
        return Err(StoreError::NoImage { shards: shards.len(), first, report: Box::new(report) });
    }
    let in_order = sorter.finish().map_err(|source| sort_failed(folder, source))?;
    let write_failed = |source| StoreError::Write { table: table.to_owned(), source };
    let mut writer = TableWriter::create(table, &entries).map_err(write_failed)?;
    let mut written = |addresses| progress(Progress::Written { addresses, of: scanned.images });
    let mut last: Option<Record> = None;
    for record in in_order {
        let record = record.map_err(|source| sort_failed(folder, source))?;
        match last.replace(record) {
            // From a shard that was read again after an error.
            Some(before) if before == record => {}
            Some(before) if before.digest() == record.digest() => report.repeated += 1,
            _ => {
                writer.push(record).map_err(write_failed)?;
                report.addresses += 1;
                if report.addresses.is_multiple_of(WRITTEN_STEP) {
                    written(report.addresses);
                }
            }
        }
    }
    written(report.addresses);
    writer.finish().map_err(write_failed)?;
    Ok(report)
}

fn sort_failed(folder: &Path, source: io::Error) -> StoreError {
    StoreError::Sort { folder: folder.to_owned(), source }
}

/// What all shards gave beside the records.
struct Collected {
    /// In the order of the shards.
    shards: Vec<Scanned>,
    images: u64,
}

/// What a thread that reads shards says.
enum Message {
    Records(Vec<Record>),
    Done { shard: usize, scanned: Scanned },
    Failed { shard: usize, error: StoreError },
}

/// Gives the records of all shards to the sorter. Of several errors it is that of the first shard.
fn collect(
    shards: &[PathBuf],
    threads: NonZero<usize>,
    hash: Hash,
    sorter: &mut Sorter,
    progress: &mut impl FnMut(Progress),
) -> Result<Collected, StoreError> {
    let work = Work { shards, hash, next: AtomicUsize::new(0), stopped: AtomicBool::new(false) };
    thread::scope(|scope| {
        // When it is full, the threads wait while the sorter writes a run.
        let (sender, receiver) = sync_channel(2 * threads.get());
        let stop = Stop::of_thread();
        for _ in 0..threads.get().min(shards.len()) {
            let (work, sender, stop) = (&work, sender.clone(), stop.clone());
            scope.spawn(move || hearing(stop.as_ref(), || work.run(&sender)));
        }
        drop(sender);
        work.receive(&receiver, sorter, progress)
        // Here the receiver goes, and with it every thread that still sends.
    })
}

/// Shards that several threads read.
struct Work<'a> {
    shards: &'a [PathBuf],
    hash: Hash,
    next: AtomicUsize,
    stopped: AtomicBool,
}

impl Work<'_> {
    /// Reads one shard after the other until there is none, or nobody listens.
    fn run(&self, sender: &SyncSender<Message>) {
        while !self.stopped.load(Ordering::Relaxed) {
            let shard = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = self.shards.get(shard) else { return };
            let message = match self.read(path, shard, sender) {
                Ok(scanned) => Message::Done { shard, scanned },
                Err(error) => Message::Failed { shard, error },
            };
            if sender.send(message).is_err() {
                return;
            }
        }
    }

    /// Sends the records of one shard. After an error that may pass it begins again: the records that were sent already come twice then.
    fn read(&self, path: &Path, shard: usize, sender: &SyncSender<Message>) -> Result<Scanned, StoreError> {
        let number = u32::try_from(shard).map_err(|_| StoreError::TooManyShards { shards: self.shards.len() })?;
        with_retries(u64::from(number), sleep, StoreError::io, || {
            let mut chunk = Vec::with_capacity(CHUNK_RECORDS);
            // An error of sending means that the receiver is gone: the next message ends the thread.
            let scanned = scan(path, number, self.hash, |record| {
                chunk.push(record);
                if chunk.len() == CHUNK_RECORDS {
                    let _ = sender.send(Message::Records(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK_RECORDS))));
                }
            })?;
            let _ = sender.send(Message::Records(chunk));
            Ok(scanned)
        })
    }

    /// Takes what the threads send until all are done.
    fn receive(
        &self,
        receiver: &Receiver<Message>,
        sorter: &mut Sorter,
        progress: &mut impl FnMut(Progress),
    ) -> Result<Collected, StoreError> {
        let (mut done, mut images) = (BTreeMap::new(), 0);
        let mut failed: Option<(usize, StoreError)> = None;
        for message in receiver {
            match message {
                Message::Records(records) => {
                    images += records.len() as u64;
                    for record in records {
                        sorter.push(record).map_err(|source| sort_failed(sorter.folder(), source))?;
                    }
                }
                Message::Done { shard, scanned } => {
                    done.insert(shard, scanned);
                    progress(Progress::Scanned { shards: done.len(), of: self.shards.len(), images });
                }
                Message::Failed { shard, error } => {
                    // Shards before it are being read or done; none after it is begun.
                    self.stopped.store(true, Ordering::Relaxed);
                    if failed.as_ref().is_none_or(|(first, _)| shard < *first) {
                        failed = Some((shard, error));
                    }
                }
            }
        }
        match failed {
            Some((_, error)) => Err(error),
            None => Ok(Collected { shards: done.into_values().collect(), images }),
        }
    }
}

fn left_out(shards: &[PathBuf], scanned: &[Scanned]) -> BTreeMap<LeftOut, LeftOutSamples> {
    let mut all: BTreeMap<LeftOut, LeftOutSamples> = BTreeMap::new();
    for (path, shard) in shards.iter().zip(scanned) {
        for (cause, (count, key)) in &shard.left_out {
            let first = || LeftOutSamples { count: 0, first: format!("{key} in {}", path.display()) };
            all.entry(*cause).or_insert_with(first).count += count;
        }
    }
    all
}
