//! A copy of a JPEG without what decoders complain about, made only when every pixel is there.
//!
//! Comes in: a file that libjpeg complains about, for whatever reason. Goes out: the file as it should be and what was wrong with it; or
//! nothing, when a scan lacks data, and whenever there is doubt. So it is not the decoder's words that decide, but the data: what libjpeg fills
//! up with gray it says in the same tone as it reports a superfluous byte, and it says only the first of all.

use memchr::memchr;

use super::{
    ALL_COEFFICIENTS, END_OF_IMAGE, MAX_SCANS, START_OF_SCAN, frame, is_start_of_frame,
    scan::{self, Frame, Header, Tables},
};
use crate::cause::Tolerated;

/// Bytes behind the data up to which a file without an end mark counts as cut: as many as libjpeg, and so Pillow, reads ahead (64 bits).
const READ_AHEAD: usize = 8;

/// A mended file.
pub(super) struct Mended {
    /// The file as it should be.
    pub(super) bytes: Vec<u8>,
    /// What was wrong with it, if this is known already: the first of several.
    pub(super) cause: Option<Tolerated>,
    /// It has a colour profile, of which a decoder may have complained. It is left out, as everything that says nothing about pixels.
    pub(super) has_profile: bool,
    /// Its pixels are said in several scans, each more precisely.
    pub(super) progressive: bool,
}

/// Mends the file; nothing when pixels are missing.
pub(super) fn mend(bytes: &[u8]) -> Option<Mended> {
    let mut copy = Copy { components: frame(bytes).ok()?.components, ..Copy::default() };
    copy.mended.extend([0xff, 0xd8]);
    let mut rest = bytes.get(2..)?;
    while let Some((marker, before, behind)) = next_marker(rest) {
        if before > 0 {
            copy.tolerate(Tolerated::JpegExtraBytes);
        }
        rest = match marker {
            END_OF_IMAGE => return copy.finish(),
            // These stand alone and mean nothing here.
            0x01 | 0xd0..=0xd7 => behind,
            0xd8 => return None,
            _ => {
                let length = usize::from(u16::from_be_bytes(*behind.first_chunk()?));
                let (payload, behind) = (behind.get(2..length)?, behind.get(length..)?);
                behind.get(copy.take(marker, payload, behind)?..)?
            }
        };
    }
    // There is no end mark. Only a file whose pixels are in one scan is surely complete, and only what follows its data tells it from a cut one.
    let whole = copy.scans == 1 && copy.components_of_scan == copy.frame.as_ref()?.components() && !copy.frame.as_ref()?.progressive;
    if !whole || rest.len() < READ_AHEAD {
        return None;
    }
    copy.tolerate(Tolerated::JpegEnd);
    copy.finish()
}

/// The next marker, how many bytes stand before it, and what follows it.
fn next_marker(bytes: &[u8]) -> Option<(u8, usize, &[u8])> {
    let mut at = 0;
    loop {
        at += memchr(0xff, bytes.get(at..)?)?;
        let fill = bytes.get(at..)?.iter().take_while(|&&byte| byte == 0xff).count();
        let marker = *bytes.get(at + fill)?;
        if marker != 0 {
            return Some((marker, at, bytes.get(at + fill + 1..)?));
        }
        at += fill + 1;
    }
}

/// The copy as far as it is made.
#[derive(Default)]
struct Copy {
    mended: Vec<u8>,
    cause: Option<Tolerated>,
    has_profile: bool,
    /// Of the image; other headers that come before the frame's depend on it.
    components: u8,
    frame: Option<Frame>,
    tables: Tables,
    scans: u32,
    /// Components of the last scan.
    components_of_scan: usize,
}

impl Copy {
    fn tolerate(&mut self, cause: Tolerated) {
        self.cause.get_or_insert(cause);
    }

    fn finish(mut self) -> Option<Mended> {
        self.mended.extend([0xff, END_OF_IMAGE]);
        let progressive = self.frame?.progressive;
        (self.scans > 0).then_some(Mended { bytes: self.mended, cause: self.cause, has_profile: self.has_profile, progressive })
    }

    fn put(&mut self, marker: u8, payload: &[u8]) {
        self.mended.extend([0xff, marker]);
        self.mended.extend((payload.len() as u16 + 2).to_be_bytes());
        self.mended.extend_from_slice(payload);
    }

    /// Takes a segment over; gives the number of bytes behind it that were used up, the data of a scan.
    fn take(&mut self, marker: u8, payload: &[u8], behind: &[u8]) -> Option<usize> {
        match marker {
            START_OF_SCAN => return self.take_scan(payload, behind),
            0xe0 => self.take_jfif(payload),
            0xee => self.take_adobe(payload),
            // Profiles, EXIF and the like, comments.
            0xe1..=0xef | 0xfe => self.has_profile |= marker == 0xe2 && payload.starts_with(b"ICC_PROFILE\0"),
            _ => {
                match marker {
                    0xc4 => self.tables.define(payload)?,
                    0xdd => self.tables.restart(payload)?,
                    _ if is_start_of_frame(marker) && self.frame.is_none() => self.frame = Some(Frame::new(marker, payload)?),
                    _ => {}
                }
                self.put(marker, payload);
            }
        }
        Some(0)
    }

    /// A JFIF header; there is only one version, whatever it says.
    fn take_jfif(&mut self, payload: &[u8]) {
        let mut payload = payload.to_vec();
        if let [b'J', b'F', b'I', b'F', 0, major, ..] = payload.as_mut_slice()
            && *major != 1
        {
            *major = 1;
            self.tolerate(Tolerated::JpegHeader);
        }
        self.put(0xe0, &payload);
    }

    /// Adobe's header says how colours are stored. What it does not know is taken for YCbCr and YCCK, as libjpeg does.
    fn take_adobe(&mut self, payload: &[u8]) {
        let mut payload = payload.to_vec();
        if let [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, transform, ..] = payload.as_mut_slice()
            && *transform > 2
        {
            *transform = if self.components == 4 { 2 } else { 1 };
            self.tolerate(Tolerated::JpegHeader);
        }
        self.put(0xee, &payload);
    }

    fn take_scan(&mut self, payload: &[u8], behind: &[u8]) -> Option<usize> {
        let Self { frame: Some(frame), tables, .. } = self else { return None };
        let header = Header::new(frame, payload)?;
        self.scans += 1;
        if self.scans > MAX_SCANS {
            return None;
        }
        self.components_of_scan = header.components();
        let (progressive, arithmetic) = (frame.progressive, frame.arithmetic);
        // Data of arithmetic coding cannot be checked here: they stay as they are, and a complaint about them refuses the file.
        let read = if arithmetic { None } else { Some(scan::read(frame, tables, &header, behind)?) };
        let mut payload = payload.to_vec();
        let parameters = 1 + 2 * self.components_of_scan;
        if !progressive && let Some(parameters) = payload.get_mut(parameters..parameters + 3) {
            // All coefficients at once: other values mean nothing in a sequential file.
            if parameters != ALL_COEFFICIENTS {
                parameters.copy_from_slice(&ALL_COEFFICIENTS);
                self.tolerate(Tolerated::JpegScanHeader);
            }
        }
        self.put(START_OF_SCAN, &payload);
        let Some(read) = read else {
            let length = length_of_data(behind);
            self.mended.extend_from_slice(behind.get(..length)?);
            return Some(length);
        };
        if read.extra {
            self.tolerate(Tolerated::JpegExtraBytes);
        }
        if read.renumbered {
            self.tolerate(Tolerated::JpegRestartMarker);
        }
        self.mended.extend(read.data);
        Some(read.length)
    }
}

/// Bytes up to the next marker that ends a scan's data.
fn length_of_data(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some((marker, _, behind)) = next_marker(rest) {
        if !(0xd0..=0xd7).contains(&marker) {
            let fill = bytes.len() - behind.len() - 1;
            return bytes.get(..fill).map_or(0, |before| before.iter().rposition(|&byte| byte != 0xff).map_or(0, |last| last + 1));
        }
        rest = behind;
    }
    bytes.len()
}
