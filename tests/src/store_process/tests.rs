use std::fs;

use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};

use crate::{azure, fault_proxy::Proxy, gcs};

/// A folder of two files in it and one below.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    for (name, content) in [("0.tar", "zero"), ("1.tar", "first"), ("b/2 +ö.tar", "second")] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

/// What a reader of data asks of a store whose `data/` is [`folder`].
async fn ask(client: &dyn ObjectStore, put: impl Fn(&str, &'static str)) {
    let mut listed: Vec<_> = client.list(Some(&Path::from("data"))).try_collect().await.unwrap();
    listed.sort_by(|a, b| a.location.cmp(&b.location));
    let names: Vec<_> = listed.iter().map(|object| (object.location.to_string(), object.size)).collect();
    assert_eq!(names, [("data/0.tar", 4), ("data/1.tar", 5), ("data/b/2 +ö.tar", 6)].map(|(name, size)| (name.to_owned(), size)));
    let level = client.list_with_delimiter(Some(&Path::from("data"))).await.unwrap();
    assert_eq!((level.objects.len(), level.common_prefixes), (2, vec![Path::from("data/b")]));
    for object in &listed {
        let head = client.head(&object.location).await.unwrap();
        assert_eq!((head.size, head.e_tag.is_some()), (object.size, true));
        assert_eq!(client.get_range(&object.location, 1..3).await.unwrap().len(), 2);
    }
    let first = Path::from("data/1.tar");
    assert_eq!(client.get_range(&first, 1..4).await.unwrap(), "irs");
    assert_eq!(client.get_ranges(&first, &[0..1, 4..5]).await.unwrap(), ["f", "t"]);
    let old = client.head(&first).await.unwrap();
    put("data/1.tar", "other");
    let new = client.head(&first).await.unwrap();
    assert_ne!(old.e_tag, new.e_tag);
    let missing = client.get_range(&Path::from("data/9.tar"), 0..1).await.unwrap_err();
    assert!(matches!(missing, object_store::Error::NotFound { .. }), "{missing:?}");
}

#[tokio::test]
async fn a_folder_put_into_a_google_bucket_is_listed_and_read_in_ranges() {
    let server = gcs::Server::start().unwrap();
    server.put_folder("data", folder().path()).unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    ask(&gcs::Server::client_at(&proxy.url()).unwrap(), |key, bytes| server.put(key, bytes).unwrap()).await;
}

#[tokio::test]
async fn a_folder_put_into_an_azure_container_is_listed_and_read_in_ranges() {
    let server = azure::Server::start().unwrap();
    server.put_folder("data", folder().path()).unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    ask(&azure::Server::client_at(&proxy.url()).unwrap(), |key, bytes| server.put(key, bytes).unwrap()).await;
}
