use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
};

use anyhow::Result;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, aws::AmazonS3Builder, path::Path};

use super::{Change, Counts, Headers, Options, Shape, ShardServer};

fn start(shape: Shape) -> (ShardServer, impl ObjectStore) {
    let server = ShardServer::start(Options { shape, ..Options::default() }).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = AmazonS3Builder::new().with_endpoint(server.url()).with_allow_http(true).with_skip_signature(true);
    let client = builder.with_bucket_name("laion").with_region("any").build().unwrap();
    (server, client)
}

/// What comes for a plain GET with these headers: the head, and the body.
fn plain(server: &ShardServer, path: &str, headers: &str) -> Result<(String, Vec<u8>)> {
    let mut connection = TcpStream::connect(server.address())?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    Ok((String::from_utf8(answer[..end].to_vec())?, answer[end..].to_vec()))
}

#[tokio::test]
async fn a_shard_is_an_archive_that_tar_reads_and_its_ranges_are_parts_of_it() {
    for headers in [Headers::Pax, Headers::Ustar] {
        let jpegs = vec![Bytes::from(vec![1; 700]), Bytes::from(vec![2; 1024])];
        let (server, client) = start(Shape { seed: 5, shards: 3, samples: 40, headers, jpegs, real_shards: 2..3 });
        for number in [1, 2] {
            let path = Path::from(format!("laion-400m/0000{number}.tar"));
            let whole = client.get(&path).await.unwrap().bytes().await.unwrap();
            let shard = server.shard(number);
            assert_eq!(whole.len() as u64, shard.length());
            assert_eq!(plain(&server, &format!("/laion/{path}"), "").unwrap().1, whole);
            // GNU tar finds the members that the layout says, with their bytes.
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("a.tar"), &whole).unwrap();
            let tar = Command::new("tar").args(["-xvf", "a.tar"]).current_dir(folder.path()).output().unwrap();
            assert!(tar.status.success() && tar.stderr.is_empty(), "{tar:?}");
            let members: Vec<_> = (0..40).flat_map(|sample| shard.members(sample)).collect();
            let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
            assert_eq!(String::from_utf8(tar.stdout).unwrap().lines().collect::<Vec<_>>(), names);
            assert_eq!((names[0], names[119]), (&*format!("0000{number}0000.jpg"), &*format!("0000{number}0039.txt")));
            for member in &members {
                let body = fs::read(folder.path().join(&member.name)).unwrap();
                assert_eq!(body, whole[member.body.start as usize..member.body.end as usize], "{}", member.name);
            }
            let read = |member: usize| fs::read(folder.path().join(names[member])).unwrap();
            if number == 2 {
                assert!([700, 1024].contains(&read(0).len()) && read(0)[0] < 3, "a real one");
            }
            let note: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&read(1)).unwrap();
            assert_eq!(note["caption"].as_str().unwrap().as_bytes(), read(2));
            assert_eq!(note["key"], shard.key(0));
            let mut random = fastrand::Rng::with_seed(1);
            let ranges: Vec<_> = (0..300)
                .map(|_| {
                    let begin = random.u64(0..shard.length());
                    begin..random.u64(begin + 1..=shard.length().min(begin + 5000))
                })
                .collect();
            for range in &ranges {
                assert_eq!(shard.bytes(range.clone()), whole[range.start as usize..range.end as usize], "{range:?}");
            }
            for (range, bytes) in ranges[..20].iter().zip(client.get_ranges(&path, &ranges[..20]).await.unwrap()) {
                assert_eq!(bytes, whole[range.start as usize..range.end as usize], "{range:?}");
            }
        }
    }
}

#[test]
fn ranges_and_conditions_are_answered_as_http_says() {
    let (server, _) = start(Shape { shards: 1, samples: 3, ..Shape::default() });
    let (length, e_tag) = (server.shard(0).length(), server.shard(0).e_tag());
    let whole = server.shard(0).bytes(0..length);
    let status = |headers: &str| {
        let (head, body) = plain(&server, "/laion/laion-400m/00000.tar", headers).unwrap();
        assert!(body.is_empty() || head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        let range = head.lines().find_map(|line| line.strip_prefix("content-range: ")).unwrap_or_default().to_owned();
        (head[9..12].to_owned(), range, Bytes::from(body))
    };
    let part = |range: &str, bytes: Bytes| ("206".to_owned(), format!("bytes {range}/{length}"), bytes);
    let last = length - 1;
    assert_eq!(status("Range: bytes=600-699\r\n"), part("600-699", whole.slice(600..700)));
    assert_eq!(status("Range: bytes=700-\r\n"), part(&format!("700-{last}"), whole.slice(700..)));
    assert_eq!(status("Range: bytes=-1100\r\n"), part(&format!("{}-{last}", length - 1100), whole.slice(length as usize - 1100..)));
    assert_eq!(status(&format!("Range: bytes=0-{}\r\n", length + 5)), part(&format!("0-{last}"), whole.clone()));
    assert_eq!(status(&format!("Range: bytes={length}-\r\n")), ("416".to_owned(), format!("bytes */{length}"), Bytes::new()));
    assert_eq!(status("Range: bytes=5-4\r\n"), ("200".to_owned(), String::new(), whole.clone()));
    assert_eq!(status("If-Match: \"other\"\r\n").0, "412");
    assert_eq!(status(&format!("If-None-Match: {e_tag}\r\n")).0, "304");
    assert_eq!(status(&format!("If-Range: {e_tag}\r\nRange: bytes=0-0\r\n")).0, "206");
    server.change(0, Change::Bytes);
    assert_eq!(status(&format!("If-Range: {e_tag}\r\nRange: bytes=0-0\r\n")).0, "200");
    assert_eq!(status(&format!("If-Match: {e_tag}\r\nRange: bytes=0-0\r\n")).0, "412");
    assert_eq!(plain(&server, "/laion/laion-400m/00001.tar", "").unwrap().0[..12], *"HTTP/1.1 404");
}

#[tokio::test]
async fn a_bucket_is_listed_in_pages_and_its_changes_are_seen() {
    let (server, client) = start(Shape { shards: 2_500, ..Shape::default() });
    let list = async || -> Vec<_> { client.list(Some(&Path::from("laion-400m"))).try_collect().await.unwrap() };
    let before = list().await;
    assert_eq!(server.counts(), Counts { listings: 3, ..Counts::default() });
    assert_eq!((before.len(), before[2_499].location.as_ref()), (2_500, "laion-400m/02499.tar"));
    server.change(7, Change::Bytes);
    server.change(8, Change::Sizes);
    server.change(9, Change::Removed);
    let after = list().await;
    assert_eq!((after.len(), &after[..7], &after[9..]), (2_499, &before[..7], &before[10..]));
    assert_eq!(after[7].size, before[7].size);
    assert_ne!(after[8].size, before[8].size);
    for changed in [7, 8] {
        assert_ne!(after[changed].e_tag, before[changed].e_tag);
        assert!(after[changed].last_modified > before[changed].last_modified);
        assert_eq!(client.head(&after[changed].location).await.unwrap(), after[changed]);
    }
    assert_eq!(client.list_with_delimiter(None).await.unwrap().common_prefixes, [Path::from("laion-400m")]);
    assert!(matches!(client.head(&before[9].location).await.unwrap_err(), object_store::Error::NotFound { .. }));
}

#[test]
fn all_shards_together_have_the_papers_size() {
    let server = ShardServer::start(Options::default()).unwrap();
    let lengths = (0..41_000).map(|shard| server.shard(shard).length());
    let bytes: u64 = lengths.sum();
    // 407 million samples of 20 kB, of a caption and of a note, which take a block or two; with three blocks of headers each.
    let samples = 41_000 * 9_934;
    assert!((24_000 * samples..28_000 * samples).contains(&bytes), "{bytes}");
}
