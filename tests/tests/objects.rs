//! Data in an object store: a real S3 server behind a proxy that does to its answers what networks do.
//!
//! Stores take their address and credentials from the environment, so data sets are read by this test program run again. What it prints is a
//! digest of every sample, and of what it asked for; a file on a disk gives the digest that is right.

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use http::Method;
use lcl_data::{
    Dataset, Loader, LoaderOptions,
    dataset::Reading,
    shard::{ImageKind, ListOrigin, ShardWriter},
};
use lcl_tests::{
    azure,
    data::{mmc4, obelics, write_shard as write_drawn},
    fault_proxy::{Fault, Gate, Proxy, Rule},
    gcs,
    s3::Server,
};
use lcl_trainer_config::{CacheConfig, DataConfig, DataSource, MixedSource, MixtureConfig, MixtureUnit, Objective, Preset};

/// Bytes of an image. A shard of 200 is more than two chunks of the cache.
const IMAGE: usize = 50_000;
const SAMPLES: u64 = 200;
const SHARDS: usize = 3;

/// A shard whose images differ in every byte from those of others.
fn write_shard(path: &Path, seed: u64, samples: u64) -> Result<()> {
    let mut writer = ShardWriter::create(path)?;
    for sample in 0..samples {
        let mut image = vec![0; IMAGE];
        blake3::Hasher::new().update(&[seed.to_le_bytes(), sample.to_le_bytes()].concat()).finalize_xof().fill(&mut image);
        writer.append(&format!("{sample:04}"), Some((ImageKind::Jpg, &image)), Some(&format!("caption {sample} of {seed}")))?;
    }
    writer.finish()?;
    Ok(())
}

/// A server with shards, a proxy before it, and the same shards in a folder.
struct Stage {
    server: Server,
    proxy: Proxy,
    folder: tempfile::TempDir,
}

/// What a reading process has found.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    digest: String,
    bytes: u64,
}

impl Stage {
    fn new() -> Result<Self> {
        let (server, folder) = (Server::start()?, tempfile::tempdir()?);
        let shards = folder.path().join("shards");
        std::fs::create_dir(&shards)?;
        for shard in 0..SHARDS {
            write_shard(&shards.join(format!("{shard:05}.tar")), shard as u64, SAMPLES)?;
        }
        server.put_folder("data", &shards)?;
        let proxy = Proxy::start(server.address())?;
        Ok(Self { server, proxy, folder })
    }

    fn local(&self) -> String {
        format!("{}/shards/{{00000..00002}}.tar", self.folder.path().display())
    }

    fn uri() -> String {
        format!("{}/{{00000..00002}}.tar", Server::uri("data"))
    }

    /// All bytes of the shards.
    fn size(&self) -> Result<u64> {
        let sizes = (0..SHARDS).map(|shard| self.folder.path().join(format!("shards/{shard:05}.tar")).metadata().map(|found| found.len()));
        Ok(sizes.sum::<std::io::Result<u64>>()?)
    }

    fn cache(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Begins to read the data set in a process of its own.
    fn begin(&self, shards: &str, cache: &Path, bound: u64) -> Result<Child> {
        let child = Command::new(env::current_exe()?)
            .args(["--exact", "reads_for_another_process", "--ignored", "--nocapture"])
            .env("LCL_TEST_SHARDS", shards)
            .env("LCL_TEST_CACHE", cache)
            .env("LCL_TEST_BOUND", bound.to_string())
            .envs(Server::environment_at(&self.proxy.url()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(child)
    }

    fn read(&self, shards: &str, cache: &Path) -> Result<Read> {
        finish(self.begin(shards, cache, 1 << 30)?)
    }
}

fn finish(child: Child) -> Result<Read> {
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    let error = found("error: ").unwrap_or_default();
    ensure!(output.status.success() && error.is_empty(), "{error} {}", String::from_utf8_lossy(&output.stderr));
    Ok(Read { digest: found("digest: ").context(text.clone())?, bytes: found("bytes: ").context(text.clone())?.parse()? })
}

/// Loads batches of a data set as the environment says, and prints a digest of them.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn loads_for_another_process() {
    let Ok(source) = env::var("LCL_TEST_SOURCE") else { return };
    let load = || -> Result<String> {
        let cache = CacheConfig { path: env::var("LCL_TEST_CACHE").ok(), ..CacheConfig::default() };
        let config = DataConfig {
            cache,
            threads: env::var("LCL_TEST_THREADS").map_or(Ok(2), |threads| threads.parse())?,
            max_bad_fraction: 1.0,
            ..DataConfig::new(serde_json::from_str(&source)?)
        };
        let dataset = Arc::new(Dataset::open(&config)?);
        let mut model = Preset::Tiny.shape();
        (model.vision.image_size, model.vision.patch_size, model.text.context_length) = (32, 16, 128);
        let objective = Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 };
        let options =
            LoaderOptions { model, objective, seed: 3, global_batch_size: 16, slots: (0..16).into(), first_step: 0, last_step: 12 };
        let mut hasher = blake3::Hasher::new();
        hasher.update(dataset.digest().as_bytes());
        for batch in Loader::start(dataset, &config, options)? {
            let batch = batch?;
            ensure!(batch.rows.len() + batch.skipped.len() == 16, "a batch of {} rows", batch.rows.len());
            hasher.update(&batch.pixels);
            let tokens: Vec<u8> = batch.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            hasher.update(&tokens);
        }
        Ok(hasher.finalize().to_hex().to_string())
    };
    match load() {
        Ok(digest) => println!("\ndigest: {digest}\nbytes: {}", lcl_data::fetched().bytes),
        Err(error) => println!("\nerror: {error:#}"),
    }
}

#[test]
fn documents_and_pairs_out_of_a_store_give_the_batches_of_those_on_disks() -> Result<()> {
    let (server, folder) = (Server::start()?, tempfile::tempdir()?);
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("pairs"))?;
    write_drawn(&at("pairs/0.tar"), 30, &[])?;
    let sources = [
        ("pairs", DataSource::webdataset(vec![at("pairs/*.tar").display().to_string()])),
        ("mmc4", mmc4(&at("mmc4"))?),
        ("obelics", obelics(&at("obelics"))?),
    ];
    for name in ["pairs", "mmc4", "obelics"] {
        server.put_folder(&format!("all/{name}"), &at(name))?;
    }
    let mixed = |(name, source): &(&str, DataSource)| MixedSource { name: (*name).to_owned(), weight: 1, source: source.clone() };
    let mixture = MixtureConfig { by: MixtureUnit::Samples, sources: sources.iter().map(mixed).collect() };
    let local = DataSource::Mixture { mixture };
    let below = folder.path().display().to_string();
    // The images of MMC4 stay in their folder.
    let remote = local.clone().map(&|entry| entry.replace(&below, &Server::uri("all")), &str::to_owned);
    let read = |source: &DataSource, cache: &str| {
        let child = Command::new(env::current_exe()?)
            .args(["--exact", "loads_for_another_process", "--ignored", "--nocapture"])
            .env("LCL_TEST_SOURCE", serde_json::to_string(source)?)
            .env("LCL_TEST_CACHE", at(cache))
            .envs(server.environment())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        finish(child)
    };
    let (expected, found) = (read(&local, "unused")?, read(&remote, "cache")?);
    assert_eq!((found.digest, expected.bytes), (expected.digest, 0));
    assert!(found.bytes > 0);
    Ok(())
}

/// Reads the samples of a data set in an order that jumps, as the environment says, and prints what it found.
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn reads_for_another_process() {
    let Ok(shards) = env::var("LCL_TEST_SHARDS") else { return };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let cache = CacheConfig { path: env::var("LCL_TEST_CACHE").ok(), bytes: env::var("LCL_TEST_BOUND").unwrap().parse().unwrap() };
    let read = || -> Result<String> {
        let dataset = Dataset::open(&DataConfig { cache, threads: 2, ..DataConfig::new(DataSource::webdataset(vec![shards])) })?;
        let samples = dataset.samples_per_pass();
        let mut hasher = blake3::Hasher::new();
        for turn in 0..samples {
            let sample = turn * 7 % samples;
            let Reading::Sample(found) = dataset.read(sample)? else { anyhow::bail!("sample {sample} is skipped") };
            hasher.update(&sample.to_le_bytes()).update(found.image()).update(found.caption.as_bytes());
            if turn == samples / 2 {
                eprintln!("half is read");
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    };
    match read() {
        Ok(digest) => println!("\ndigest: {digest}\nbytes: {}", lcl_data::fetched().bytes),
        Err(error) => println!("\nerror: {error:#}"),
    }
}

#[test]
fn members_of_a_node_read_what_disks_would_give_and_fetch_each_byte_about_once() -> Result<()> {
    let stage = Stage::new()?;
    let expected = stage.read(&stage.local(), &stage.cache("unused"))?;
    assert_eq!(expected.bytes, 0);
    let cache = stage.cache("cache");
    // Two at once, with nothing in the cache.
    let both = [stage.begin(&Stage::uri(), &cache, 1 << 30)?, stage.begin(&Stage::uri(), &cache, 1 << 30)?];
    let mut fetched = 0;
    for child in both {
        let read = finish(child)?;
        assert_eq!(read.digest, expected.digest);
        fetched += read.bytes;
    }
    // Once as a stream, for the index, and once in chunks.
    let size = stage.size()?;
    assert!(fetched >= 2 * size && fetched < 2 * size + size / 5, "{fetched} bytes of {size}");
    // What is in the cache, indexes included, is not asked for again.
    let later = stage.read(&Stage::uri(), &cache)?;
    assert_eq!((later.digest, later.bytes), (expected.digest, 0));
    Ok(())
}

#[test]
fn a_cache_smaller_than_the_data_stays_within_its_bound_and_gives_the_same_bytes() -> Result<()> {
    let stage = Stage::new()?;
    let expected = stage.read(&stage.local(), &stage.cache("unused"))?;
    let (cache, bound) = (stage.cache("cache"), stage.size()? / 2);
    assert_eq!(finish(stage.begin(&Stage::uri(), &cache, bound)?)?.digest, expected.digest);
    let chunks = sizes(&cache.join("lcl-chunks-1"))?;
    assert!(!chunks.is_empty() && chunks.iter().map(|(_, size)| size).sum::<u64>() <= bound, "{chunks:?} with a bound of {bound}");
    Ok(())
}

/// The files below a folder with their sizes.
fn sizes(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(sizes(&entry.path())?);
        } else {
            found.push((entry.path(), entry.metadata()?.len()));
        }
    }
    Ok(found)
}

#[test]
fn whatever_answers_come_no_wrong_byte_is_read() -> Result<()> {
    let stage = Stage::new()?;
    let expected = stage.read(&stage.local(), &stage.cache("unused"))?.digest;
    let faults = [
        ("status 500", Fault::Status(500)),
        ("status 503", Fault::Status(503)),
        ("slow down", Fault::SlowDown),
        ("reset", Fault::Reset),
        ("cut", Fault::Cut { after: 100_000 }),
        ("shortened", Fault::Shorten { to: 100_000 }),
    ];
    for (name, fault) in faults {
        stage.proxy.clear();
        // Each third answer is harmed, of all kinds of requests.
        let count = AtomicU64::new(0);
        stage.proxy.decide(move |_| (count.fetch_add(1, Ordering::Relaxed) % 3 == 1).then(|| fault.clone()));
        let read = stage.read(&Stage::uri(), &stage.cache(name)).with_context(|| name.to_owned())?;
        assert_eq!(read.digest, expected, "{name}");
    }
    Ok(())
}

#[test]
fn a_store_that_goes_away_is_waited_for() -> Result<()> {
    let stage = Stage::new()?;
    let expected = stage.read(&stage.local(), &stage.cache("unused"))?.digest;
    let mut child = stage.begin(&Stage::uri(), &stage.cache("cache"), 1 << 24)?;
    let lines = BufReader::new(child.stderr.take().context("no standard error")?).lines();
    let (mut has_gone, mut has_come_back) = (false, false);
    for line in lines.map_while(Result::ok) {
        if line.contains("half is read") {
            stage.proxy.disappear()?;
            has_gone = true;
        }
        // The third attempt has failed: whoever reads has waited, and says of what.
        if has_gone && line.contains("trying again") && line.contains("attempt=3") {
            assert!(line.contains("s3://runs/data/0000"), "{line}");
            stage.proxy.come_back()?;
            (has_gone, has_come_back) = (false, true);
        }
    }
    assert_eq!(finish(child)?.digest, expected);
    assert!(has_come_back, "nothing was asked of the store while it was away");
    Ok(())
}

#[test]
fn an_object_that_changes_meanwhile_ends_the_reading_with_its_name() -> Result<()> {
    let stage = Stage::new()?;
    let cache = stage.cache("cache");
    // The index is made; then each object is asked for in chunks.
    stage.read(&Stage::uri(), &cache)?;
    std::fs::remove_dir_all(cache.join("lcl-chunks-1"))?;
    let gate = Gate::default();
    stage.proxy.add(Rule::new("*/00001.tar", Fault::HoldHead(gate.clone()))?.method(Method::GET));
    let child = stage.begin(&Stage::uri(), &cache, 1 << 30)?;
    gate.await_arrivals(1);
    // Of the same length, so that nothing but its state tells.
    write_shard(&stage.folder.path().join("other.tar"), 77, SAMPLES)?;
    stage.server.put("data/00001.tar", std::fs::read(stage.folder.path().join("other.tar"))?)?;
    gate.open();
    let error = finish(child).expect_err("the object is another one").to_string();
    assert!(error.contains("s3://runs/data/00001.tar") && error.contains("changed"), "{error}");
    // The next start indexes it again and reads what is there now.
    std::fs::copy(stage.folder.path().join("other.tar"), stage.folder.path().join("shards/00001.tar"))?;
    assert_eq!(stage.read(&Stage::uri(), &cache)?.digest, stage.read(&stage.local(), &stage.cache("unused"))?.digest);
    Ok(())
}

/// Images of documents are found by an address: nothing in the document says what they look like.
#[test]
fn an_object_that_is_opened_again_is_not_taken_in_another_state() -> Result<()> {
    let (server, folder) = (Arc::new(Server::start()?), tempfile::tempdir()?);
    let mut source = obelics(&folder.path().join("obelics"))?;
    server.put_folder("all/obelics", &folder.path().join("obelics"))?;
    let images = folder.path().join("obelics/images");
    let found: Vec<PathBuf> = std::fs::read_dir(&images)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let mut stores: Vec<String> = found.iter().map(|path| path.display().to_string()).filter(|path| path.ends_with("tar")).collect();
    stores.sort();
    // By their names: what a list of the folder has shown is known without another look.
    let DataSource::Obelics { obelics } = &mut source else { anyhow::bail!("no OBELICS") };
    obelics.images.clone_from(&stores);
    let below = folder.path().display().to_string();
    let remote = source.map(&|entry| entry.replace(&below, &Server::uri("all")), &str::to_owned);
    let proxy = Proxy::start(server.address())?;
    let load = || {
        let child = Command::new(env::current_exe()?)
            .args(["--exact", "loads_for_another_process", "--ignored", "--nocapture"])
            .env("LCL_TEST_SOURCE", serde_json::to_string(&remote)?)
            .env("LCL_TEST_CACHE", folder.path().join("cache"))
            // A second thread would still have the object open as it was.
            .env("LCL_TEST_THREADS", "1")
            .envs(Server::environment_at(&proxy.url()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        finish(child)
    };
    load()?;
    std::fs::remove_dir_all(folder.path().join("cache/lcl-chunks-1"))?;
    let store = Path::new(stores.last().context("no store")?);
    let name = store.file_name().and_then(|name| name.to_str()).context("no name")?.to_owned();
    // Of the same length, and with the same headers: only what is in the files differs.
    let mut other = std::fs::read(store)?;
    other
        .chunks_exact_mut(512)
        .filter(|block| block.get(257..262) != Some(b"ustar"))
        .for_each(|block| block.iter_mut().for_each(|byte| *byte ^= 0x55));
    let replace = {
        let (server, name) = (Arc::clone(&server), name.clone());
        move || server.put(&format!("all/obelics/images/{name}"), other.clone()).expect("the object is replaced")
    };
    let path = format!("*/{name}");
    // All attempts of the first request fail, so that the object is opened again; by then it is another one.
    proxy.add(Rule::new(&path, Fault::Call(Arc::new(replace)))?.method(Method::GET).occurrences(0..1));
    proxy.add(Rule::new(&path, Fault::Status(500))?.method(Method::GET).occurrences(0..4));
    let error = load().expect_err("the object is another one").to_string();
    assert!(error.contains(&name) && error.contains("changed"), "{error}");
    Ok(())
}

#[test]
fn a_killed_reader_leaves_a_cache_that_others_use_and_damage_is_noticed() -> Result<()> {
    let stage = Stage::new()?;
    let expected = stage.read(&stage.local(), &stage.cache("unused"))?.digest;
    let cache = stage.cache("cache");
    stage.read(&Stage::uri(), &cache)?;
    std::fs::remove_dir_all(cache.join("lcl-chunks-1"))?;
    let gate = Gate::default();
    stage
        .proxy
        .add(Rule::new("*/00002.tar", Fault::HoldBody { after: 1 << 20, gate: gate.clone() })?.method(Method::GET).occurrences(0..1));
    let mut child = stage.begin(&Stage::uri(), &cache, 1 << 30)?;
    gate.await_arrivals(1);
    let other = stage.begin(&Stage::uri(), &cache, 1 << 30)?;
    child.kill()?;
    child.wait()?;
    gate.open();
    // Whoever waited for what the killed one fetched goes on by itself.
    assert_eq!(finish(other)?.digest, expected);
    let chunks = sizes(&cache.join("lcl-chunks-1"))?;
    let (damaged, size) = chunks.iter().find(|(path, size)| *size > 1 << 20 && path.extension().is_none()).context("no chunk")?;
    let mut bytes = std::fs::read(damaged)?;
    bytes[*size as usize / 2] ^= 1;
    std::fs::write(damaged, bytes)?;
    let read = stage.read(&Stage::uri(), &cache)?;
    assert_eq!(read.digest, expected);
    assert_eq!(read.bytes, size - 4, "the damaged chunk alone is fetched again");
    Ok(())
}

#[test]
fn a_folder_of_more_objects_than_a_page_names_is_listed_whole_and_indexed_once_for_all() -> Result<()> {
    const COUNT: u64 = 1100;
    let stage = Stage::new()?;
    let (many, one) = (stage.server.objects("many"), stage.folder.path().join("small"));
    std::fs::create_dir_all(&many)?;
    std::fs::create_dir_all(&one)?;
    for number in 0..COUNT {
        let mut writer = ShardWriter::create(&one.join(format!("{number:05}.tar")))?;
        writer.append("a", Some((ImageKind::Jpg, &number.to_le_bytes())), Some("a caption"))?;
        writer.finish()?;
        std::fs::copy(one.join(format!("{number:05}.tar")), many.join(format!("{number:05}.tar")))?;
    }
    let glob = format!("{}/*.tar", Server::uri("many"));
    let cache = stage.cache("cache");
    let refused = stage.read(&glob, &cache).expect_err("no index was made").to_string();
    assert!(refused.contains("there is no index of these 1100 objects") && refused.contains("lcl data index"), "{refused}");
    let index = Command::new(env::current_exe()?)
        .args(["--exact", "indexes_for_another_process", "--ignored", "--nocapture"])
        .env("LCL_TEST_SHARDS", &glob)
        .env("LCL_TEST_SAMPLES", "1100")
        .env("LCL_TEST_CACHE", stage.cache("of the indexer"))
        .envs(Server::environment_at(&stage.proxy.url()))
        .output()?;
    ensure!(index.status.success(), "{}{}", String::from_utf8_lossy(&index.stdout), String::from_utf8_lossy(&index.stderr));
    // It lies beside the objects, where each node finds it.
    let sets = std::fs::read_dir(&many)?
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|ending| ending == "lclset")));
    assert_eq!(sets.count(), 1);
    let local = stage.read(&format!("{}/*.tar", one.display()), &stage.cache("unused"))?;
    assert_eq!(stage.read(&glob, &cache)?.digest, local.digest);
    Ok(())
}

#[test]
fn stores_of_google_and_azure_and_a_web_server_are_read_like_others() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shards = folder.path().join("shards");
    std::fs::create_dir(&shards)?;
    for shard in 0..9 {
        write_shard(&shards.join(format!("{shard:05}.tar")), shard, 6)?;
    }
    let (google, azure) = (gcs::Server::start()?, azure::Server::start()?);
    google.put_folder("data", &shards)?;
    azure.put_folder("data", &shards)?;
    let read = |entry: &str, cache: &str, environment: &[(&str, String)]| {
        let child = Command::new(env::current_exe()?)
            .args(["--exact", "reads_for_another_process", "--ignored", "--nocapture"])
            .env("LCL_TEST_SHARDS", entry)
            .env("LCL_TEST_CACHE", folder.path().join(cache))
            .env("LCL_TEST_BOUND", (1_u64 << 30).to_string())
            .envs(environment.iter().cloned())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        finish(child)
    };
    let expected = read(&format!("{}/*.tar", shards.display()), "unused", &[])?.digest;
    // Nine are listed rather than looked at one by one.
    assert_eq!(read(&format!("{}/*.tar", gcs::Server::uri("data")), "google", &google.environment())?.digest, expected);
    assert_eq!(read(&format!("{}/{{00000..00008}}.tar", azure::Server::uri("data")), "azure", &azure.environment())?.digest, expected);
    // A web server is asked for each; Google's serves objects to whoever asks, too.
    let web = format!("http://{}/{}/{{00000..00008}}.tar", google.address(), gcs::Server::uri("data").trim_start_matches("gs://"));
    assert_eq!(read(&web, "web", &[])?.digest, expected);

    // An object is the one of that name, whatever the name would be in an address, in every store.
    let odd = folder.path().join("odd");
    std::fs::create_dir(&odd)?;
    for (seed, name) in (100..).zip(["a%41.tar", "aA.tar", "a b.tar", "a+b.tar"]) {
        write_shard(&odd.join(name), seed, 6)?;
    }
    let amazon = Server::start()?;
    amazon.put_folder("odd", &odd)?;
    google.put_folder("odd", &odd)?;
    azure.put_folder("odd", &odd)?;
    let expected = read(&format!("{}/*.tar", odd.display()), "unused", &[])?.digest;
    for (uri, name, environment) in [
        (Server::uri("odd"), "odd-s3", amazon.environment().to_vec()),
        (gcs::Server::uri("odd"), "odd-gs", google.environment().to_vec()),
        (azure::Server::uri("odd"), "odd-az", azure.environment().to_vec()),
    ] {
        assert_eq!(read(&format!("{uri}/*.tar"), name, &environment)?.digest, expected, "{uri}");
        // The indexes are written beside the shards; Google's server of the tests takes no writes of this kind.
        if uri.starts_with("gs") {
            continue;
        }
        let made = Command::new(env::current_exe()?)
            .args(["--exact", "indexes_for_another_process", "--ignored"])
            .env("LCL_TEST_SHARDS", format!("{uri}/*.tar"))
            .env("LCL_TEST_SAMPLES", "24")
            .envs(environment)
            .output()?;
        ensure!(made.status.success(), "{uri}: {}{}", String::from_utf8_lossy(&made.stdout), String::from_utf8_lossy(&made.stderr));
    }
    Ok(())
}

/// What `lcl data index` does.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn indexes_for_another_process() {
    let Ok(shards) = env::var("LCL_TEST_SHARDS") else { return };
    let samples: u64 = env::var("LCL_TEST_SAMPLES").unwrap().parse().unwrap();
    let cache = CacheConfig { path: env::var("LCL_TEST_CACHE").ok(), ..CacheConfig::default() };
    let config = DataConfig { cache, threads: 2, ..DataConfig::new(DataSource::webdataset(vec![shards])) };
    assert_eq!(Dataset::make_indexes(&config, ListOrigin::Arguments).unwrap().samples_per_pass(), samples);
}
