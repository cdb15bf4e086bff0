use std::{fs, ops::Range, sync::Arc, thread, time::Duration};

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::Method;
use object_store::{ObjectStore, ObjectStoreExt, aws::AmazonS3, path::Path};

use super::{Count, Fault, Gate, Proxy, Rule};
use crate::s3::Server;

/// Needs percent signs on the way, which a signature covers.
const KEY: &str = "a folder/ö+x.tar";
/// The same as a pattern of paths.
const PATH: &str = "/runs/*x.tar";
const LENGTH: u64 = 300_000;

fn start() -> (Arc<Server>, Proxy, AmazonS3) {
    let server = Arc::new(Server::start().unwrap());
    let proxy = Proxy::start(server.address()).unwrap();
    let client = Server::client_at(&proxy.url()).unwrap();
    (server, proxy, client)
}

fn content(salt: u8) -> Bytes {
    (0..LENGTH).map(|at| (at % 251) as u8 ^ salt).collect()
}

async fn range(client: &AmazonS3, range: Range<u64>) -> object_store::Result<Bytes> {
    client.get_range(&Path::parse(KEY).unwrap(), range).await
}

/// What came before the end or an error, and the error.
async fn whole(client: &AmazonS3) -> (Vec<u8>, Option<object_store::Error>) {
    let mut bytes = Vec::new();
    let mut stream = match client.get(&Path::parse(KEY).unwrap()).await {
        Ok(answer) => answer.into_stream(),
        Err(error) => return (bytes, Some(error)),
    };
    loop {
        match stream.try_next().await {
            Ok(Some(piece)) => bytes.extend(piece),
            Ok(None) => return (bytes, None),
            Err(error) => return (bytes, Some(error)),
        }
    }
}

#[tokio::test]
async fn signed_requests_pass_the_proxy_and_come_to_the_harm_that_rules_say_in_their_order() {
    let (_server, proxy, client) = start();
    let content = content(0);
    client.put(&Path::parse(KEY).unwrap(), content.clone().into()).await.unwrap();
    let gate = Gate::default();
    let faults = [
        Fault::Status(500),
        Fault::SlowDown,
        Fault::Reset,
        Fault::Cut { after: 0 },
        Fault::Cut { after: 1 },
        Fault::Cut { after: LENGTH - 1 },
        Fault::Shorten { to: LENGTH - 1 },
        Fault::Flip { at: 70_000 },
        Fault::DelayHead(Duration::from_millis(1)),
        Fault::Throttle { bytes_per_second: 100 * LENGTH },
        Fault::HoldHead(gate.clone()),
    ];
    for (place, fault) in (0..).zip(faults) {
        proxy.add(Rule::new(PATH, fault).unwrap().method(Method::GET).occurrences(place..place + 1));
    }
    let said = |result: (Vec<u8>, Option<object_store::Error>)| format!("{:?}", result.1.expect("an error"));
    let status = said(whole(&client).await);
    assert!(status.contains("500"), "{status}");
    let slow_down = said(whole(&client).await);
    assert!(slow_down.contains("503") && slow_down.contains("<Code>SlowDown</Code>"), "{slow_down}");
    said(whole(&client).await);
    for length in [0, 1, LENGTH - 1] {
        let (bytes, error) = whole(&client).await;
        assert_eq!(bytes, content[..length as usize]);
        assert!(error.is_some(), "cut after {length}");
    }
    let (shorter, error) = whole(&client).await;
    assert!(error.is_none() && shorter == content[..LENGTH as usize - 1], "{error:?}");
    let (flipped, error) = whole(&client).await;
    assert!(error.is_none(), "{error:?}");
    let differ: Vec<usize> = (0..LENGTH as usize).filter(|at| flipped[*at] != content[*at]).collect();
    assert_eq!((differ.as_slice(), flipped[70_000]), ([70_000].as_slice(), content[70_000] ^ 1));
    // What is only late comes whole.
    let opening = thread::spawn(move || {
        gate.await_arrivals(1);
        gate.open();
    });
    for _ in 0..3 {
        let (late, error) = whole(&client).await;
        assert!(error.is_none() && late == content, "{error:?}");
    }
    opening.join().unwrap();
    // The next comes to no harm; nor did the upload, nor does a question for the head.
    assert_eq!(range(&client, 10..20).await.unwrap(), content[10..20]);
    assert_eq!(client.head(&Path::parse(KEY).unwrap()).await.unwrap().size, LENGTH);
    let records = proxy.requests();
    let statuses: Vec<_> = records.iter().map(|record| (record.head.method.as_str(), record.status)).collect();
    let gets = [Some(500), Some(503), None].into_iter().chain([Some(200); 8]).chain([Some(206)]).map(|status| ("GET", status));
    let expected: Vec<_> = [("PUT", Some(200))].into_iter().chain(gets).chain([("HEAD", Some(200))]).collect();
    assert_eq!(statuses, expected);
    assert_eq!(records[12].head.range.as_deref(), Some("bytes=10-19"));
    let slow_down_bytes = records[2].bytes;
    let sum = Count { requests: 12, bytes: slow_down_bytes + 1 + 2 * (LENGTH - 1) + 4 * LENGTH + 10 };
    assert_eq!(proxy.count(&Method::GET, PATH).unwrap(), sum);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_disappears_cuts_what_is_under_way_and_is_found_again_at_its_address() {
    let (server, proxy, client) = start();
    server.put(KEY, content(0)).unwrap();
    let gate = Gate::default();
    proxy.add(Rule::new(PATH, Fault::HoldBody { after: 1000, gate: gate.clone() }).unwrap().occurrences(0..1));
    let under_way = tokio::spawn(async move { (whole(&client).await, client) });
    tokio::task::block_in_place(|| gate.await_arrivals(1));
    proxy.disappear().unwrap();
    let ((bytes, error), client) = under_way.await.unwrap();
    assert!(bytes.len() <= 1000 && error.is_some(), "{} bytes, {error:?}", bytes.len());
    let refused = format!("{:?}", range(&client, 0..10).await.unwrap_err());
    assert!(refused.contains("ConnectionRefused"), "{refused}");
    proxy.come_back().unwrap();
    assert_eq!(range(&client, 0..10).await.unwrap(), content(0)[..10]);
    assert_eq!(proxy.requests().len(), 2, "a refused connection is no request");
}

#[tokio::test]
async fn an_object_can_be_changed_once_a_number_of_its_bytes_were_served() {
    let (server, proxy, client) = start();
    server.put(KEY, content(0)).unwrap();
    let old = client.head(&Path::parse(KEY).unwrap()).await.unwrap();
    let changing = server.clone();
    proxy.after_bytes(PATH, 1500, move || changing.put(KEY, content(7)).unwrap()).unwrap();
    assert_eq!(range(&client, 0..1000).await.unwrap(), content(0)[..1000]);
    assert_eq!(range(&client, 1000..1500).await.unwrap(), content(0)[1000..1500]);
    // This one was under way: the server had opened the old object.
    assert_eq!(range(&client, 1500..2000).await.unwrap(), content(0)[1500..2000]);
    assert_eq!(range(&client, 2000..2500).await.unwrap(), content(7)[2000..2500]);
    assert_ne!(client.head(&Path::parse(KEY).unwrap()).await.unwrap().e_tag, old.e_tag);
}

#[tokio::test]
async fn the_server_lists_2500_objects_in_pages_of_1000() {
    let (server, proxy, client) = start();
    let folder = server.objects("many");
    fs::create_dir(&folder).unwrap();
    for number in 0..2500 {
        fs::write(folder.join(format!("{number:05}.tar")), b"").unwrap();
    }
    let listed: Vec<_> = client.list(Some(&Path::from("many"))).try_collect().await.unwrap();
    assert_eq!(listed.len(), 2500);
    let pages = proxy.requests().iter().filter(|record| record.head.query.contains("list-type=2")).count();
    assert_eq!(pages, 3);
}
