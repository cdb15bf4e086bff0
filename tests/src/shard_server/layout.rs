//! Which bytes a synthetic shard has: any range of any shard, without the rest of it.
//!
//! A shard is a tar archive as img2dataset writes it: samples in the order of their keys, of each the members `KEY.jpg`, `KEY.json` and
//! `KEY.txt`, written by the `webdataset` package through Python's `tarfile`. Sizes come from one table of drawn sizes with its prefix sums;
//! a shard takes consecutive entries of it from an entry of its own on, round and round. So every offset is a subtraction, a sample is found by
//! bisection, and 41,000 shards take no more memory than one. Everything follows from the seed and the shard's number.

use std::ops::Range;

use anyhow::{Result, ensure};
use bytes::Bytes;

use super::text;

/// A tar archive's unit.
const BLOCK: u64 = 512;
/// `tarfile` fills an archive up to a multiple of this.
const RECORD: u64 = 20 * BLOCK;
/// Entries of the table. Several times the samples of a shard, so that shards begin at different places.
const TABLE: usize = 1 << 16;
/// Mean bytes of a JPEG in LAION-400M at 256 pixels, about; sizes are spread log-normally.
const MEAN_JPEG: f64 = 20_000.0;
/// Standard deviation of the logarithm: the middle two thirds lie between 0.6 and 1.65 times the median.
const JPEG_SPREAD: f64 = 0.5;
/// Smallest and largest JPEG: about what a plain and a noisy picture of this size take.
const JPEG_SIZES: Range<f64> = 2_000.0..200_000.0;
/// Characters of a caption, log-normal too.
const MEAN_TEXT: f64 = 60.0;
/// Captions differ more in length than pictures do.
const TEXT_SPREAD: f64 = 0.6;
/// Shortest and longest caption.
const TEXT_SIZES: Range<f64> = 5.0..300.0;
/// Characters of an address after its host: with it a member `.json` has 400 bytes on average.
const URL_PADS: Range<u32> = 1..78;
/// Filler for JPEGs; longer than the largest of them by far, so that they begin at many different places.
const FILLER: usize = 1 << 20;
/// Begin of a JPEG.
const JPEG_BEGIN: [u8; 4] = [0xff, 0xd8, 0xff, 0xe0];
/// 20 August 2021, when LAION-400M appeared: time stamps of members begin here.
const EPOCH: u64 = 1_629_417_600;
/// A record of an extended header with a time stamp to a millionth, which is about what Python's floating-point numbers hold.
const TIME_RECORD: usize = "27 mtime=1629417600.123456\n".len();

/// How a member's header is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Headers {
    /// One block.
    Ustar,
    /// As `webdataset` writes it: time stamps have a fraction, so an extended header (two blocks) comes before each member's own.
    #[default]
    Pax,
}

impl Headers {
    fn length(self) -> u64 {
        match self {
            Self::Ustar => BLOCK,
            Self::Pax => 3 * BLOCK,
        }
    }
}

/// What shards there are.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Other seeds give other shards.
    pub seed: u64,
    /// How many shards; at most 100,000, which five digits can name.
    pub shards: u32,
    /// Samples of each.
    pub samples: u32,
    /// How headers are written.
    pub headers: Headers,
    /// Real JPEGs, repeated over the samples of the shards in `real_shards`.
    pub jpegs: Vec<Bytes>,
    /// The shards that can be decoded; the JPEGs of others are filler.
    pub real_shards: Range<u32>,
}

impl Default for Shape {
    /// The size of LAION-400M.
    fn default() -> Self {
        Self { seed: 0, shards: 41_000, samples: 9_934, headers: Headers::default(), jpegs: Vec::new(), real_shards: 0..0 }
    }
}

/// How often a shard was changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Version {
    /// Times its sizes became others, and with them all of it.
    pub(super) sizes: u32,
    /// Times its bytes became others and its sizes stayed.
    pub(super) bytes: u32,
}

/// A member's place in its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name in the archive.
    pub name: String,
    /// Where its body lies; its headers and those of an earlier member's end come before.
    pub body: Range<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    jpeg: u32,
    url_pad: u32,
    text: u32,
}

/// Sums of what the table's entries take in an archive: one more than there are entries.
type Sums = Vec<u64>;

/// All shards.
#[derive(Debug)]
pub struct Layout {
    shape: Shape,
    table: Vec<Sizes>,
    filler_sums: Sums,
    real_sums: Sums,
    filler: Vec<u8>,
    digits: usize,
}

impl Layout {
    /// Draws the sizes.
    pub fn new(shape: Shape) -> Result<Self> {
        ensure!((1..=100_000).contains(&shape.shards), "{} shards: 1 to 100,000 can be named", shape.shards);
        ensure!(shape.samples > 0, "a shard needs samples");
        ensure!(
            shape.real_shards.is_empty() || !shape.jpegs.is_empty(),
            "shards {:?} shall be real, but there are no JPEGs",
            shape.real_shards
        );
        let mut random = fastrand::Rng::with_seed(shape.seed);
        let table: Vec<Sizes> = (0..TABLE)
            .map(|_| Sizes {
                jpeg: log_normal(&mut random, MEAN_JPEG, JPEG_SPREAD, &JPEG_SIZES),
                url_pad: random.u32(URL_PADS),
                text: log_normal(&mut random, MEAN_TEXT, TEXT_SPREAD, &TEXT_SIZES),
            })
            .collect();
        let filler = std::iter::repeat_with(|| random.u64(..).to_le_bytes()).take(FILLER / 8).flatten().collect();
        // img2dataset's key: the shard in five digits, the sample in as many as the last one needs, four for its usual 10,000.
        let digits = (shape.samples - 1).to_string().len().max(4);
        let mut layout = Self { shape, table, filler_sums: Sums::new(), real_sums: Sums::new(), filler, digits };
        layout.filler_sums = layout.sums(false);
        layout.real_sums = layout.sums(true);
        Ok(layout)
    }

    /// What was asked for.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    fn sums(&self, real: bool) -> Sums {
        let mut sum = 0;
        let ends = (0..TABLE).map(|entry| {
            let members = self.sizes(entry, real).map(|size| self.shape.headers.length() + size.next_multiple_of(BLOCK));
            sum += members.iter().sum::<u64>();
            sum
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// Bytes of the three bodies at an entry of the table.
    fn sizes(&self, entry: usize, real: bool) -> [u64; 3] {
        let sizes = self.table[entry];
        let jpeg = if real { self.jpeg(entry).len() as u64 } else { u64::from(sizes.jpeg) };
        // The key is part of the JSON.
        [jpeg, text::json_length(5 + self.digits, sizes.text, sizes.url_pad), u64::from(sizes.text)]
    }

    /// The real JPEG at an entry of the table.
    fn jpeg(&self, entry: usize) -> &[u8] {
        self.shape.jpegs.get(entry % self.shape.jpegs.len().max(1)).map_or(&[], |jpeg| jpeg)
    }

    /// One shard.
    pub(super) fn shard(&self, number: u32, version: Version) -> Shard<'_> {
        let real = self.shape.real_shards.contains(&number);
        let identity = mix(mix(self.shape.seed, u64::from(number)), u64::from(version.sizes));
        let first = identity as usize % TABLE;
        Shard { layout: self, number, first, real, content: mix(identity, u64::from(version.bytes)) }
    }
}

/// A shard as it is at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Shard<'a> {
    layout: &'a Layout,
    number: u32,
    /// The first sample's entry of the table.
    first: usize,
    real: bool,
    /// What its bytes follow from.
    content: u64,
}

impl Shard<'_> {
    /// Bytes of the archive.
    #[must_use]
    pub fn length(&self) -> u64 {
        // Two empty blocks end an archive.
        (self.begin(self.layout.shape.samples) + 2 * BLOCK).next_multiple_of(RECORD)
    }

    /// The same for the same bytes.
    #[must_use]
    pub fn e_tag(&self) -> String {
        let shape = mix(u64::from(self.layout.shape.samples), self.length());
        format!("\"{:016x}{:016x}\"", self.content, mix(self.content, shape))
    }

    /// Where a sample begins; that of the sample after the last is where the archive's end begins.
    fn begin(&self, sample: u32) -> u64 {
        let sums = if self.real { &self.layout.real_sums } else { &self.layout.filler_sums };
        let from_table = |entry: usize| (entry / TABLE) as u64 * sums[TABLE] + sums[entry % TABLE];
        from_table(self.first + sample as usize) - from_table(self.first)
    }

    /// The sample that a byte belongs to; that after the last where it belongs to none.
    fn sample_at(&self, offset: u64) -> u32 {
        let (mut low, mut high) = (0, self.layout.shape.samples + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.begin(middle) <= offset { low = middle } else { high = middle }
        }
        low
    }

    fn entry(&self, sample: u32) -> usize {
        (self.first + sample as usize) % TABLE
    }

    /// A sample's key.
    #[must_use]
    pub fn key(&self, sample: u32) -> String {
        format!("{:05}{sample:0width$}", self.number, width = self.layout.digits)
    }

    /// A sample's members: `.jpg`, `.json`, `.txt`.
    #[must_use]
    pub fn members(&self, sample: u32) -> [Member; 3] {
        let key = self.key(sample);
        let sizes = self.layout.sizes(self.entry(sample), self.real);
        let mut at = self.begin(sample);
        [("jpg", sizes[0]), ("json", sizes[1]), ("txt", sizes[2])].map(|(kind, size)| {
            let begin = at + self.layout.shape.headers.length();
            at = begin + size.next_multiple_of(BLOCK);
            Member { name: format!("{key}.{kind}"), body: begin..begin + size }
        })
    }

    /// The bytes of a range; it must lie in the archive.
    #[must_use]
    pub fn bytes(&self, range: Range<u64>) -> Bytes {
        let mut writer = Writer { out: Vec::with_capacity((range.end - range.start) as usize), at: 0, range };
        let mut sample = self.sample_at(writer.range.start);
        while sample < self.layout.shape.samples && self.begin(sample) < writer.range.end {
            for (kind, member) in self.members(sample).into_iter().enumerate() {
                let header = member.body.start - self.layout.shape.headers.length();
                writer.part(header..member.body.start, || self.header(sample, kind, &member));
                writer.part(member.body.clone(), || self.body(sample, kind, member.body.end - member.body.start));
                writer.zeros(member.body.end.next_multiple_of(BLOCK));
            }
            sample += 1;
        }
        writer.zeros(self.length());
        writer.out.into()
    }

    fn header(&self, sample: u32, kind: usize, member: &Member) -> Piece<'static> {
        let seconds = EPOCH + u64::from(sample) / 100;
        let size = member.body.end - member.body.start;
        if self.layout.shape.headers == Headers::Ustar {
            return Piece::Made(block(&member.name, size, seconds, b'0').to_vec());
        }
        // Odd: Python prints no zeros at the end. The member's own header has the nearest second.
        let fraction = (mix(self.content, u64::from(sample) * 3 + kind as u64) % 1_000_000) | 1;
        let own = block(&member.name, size, seconds + u64::from(fraction > 500_000), b'0');
        let record = format!("{TIME_RECORD} mtime={seconds}.{fraction:06}\n");
        let mut blocks = block("././@PaxHeader", TIME_RECORD as u64, 0, b'x').to_vec();
        blocks.extend_from_slice(record.as_bytes());
        blocks.resize(2 * BLOCK as usize, 0);
        blocks.extend_from_slice(&own);
        Piece::Made(blocks)
    }

    fn body(&self, sample: u32, kind: usize, size: u64) -> Piece<'_> {
        let entry = self.entry(sample);
        let identity = mix(self.content, u64::from(sample));
        let length = self.layout.table[entry].text as usize;
        match kind {
            0 if self.real => Piece::Kept(&[], self.layout.jpeg(entry)),
            0 => {
                let begin = identity as usize % (FILLER - JPEG_SIZES.end as usize);
                Piece::Kept(&JPEG_BEGIN, &self.layout.filler[begin..begin + size as usize - JPEG_BEGIN.len()])
            }
            1 => Piece::Made(text::json(&self.key(sample), identity, length, self.layout.table[entry].url_pad).into_bytes()),
            _ => Piece::Made(text::caption(identity, length).into_bytes()),
        }
    }
}

/// Bytes of a part of an archive.
enum Piece<'a> {
    Made(Vec<u8>),
    /// Two slices after each other.
    Kept(&'a [u8], &'a [u8]),
}

/// Collects what lies in a range of the parts that come in their order.
struct Writer {
    out: Vec<u8>,
    /// Where the next part begins.
    at: u64,
    range: Range<u64>,
}

impl Writer {
    /// A part that lies at `place`; made only if some of it is wanted.
    fn part<'a>(&mut self, place: Range<u64>, make: impl FnOnce() -> Piece<'a>) {
        self.at = place.start;
        if place.end > self.range.start && place.start < self.range.end {
            match make() {
                Piece::Made(bytes) => self.copy(&bytes),
                Piece::Kept(first, second) => {
                    self.copy(first);
                    self.copy(second);
                }
            }
        }
        self.at = place.end;
    }

    fn copy(&mut self, bytes: &[u8]) {
        let clamp = |at: u64| (at.saturating_sub(self.at) as usize).min(bytes.len());
        self.out.extend_from_slice(&bytes[clamp(self.range.start)..clamp(self.range.end)]);
        self.at += bytes.len() as u64;
    }

    /// Zeros up to `end`.
    fn zeros(&mut self, end: u64) {
        let begin = self.at.max(self.range.start);
        self.at = end;
        if let Some(count) = end.min(self.range.end).checked_sub(begin) {
            self.out.resize(self.out.len() + count as usize, 0);
        }
    }
}

/// A header block as Python's `tarfile` writes it: `ustar`, numbers in octal digits with a zero byte after them. `x` is an extended header's.
fn block(name: &str, size: u64, seconds: u64, kind: u8) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    // `webdataset`: readable by all, written by nobody.
    put(100, if kind == b'0' { "0000444" } else { "0000000" });
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, &format!("{seconds:011o}"));
    // The checksum counts itself as blanks.
    put(148, "        ");
    put(257, "ustar\x0000");
    if kind == b'0' {
        put(265, "bigdata");
        put(297, "bigdata");
    }
    block[156] = kind;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn log_normal(random: &mut fastrand::Rng, mean: f64, spread: f64, limits: &Range<f64>) -> u32 {
    // Box and Muller; the first number is never 0.
    let normal = (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (std::f64::consts::TAU * random.f64()).cos();
    let size = (mean.ln() - spread * spread / 2.0 + spread * normal).exp();
    size.clamp(limits.start, limits.end - 1.0) as u32
}

/// Mixes two numbers into one whose bits all depend on all of theirs (splitmix64's finaliser).
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut mixed = a ^ b.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
