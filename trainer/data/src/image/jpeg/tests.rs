//! Copies of real files: one of each that is whole, none of any that lacks a bit. What is done with them is tested in `tests/image.rs`.

use std::{fs, path::Path};

use super::*;
use crate::image::lines::Whole;

/// The recorded JPEG files, by name.
fn files() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/image");
    let names = fs::read_dir(&folder).expect("the folder is listed").map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned()).filter(|name| name.starts_with("jpeg_"));
    let files: Vec<_> = names.map(|name| (name.clone(), fs::read(folder.join(&name)).expect("the file is read"))).collect();
    assert!(files.len() > 20);
    files
}

fn pixels(bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    let (mut pixels, mut staging) = (Vec::new(), Vec::new());
    Decoder::default().decode_clean(bytes, 1, &mut pixels, &mut staging).map(|()| pixels)
}

#[test]
fn the_copy_of_a_whole_file_has_the_same_pixels() {
    for (name, bytes) in files() {
        let copy = mend::mend(&bytes).unwrap_or_else(|| panic!("{name} is whole"));
        // Stuffing before the end is the one fault among them.
        let whole = bytes.clone();
        let expected = pixels(&whole).or_else(|_| pixels(&copy.bytes)).expect("one of them is decoded");
        assert_eq!(pixels(&copy.bytes).as_ref(), Ok(&expected), "{name}");
        assert_eq!(copy.cause, (name == "jpeg_stuffed_before_end.jpeg").then_some(Tolerated::JpegExtraBytes), "{name}");
        assert_eq!(copy.progressive, name.contains("progressive"), "{name}");
    }
}

/// What libjpeg makes of a part of the image at 1 / `reduction` of its size.
fn part_by_libjpeg(bytes: &[u8], reduction: u32, part: CropBox) -> Vec<u8> {
    let (mut pixels, mut staging) = (Vec::new(), Vec::new());
    Decoder::default().decode_clean(bytes, reduction, &mut pixels, &mut staging).expect("libjpeg decodes it");
    let width = frame(bytes).expect("it has a frame").columns.div_ceil(reduction) as usize;
    let rows = pixels.chunks_exact(3 * width).skip(part.top as usize).take(part.height as usize);
    rows.flat_map(|row| row.iter().skip(3 * part.left as usize).take(3 * part.width as usize).copied()).collect()
}

/// Fails unless the part has the pixels that libjpeg gives; says whether it was decoded without libjpeg.
fn check_part(baseline: &mut Baseline, bytes: &[u8], reduction: u32, part: CropBox) -> bool {
    let mut pixels = Vec::new();
    let decoded = baseline.decode(bytes, reduction as usize, part, &mut Whole::new(&mut pixels, (part.width, part.height))).is_some();
    if decoded {
        assert!(pixels == part_by_libjpeg(bytes, reduction, part), "1/{reduction}, {part}");
    }
    decoded
}

fn whole(bytes: &[u8], reduction: u32) -> CropBox {
    let frame = frame(bytes).expect("it has a frame");
    CropBox { top: 0, left: 0, height: frame.rows.div_ceil(reduction), width: frame.columns.div_ceil(reduction) }
}

/// Where the processor lacks the instructions libjpeg does all, and there is nothing to compare.
fn has_instructions() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2")
}

#[test]
fn usual_files_are_decoded_without_libjpeg_to_its_pixels_and_others_are_left_to_it() {
    let left = ["411", "cmyk", "progressive", "rgb", "stuffed_before_end", "ycck"];
    let mut baseline = Baseline::default();
    for (name, bytes) in files() {
        for reduction in [1, 2, 4, 8] {
            let decoded = check_part(&mut baseline, &bytes, reduction, whole(&bytes, reduction));
            let expected = has_instructions() && !left.iter().any(|part| name.contains(part));
            assert_eq!(decoded, expected, "{name} at 1/{reduction}");
        }
    }
}

/// Noise over a slope, so that blocks have few and many coefficients.
fn encoded(seed: u64, (width, height): (usize, usize), noise: u64, quality: i32, sampling: turbojpeg::Subsamp) -> Vec<u8> {
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let pixels: Vec<u8> = (0..3 * width * height).map(|place| ((place / 3 * 7 % 256) as u64 / 2 + random() % (noise + 1)) as u8).collect();
    let image = Image { pixels: pixels.as_slice(), width, pitch: 3 * width, height, format: PixelFormat::RGB };
    turbojpeg::compress(image, quality, sampling).expect("it is encoded").to_vec()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(96))]
    #[test]
    fn any_part_of_any_usual_file_has_the_pixels_that_libjpeg_gives(
        (seed, noise, quality, sampling) in (0..u64::MAX, 0..256_u64, 1..=100_i32, 0..5_usize),
        (width, height, reduction) in (1..90_usize, 1..90_usize, 0..4_u32),
        [top, left, bottom, right] in [0.0..1.0_f64, 0.0..1.0, 0.0..1.0, 0.0..1.0],
    ) {
        use turbojpeg::Subsamp;
        let sampling = [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Sub1x2, Subsamp::Gray][sampling];
        let (bytes, reduction) = (encoded(seed, (width, height), noise, quality, sampling), 1 << reduction);
        let CropBox { width, height, .. } = whole(&bytes, reduction);
        let along = |first: f64, second: f64, length: u32| {
            let place = |part: f64| (part * f64::from(length)) as u32;
            (place(first.min(second)), place(first.max(second)) + 1)
        };
        let ((top, bottom), (left, right)) = (along(top, bottom, height), along(left, right, width));
        let part = CropBox { top, left, height: bottom - top, width: right - left };
        assert_eq!(check_part(&mut Baseline::default(), &bytes, reduction, part), has_instructions());
    }

    #[test]
    fn a_damaged_file_is_left_to_libjpeg_or_has_the_pixels_that_it_gives_without_a_complaint(
        (seed, noise, sampling) in (0..u64::MAX, 0..256_u64, 0..3_usize),
        damage in proptest::collection::vec((0.0..1.0_f64, 1..256_u32), 1..4),
        cut in proptest::option::of(0.5..1.0_f64),
    ) {
        use turbojpeg::Subsamp;
        let sampling = [Subsamp::None, Subsamp::Sub2x2, Subsamp::Gray][sampling];
        let mut bytes = encoded(seed, (40, 40), noise, 70, sampling);
        if let Some(part) = cut {
            bytes.truncate((part * bytes.len() as f64) as usize);
        }
        let length = bytes.len() as f64;
        for (place, change) in damage {
            bytes[(place * length) as usize] ^= change as u8;
        }
        // The size may be damaged as well; such files are compared as a whole.
        if let Ok(frame) = frame(&bytes) && (1..2000).contains(&frame.columns) && (1..2000).contains(&frame.rows) {
            let part = whole(&bytes, 1);
            let mut pixels = Vec::new();
            if Baseline::default().decode(&bytes, 1, part, &mut Whole::new(&mut pixels, (part.width, part.height))).is_some() {
                let (mut expected, mut staging) = (Vec::new(), Vec::new());
                let decoded = Decoder::default().decode_clean(&bytes, 1, &mut expected, &mut staging);
                proptest::prop_assert!(decoded.is_ok(), "libjpeg finds fault with it: {decoded:?}");
                let size = 3 * part.width as usize * part.height as usize;
                proptest::prop_assert!(pixels[..size] == expected[..size]);
            }
        }
    }
}

#[test]
fn there_is_no_copy_of_a_file_that_lacks_data_wherever_it_was_cut() {
    for (name, bytes) in files() {
        // The data of these end before their last byte.
        if ["jpeg_stuffed_before_end.jpeg", "jpeg_trailing_bytes.jpeg"].contains(&name.as_str()) {
            continue;
        }
        // Behind the last scan's marker: before it the file ends with whole scans.
        let scan = 2 + bytes.windows(2).rposition(|pair| pair == [0xff, START_OF_SCAN]).expect("there is a scan");
        let end = bytes.len() - 2;
        for length in (scan..end).step_by((end - scan) / 97 + 1).chain([end - 1]) {
            let cut = [&bytes[..length], &[0xff, END_OF_IMAGE]].concat();
            assert!(mend::mend(&cut).is_none(), "{name}, {length} of {end} bytes");
            assert!(mend::mend(&bytes[..length]).is_none(), "{name}, {length} of {end} bytes without an end mark");
        }
    }
}
