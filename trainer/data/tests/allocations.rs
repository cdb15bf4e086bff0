//! What the way from shards to batches allocates once it is warm.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use lcl_data::{
    Dataset, Loader, LoaderOptions,
    shard::{ImageKind, ShardWriter},
};
use lcl_trainer_config::{DataConfig, DataSource, Objective, Preset};

/// Samples of a batch, and batches that are looked at.
const ROWS: u64 = 32;
const BATCHES: u64 = 25;

/// What a batch takes, however many samples it has: the list of its slots, that of its rows, their tokens, the time that sources took.
const PER_BATCH: u64 = 4;

/// The system's allocator, which counts.
struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(unsafe_code, reason = "an allocator is unsafe; this one hands everything on to the system's")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
}

/// A shard of photographs with captions.
fn write_shard(folder: &Path, samples: usize) {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/image");
    let image = |name: &str| fs::read(images.join(name)).expect("the image is read");
    let images = [image("jpeg_420.jpeg"), image("jpeg_444.jpeg"), image("jpeg_gray.jpeg")];
    let mut writer = ShardWriter::create(&folder.join("0.tar")).expect("the shard is begun");
    for sample in 0..samples {
        let caption = format!("A photograph of number {sample}, seen from the front");
        writer
            .append(&format!("{sample:04}"), Some((ImageKind::Jpeg, &images[sample % images.len()])), Some(&caption))
            .expect("a sample is written");
    }
    writer.finish().expect("the shard is finished");
}

#[test]
fn a_sample_takes_no_allocation_once_the_loader_is_warm() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_shard(folder.path(), 96);
    let source = DataSource::webdataset(vec![folder.path().join("0.tar").display().to_string()]);
    let config = DataConfig { threads: 2, ..DataConfig::new(source) };
    let mut model = Preset::Tiny.shape();
    (model.vision.image_size, model.vision.patch_size, model.text.context_length) = (32, 16, 64);
    let options = LoaderOptions {
        model,
        objective: Objective::Lcl { generation_weight: 1.0, contrastive_weight: 1.0 },
        seed: 0,
        global_batch_size: ROWS,
        slots: (0..ROWS).into(),
        first_step: 0,
        last_step: 200,
    };
    let dataset = Arc::new(Dataset::open(&config).expect("the data set is opened"));
    let mut loader = Loader::start(dataset, &config, options).expect("the loader starts");
    let mut take = |batches: u64| {
        let before = COUNT.load(Relaxed);
        for _ in 0..batches {
            let batch = loader.next().expect("there is a batch").expect("the data are sound");
            assert_eq!(batch.rows.len() as u64, ROWS);
        }
        COUNT.load(Relaxed) - before
    };
    // Until all buffers have been in use, and each has had the largest that it gets.
    take(50);
    let count = take(BATCHES);
    println!("{count} allocations for {BATCHES} batches of {ROWS}");
    // When a thread is late, more buffers are under way than ever before: two for each slot of four batches at most.
    assert!(count <= PER_BATCH * BATCHES + 8 * ROWS, "{count} allocations for {BATCHES} batches of {ROWS}");
}
