use std::{
    fs,
    io::{Cursor, Write},
    path::PathBuf,
};

use proptest::prelude::*;
use tempfile::TempDir;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::*;

/// A zip archive of these members.
fn zipped(members: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        archive.start_file(*name, SimpleFileOptions::default().compression_method(method)).expect("a member begins");
        archive.write_all(bytes).expect("memory takes all");
    }
    archive.finish().expect("memory takes all").into_inner()
}

/// A file of this name in a folder of its own.
fn file(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    fs::write(&path, bytes).expect("a file");
    (folder, path)
}

/// The lines that a walk over a whole shard gives, where they are, and what it came by.
fn walked(path: &Path) -> (Vec<Vec<u8>>, Vec<Extent>, Walked) {
    let (mut lines, mut extents) = (Vec::new(), Vec::new());
    let walked = walk(path, |line| {
        lines.push(line.bytes().expect("the line is short").to_vec());
        extents.push(line.extent);
    });
    (lines, extents, walked.expect("the shard is whole"))
}

/// `text` as a shard of every kind.
fn shards(text: &[u8]) -> Vec<(TempDir, PathBuf)> {
    let mut other = vec![0; 100];
    other.extend_from_slice(text);
    vec![
        file("docs_shard_3_v2.jsonl", text),
        file("docs_shard_3_v2.jsonl.zip", &zipped(&[("docs_shard_3_v2.jsonl", text)], CompressionMethod::Deflated)),
        file("docs_shard_3_v2.jsonl.ZIP", &zipped(&[("docs_shard_3_v2.jsonl", text)], CompressionMethod::Stored)),
        file("renamed.zip", &zipped(&[("folder/", b""), ("folder/docs_shard_3_v2.jsonl", text)], CompressionMethod::Deflated)),
        file("no_extension", &zipped(&[("any", text)], CompressionMethod::Deflated)),
        file(
            "docs_shard_3_v2.jsonl.zip",
            &zipped(&[("README", b"x"), ("docs_shard_3_v2.jsonl", text), ("z", &other)], CompressionMethod::Deflated),
        ),
    ]
}

#[test]
fn lines_are_found_where_they_are_in_every_kind_of_shard() {
    for text in ["{\"a\":1}\n{\"b\":\"\u{e9}\"}\r\n\nlast", "{\"a\":1}\n{\"b\":\"\u{e9}\"}\r\n\nlast\n"] {
        for (_folder, path) in shards(text.as_bytes()) {
            let (lines, extents, walked) = walked(&path);
            let expected: [&[u8]; 4] = [b"{\"a\":1}", b"{\"b\":\"\xc3\xa9\"}\r", b"", b"last"];
            assert_eq!(lines, expected, "{}", path.display());
            assert_eq!((walked.lines, walked.bytes), (4, text.len() as u64));
            for (extent, line) in extents.iter().zip(&lines) {
                let range = extent.offset as usize..(extent.offset + extent.length) as usize;
                assert_eq!(&text.as_bytes()[range], line.as_slice());
            }
            assert_eq!(extents.iter().map(|extent| extent.number).collect::<Vec<_>>(), [0, 1, 2, 3]);
        }
    }
}

#[test]
fn an_empty_shard_has_no_line() {
    for (_folder, path) in shards(b"") {
        assert_eq!(walked(&path).2, Walked { lines: 0, bytes: 0 });
    }
}

#[test]
fn lines_can_be_asked_for_in_any_order_and_twice() {
    for (_folder, path) in shards(b"zero\none\ntwo\n\nfour") {
        let (_, extents, _) = walked(&path);
        let wanted = [extents[4], extents[1], extents[4], extents[3]];
        let mut got = vec![Vec::new(); 4];
        read_lines(&path, &wanted, |index, line| {
            assert_eq!(line.extent, wanted[index]);
            got[index] = line.bytes().expect("the line is short").to_vec();
        })
        .expect("the lines are there");
        assert_eq!(got, [&b"four"[..], b"one", b"four", b""]);
        read_lines(&path, &[], |_, _| panic!("nothing was asked for")).expect("nothing to do");
    }
}

#[test]
fn an_index_of_another_shard_is_noticed() {
    let at = |offset, length| Extent { number: 1, offset, length };
    for (_folder, path) in shards(b"zero\none\ntwo") {
        for wanted in [vec![at(5, 2)], vec![at(4, 4)], vec![at(9, 4)], vec![at(40, 1)], vec![at(0, 4), at(2, 2)], vec![at(5, u64::MAX)]] {
            let error = read_lines(&path, &wanted, |_, _| {}).expect_err("no line is there");
            assert!(matches!(error, ShardError::Changed { number: 1, .. }), "{wanted:?}: {error}");
        }
    }
}

#[test]
fn a_line_beyond_the_limit_is_passed_over_without_being_kept() {
    let limit = usize::try_from(LINE_BYTES_LIMIT).expect("a limit in memory");
    let mut text = vec![b'x'; limit + 1];
    text.extend_from_slice(b"\nshort");
    let (_folder, path) = file("a.zip", &zipped(&[("a", &text)], CompressionMethod::Deflated));
    let mut extents = Vec::new();
    let mut record = Record::new();
    walk(&path, |line| {
        extents.push(line.extent);
        let fault = line.parse(&mut record).expect_err("no line is a document").fault;
        assert_eq!(fault, if line.extent.number == 0 { LineFault::TooLong } else { LineFault::NotAnObject });
        assert_eq!(line.bytes().is_none(), line.extent.number == 0);
    })
    .expect("the shard is whole");
    assert_eq!(extents[1], Extent { number: 1, offset: LINE_BYTES_LIMIT + 2, length: 5 });
    let mut read = Vec::new();
    read_lines(&path, &extents, |_, line| read.push(line.bytes().map(<[u8]>::len))).expect("the lines are there");
    assert_eq!(read, [None, Some(5)]);
}

/// Walks a file of this name and these bytes; the error says all of `parts`.
fn check_error(name: &str, bytes: &[u8], parts: &[&str]) -> ShardError {
    let (_folder, path) = file(name, bytes);
    let error = walk(&path, |_| {}).expect_err("the shard is not whole");
    let message = error.to_string();
    assert!(message.contains(path.to_str().expect("a plain name")), "{message}");
    for part in parts {
        assert!(message.contains(part), "{message} lacks {part}");
    }
    error
}

/// Text that hardly shrinks, so that its archive is long enough to be cut and damaged anywhere.
fn text() -> Vec<u8> {
    let mut random = crate::random::SlotRandom::new(1, 2, 3, crate::random::Stream::Crop);
    (0..20_000).map(|at| if at % 100 == 99 { b'\n' } else { b' ' + (random.bits() % 90) as u8 }).collect()
}

#[test]
fn an_archive_that_is_cut_short_is_an_error_wherever_the_cut_is() {
    let whole = zipped(&[("a.jsonl", &text())], CompressionMethod::Deflated);
    for length in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        let error = check_error("a.jsonl.zip", &whole[..length], &["copy or download it again"]);
        assert!(matches!(error, ShardError::NotZip { .. }), "{length}: {error}");
        assert!(error.io().is_none());
    }
}

#[test]
fn damaged_data_never_pass_for_a_whole_shard() {
    let text = text();
    for method in [CompressionMethod::Deflated, CompressionMethod::Stored] {
        let whole = zipped(&[("a.jsonl", &text)], method);
        // Behind the local header (30 bytes and the name), before the directory.
        for at in (40..15_000).step_by(701) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            let error = check_error("a.jsonl.zip", &damaged, &["member a.jsonl", "copy or download"]);
            assert!(matches!(error, ShardError::Damaged { .. }), "{at}: {error}");
        }
    }
}

#[test]
fn a_wrong_check_sum_is_found_at_the_end() {
    let mut bytes = zipped(&[("a.jsonl", b"{}\n{}\n")], CompressionMethod::Stored);
    let at = bytes.windows(4).position(|window| window == b"{}\n{").expect("stored as it is");
    bytes[at] = b'[';
    let error = check_error("a.jsonl.zip", &bytes, &["member a.jsonl", "at or before byte 6"]);
    assert!(matches!(error, ShardError::Damaged { .. }), "{error}");
}

#[test]
fn an_archive_of_other_members_is_refused_with_their_names() {
    let members: [(&str, &[u8]); 5] = [("1.jsonl", b"x"), ("2.jsonl", b"x"), ("3.jsonl", b"x"), ("4.jsonl", b"x"), ("folder/", b"")];
    let error = check_error(
        "docs.jsonl.zip",
        &zipped(&members, CompressionMethod::Deflated),
        &["has no member docs.jsonl", "4 (1.jsonl, 2.jsonl, 3.jsonl, …)", "pack that member alone"],
    );
    assert!(matches!(error, ShardError::NoMember { .. }));
    check_error("docs.jsonl.zip", &zipped(&[], CompressionMethod::Stored), &["has no member docs.jsonl", "none instead"]);
}

#[test]
fn a_member_packed_in_another_way_is_refused_with_what_to_do() {
    let whole = zipped(&[("a.jsonl", b"{}")], CompressionMethod::Stored);
    let directory = whole.windows(4).position(|window| window == b"PK\x01\x02").expect("a directory");
    // In both headers (APPNOTE 4.3.7 and 4.3.12): the flag of encryption, then method 14, LZMA.
    for (local, central, value) in [(6, 8, 1), (8, 10, 14)] {
        let mut bytes = whole.clone();
        bytes[local] |= value;
        bytes[directory + central] |= value;
        let error = check_error("a.jsonl.zip", &bytes, &["member a.jsonl", "with deflate and without password"]);
        assert!(matches!(error, ShardError::Packing { .. }), "{error}");
    }
}

#[test]
fn what_is_no_file_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(matches!(walk(folder.path(), |_| {}), Err(ShardError::NotAFile { .. })));
    let error = walk(&folder.path().join("none.zip"), |_| {}).expect_err("there is none");
    assert!(matches!(error, ShardError::Missing { .. }), "{error}");
    check_error("plain.jsonl.zip", b"{}\n{}\n", &["must not end in .zip"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_walked_and_read_line_by_line(text in "([a-z]{0,9}|\\n|\u{e9}{0,3}|[0-9]{0,2000}){0,40}", order in any::<u64>()) {
        let mut expected: Vec<&str> = text.split('\n').collect();
        if expected.last() == Some(&"") {
            expected.pop();
        }
        for (_folder, path) in shards(text.as_bytes()) {
            let (lines, mut extents, _) = walked(&path);
            prop_assert_eq!(&lines, &expected.iter().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>());
            let turn = order as usize % extents.len().max(1);
            extents.rotate_left(turn);
            let mut read = vec![None; extents.len()];
            read_lines(&path, &extents, |index, line| read[index] = line.bytes().map(<[u8]>::to_vec)).expect("the lines are there");
            for (extent, line) in extents.iter().zip(read) {
                prop_assert_eq!(&line.expect("every line is visited"), &lines[extent.number as usize]);
            }
        }
    }
}
