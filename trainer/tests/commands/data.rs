//! The commands that index, check and show data.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use lcl_data::shard::ShardWriter;
use lcl_tests::{
    data::{Fault, write_shard},
    process,
    run::{SAMPLES, Workbench},
};
use lcl_trainer_config::ExitCode;
use serde_json::Value;

use super::{PERMANENT, run};

#[test]
fn a_shard_that_cannot_be_read_is_an_error_that_names_it() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let check = |name: &str, contents: Option<&[u8]>| -> Result<()> {
        let shard = workbench.path(&format!("{name}.tar"));
        if let Some(contents) = contents {
            fs::write(&shard, contents)?;
        }
        let mut training = workbench.begin(name)?;
        training.config.data.source = lcl_trainer_config::DataSource::webdataset(vec![shard.display().to_string()]);
        let finished = training.run(&[])?.expect_code(PERMANENT)?;
        ensure!(finished.stderr.contains(&shard.display().to_string()), "{}", finished.stderr);
        Ok(())
    };
    check("missing", None)?;
    check("no-archive", Some(b"plain text"))?;
    let whole = fs::read(workbench.shard())?;
    check("cut-short", whole.get(..whole.len() / 2))
}

#[test]
fn indexing_ends_with_what_it_found_and_fails_when_members_are_there_twice() -> Result<()> {
    let workbench = Workbench::new(&[(3, Fault::DoubledMembers), (5, Fault::NoCaption)])?;
    let (sound, bad, joined) = (workbench.path("sound.tar"), workbench.path("bad.tar"), workbench.path("joined.tar"));
    let name = |path: &std::path::Path| path.display().to_string();
    write_shard(&sound, 4, &[])?;
    let mut shard = ShardWriter::create(&bad)?;
    for key in ["0", "1"] {
        shard.append_member(key, "left.jpg", b"pixels")?;
        shard.append_member(key, "txt", b"a caption")?;
    }
    shard.finish()?;
    fs::write(&joined, [fs::read(&sound)?, fs::read(workbench.shard())?].concat())?;
    for state in ["written", "up to date"] {
        let finished = run(&["data", "index", &name(&sound), &name(&bad)])?.expect_code(0)?;
        ensure!(finished.stdout.matches(state).count() == 2, "{}", finished.stdout);
        let found = "found 6 samples in 2 shards: 4 with image, 6 with caption, 4 usable; extensions: txt 6, png 4, left.jpg 2";
        ensure!(finished.stdout.contains(found), "{}", finished.stdout);
        let unusable = format!(
            "none of the 2 samples in {} is usable: looked for images jpg, png, jpeg, webp and captions txt, with names split at their first \
             dot (--image-keys, --caption-keys, --key-separator), found left.jpg 2, txt 2; 2 of 2 samples have dots in their names",
            name(&bad)
        );
        ensure!(finished.stdout.contains(&unusable), "{}", finished.stdout);
        ensure!(finished.stdout.matches("2 of 2 samples").count() == 1, "a reason is there twice: {}", finished.stdout);
        let other = run(&["data", "index", &name(&bad), "--image-keys", "left.jpg"])?.expect_code(0)?;
        ensure!(other.stdout.contains("2 usable") && !other.stdout.contains("warning"), "{}", other.stdout);

        let finished = run(&["data", "index", &name(&joined), &name(&sound)])?.expect_code(PERMANENT)?;
        ensure!(finished.stdout.contains(&format!("doubled: {}: sample00003", name(&joined))), "{}", finished.stdout);
        ensure!(finished.stdout.contains(&format!("found {} samples in 2 shards", SAMPLES + 8)), "{}", finished.stdout);
        ensure!(finished.stdout.contains("2 archives one after the other"), "{}", finished.stdout);
    }
    Ok(())
}

#[test]
fn a_bad_shard_hides_no_other_one_from_the_index_and_the_exit_code_says_so() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let name = |file: &str| workbench.path(file).display().to_string();
    write_shard(&workbench.path("a.tar"), 1, &[])?;
    let whole = fs::read(workbench.shard())?;
    fs::write(workbench.path("b.tar"), whole.get(..1500).context("too short")?)?;
    fs::write(workbench.path("c.tar"), "")?;
    write_shard(&workbench.path("d.tar"), 3, &[])?;
    let finished = process::run(["data", "index"].map(str::to_owned).into_iter().chain(["a.tar", "b.tar", "c.tar", "d.tar"].map(name)))?;
    let finished = finished.expect_code(PERMANENT)?;
    for part in [
        "found 4 samples in 2 shards: 4 with image",
        "a.tar.lclindex: 1 sample, written",
        &format!("bad: shard_cut_short: {}", name("b.tar")),
        &format!("bad: shard_cut_short: {} at byte 0: shard {0} is empty", name("c.tar")),
    ] {
        ensure!(finished.stdout.contains(part), "{part}: {}", finished.stdout);
    }
    ensure!(workbench.path("d.tar.lclindex").exists());

    // Of documents the same: one line that is bad leaves the shard readable, a file that is no archive does not.
    lcl_tests::data::mmc4(&workbench.path("mmc4"))?;

    fs::write(workbench.path("mmc4/data/docs_shard_2_v2.jsonl.zip"), "PK\x03\x04")?;
    let (shards, images) = (name("mmc4/data/docs_shard_{0..2}_v2.jsonl.zip"), name("mmc4/images"));
    let index = |layout: &str| run(&["data", "index", &shards, "--source", "MMC4", "--images", &images, "--images-layout", layout]);
    let finished = index("Flat")?.expect_code(PERMANENT)?;
    ensure!(
        finished.stdout.contains("documents in 2 shards") && finished.stdout.contains("docs_shard_2_v2.jsonl.zip: "),
        "{}",
        finished.stdout
    );
    ensure!(finished.stdout.contains("bad: shard_not_readable: "), "{}", finished.stdout);
    // Images that lie otherwise than is said are no images at all.
    fs::remove_file(workbench.path("mmc4/data/docs_shard_2_v2.jsonl.zip"))?;
    let refused = index("ByShard")?.expect_code(PERMANENT)?;
    ensure!(refused.stderr.contains("set spec.data.mmc4.images.layout to it (--images-layout flat)"), "{}", refused.stderr);
    ensure!(refused.stderr.contains(&format!("the first: {images}/0/")), "{}", refused.stderr);
    Ok(())
}

#[test]
fn an_index_folder_that_cannot_be_used_is_one_error_and_of_many_shards_the_first_are_listed() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let name = |file: &str| workbench.path(file).display().to_string();
    fs::create_dir(workbench.path("shards"))?;
    for number in 0..22 {
        write_shard(&workbench.path(&format!("shards/{number:02}.tar")), 1, &[])?;
    }
    fs::write(workbench.path("file"), "")?;
    let (shards, file) = (name("shards/*.tar"), name("file"));
    for command in ["index", "check", "stats"] {
        let refused = run(&["data", command, &shards, "--index-path", &file])?.expect_code(PERMANENT)?;
        ensure!(refused.stdout.is_empty(), "{command}: {}", refused.stdout);
        ensure!(refused.stderr.contains("set spec.data.indexPath (--index-path) to a folder"), "{command}: {}", refused.stderr);
        ensure!(fs::read_dir(workbench.path("shards"))?.count() == 22, "{command}: an index lies beside the shards");
    }
    let first = run(&["data", "index", &shards])?.expect_code(0)?;
    ensure!(first.stdout.matches("1 sample, written").count() == 20, "{}", first.stdout);
    ensure!(first.stdout.contains("\nand 2 index files: 2 written, 0 up to date\n"), "{}", first.stdout);
    let all = run(&["data", "index", &shards, "--all"])?.expect_code(0)?;
    ensure!(all.stdout.matches("1 sample, up to date").count() == 22 && !all.stdout.contains("index files"), "{}", all.stdout);
    Ok(())
}

#[test]
fn what_no_further_attempt_mends_of_a_store_is_told_at_once_and_a_full_disk_is_worth_another_try() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    // Of one object, and of a folder that is listed.
    for shards in ["s3://bucket/{0..2}.tar", "s3://bucket/{00..99}.tar"] {
        let mut command = Command::new(process::trainer()?);
        command.args(["data", "index", shards, "--index-path"]).arg(workbench.path("index"));
        command.envs([("AWS_ENDPOINT", "http://127.0.0.1:1"), ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")]);
        let finished = process::start_command(command)?.wait()?.expect_code(PERMANENT)?;
        ensure!(finished.stderr.contains("set AWS_ALLOW_HTTP=true in the environment"), "{}", finished.stderr);
        ensure!(finished.stderr.lines().count() == 1 && !finished.stderr.contains("trying again"), "{}", finished.stderr);
    }
    let shard = workbench.shard().display().to_string();
    let full = run(&["data", "show", &shard, "--html", "/dev/full"])?.expect_code(ExitCode::Retryable.code())?;
    ensure!(full.stderr.contains("cannot write /dev/full"), "{}", full.stderr);
    let none = run(&["data", "show", &shard, "--html", "/no/such/folder/page.html"])?.expect_code(PERMANENT)?;
    ensure!(none.stderr.contains("cannot write /no/such/folder/page.html"), "{}", none.stderr);
    Ok(())
}

#[test]
fn texts_on_standard_input_become_ids() -> Result<()> {
    let mut child = Command::new(process::trainer()?)
        .args(["data", "tokenize"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no input")?.write_all(b"\"a photo of a cat\"\n\"\"\nnot json\n")?;
    let output = child.wait_with_output()?;
    ensure!(String::from_utf8(output.stdout)? == "[320,1125,539,320,2368]\n[]\n");
    ensure!(output.status.code() == Some(i32::from(PERMANENT)));
    ensure!(String::from_utf8_lossy(&output.stderr).contains("line 3 is no JSON string"));
    Ok(())
}

#[test]
fn a_shard_is_indexed_once_and_a_sample_of_it_is_shown() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let shard = workbench.shard().display().to_string();
    let first = run(&["data", "index", &shard])?.expect_code(0)?;
    ensure!(first.stdout.contains(&format!("{SAMPLES} samples, written")), "{}", first.stdout);
    let again = run(&["data", "index", &shard])?.expect_code(0)?;
    ensure!(again.stdout.contains("up to date"), "{}", again.stdout);

    let out = workbench.path("shown").display().to_string();
    let shown = run(&["data", "show", &shard, "--sample", "3", "--eval", "--size", "48", "-o", &out])?.expect_code(0)?;
    for part in ["a yellow square number 3", "<start_of_img>", "<img_placehold> x 16", "40 x 40 pixels"] {
        ensure!(shown.stdout.contains(part), "{part} is missing: {}", shown.stdout);
    }
    let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(workbench.path("shown/sample-000003.png"))?));
    let reader = decoder.read_info()?;
    ensure!((reader.info().width, reader.info().height) == (48, 48));
    let tensor = fs::read(workbench.path("shown/sample-000003.safetensors"))?;
    let header_length = u64::from_le_bytes(*tensor.first_chunk::<8>().context("too short")?) as usize;
    let header: Value = serde_json::from_slice(tensor.get(8..8 + header_length).context("too short")?)?;
    ensure!(header["image"]["shape"] == serde_json::json!([3, 48, 48]) && header["image"]["dtype"] == "F32", "{header}");

    let crop = |crop: &str| run(&["data", "show", &shard, "--crop", crop]);
    ensure!(crop("0,0,20,20")?.expect_code(0)?.stdout.contains("crop"));
    ensure!(crop("30,30,20,20")?.expect_code(PERMANENT)?.stderr.contains("does not lie within"));
    ensure!(run(&["data", "show", &shard, "--sample", "45"])?.expect_code(PERMANENT)?.stderr.contains("sample 45 does not exist"));
    Ok(())
}

#[test]
fn data_are_checked_measured_and_shown_and_a_check_fails_when_anything_is_bad() -> Result<()> {
    let workbench = Workbench::new(&[(7, Fault::TruncatedImage), (12, Fault::NoCaption)])?;
    let shard = workbench.shard().display().to_string();
    let checked = run(&["data", "check", &shard, "--threads", "1"])?.expect_code(PERMANENT)?;
    let lines: Vec<&str> = checked.stdout.lines().collect();
    ensure!(lines.len() == 3, "{lines:?}");
    ensure!(lines[0].starts_with(&format!("bad: truncated_image: {shard}: sample00007.png at byte ")), "{lines:?}");
    ensure!(lines[1].starts_with(&format!("bad: no_caption: {shard}: sample00012 at byte ")), "{lines:?}");
    let expected = "checked 45 samples in 1 shard: 43 images can be decoded; bad: 2 (no_caption 1, truncated_image 1); left out: none";
    ensure!(lines[2] == expected, "{lines:?}");
    let as_json = run(&["data", "check", &shard, "-o", "json"])?.expect_code(PERMANENT)?;
    let records: Vec<Value> = as_json.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(records.len() == 3 && records[0]["event"] == "finding" && records[2]["event"] == "checked", "{records:?}");
    ensure!(records[2]["bad"] == serde_json::json!({ "no_caption": 1, "truncated_image": 1 }), "{records:?}");

    let sound = Workbench::new(&[])?;
    let sound = sound.shard().display().to_string();
    ensure!(run(&["data", "check", &sound])?.expect_code(0)?.stdout.contains("bad: none"));

    let stats = run(&["data", "stats", &shard, "--model", "vit-b-32-laion", "-o", "json"])?.expect_code(0)?;
    let stats: Value = serde_json::from_str(&stats.stdout)?;
    // Headers alone are read here.
    ensure!(stats[0]["looked_at"] == 45 && stats[0]["unusable"] == serde_json::json!({ "no_caption": 1 }), "{stats}");
    ensure!(stats[0]["cut"]["context"] == 128 && stats[0]["cut"]["image_tokens"] == 49, "{stats}");

    let page = workbench.path("page.html");
    let shown = run(&["data", "show", &shard, "--html", &page.display().to_string(), "--sample", "6", "--count", "3"])?;
    shown.expect_code(0)?;
    let html = fs::read_to_string(&page)?;
    for part in ["3 of 45 samples", "sample 6: sample00006 of", "of no use in training: truncated_image", "data:image/png;base64,"] {
        ensure!(html.contains(part), "{part} is missing");
    }
    // One picture of each of the two others.
    ensure!(html.matches("<img ").count() == 2, "{}", html.matches("<img ").count());
    let refused = run(&["data", "show", &shard, "--source", "documents"])?.expect_code(PERMANENT)?;
    ensure!(refused.stderr.contains("--html"), "{}", refused.stderr);
    let pairs = run(&["data", "convert", &shard, "-o", &workbench.path("out").display().to_string()])?.expect_code(PERMANENT)?;
    ensure!(pairs.stderr.contains("only documents of one source"), "{}", pairs.stderr);
    Ok(())
}
