//! What is shown is what training uses.

use lcl_trainer_config::{DataConfig, DataSource, Preset};

use super::*;
use crate::{
    Loader, LoaderOptions,
    image::{MEAN, STD},
    shard::{ImageKind, ShardWriter},
};

/// A 48 by 32 gradient as PNG, so that every crop and size gives other pixels.
fn gradient() -> Vec<u8> {
    let square: Vec<f32> = (0..3 * 48 * 48).map(|at| (at % 48) as f32 / 24.0 - 1.0).collect();
    to_png(&square, 48)
}

fn shard(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("a.tar");
    let mut writer = ShardWriter::create(&path).expect("the shard is begun");
    writer.append("first", Some((ImageKind::Png, &gradient())), Some("A Cat &amp; a dog")).expect("a sample is written");
    writer.append("second", Some((ImageKind::Png, &gradient()[..40])), Some("cut")).expect("a sample is written");
    writer.append("third", Some((ImageKind::Png, &gradient())), None).expect("a sample is written");
    writer.finish().expect("the shard is finished");
    path
}

fn options() -> ShowOptions {
    ShowOptions {
        sample: 0,
        keys: SampleKeys::default(),
        seed: 9,
        size: 16,
        transform: ShowTransform::Train(AugmentationConfig { scale: [0.2, 0.9], ..AugmentationConfig::default() }),
        reduced_scale_decoding: false,
        model: Preset::Tiny.shape(),
        objective: Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 },
        image_first_probability: 0.5,
    }
}

#[test]
fn tokens_have_names_and_the_layout_of_the_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shown = show(&shard(folder.path()), &ShowOptions { image_first_probability: 0.0, ..options() }).expect("the sample is sound");
    assert_eq!((shown.samples, shown.key.as_str(), shown.caption.as_str()), (3, "first", "A Cat &amp; a dog"));
    assert_eq!((shown.width, shown.height, shown.image_first), (48, 48, false));
    let text = ["<start_of_text>", "a</w>", "cat</w>", "&</w>", "a</w>", "dog</w>", "<start_of_img>"];
    assert_eq!(shown.names[..7], text);
    assert_eq!(shown.names.len(), 6 + 1 + 16 + 1);
    assert_eq!(shown.tokens.len(), shown.names.len());
    assert!(std::fs::read_dir(folder.path()).expect("the folder is listed").count() == 1, "showing writes no index");
}

#[test]
fn what_is_shown_is_what_the_loader_delivers_for_the_same_seed_step_and_slot() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("a.tar");
    let mut writer = ShardWriter::create(&path).expect("the shard is begun");
    writer.append("only", Some((ImageKind::Png, &gradient())), Some("a cat")).expect("a sample is written");
    writer.finish().expect("the shard is finished");
    let options = options();
    let ShowTransform::Train(augmentation) = options.transform else { panic!("the options train") };
    let config = DataConfig {
        augmentation,
        max_bad_fraction: 1.0,
        prefetch: 1,
        ..DataConfig::new(DataSource::webdataset(vec![path.display().to_string()]))
    };
    let mut model = options.model.clone();
    model.vision.image_size = 16;
    model.vision.patch_size = 4;
    let loader_options = LoaderOptions {
        model: model.clone(),
        objective: options.objective,
        seed: options.seed,
        global_batch_size: 1,
        slots: (0..1).into(),
        first_step: 0,
        last_step: 1,
    };
    let dataset = std::sync::Arc::new(Dataset::open(&config).expect("the data set is opened"));
    let batch = Loader::start(dataset, &config, loader_options).expect("the loader starts").next().expect("a batch").expect("sound data");
    let shown = show(&path, &ShowOptions { model, ..options }).expect("the sample is sound");
    assert_eq!(batch.tokens, shown.tokens);
    let area = batch.pixels.len() / 3;
    for (place, value) in shown.pixels.iter().enumerate() {
        let (channel, pixel) = (place / area, place % area);
        let byte = batch.pixels[pixel * 3 + channel];
        let expected = (f32::from(byte) / 255.0 - MEAN[channel]) / STD[channel];
        assert_eq!(value.to_bits(), expected.to_bits(), "the pixels differ");
    }
}

#[test]
fn transforms_differ_and_a_given_crop_is_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = shard(folder.path());
    let shown = |transform| show(&path, &ShowOptions { transform, ..options() }).expect("the sample is sound");
    let train = shown(options().transform);
    let crop = CropBox { top: 4, left: 6, height: 20, width: 30 };
    let given = shown(ShowTransform::Crop(crop));
    let evaluated = shown(ShowTransform::Evaluate);
    assert_eq!((given.crop, evaluated.crop), (Some(crop), None));
    assert_eq!(shown(ShowTransform::Crop(train.crop.expect("a crop was drawn"))), train);
    assert!(train.pixels != given.pixels && given.pixels != evaluated.pixels && train.pixels != evaluated.pixels);
    assert!([&train, &given, &evaluated].iter().all(|shown| shown.pixels.len() == 3 * 16 * 16));
    // The PNG holds the same pixels: decoding it and normalising gives them back up to rounding to bytes.
    let (mut scratch, mut back) = (Scratch::new(), vec![0.0; 3 * 16 * 16]);
    let whole = CropBox { top: 0, left: 0, height: 16, width: 16 };
    ImageTransform::new(16).crop(&given.png, whole, &mut scratch, &mut back).expect("the PNG is sound");
    assert!(back.iter().zip(&given.pixels).all(|(back, pixel)| (back - pixel).abs() < 0.02));
}

#[test]
fn what_cannot_be_shown_says_why() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = shard(folder.path());
    let error = |options| show(&path, &options).expect_err("it cannot be shown");
    assert!(
        matches!(error(ShowOptions { sample: 1, ..options() }), ShowError::Image { key, source: ImageError::Truncated { .. }, .. } if key == "second")
    );
    assert!(
        matches!(error(ShowOptions { sample: 2, ..options() }), ShowError::Skipped { key, cause: SkipCause::NoCaption, .. } if key == "third")
    );
    let message = error(ShowOptions { sample: 2, ..options() }).to_string();
    assert!(message.contains("looked for images jpg, png, jpeg, webp and captions txt") && message.ends_with("are png)"), "{message}");
    let none = SampleKeys { caption: vec!["caption".to_owned()], ..SampleKeys::default() };
    let message = error(ShowOptions { keys: none, ..options() }).to_string();
    assert!(message.contains("captions caption") && message.contains("--caption-keys") && message.contains("txt 2"), "{message}");
    assert!(matches!(
        error(ShowOptions { sample: 3, ..options() }),
        ShowError::Dataset(DatasetError::OutOfRange { sample: 3, samples: 3 })
    ));
    assert!(matches!(error(ShowOptions { size: 0, ..options() }), ShowError::Size { size: 0, .. }));
    let outside = ShowTransform::Crop(CropBox { top: 40, left: 0, height: 20, width: 20 });
    assert!(matches!(
        error(ShowOptions { transform: outside, ..options() }),
        ShowError::Image { source: ImageError::CropOutside { .. }, .. }
    ));
}
