//! Walking real archives: made by the tar crate, by hand for the dialects it does not write, and damaged in every place.

use std::path::PathBuf;

use super::*;

/// A file with these bytes in a folder of its own.
fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("a.tar");
    std::fs::write(&path, bytes).expect("a file is written");
    (folder, path)
}

fn members(path: &Path) -> Result<Vec<Member>, ShardError> {
    let mut members = Vec::new();
    walk(path, &open(path)?, |member| members.push(member))?;
    Ok(members)
}

fn header(name: &[u8], size: u64, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

fn padded(contents: &[u8]) -> Vec<u8> {
    let mut bytes = contents.to_vec();
    bytes.resize(contents.len().next_multiple_of(BLOCK as usize), 0);
    bytes
}

fn entry(header: &tar::Header, contents: &[u8]) -> Vec<u8> {
    [header.as_bytes().as_slice(), &padded(contents)].concat()
}

fn ended(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 2 * BLOCK as usize]].concat()
}

/// The members of `archive` are these names with these contents.
fn check(archive: &[u8], expected: &[(&str, &[u8])]) {
    let (_folder, path) = file(archive);
    let found = members(&path).expect("the archive is sound");
    let found: Vec<(String, &[u8])> = found
        .iter()
        .filter(|member| member.kind == MemberKind::File)
        .map(|member| {
            assert_eq!(name_at(&path, member.start).expect("the name is found again").as_bytes(), member.name);
            let contents = &archive[member.offset as usize..][..member.length as usize];
            (String::from_utf8_lossy(&member.name).into_owned(), contents)
        })
        .collect();
    assert_eq!(found.iter().map(|(name, contents)| (name.as_str(), *contents)).collect::<Vec<_>>(), expected);
}

fn regular(name: &str, contents: &[u8]) -> Vec<u8> {
    entry(&header(name.as_bytes(), contents.len() as u64, tar::EntryType::Regular), contents)
}

#[test]
fn plain_members_are_found_and_folders_and_links_are_passed_over() {
    let folder = entry(&header(b"a/", 0, tar::EntryType::Directory), b"");
    let link = entry(&header(b"b.jpg", 0, tar::EntryType::Link), b"");
    let archive = ended(&[folder, regular("a/1.jpg", b"one"), link, regular("a/1.txt", &[7; 512]), regular("a/2.txt", b"")]);
    check(&archive, &[("a/1.jpg", b"one"), ("a/1.txt", &[7; 512]), ("a/2.txt", b"")]);
}

#[test]
fn names_split_over_the_ustar_prefix_are_joined() {
    let mut split = header(b"1.txt", 2, tar::EntryType::Regular);
    split.as_ustar_mut().expect("a ustar header").prefix[..9].copy_from_slice(b"some/long");
    split.set_cksum();
    check(&ended(&[entry(&split, b"hi")]), &[("some/long/1.txt", b"hi")]);
}

#[test]
fn gnu_long_names_are_read() {
    let name = format!("{}/1.txt", "x".repeat(3000));
    let mut builder = tar::Builder::new(Vec::new());
    let mut entry = tar::Header::new_gnu();
    entry.set_size(2);
    builder.append_data(&mut entry, &name, b"hi".as_slice()).expect("the member is written");
    check(&builder.into_inner().expect("the archive is written"), &[(&name, b"hi")]);
}

#[test]
fn pax_names_and_sizes_override_the_header() {
    let name = format!("{}/ü.txt", "y".repeat(200));
    let record = |key: &str, value: &str| {
        // "LENGTH KEY=VALUE\n", where LENGTH counts itself; three digits here.
        let rest = format!(" {key}={value}\n");
        let length =
            [1, 2, 3].into_iter().map(|digits| rest.len() + digits).find(|length| length.to_string().len() + rest.len() == *length);
        format!("{}{rest}", length.expect("a length of at most three digits"))
    };
    let records = record("path", &name) + &record("size", "3");
    let global = entry(&header(b"g", 18, tar::EntryType::XGlobalHeader), b"18 comment=hello!\n");
    let extended = entry(&header(b"x", records.len() as u64, tar::EntryType::XHeader), records.as_bytes());
    let archive = ended(&[global, extended, entry(&header(b"short", 0, tar::EntryType::Regular), b"abc"), regular("1.txt", b"z")]);
    check(&archive, &[(&name, b"abc"), ("1.txt", b"z")]);
}

#[test]
fn an_archive_without_members_is_sound() {
    check(&ended(&[]), &[]);
}

#[test]
fn an_archive_cut_short_anywhere_is_an_error_that_names_it() {
    let archive = ended(&[regular("1.jpg", &[1; 700]), regular("1.txt", b"text")]);
    let content = archive.len() - 2 * BLOCK as usize;
    for length in 0..=content {
        let (_folder, path) = file(&archive[..length]);
        let error = members(&path).expect_err(&format!("{length} of {} bytes", archive.len()));
        let message = error.to_string();
        assert!(message.contains(path.to_str().expect("a path in UTF-8")), "{message}");
        match length {
            0 => assert!(matches!(error, ShardError::Empty { .. }), "{length}: {error:?}"),
            1..512 => assert!(matches!(error, ShardError::Truncated { offset: 0, needed: 512, .. }), "{length}: {error:?}"),
            512..1212 => assert!(matches!(error, ShardError::Truncated { offset: 0, needed: 1212, .. }), "{length}: {error:?}"),
            // Its contents are complete; only padding, or the next header, is missing.
            1212..=1536 => assert!(matches!(error, ShardError::NoEndMark { .. }), "{length}: {error:?}"),
            1537..2052 => assert!(matches!(error, ShardError::Truncated { offset: 1536, .. }), "{length}: {error:?}"),
            _ => assert!(matches!(error, ShardError::NoEndMark { .. }), "{length}: {error:?}"),
        }
    }
}

#[test]
fn what_is_no_archive_says_so() {
    for bytes in [vec![b'x'; 4096], b"\x1f\x8b\x08".repeat(1000), vec![0xff; 512]] {
        let (_folder, path) = file(&bytes);
        assert!(matches!(members(&path), Err(ShardError::NotTar { .. })));
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    assert!(matches!(open(folder.path()), Err(ShardError::NotAFile { .. })));
    // Nobody writes into it: to open it as usual would be to wait for ever.
    let pipe = folder.path().join("pipe.tar");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    assert!(matches!(open(&pipe), Err(ShardError::NotAFile { .. })));
    assert!(matches!(open(&folder.path().join("none.tar")), Err(ShardError::Missing { .. })));
}

/// Names of the files in a shard, and how many archives it is.
fn walked(bytes: &[u8]) -> Result<(Vec<String>, u64), ShardError> {
    let (_folder, path) = file(bytes);
    let mut names = Vec::new();
    let archives = walk(&path, &open(&path)?, |member| names.push(String::from_utf8_lossy(&member.name).into_owned()))?;
    Ok((names, archives))
}

#[test]
fn archives_that_were_joined_are_all_read_however_many_zeros_lie_between_them() {
    let first = [regular("1.jpg", &[1; 700]), regular("1.txt", b"one")].concat();
    let second = ended(&[regular("2.jpg", &[2; 300]), regular("2.txt", b"two")]);
    let names = |count: usize| ["1.jpg", "1.txt", "2.jpg", "2.txt"].map(str::to_owned)[..count].to_vec();
    // One block of zeros is a hole, two are an end mark, tar writes up to twenty, and more than are read at once may be there.
    for zeros in [1, 2, 3, 20, 129, 500] {
        let joined = [first.clone(), vec![0; zeros * 512], second.clone()].concat();
        assert_eq!(walked(&joined).expect("both are sound"), (names(4), 2), "{zeros} blocks of zeros");
        // Where its members lie is right, too.
        check(&joined, &[("1.jpg", &[1; 700]), ("1.txt", b"one"), ("2.jpg", &[2; 300]), ("2.txt", b"two")]);
    }
    let three = [ended(&[]), second.clone(), second.clone()].concat();
    assert_eq!(walked(&three).expect("all are sound").1, 3);
    for zeros in [0, 1, 511, 512, 100_000] {
        let padded = [ended(std::slice::from_ref(&first)), vec![0; zeros]].concat();
        assert_eq!(walked(&padded).expect("zeros are no data"), (names(2), 1), "{zeros} further zeros");
    }
}

#[test]
fn what_follows_the_end_and_is_no_archive_is_an_error_that_names_the_byte() {
    let archive = ended(&[regular("1.jpg", &[1; 700]), regular("1.txt", b"one")]);
    let end = archive.len() as u64 - 2 * BLOCK;
    // Text, one byte, the middle of a member, a header that lost its first block.
    let tails: [&[u8]; 4] = [b"a signature", b"\x01", &[7; 2000], &archive[512..]];
    for (tail, zeros) in tails.into_iter().flat_map(|tail| [0, 1, 512, 70_000].map(|zeros| (tail, zeros))) {
        let error = walked(&[archive.clone(), vec![0; zeros], tail.to_vec()].concat()).expect_err("data follow the end");
        let first = archive.len() as u64 + zeros as u64;
        assert!(matches!(error, ShardError::AfterEnd { offset, end: at, .. } if (offset, at) == (first, end)), "{zeros}: {error:?}");
        assert!(error.to_string().contains(&format!("byte {first}")), "{error}");
    }
    // A second archive that is cut short is an error as the first is.
    let cut = [archive.clone(), archive[..1300].to_vec()].concat();
    assert!(matches!(walked(&cut), Err(ShardError::NoEndMark { .. } | ShardError::Truncated { .. })));
    let offset = archive.len() as u64;
    let cut = [archive.clone(), archive[..900].to_vec()].concat();
    assert!(matches!(walked(&cut), Err(ShardError::Truncated { offset: at, .. }) if at == offset));
}

#[test]
fn links_and_sparse_files_are_seen_but_marked() {
    let link = |kind| entry(&header(b"1.jpg", 0, kind), b"");
    for kind in [tar::EntryType::Link, tar::EntryType::Symlink] {
        let (_folder, path) = file(&ended(&[link(kind), regular("1.txt", b"one")]));
        let kinds: Vec<MemberKind> = members(&path).expect("the archive is sound").iter().map(|member| member.kind).collect();
        assert_eq!(kinds, [MemberKind::Elsewhere, MemberKind::File]);
    }
}

#[test]
fn a_damaged_header_is_named_with_its_offset() {
    let mut archive = ended(&[regular("1.jpg", &[1; 700]), regular("1.txt", b"text")]);
    archive[1536 + 20] ^= 1;
    let (_folder, path) = file(&archive);
    assert!(matches!(members(&path), Err(ShardError::Damaged { offset: 1536, .. })));
}

#[test]
fn the_writer_gives_the_same_bytes_every_time_and_what_it_wrote_is_read_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let long = format!("deep/{}", "k".repeat(150));
    let write = |name: &str| {
        let path = folder.path().join(name);
        let mut writer = ShardWriter::create(&path).expect("the shard is begun");
        writer.append("000", Some((ImageKind::Png, b"pixels")), Some("a caption")).expect("a sample is written");
        writer.append("001", None, Some("")).expect("a sample is written");
        writer.append(&long, Some((ImageKind::Webp, &[0; 1000])), None).expect("a sample is written");
        assert!(!path.exists(), "it has its name only when it is complete");
        writer.finish().expect("the shard is finished");
        std::fs::read(&path).expect("the shard is read")
    };
    let bytes = write("a.tar");
    assert_eq!(bytes, write("b.tar"));
    check(&bytes, &[("000.png", b"pixels"), ("000.txt", b"a caption"), ("001.txt", b""), (&format!("{long}.webp"), &[0; 1000])]);
    // Recorded: shards written by another release of this program have the same identity.
    assert_eq!(blake3::hash(&bytes).to_hex().as_str(), "af7861ea6530034c982e9ec9f4ab87fbcf47bd653adfcae7228d9d041e3a0240");
}

#[test]
fn an_unfinished_shard_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut writer = ShardWriter::create(&folder.path().join("a.tar")).expect("the shard is begun");
    writer.append("0", None, Some("text")).expect("a sample is written");
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder is listed").count(), 0);
}

#[test]
fn keys_that_would_not_come_back_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut writer = ShardWriter::create(&folder.path().join("a.tar")).expect("the shard is begun");
    for key in ["", "a.b", "/a", "a/", "a//b", "../a", ".a", "__meta__/a", "a\0"] {
        let error = writer.append(key, None, Some("text")).expect_err(key);
        assert!(matches!(error, WriteError::Key { .. }), "{key}: {error:?}");
    }
    writer.append("a.b/c", None, Some("text")).expect("a dot in a folder's name is fine");
}
