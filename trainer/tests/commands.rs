//! What the trainer's commands print and write, beside training that is interrupted (that is `resume.rs`).

#[path = "commands/data.rs"]
mod data;

use std::fs;

use anyhow::{Context, Result, ensure};
use lcl_tests::{
    coordinator::Coordinator,
    data::{Fault, write_shard, write_shard_with, write_shard_with_sidecars},
    process::{self, Finished},
    run::{Run, SAMPLES, Workbench},
};
use lcl_trainer_config::{CaptionChoice, CaptionFrom, DataSource, ExitCode, Objective, Preset, SampleKeys, Schedule};
use serde_json::Value;

const PERMANENT: u8 = ExitCode::Permanent.code();

fn run(arguments: &[&str]) -> Result<Finished> {
    process::run(arguments)
}

#[test]
fn bad_records_are_counted_by_cause_and_leave_their_slots_empty() -> Result<()> {
    let workbench = Workbench::new(&[
        (7, Fault::TruncatedImage),
        (12, Fault::NoCaption),
        (21, Fault::DoubledMembers),
        (25, Fault::NoEndMark),
        (26, Fault::NoEndMark),
        (30, Fault::NoCaption),
    ])?;
    let mut training = workbench.begin("run")?;
    // One pass and no more.
    training.config.optimization.global_batch_size = 15;
    training.config.optimization.schedule = Schedule::Constant { warmup_steps: Some(0) };
    let finished = training.run(&["--steps", "3"])?.expect_code(0)?;
    let steps = training.steps()?;
    let rows: u64 = steps.iter().filter_map(|step| step["rows"].as_u64()).sum();
    ensure!(rows == SAMPLES as u64 - 4, "{rows} rows");
    let mut skipped: Vec<(u64, String)> = Vec::new();
    for sample in steps.iter().flat_map(|step| step["skipped_samples"].as_array().cloned().unwrap_or_default()) {
        skipped.push((sample["sample"].as_u64().context("no sample")?, sample["cause"].as_str().context("no cause")?.to_owned()));
    }
    skipped.sort();
    let expected = [(7, "truncated_image"), (12, "no_caption"), (21, "doubled_member"), (30, "no_caption")];
    let expected = expected.map(|(sample, cause)| (sample, cause.to_owned()));
    ensure!(skipped == expected, "{skipped:?}");
    let events = training.events()?;
    let ended = events.last().context("no record")?;
    ensure!(ended["skipped_samples"] == serde_json::json!({ "doubled_member": 1, "no_caption": 2, "truncated_image": 1 }), "{ended}");
    ensure!(ended["tolerated_images"] == serde_json::json!({ "png_end": 2 }), "{ended}");
    let tolerated: u64 = steps.iter().filter_map(|step| step["tolerated_images"]["png_end"].as_u64()).sum();
    ensure!(tolerated == 2, "{tolerated} images");
    // Named once in the log, with the record's name; of those that are used one for each fault.
    for name in ["sample00007", "sample00012", "sample00021", "sample00030"] {
        ensure!(finished.stderr.matches(name).count() == 1, "{name}: {}", finished.stderr);
    }
    ensure!(finished.stderr.matches("png_end").count() == 1, "{}", finished.stderr);
    ensure!(finished.stdout.contains("2 images used in spite of a fault: png_end"), "{}", finished.stdout);
    Ok(())
}

#[test]
fn a_wrong_configuration_is_refused_by_field_name() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut training = workbench.begin("run")?;
    training.config.data.threads = 0;
    let finished = training.run(&[])?.expect_code(PERMANENT)?;
    ensure!(finished.stderr.contains("spec.data.threads is 0, but must be at least 1"), "{}", finished.stderr);
    ensure!(!training.folder.exists());
    Ok(())
}

#[test]
fn a_diverged_run_stops_with_the_permanent_code_after_the_configured_steps() -> Result<()> {
    // Some samples have no caption: what was left out is counted in the end.
    let faults: Vec<(usize, Fault)> = (0..SAMPLES).step_by(3).map(|sample| (sample, Fault::NoCaption)).collect();
    let workbench = Workbench::new(&faults)?;
    let diverging = |name: &str| -> Result<Run> {
        let mut training = workbench.begin(name)?;
        let optimization = &mut training.config.optimization;
        (optimization.learning_rate, optimization.gradient_clip) = (1e30, None);
        Ok(training)
    };
    let alone = diverging("alone")?;
    expect_diverged(&alone, &alone.run(&[])?.expect_code(PERMANENT)?)?;

    let (together, coordinator) = (diverging("together")?, Coordinator::start(2, 2)?);
    let address = coordinator.address().to_string();
    let place = ["--insecure", "--coordinator", &address, "--worker", "w-0", "--node", "n", "--members-per-worker", "2"];
    expect_diverged(&together, &process::run(together.arguments_of("worker", &place)?)?.expect_code(PERMANENT)?)
}

#[test]
fn a_loss_that_is_no_number_soon_after_a_checkpoint_was_read_names_it() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    for name in ["alone", "together"] {
        let mut training = workbench.begin(name)?;
        training.complete(&["--steps", "4"])?;
        training.config.optimization.learning_rate = 1e30;
        let coordinator = Coordinator::start(2, 2)?;
        let address = coordinator.address().to_string();
        let place = ["--insecure", "--coordinator", &address, "--worker", "w-0", "--node", "n", "--members-per-worker", "2"];
        let finished = if name == "alone" { training.run(&[])? } else { process::run(training.arguments_of("worker", &place)?)? }
            .expect_code(PERMANENT)?;
        let line = finished.stderr.lines().find(|line| line.contains("so soon after this checkpoint was read"));
        let line = line.with_context(|| format!("{name}: {}", finished.stderr))?;
        ensure!(line.contains("checkpoint=step-00000004-"), "{name}: {line}");
    }
    Ok(())
}

#[test]
fn too_many_records_of_no_use_fail_a_run_alone_and_in_a_group_which_goes_on_when_the_limit_is_raised() -> Result<()> {
    let faults: Vec<(usize, Fault)> = (0..SAMPLES).step_by(2).map(|sample| (sample, Fault::TruncatedImage)).collect();
    let workbench = Workbench::new(&faults)?;
    let begin = |name: &str| -> Result<Run> {
        let mut training = workbench.begin(name)?;
        training.config.optimization.global_batch_size = 20;
        training.config.data.max_bad_fraction = 0.4;
        Ok(training)
    };
    let (mut alone, mut together) = (begin("alone")?, begin("together")?);
    let worker = |training: &Run, coordinator: &Coordinator| -> Result<Finished> {
        let address = coordinator.address().to_string();
        let place = ["--insecure", "--coordinator", &address, "--worker", "w-0", "--node", "n", "--members-per-worker", "2"];
        process::run(training.arguments_of("worker", &place)?)
    };
    for (training, finished) in [(&alone, alone.run(&[])?), (&together, worker(&together, &Coordinator::start(2, 2)?)?)] {
        let finished = finished.expect_code(PERMANENT)?;
        let steps = training.steps()?;
        let bad: usize = steps.iter().filter_map(|step| step["skipped_samples"].as_array()).map(Vec::len).sum();
        // Every other record: at the tenth or eleventh step of twenty there are a hundred.
        ensure!((100..120).contains(&bad) && steps.len() < 13, "{bad} in {} steps", steps.len());
        let expected = format!("{bad} of the last {} records could not be used, more than spec.data.maxBadFraction", 20 * steps.len());
        ensure!(finished.stderr.contains(&expected) && finished.stderr.contains(&format!("truncated_image: {bad}")), "{}", finished.stderr);
        ensure!(training.events()?.last().context("no record")?["reason"] == "bad_data");
    }
    for training in [&mut alone, &mut together] {
        training.config.data.max_bad_fraction = 0.6;
        training.complete(&["--steps", "14"])?;
        ensure!(training.ledger()?.len() == 14);
    }
    Ok(())
}

fn expect_diverged(training: &Run, finished: &Finished) -> Result<()> {
    ensure!(finished.stderr.contains("optimization.maxConsecutiveSkippedSteps"), "{}", finished.stderr);
    let steps = training.steps()?;
    let left_out: Vec<bool> = steps.iter().map(|step| step["update_skipped"] == true).collect();
    ensure!(left_out.ends_with(&[true, true, true]) && left_out.iter().filter(|left_out| **left_out).count() == 3, "{left_out:?}");
    let events = training.events()?;
    let ended = events.last().context("no record")?;
    let samples = steps.iter().filter_map(|step| step["skipped_samples"].as_array()).map(Vec::len).sum::<usize>();
    ensure!(ended["reason"] == "diverged" && ended["skipped_updates"] == 3, "{ended}");
    ensure!(
        ended["skipped_samples"]["no_caption"].as_u64().unwrap_or_default() == samples as u64 && samples > 0,
        "{samples} samples, {ended}"
    );
    Ok(())
}

#[test]
fn data_without_a_single_pair_end_a_run_at_its_start_with_what_was_looked_for_and_cost_no_earlier_run() -> Result<()> {
    let faults: Vec<(usize, Fault)> = (0..SAMPLES).map(|sample| (sample, Fault::NoCaption)).collect();
    let workbench = Workbench::new(&faults)?;
    let mut training = workbench.begin("run")?;
    training.config.optimization.schedule = Schedule::Constant { warmup_steps: Some(0) };
    let earlier = training.folder.join("metrics.jsonl");
    fs::create_dir_all(&training.folder)?;
    fs::write(&earlier, "")?;
    let finished = training.run(&["--steps", "2", "--fresh", "--delete-existing"])?.expect_code(PERMANENT)?;
    for part in ["none of the 45 samples", "captions txt", "spec.data.webdataset.captionKeys", "png 45"] {
        ensure!(finished.stderr.contains(part), "{part} is missing: {}", finished.stderr);
    }
    ensure!(earlier.exists(), "the earlier run was deleted for one that cannot be");
    ensure!(training.steps()?.is_empty() && training.checkpoints()?.is_empty());

    let shard = workbench.shard().display().to_string();
    let shown = run(&["data", "show", &shard, "--caption-keys", "json"])?.expect_code(PERMANENT)?;
    ensure!(shown.stderr.contains("captions json") && shown.stderr.contains("--caption-keys"), "{}", shown.stderr);
    let refused = run(&["data", "index", &shard, "--caption-keys", "png"])?.expect_code(PERMANENT)?;
    ensure!(refused.stderr.contains("--caption-keys must not share a key"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn a_run_of_which_no_sample_can_be_decoded_fails_even_when_it_is_shorter_than_the_limit_of_skipped_steps() -> Result<()> {
    let faults: Vec<(usize, Fault)> = (0..SAMPLES).map(|sample| (sample, Fault::TruncatedImage)).collect();
    let workbench = Workbench::new(&faults)?;
    let begin = |name: &str| -> Result<Run> {
        let mut training = workbench.begin(name)?;
        training.config.optimization.schedule = Schedule::Constant { warmup_steps: Some(0) };
        training.config.optimization.steps = 2;
        Ok(training)
    };
    let check = |training: &Run, finished: &Finished| -> Result<()> {
        let expected = "nothing was trained in all of 2 steps: no sample could be used (truncated_image: 16";
        ensure!(finished.stderr.contains(expected), "{}", finished.stderr);
        ensure!(training.steps()?.iter().all(|step| step["update_skipped"] == true && step["rows"] == 0 && step["loss"].is_null()));
        let events = training.events()?;
        ensure!(events.last().context("no record")?["reason"] == "nothing_trained", "{events:?}");
        // Whoever looks for a model finds none.
        ensure!(training.checkpoints()?.is_empty());
        let folder = training.folder.display().to_string();
        let weights = workbench.path("weights.safetensors");
        run(&["export", "--run", &folder, "-o", &weights.display().to_string()])?.expect_code(PERMANENT)?;
        ensure!(!weights.exists());
        Ok(())
    };
    let alone = begin("alone")?;
    check(&alone, &alone.run(&[])?.expect_code(PERMANENT)?)?;
    let (together, coordinator) = (begin("together")?, Coordinator::start(2, 2)?);
    let address = coordinator.address().to_string();
    let place = ["--insecure", "--coordinator", &address, "--worker", "w-0", "--node", "n", "--members-per-worker", "2"];
    check(&together, &process::run(together.arguments_of("worker", &place)?)?.expect_code(PERMANENT)?)?;

    // Where the limit comes first, it is what is said.
    let mut limited = begin("limited")?;
    limited.config.optimization.steps = 40;
    let finished = limited.run(&[])?.expect_code(PERMANENT)?;
    ensure!(finished.stderr.contains("spec.optimization.maxConsecutiveSkippedSteps"), "{}", finished.stderr);
    Ok(())
}

#[test]
fn one_usable_sample_among_all_members_is_enough_for_a_run() -> Result<()> {
    let faults: Vec<(usize, Fault)> = (1..SAMPLES).map(|sample| (sample, Fault::TruncatedImage)).collect();
    let workbench = Workbench::new(&faults)?;
    let mut training = workbench.begin("run")?;
    // All samples once: one member has the only one that can be used, in one of the steps.
    training.config.optimization.schedule = Schedule::Constant { warmup_steps: Some(0) };
    (training.config.optimization.steps, training.config.optimization.global_batch_size) = (5, 9);
    training.config.optimization.max_consecutive_skipped_steps = 5;
    let coordinator = Coordinator::start(2, 2)?;
    let address = coordinator.address().to_string();
    let place = ["--insecure", "--coordinator", &address, "--worker", "w-0", "--node", "n", "--members-per-worker", "2"];
    process::run(training.arguments_of("worker", &place)?)?.expect_code(0)?;
    ensure!(training.steps()?.iter().filter_map(|step| step["rows"].as_u64()).sum::<u64>() == 1);
    ensure!(training.newest_checkpoint()?.step == 5);
    Ok(())
}

#[test]
fn a_run_reads_the_keys_of_its_configuration_and_goes_on_with_no_others() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let shard = workbench.path("keys.tar");
    write_shard_with(&shard, 20, ["seg.png", "caption"])?;
    let mut training = workbench.begin("run")?;
    let shards = vec![shard.display().to_string()];
    let mut keys = SampleKeys { image: vec!["seg.png".to_owned()], caption: vec!["caption".to_owned()], ..SampleKeys::default() };
    training.config.data.source = DataSource::Webdataset { shards: shards.clone(), keys: keys.clone() };
    training.run(&["--steps", "5"])?.expect_code(0)?;
    ensure!(training.steps()?.iter().all(|step| step["rows"] == 8));

    let path = shard.display().to_string();
    let named = ["--image-keys", "png,seg.png", "--caption-keys", "caption"];
    run(&[&["data", "index", &path][..], &named].concat())?.expect_code(0)?;
    run(&[&["data", "show", &path, "--sample", "3"][..], &named].concat())?.expect_code(0)?;
    // What was trained with is what is measured with.
    let folder = training.folder.display().to_string();
    let measured = ["evaluate", "retrieval", "--run", &folder, "--threads", "1", "--shards", &path];
    run(&measured)?.expect_code(0)?;
    let none = run(&[&measured[..], &["--key-separator", "last-dot", "--image-keys", "png"]].concat())?.expect_code(PERMANENT)?;
    ensure!(none.stderr.contains("have to stand next to each other") && none.stderr.contains("--image-keys"), "{}", none.stderr);

    keys.caption.push("txt".to_owned());
    training.config.data.source = DataSource::Webdataset { shards, keys };
    let refused = training.run(&["--steps", "10"])?.expect_code(PERMANENT)?;
    let expected = "spec.data.webdataset.captionKeys is [\"caption\",\"txt\"], but the checkpoint was trained with [\"caption\"]";
    ensure!(refused.stderr.contains(expected), "{}", refused.stderr);
    Ok(())
}

/// What img2dataset writes beside the images of LAION-400M; every third is marked, one lacks its similarity, one its sidecar.
fn sidecars() -> Vec<Option<Value>> {
    let sidecar = |number: usize| {
        let mut fields = serde_json::json!({
            "NSFW": if number % 3 == 2 { "NSFW" } else { "UNLIKELY" }, "similarity": 0.3 + 0.01 * number as f64, "LICENSE": "?",
            "caption": format!("caption {number}"), "url": format!("http://a.b/{number}.jpg"), "key": format!("{number:09}"),
            "status": "success", "error_message": null, "width": 40, "height": 40, "original_width": 400, "original_height": 400,
            "exif": "{}", "sha256": "00",
        });
        if number == 6 {
            fields.as_object_mut()?.remove("similarity");
        }
        (number != 7).then_some(fields)
    };
    (0..20).map(sidecar).collect()
}

#[test]
fn pairs_that_a_filter_leaves_out_are_counted_by_cause_and_never_trained_on() -> Result<()> {
    const FILTER: &str = "similarity >= 0.32 && NSFW != \"NSFW\"";
    let workbench = Workbench::new(&[])?;
    let shard = workbench.path("00000.tar");
    write_shard_with_sidecars(&shard, &sidecars())?;
    let path = shard.display().to_string();
    let indexed = run(&["data", "index", &path, "--filter", FILTER, "--captions", "txt,json:caption"])?.expect_code(0)?;
    for part in [
        "found 10 samples in 1 shard: 10 with image, 10 with a caption, or a json that may hold one, at most 10 usable; extensions: jpg 20, txt 20, json 19\n",
        "note: whether a json has the field",
        "filtered 10 of 20: excluded 8, missing_field 1 (first 000000006: similarity), no_sidecar 1 (first 000000007)",
    ] {
        ensure!(indexed.stdout.contains(part), "{part}: {}", indexed.stdout);
    }
    // What img2dataset writes where there is no caption is none, for the index as for whoever reads it.
    let empty = run(&["data", "index", &path])?.expect_code(0)?;
    ensure!(empty.stdout.contains("20 with image, 0 with caption, 0 usable"), "{}", empty.stdout);
    ensure!(empty.stdout.contains("20 of 20 samples have a caption's file without a byte in it"), "{}", empty.stdout);
    let wrong = run(&["data", "index", &path, "--filter", "similarity >"])?.expect_code(2)?;
    ensure!(wrong.stderr.contains("must be an expression in CEL: at character 13"), "{}", wrong.stderr);
    let none = run(&["data", "show", &path, "--filter", "similarity > 1"])?.expect_code(PERMANENT)?;
    ensure!(none.stderr.contains("passes the filter") && none.stderr.contains("--filter (`similarity > 1`)"), "{}", none.stderr);
    // The first three are left out: two by their similarity, one as it is marked.
    let shown = run(&["data", "show", &path, "--filter", FILTER, "--captions", "txt=9,json:caption"])?.expect_code(0)?;
    ensure!(shown.stdout.contains("sample 0 of 10: 000000003") && shown.stdout.contains("caption: caption 3"), "{}", shown.stdout);

    let mut training = workbench.begin("run")?;
    let choice = |from| CaptionChoice { from, weight: 1 };
    let captions = vec![choice(CaptionFrom::Key("txt".to_owned())), choice(CaptionFrom::Json("caption".to_owned()))];
    let keys = |filter: &str| SampleKeys { captions: captions.clone(), filter: Some(filter.to_owned()), ..SampleKeys::default() };
    let source = |keys| DataSource::Webdataset { shards: vec![path.clone()], keys };
    training.config.data.source = source(keys(FILTER));
    training.run(&["--steps", "5"])?.expect_code(0)?;
    let steps = training.steps()?;
    ensure!(steps.len() == 5 && steps.iter().all(|step| step["rows"] == 8 && step["skipped_samples"].as_array().is_none_or(Vec::is_empty)));

    training.config.data.source = source(keys("similarity >= 0.32"));
    let refused = training.run(&["--steps", "10"])?.expect_code(PERMANENT)?;
    let expected = "spec.data.webdataset.filter is \"similarity >= 0.32\", but the checkpoint was trained with";
    ensure!(refused.stderr.contains(expected), "{}", refused.stderr);
    let other = vec![choice(CaptionFrom::Json("caption".to_owned()))];
    training.config.data.source = source(SampleKeys { captions: other, ..keys(FILTER) });
    let refused = training.run(&["--steps", "10"])?.expect_code(PERMANENT)?;
    let expected =
        "spec.data.webdataset.captions is [{\"from\":{\"json\":\"caption\"},\"weight\":1}], but the checkpoint was trained with [";
    ensure!(refused.stderr.contains(expected), "{}", refused.stderr);
    Ok(())
}

#[test]
fn held_out_pairs_of_which_none_can_be_decoded_are_refused_with_the_causes() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let training = workbench.begin("run")?;
    training.run(&["--steps", "5"])?.expect_code(0)?;
    let held_out = workbench.path("held-out.tar");
    write_shard(&held_out, 3, &[(0, Fault::TruncatedImage), (1, Fault::NoCaption), (2, Fault::TruncatedImage)])?;
    let (folder, held_out) = (training.folder.display().to_string(), held_out.display().to_string());
    let refused = run(&["evaluate", "retrieval", "--run", &folder, "--threads", "1", "--shards", &held_out])?.expect_code(PERMANENT)?;
    ensure!(refused.stderr.contains("none of the 3 samples can be used (truncated_image: 2, no_caption: 1)"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn json_output_is_one_object_a_line_and_the_same_as_the_files() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let training = workbench.begin("run")?;
    let finished = training.run(&["--output", "json", "--steps", "6", "--log-format", "json"])?.expect_code(0)?;
    let printed: Vec<Value> = finished.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of = |event: &str| printed.iter().filter(|line| line["event"] == event).cloned().collect::<Vec<_>>();
    ensure!(of("started").len() == 1 && of("ended").len() == 1 && of("checkpoint_committed").len() == 2, "{printed:?}");
    let mut steps = of("step");
    for step in &mut steps {
        step.as_object_mut().context("no object")?.remove("event");
    }
    ensure!(steps == training.steps()?);
    let stall = of("checkpoint_committed")[0]["stall_seconds"].as_f64().context("the stall is not measured")?;
    ensure!(stall > 0.0 && stall < 5.0, "{stall}");
    for line in finished.stderr.lines() {
        serde_json::from_str::<Value>(line).with_context(|| format!("a log line that is no JSON: {line}"))?;
    }
    Ok(())
}

#[test]
fn a_run_is_evaluated_reported_and_exported() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let training = workbench.begin("run")?;
    training.run(&["--steps", "10"])?.expect_code(0)?;
    let folder = training.folder.display().to_string();
    let held_out = workbench.path("held-out.tar");
    write_shard(&held_out, 20, &[(4, Fault::TruncatedImage)])?;
    let (held_out, result, page) = (held_out.display().to_string(), workbench.path("retrieval.json"), workbench.path("report.html"));
    let result_path = result.display().to_string();

    let text = run(&["evaluate", "retrieval", "--run", &folder, "--shards", &held_out, "--threads", "1", "--output-file", &result_path])?;
    let text = text.expect_code(0)?.stdout;
    for part in ["gallery of 19 pairs", "image → text", "text → image", "@10", "chance 5.3 %", "1 unusable samples left out"] {
        ensure!(text.contains(part), "{part} is missing: {text}");
    }
    let evaluation: Value = serde_json::from_slice(&fs::read(&result)?)?;
    ensure!(evaluation["gallery"] == 19 && evaluation["completed_steps"] == 10 && evaluation["skipped"] == 1, "{evaluation}");
    ensure!(evaluation["examples"].as_array().map(Vec::len) == Some(5));
    let json = run(&["evaluate", "retrieval", "--run", &folder, "--shards", &held_out, "--threads", "1", "--output", "json"])?;
    ensure!(serde_json::from_str::<Value>(&json.expect_code(0)?.stdout)? == evaluation);

    let measured = ["evaluate", "generation", "--run", &folder, "--shards", &held_out, "--threads", "1", "--output", "json"];
    let losses: Value = serde_json::from_str(&run(&measured)?.expect_code(0)?.stdout)?;
    ensure!(losses["captions"] == 19 && losses["skipped"] == 1 && losses["completed_steps"] == 10, "{losses}");
    let (own, other) = (losses["own_image"].as_f64().context("no loss")?, losses["other_image"].as_f64().context("no loss")?);
    // A model that has learnt a little is better than one that takes every token for equally probable.
    let blind = 49_411_f64.ln();
    ensure!((1.0..blind).contains(&own) && (1.0..blind).contains(&other), "{losses}");
    // They are small shifts of the loss of a vocabulary: another image changes it, but not much.
    ensure!((own - other).abs() > f64::EPSILON && (own - other).abs() < 0.5, "{losses}");

    let page_path = page.display().to_string();
    run(&["report", &folder, "--retrieval", &result_path, "-o", &page_path])?.expect_code(0)?;
    let html = fs::read_to_string(&page)?;
    ensure!(html.matches("<svg").count() == 6 && html.matches("data:image/png;base64,").count() == 5);

    let checkpoint = training.newest_checkpoint()?.path.display().to_string();
    let weights = workbench.path("weights.safetensors").display().to_string();
    let exported = run(&["export", "--checkpoint", &checkpoint, "-o", &weights])?.expect_code(0)?;
    ensure!(exported.stdout.contains("after 10 steps"), "{}", exported.stdout);
    let missing = run(&["export", "--run", "/nowhere/at/all", "-o", &weights])?.expect_code(PERMANENT)?;
    ensure!(missing.stderr.contains("/nowhere/at/all"), "{}", missing.stderr);
    Ok(())
}

#[test]
fn imported_weights_are_trained_on() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let first = workbench.begin("first")?;
    first.run(&["--steps", "10"])?.expect_code(0)?;
    let weights = workbench.path("weights.safetensors").display().to_string();
    run(&["export", "--run", &first.folder.display().to_string(), "-o", &weights])?.expect_code(0)?;

    let second = workbench.begin("second")?;
    // Also writes the configuration's file.
    let arguments = second.arguments(&[])?;
    run(&["import", &weights, "--config", &arguments[2]])?.expect_code(0)?;
    second.run(&["--resume", "--steps", "5"])?.expect_code(0)?;
    let loss = |steps: &[Value], step: usize| steps.get(step).and_then(|step| step["loss"].as_f64()).context("no loss");
    let (before, after) = (first.steps()?, second.steps()?);
    ensure!(after.len() == 5);
    ensure!(loss(&after, 0)? < loss(&before, 0)? - 0.01, "the second run did not begin with the first one's weights");

    let mut third = workbench.begin("third")?;
    third.config.model.shape.vision.width = 48;
    let arguments = third.arguments(&[])?;
    let refused = run(&["import", &weights, "--config", &arguments[2]])?.expect_code(PERMANENT)?;
    ensure!(refused.stderr.contains("`visual.") && refused.stderr.contains("shape"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn the_clip_objective_trains_too() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let mut training = workbench.begin("run")?;
    training.config.model.objective = Objective::Clip;
    training.run(&["--steps", "6"])?.expect_code(0)?;
    let steps = training.steps()?;
    ensure!(steps.iter().all(|step| step["generation_loss"] == 0.0 && step["contrastive_loss"].as_f64().is_some_and(|loss| loss > 0.0)));
    Ok(())
}

#[test]
fn presets_are_what_the_help_offers() -> Result<()> {
    let shard = Workbench::new(&[])?;
    for preset in Preset::ALL {
        let shown = run(&["data", "show", &shard.shard().display().to_string(), "--model", preset.name()])?.expect_code(0)?;
        let tokens = preset.shape().vision.tokens();
        ensure!(shown.stdout.contains(&format!("<img_placehold> x {tokens}")), "{preset}: {}", shown.stdout);
    }
    Ok(())
}
