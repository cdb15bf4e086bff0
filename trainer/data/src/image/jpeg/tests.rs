//! Copies of real files: one of each that is whole, none of any that lacks a bit. What is done with them is tested in `tests/image.rs`.

use std::{fs, path::Path};

use super::*;

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
