//! From a manifest to the trainer's configuration.

#[path = "support/jobs.rs"]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::LazyLock,
};

use lcl_operator_core::{PathMapping, PodPolicy, Surroundings, ValidatedJob, render_trainer_config, validate, validate_under};
use lcl_trainer_config::{Device, Objective, Preset, TrainerConfig, UserField};
use proptest::prelude::*;
use serde_json::{Value, json};

use support::{assign, minimal_job};

fn in_container() -> Surroundings {
    Surroundings { paths: PathMapping::in_container(), device: Device::Auto, threads: None, cache_folder: None, data_threads: 3 }
}

fn valid(assignments: &str) -> ValidatedJob {
    let mut job = minimal_job();
    assign(&mut job, assignments);
    validate(&job).unwrap_or_else(|errors| panic!("{errors}"))
}

fn render(assignments: &str) -> TrainerConfig {
    render_trainer_config(&valid(assignments), &in_container())
}

fn example() -> ValidatedJob {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/emoji.yaml");
    let manifest: Value = serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    validate_under(&manifest, &PodPolicy::everything()).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_example_renders_with_its_volumes_in_local_folders() {
    let job = example();
    let folders = BTreeMap::from([("data".to_owned(), "/home/ada/data".to_owned()), ("runs".to_owned(), "/home/ada/my runs".to_owned())]);
    let paths = PathMapping::on_this_machine(&job, &folders).unwrap();
    let config =
        render_trainer_config(&job, &Surroundings { paths, device: Device::Cpu, threads: Some(2), cache_folder: None, data_threads: 2 });
    config.validate().unwrap();
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(serde_json::from_value::<TrainerConfig>(json.clone()).unwrap(), config);
    insta::assert_json_snapshot!(json);
}

#[test]
fn left_out_fields_get_the_recipe_of_the_released_code() {
    let config = render("spec.optimization.schedule = delete; spec.optimization.steps = 5000");
    let optimization = serde_json::to_value(&config.optimization).unwrap();
    for (field, expected) in [
        ("betas", json!([0.9, 0.98])),
        ("epsilon", json!(1e-6)),
        ("learningRate", json!(5e-4)),
        ("weightDecay", json!(0.2)),
        // The trainer derives it, once, when the run begins.
        ("schedule", json!({ "kind": "cosine", "warmupSteps": null })),
        ("gradientClip", Value::Null),
    ] {
        assert_eq!(optimization[field], expected, "{field}");
    }
    assert_eq!(config.model.objective, Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 });
    assert_eq!(config.data.augmentation, lcl_trainer_config::AugmentationConfig::default());
    assert_eq!(config.data.threads, 3, "as many as the surroundings say");
}

#[test]
fn every_preset_of_the_trainer_is_offered_under_its_name_with_its_shape() {
    for preset in Preset::ALL {
        let config = render(&format!("spec.model.preset = '{}'", preset.name()));
        assert_eq!(config.model.shape, preset.shape(), "{preset}");
        assert!((config.model.drop_path - preset.drop_path()).abs() < f64::EPSILON, "{preset}");
        assert_eq!(config.model.layer_scale, preset.layer_scale(), "{preset}");
    }
    let definition = serde_json::to_value(lcl_crds::custom_resource_definition()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let offered = schema["model"]["properties"]["preset"]["enum"].as_array().unwrap().len();
    assert_eq!(offered, Preset::ALL.len());
}

#[test]
fn the_papers_regularisers_come_with_its_main_model_and_can_be_switched_off() {
    let main = render("spec.model.preset = 'vit-l-14-laion'").model;
    assert_eq!((main.drop_path, main.layer_scale), (0.2, Some(1e-5)));
    let off = render("spec.model.preset = 'vit-l-14-laion'; spec.model.dropPath = 0; spec.model.layerScale = 0").model;
    assert_eq!((off.drop_path, off.layer_scale), (0.0, None));
    let own = render("spec.model.dropPath = 0.1; spec.model.layerScale = 0.5").model;
    assert_eq!((own.drop_path, own.layer_scale), (0.1, Some(0.5)));
}

#[test]
fn captions_of_several_places_and_a_filter_reach_the_trainer_as_they_are_written() {
    let config = render(
        "spec.data.webdataset.captions = [{'key': 'txt', 'weight': 3}, {'json': 'meta.alt'}]; spec.data.webdataset.filter = 'width > 1'",
    );
    let source = serde_json::to_value(&config.data.source).unwrap();
    assert_eq!(
        source["keys"]["captions"],
        json!([{ "from": { "key": "txt" }, "weight": 3 }, { "from": { "json": "meta.alt" }, "weight": 1 }])
    );
    assert_eq!(source["keys"]["filter"], "width > 1");
    let mixed = render(
        "spec.data = {'mixture': {'sources': [{'name': 'a', 'webdataset': {'shards': ['/a.tar'], 'filter': 'width > 1'}}, \
         {'name': 'b', 'webdataset': {'shards': ['/b.tar'], 'captions': [{'json': 'caption'}]}}]}}",
    );
    let sources = serde_json::to_value(&mixed.data.source).unwrap()["mixture"]["sources"].clone();
    assert_eq!(sources[0]["source"]["keys"]["filter"], "width > 1");
    assert_eq!(sources[1]["source"]["keys"]["captions"], json!([{ "from": { "json": "caption" }, "weight": 1 }]));
    assert_eq!(mixed.validate(), Ok(()));
}

/// The container `worker` with mounts, and volumes.
fn with_volumes(mounts: &Value, volumes: &Value, assignments: &str) -> ValidatedJob {
    let mut job = minimal_job();
    assign(&mut job, assignments);
    job["spec"]["workers"] = json!({ "template": { "spec": {
        "containers": [
            { "name": "sidecar", "image": "sidecar", "volumeMounts": [{ "name": "lcl-tmp", "mountPath": "/data" }] },
            { "name": "worker", "volumeMounts": mounts },
        ],
        "volumes": volumes,
    } } });
    validate_under(&job, &PodPolicy::everything()).unwrap_or_else(|errors| panic!("{errors}"))
}

const PATHS: &str = "spec.data.webdataset.shards = ['/data/a-{000..003}.tar', '/data/deep/b.tar', '/database/c.tar']; \
     spec.data.indexPath = '/data'; spec.checkpoint.uri = 'file:///runs/x%20y'";

fn folders(given: &[(&str, &str)]) -> BTreeMap<String, String> {
    given.iter().map(|(name, folder)| ((*name).to_owned(), (*folder).to_owned())).collect()
}

#[test]
fn paths_below_a_mount_lie_in_the_volumes_local_folder_and_others_stay() {
    let mounts = json!([
        { "name": "data", "mountPath": "/data/" },
        { "name": "deep", "mountPath": "/data/deep", "subPath": "sub/dir" },
        { "name": "runs", "mountPath": "/runs" },
    ]);
    let volumes = json!([
        { "name": "data", "hostPath": { "path": "/srv/data/" } },
        { "name": "deep", "persistentVolumeClaim": { "claimName": "deep" } },
        { "name": "runs", "hostPath": { "path": "/srv/runs" } },
    ]);
    let job = with_volumes(&mounts, &volumes, PATHS);
    let paths = PathMapping::on_this_machine(&job, &folders(&[("deep", "/home/deep"), ("runs", "/home/my runs")])).unwrap();
    let config = render_trainer_config(&job, &Surroundings { paths, ..in_container() });
    let lcl_trainer_config::DataSource::Webdataset { shards, .. } = &config.data.source else { panic!("pairs") };
    assert_eq!(shards, &["/srv/data/a-{000..003}.tar", "/home/deep/sub/dir/b.tar", "/database/c.tar"]);
    assert_eq!(config.data.index_path.as_deref(), Some("/srv/data/"));
    assert_eq!(config.checkpoint.uri, "file:///home/my%20runs/x%20y");
}

#[test]
fn a_volume_without_a_local_folder_is_named_for_every_path_on_it() {
    let mounts = json!([{ "name": "data", "mountPath": "/data" }, { "name": "runs", "mountPath": "/runs", "subPathExpr": "$(X)" }]);
    let volumes = json!([{ "name": "data", "emptyDir": {} }, { "name": "runs", "hostPath": { "path": "/srv" } }]);
    let job = with_volumes(&mounts, &volumes, PATHS);
    let errors = PathMapping::on_this_machine(&job, &folders(&[("date", "/x")])).unwrap_err();
    let messages: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        messages,
        [
            "no volume is named `date`: the manifest mounts data, runs",
            "spec.data.webdataset.shards[0] is /data/a-{000..003}.tar, but its volume `data` has no local folder: give one with --volume \
             data=DIR",
            "spec.data.webdataset.shards[1] is /data/deep/b.tar, but its volume `data` has no local folder: give one with --volume data=DIR",
            "spec.data.indexPath is /data, but its volume `data` has no local folder: give one with --volume data=DIR",
            "spec.checkpoint.uri is /runs/x y, but its volume `runs` has no local folder: give one with --volume runs=DIR",
        ]
    );
}

#[test]
fn patterns_keep_to_one_volume_and_a_local_folder_is_no_pattern() {
    let mounts = json!([{ "name": "a", "mountPath": "/a" }, { "name": "b", "mountPath": "/b" }]);
    let volumes = json!([{ "name": "a", "hostPath": { "path": "/x" } }, { "name": "b", "hostPath": { "path": "/y" } }]);
    let mapped = |shards: &str, folder: &str| {
        let job = with_volumes(&mounts, &volumes, &format!("spec.data.webdataset.shards = {shards}"));
        let given = folders(&[("a", folder)]);
        let paths = PathMapping::on_this_machine(&job, &given).map_err(|errors| errors[0].to_string())?;
        let config = render_trainer_config(&job, &Surroundings { paths, ..in_container() });
        let lcl_trainer_config::DataSource::Webdataset { shards, .. } = config.data.source else { panic!("pairs") };
        Ok::<_, String>(shards.join(" "))
    };
    assert_eq!(mapped("['/a/{0..1}/*.tar', '/b/l.txt', '/a/l.txt']", "/srv"), Ok("/srv/{0..1}/*.tar /y/l.txt /srv/l.txt".to_owned()));
    assert_eq!(mapped("['/a/*.tar']", "/my [data]"), Ok("/my [[]data]/*.tar".to_owned()));
    let refused = |shards: &str, folder: &str| mapped(shards, folder).unwrap_err();
    assert_eq!(
        refused("['/a/x.tar', '/{a,b}/{0..9}.tar']", "/srv"),
        "spec.data.webdataset.shards[1] is /{a,b}/{0..9}.tar, whose braces lead into other volumes (/a/0.tar): write an entry for each volume"
    );
    let folder = "the local folder /{x} of volume `a` holds characters that spec.data.webdataset.shards[0] reads as a pattern";
    assert!(refused("['/a/x.tar']", "/{x}").starts_with(folder), "{}", refused("['/a/x.tar']", "/{x}"));
    assert!(refused("['/a/x.txt']", "/[x]").contains("the local folder /[x]"));
}

/// The paths of all values in a configuration, without the numbers of lists.
fn leaves(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                leaves(value, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// Whether the custom resource has this field.
fn has_field(path: &str) -> bool {
    // Made once: it takes half a second.
    static DEFINITION: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(lcl_crds::custom_resource_definition()).unwrap());
    let schema = &DEFINITION["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    path == "metadata.name" || path.split('.').try_fold(schema, |schema, name| schema["properties"].get(name)).is_some()
}

/// The trainer's messages name fields by this table, and users know nothing but the manifest and the options of `lcl run`.
#[test]
fn every_field_of_the_trainers_configuration_has_a_name_that_its_user_knows() {
    let mut fields = BTreeSet::from(["data.content".to_owned()]);
    // Between them these have every field: one is left out as long as it has its default.
    for assignments in [
        "spec.data.webdataset.captionKeys = ['caption']; spec.optimization.exact = {}",
        "spec.model.objective = {'clip': {}}; spec.optimization.schedule = {'cosine': {'warmupSteps': 1}}",
        "spec.data = {'mmc4': {'shards': ['/m.jsonl'], 'images': {'folder': '/i'}}}",
        "spec.data = {'obelics': {'shards': ['/o.parquet'], 'images': ['/i.tar']}}",
        "spec.data = {'mixture': {'sources': [{'name': 'a', 'webdataset': {'shards': ['/a.tar']}}, \
            {'name': 'b', 'obelics': {'shards': ['/b'], 'images': ['/c']}}]}}",
    ] {
        leaves(&serde_json::to_value(render(assignments)).unwrap(), "", &mut fields);
    }
    // A new field stands in the table or under the manifest's own name.
    assert!(
        fields.len() > 60
            && fields.contains("data.source.keys.separator")
            && fields.contains("data.source.mmc4.images.layout")
            && fields.contains("optimization.exact.threads"),
        "{fields:#?}"
    );
    let (mut options, mut fixed) = (Vec::new(), Vec::new());
    for field in &fields {
        match UserField::of(field) {
            UserField::Manifest(path) => assert!(has_field(&path), "{field} is called {path}, which no manifest has"),
            UserField::Argument(option) => options.push(option),
            UserField::Fixed => fixed.push(field.as_str()),
        }
    }
    assert_eq!(options, ["--device", "--threads"], "tested in `lcl`'s own arguments");
    assert!(
        fixed.iter().all(|field| *field == "version" || field.starts_with("model.shape.specialTokens") || field.ends_with("vocabSize"))
    );
}

#[test]
fn uris_of_object_stores_and_jobs_without_volumes_are_left_alone() {
    let job = valid("spec.checkpoint.uri = 's3://bucket/data'");
    let paths = PathMapping::on_this_machine(&job, &BTreeMap::new()).unwrap();
    assert_eq!(paths.map_uri("s3://bucket/data"), "s3://bucket/data");
    assert_eq!(paths.map("/data/a.tar"), "/data/a.tar");
    let errors = PathMapping::on_this_machine(&job, &folders(&[("data", "/x")])).unwrap_err();
    assert_eq!(errors[0].to_string(), "no volume is named `data`: the manifest mounts no volume in its container `worker`");
}

/// A number at or between bounds; the bounds come often, for rules break there.
fn whole(least: i64, greatest: i64) -> impl Strategy<Value = Value> {
    prop_oneof![Just(least), Just(greatest), least..=greatest].prop_map(|number| json!(number))
}

fn real(least: f64, greatest: f64) -> impl Strategy<Value = Value> {
    prop_oneof![Just(least), Just(greatest), least..=greatest].prop_map(|number| json!(number))
}

fn shape() -> impl Strategy<Value = Value> {
    let heads = || 1..=8i64;
    // The language model is as wide as the space of the contrast: both are a multiple of the heads of both.
    (heads(), heads(), heads(), 1..=16i64, 1..=32i64, 1..=24i64, 0..=2i64).prop_map(
        |(vision_heads, text_heads, pool_heads, grid, patch, width, beyond)| {
            json!({
                "vision": { "imageSize": grid * patch, "patchSize": patch, "width": vision_heads * width, "layers": 1, "heads": vision_heads },
                "text": {
                    "width": text_heads * pool_heads * width, "layers": 1024, "heads": text_heads, "contextLength": (grid * grid + 4 + beyond).max(6),
                },
                "embedDim": text_heads * pool_heads * width,
                "poolHeads": pool_heads,
            })
        },
    )
}

fn model() -> impl Strategy<Value = Value> {
    let preset = prop::sample::select(Preset::ALL.map(Preset::name).to_vec()).prop_map(|name| ("preset", json!(name)));
    let size = prop_oneof![preset, shape().prop_map(|shape| ("shape", shape))];
    let objective = prop_oneof![
        Just(json!({ "clip": {} })),
        (real(0.0, 1e6), real(0.0, 1e6))
            .prop_map(|(generation, contrast)| { json!({ "lcl": { "generationWeight": generation, "contrastiveWeight": contrast } }) }),
    ];
    (size, objective, real(0.0, 0.99), real(0.0, 10.0), any::<bool>(), prop::sample::select(vec!["Float32", "Bfloat16"])).prop_map(
        |((size, value), objective, drop_path, layer_scale, checkpointing, precision)| {
            json!({
                size: value, "objective": objective, "dropPath": drop_path, "layerScale": layer_scale,
                "activationCheckpointing": checkpointing, "precision": precision,
            })
        },
    )
}

fn optimization() -> impl Strategy<Value = Value> {
    let sizes = (whole(1, 1_000_000_000_000), whole(1, 16_777_216), whole(1, 16_777_216), prop_oneof![Just(0), Just(1), 0..=10_000i64]);
    let constants = (real(1e-12, 10.0), real(0.0, 10.0), real(0.0, 0.999_999_999), real(1e-16, 1.0), real(1e-9, 1e9));
    let rest = (whole(0, i64::MAX), whole(1, 1_000_000), any::<bool>(), any::<bool>(), prop::sample::select(vec!["None", "Bf16"]));
    (sizes, constants, rest).prop_map(
        |((steps, batch, micro, warmup), (rate, decay, beta, epsilon, clip), (seed, skips, is_cosine, per_rank, compression))| {
            let kind = if is_cosine { "cosine" } else { "constant" };
            json!({
                "steps": steps, "globalBatchSize": batch, "microBatchSize": micro, "learningRate": rate, "weightDecay": decay,
                "betas": [beta, beta], "epsilon": epsilon, "gradientClip": clip, "schedule": { kind: { "warmupSteps": warmup } },
                "normalization": if per_rank { "PerRank" } else { "Global" }, "gradientCompression": compression, "seed": seed,
                "maxConsecutiveSkippedSteps": skips,
            })
        },
    )
}

fn data() -> impl Strategy<Value = Value> {
    let shards = prop::collection::vec("(/[a-z.]{1,4}|/x-\\{00\\.\\.03\\}){1,3}", 1..3);
    let source = (shards, 0..3, real(-1.0, 1.0), whole(1, 64)).prop_map(|(shards, kind, similarity, images)| match kind {
        0 => ("webdataset", json!({ "shards": shards })),
        1 => ("mmc4", json!({ "shards": shards, "images": { "folder": "/i" }, "minSimilarity": similarity, "maxImages": images })),
        _ => ("obelics", json!({ "shards": shards, "images": shards, "maxImages": images })),
    });
    let crop = (real(1e-6, 1.0), real(1e-6, 1.0), real(1e-3, 1e3), real(1e-3, 1e3));
    let shuffle = (whole(1, 1_000_000), whole(1, 1_000_000_000));
    (source, real(0.0, 1.0), crop, shuffle, whole(1, 1024), whole(1, 1024)).prop_map(
        |((source, value), probability, crop, (lanes, window), threads, prefetch)| {
            json!({
                source: value, "imageFirstProbability": probability, "threads": threads, "prefetch": prefetch,
                "augmentation": { "scale": [crop.0, crop.1], "ratio": [crop.2, crop.3] },
                "shuffle": { "lanes": lanes, "window": window },
            })
        },
    )
}

fn job() -> impl Strategy<Value = Value> {
    let checkpoint = (whole(1, 1_000_000_000), whole(1, 10_000), whole(1, i64::MAX))
        .prop_map(|(every, last, keep)| json!({ "uri": "file:///runs/a", "everySteps": every, "keepLast": last, "keepEverySteps": keep }));
    (model(), data(), optimization(), checkpoint, whole(1, 8)).prop_map(|(model, data, optimization, checkpoint, replicas)| {
        json!({
            "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "metadata": { "name": "job" },
            "spec": {
                "model": model, "data": data, "optimization": optimization, "checkpoint": checkpoint, "workers": { "replicas": replicas },
            },
        })
    })
}

proptest! {
    // About one generated job in ten keeps every rule; the rest is drawn again.
    #![proptest_config(ProptestConfig { cases: 200, max_local_rejects: 100_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_rendered_from_any_valid_job_is_a_valid_configuration(
        job in job().prop_filter_map("breaks a rule", |manifest| validate(&manifest).ok())
    ) {
        let config = render_trainer_config(&job, &in_container());
        prop_assert_eq!(config.validate(), Ok(()));
    }
}
