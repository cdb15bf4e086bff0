//! How the loader behaves when storage fails, panics or is slow. What it delivers from sound data is tested in `tests/loader.rs`.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lcl_trainer_config::{DataSource, ObelicsConfig, Preset};

use super::*;
use crate::{
    dataset::{FileId, FileRef, OpenFiles, Storage},
    image::to_png,
    shard::{ImageKind, ShardError, ShardWriter},
};

const SLOTS: u64 = 3;
const SHARDS: u64 = 4;
const SAMPLES_PER_SHARD: u64 = 6;

/// Storage whose reads of shards go through a function first.
struct Hooked<F> {
    files: OpenFiles,
    hook: F,
}

impl<F> fmt::Debug for Hooked<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

impl<F: Fn(usize) -> io::Result<()> + Send + Sync> Storage for Hooked<F> {
    fn read(&self, file: FileRef<'_>, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if let FileId::Shard(number) | FileId::Image(number) = file.id {
            (self.hook)(number)?;
        }
        self.files.read(file, offset, buffer)
    }

    fn fetch(&self, file: FileRef<'_>, offset: u64, length: u64) -> io::Result<()> {
        self.files.fetch(file, offset, length)
    }
}

/// A loader of ten steps over four small shards; `hook` gets the number of the shard that is read.
fn loader(prefetch: usize, hook: impl Fn(usize) -> io::Result<()> + Send + Sync + 'static) -> (tempfile::TempDir, Loader) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut model = Preset::Tiny.shape();
    model.vision.image_size = 16;
    let image = to_png(&[0.5; 3 * 16 * 16], 16);
    for shard in 0..SHARDS {
        let mut writer = ShardWriter::create(&folder.path().join(format!("{shard}.tar"))).expect("the shard is begun");
        for sample in 0..SAMPLES_PER_SHARD {
            writer.append(&format!("{sample}"), Some((ImageKind::Png, &image)), Some("a caption")).expect("a sample is written");
        }
        writer.finish().expect("the shard is finished");
    }
    let config = DataConfig {
        max_bad_fraction: 1.0,
        threads: 3,
        prefetch,
        ..DataConfig::new(DataSource::webdataset(vec![folder.path().join("{0..3}.tar").display().to_string()]))
    };
    let dataset = Dataset::open_on(&config, crate::shard::ListOrigin::Manifest, Box::new(Hooked { files: OpenFiles::default(), hook }))
        .expect("the data set is opened");
    let options = LoaderOptions {
        model,
        objective: Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 },
        seed: 3,
        global_batch_size: SLOTS,
        slots: (0..SLOTS).into(),
        first_step: 0,
        last_step: 10,
    };
    let loader = Loader::start(Arc::new(dataset), &config, options).expect("the loader starts");
    (folder, loader)
}

/// The step of the first slot whose sample lies in `shard`, by the recorded order of seed 3.
fn first_step_of(shard: u64) -> u64 {
    let order = crate::permutation::Permutation::new(3, 0, SHARDS * SAMPLES_PER_SHARD);
    let first =
        (0..SHARDS * SAMPLES_PER_SHARD).find(|position| order.at(*position).is_some_and(|sample| sample / SAMPLES_PER_SHARD == shard));
    first.expect("every sample has a position") / SLOTS
}

#[test]
fn errors_that_pass_cost_no_slot() {
    let failures = AtomicU64::new(0);
    // Every third read fails once or twice.
    let (_folder, loader) = loader(2, move |_| {
        if failures.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    });
    let batches: Vec<Batch> = loader.collect::<Result<_, _>>().expect("every error passes");
    assert_eq!(batches.len(), 10);
    assert!(batches.iter().all(|batch| batch.rows.len() as u64 == SLOTS && batch.skipped.is_empty()));
}

#[test]
fn errors_that_pass_in_the_middle_of_a_document_change_nothing() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/obelics");
    let indexes = tempfile::tempdir().expect("a temporary folder");
    let list = |path: &str| vec![fixtures.join(path).display().to_string()];
    let obelics = ObelicsConfig { shards: list("data/*.parquet"), images: list("images/*.tar"), split: true, max_images: 6 };
    let config = DataConfig {
        index_path: Some(indexes.path().display().to_string()),
        threads: 3,
        ..DataConfig::new(DataSource::Obelics { obelics })
    };
    let batches = |hook: Box<dyn Fn(usize) -> io::Result<()> + Send + Sync>| -> Vec<Batch> {
        let storage = Hooked { files: OpenFiles::default(), hook };
        let dataset = Dataset::open_on(&config, crate::shard::ListOrigin::Manifest, Box::new(storage)).expect("the data set is opened");
        let mut model = Preset::Tiny.shape();
        (model.vision.image_size, model.text.context_length) = (32, 256);
        let objective = Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 };
        let options = LoaderOptions { model, objective, seed: 3, global_batch_size: 7, slots: (0..7).into(), first_step: 0, last_step: 6 };
        Loader::start(Arc::new(dataset), &config, options)
            .expect("the loader starts")
            .collect::<Result<_, _>>()
            .expect("every error passes")
    };
    let undisturbed = batches(Box::new(|_| Ok(())));
    assert!(undisturbed.iter().any(|batch| batch.images > batch.rows.len()), "no document has two images");
    let reads = AtomicU64::new(0);
    // Every third read fails, so that some do within nearly every document.
    let fails = move |_| {
        if reads.fetch_add(1, Ordering::Relaxed) % 3 == 1 { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    };
    assert!(batches(Box::new(fails)) == undisturbed);
}

#[test]
fn a_lost_shard_ends_the_sequence_with_its_name_after_the_batches_before_it() {
    for (shard, prefetch) in [(0, 1), (1, 4), (2, 10), (3, 2)] {
        let (folder, mut loader) =
            loader(prefetch, move |number| if number as u64 == shard { Err(io::Error::from_raw_os_error(libc::ENOENT)) } else { Ok(()) });
        let failing = first_step_of(shard);
        for step in 0..failing {
            assert_eq!(loader.next().expect("a batch").expect("its shards are there").step, step);
        }
        let error = loader.next().expect("an error").expect_err("its shard is lost");
        let LoaderError::Read { step, source, .. } = error else { panic!("{error:?}") };
        let DatasetError::Shard(ShardError::Missing { path }) = *source else { panic!("{source:?}") };
        assert_eq!((step, path), (failing, folder.path().join(format!("{shard}.tar"))));
        assert!(loader.next().is_none() && loader.next().is_none());
    }
}

#[test]
fn a_panic_is_an_error_and_no_hang() {
    let (_folder, mut loader) = loader(2, |number| if number == 1 { panic!("shard {number} bites") } else { Ok(()) });
    let failing = first_step_of(1);
    for _ in 0..failing {
        loader.next().expect("a batch").expect("its shards are sound");
    }
    let error = loader.next().expect("an error").expect_err("a thread panicked");
    let LoaderError::Panicked { step, message, .. } = error else { panic!("{error:?}") };
    assert_eq!((step, message.as_str()), (failing, "shard 1 bites"));
    assert!(loader.next().is_none());
}

#[test]
fn the_time_of_the_threads_is_told_by_stage_and_once() {
    // Every read of a shard is held for a known time.
    let held = Duration::from_millis(10);
    let (_folder, mut loader) = loader(2, move |_| {
        let begun = Instant::now();
        while begun.elapsed() < held {
            std::hint::spin_loop();
        }
        Ok(())
    });
    for _ in 0..10 {
        loader.next().expect("a batch").expect("its shards are sound");
    }
    let stages = loader.stages();
    assert!(stages.read >= 30 * held, "{stages:?}");
    assert!(stages.decode > Duration::ZERO && stages.compose > Duration::ZERO, "{stages:?}");
    // Nothing is told twice; only a thread that waited for room may say so after the last batch.
    assert_eq!(Stages { wait: Duration::ZERO, ..loader.stages() }, Stages::default());
}

#[test]
fn no_more_than_the_prefetched_batches_are_read_ahead() {
    for prefetch in [1, 2, 5] {
        // Batches asked for, then samples read.
        let (asked, read, exceeded) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counters = (Arc::clone(&asked), Arc::clone(&read), Arc::clone(&exceeded));
        let (_folder, mut loader) = loader(prefetch, move |_| {
            let (asked, read, exceeded) = &counters;
            let reads = read.fetch_add(1, Ordering::SeqCst) + 1;
            if reads > (asked.load(Ordering::SeqCst) + prefetch as u64) * SLOTS {
                exceeded.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        for _ in 0..10 {
            asked.fetch_add(1, Ordering::SeqCst);
            loader.next().expect("a batch").expect("its shards are sound");
        }
        assert_eq!((read.load(Ordering::SeqCst), exceeded.load(Ordering::SeqCst)), (10 * SLOTS, 0), "prefetch {prefetch}");
    }
}

#[test]
fn dropping_a_loader_ends_waits_between_attempts() {
    let reached = Arc::new((Mutex::new(false), Condvar::new()));
    let signal = Arc::clone(&reached);
    let (_folder, loader) = loader(2, move |_| {
        *signal.0.lock().expect("no panic") = true;
        signal.1.notify_all();
        Err(io::Error::from_raw_os_error(libc::EIO))
    });
    drop(reached.1.wait_while(reached.0.lock().expect("no panic"), |reached| !*reached).expect("no panic"));
    let begun = std::time::Instant::now();
    drop(loader);
    // Without being woken the threads would go on for a minute.
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

/// A store that takes requests and says nothing: each of them would be waited for for more than a minute.
#[test]
fn dropping_a_loader_ends_waits_for_an_object_store() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("an address");
    let uri = format!("http://{}/a.tar", listener.local_addr().expect("it has one"));
    let reached = Arc::new((Mutex::new(false), Condvar::new()));
    let signal = Arc::clone(&reached);
    let connections = std::thread::spawn(move || {
        let open = listener.accept().expect("it is asked");
        *signal.0.lock().expect("no panic") = true;
        signal.1.notify_all();
        // The end of the connection: whoever asked waits no longer.
        let ended = io::Read::read_to_end(&mut &open.0, &mut Vec::new());
        drop(ended);
    });
    let (_folder, loader) = loader(2, move |_| lcl_objects::Objects::of_process()?.head(&uri).map(drop));
    drop(reached.1.wait_while(reached.0.lock().expect("no panic"), |reached| !*reached).expect("no panic"));
    assert!(!loader.wait(Duration::ZERO), "there is no batch");
    let begun = Instant::now();
    drop(loader);
    // Without being heard by the threads it would be more than a minute.
    assert!(begun.elapsed().as_secs() < 15, "{:?}", begun.elapsed());
    connections.join().expect("the connection ended");
}

#[test]
fn options_that_contradict_each_other_are_named() {
    let (_folder, sound) = loader(1, |_| Ok(()));
    drop(sound);
    let (folder, _loader) = loader(1, |_| Ok(()));
    let config = DataConfig {
        max_bad_fraction: 1.0,
        prefetch: 1,
        ..DataConfig::new(DataSource::webdataset(vec![folder.path().join("0.tar").display().to_string()]))
    };
    let dataset = Arc::new(Dataset::open(&config).expect("the data set is opened"));
    let sound = LoaderOptions {
        model: Preset::Tiny.shape(),
        objective: Objective::Clip,
        seed: 0,
        global_batch_size: 4,
        slots: (0..4).into(),
        first_step: 0,
        last_step: 1,
    };
    let mut wrong_size = Preset::Tiny.shape();
    wrong_size.vision.image_size = 1 << 40;
    for (options, field) in [
        (LoaderOptions { slots: (2..2).into(), ..sound.clone() }, "slots"),
        (LoaderOptions { slots: (2..5).into(), ..sound.clone() }, "slots"),
        (LoaderOptions { slots: vec![2..4, 0..1].into(), ..sound.clone() }, "slots"),
        (LoaderOptions { first_step: 2, ..sound.clone() }, "first_step"),
        (LoaderOptions { last_step: u64::MAX, ..sound.clone() }, "last_step"),
    ] {
        let error = Loader::start(Arc::clone(&dataset), &config, options).expect_err(field);
        assert!(matches!(error, LoaderError::Options { field: named, .. } if named == field), "{field}: {error:?}");
    }
    let check = |threads, prefetch, options, expected: &str| {
        let config = DataConfig { threads, prefetch, ..config.clone() };
        let error = Loader::start(Arc::clone(&dataset), &config, options).expect_err(expected);
        assert!(error.to_string().starts_with(expected), "{error}");
    };
    check(0, 1, sound.clone(), "spec.data.threads is 0, but must be at least 1");
    check(1, 0, sound.clone(), "spec.data.prefetch is 0, but must be at least 1");
    check(
        1,
        1,
        LoaderOptions { model: wrong_size, ..sound },
        "spec.model.shape.vision.imageSize is 1099511627776, but must lie in 1..=16384",
    );
}
