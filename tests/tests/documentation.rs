//! What the documentation tells a reader to type works: every command and every manifest that stands in a fenced block of a Markdown file.
//!
//! - Commands of this project (`lcl`, `lcl-trainer`) are run in a folder that holds what the pages speak of: the README's own manifest as
//!   `job.yaml`, shards, and a finished run in `/runs/my-run`. They have to succeed. What would take long, or needs what is not there, is
//!   listed in [`ENDS_OTHERWISE`] with the reason and the words in which it says so: then its arguments were understood and it came as far.
//! - The guides for published data sets (`docs/datasets.md`) run on a few samples in the true form of each, with the manifests that they show (those
//!   whose first line is `# NAME.yaml`), but for the model and the batch, which are small.
//! - `make` goes through its targets without running a recipe. `kubectl`, `helm` and `cargo` parse their arguments themselves, and charts
//!   are rendered with them.
//! - Manifests are validated by `lcl validate`. A part of one is put into a whole one first; other YAML has to be YAML.
//! - What can be neither run nor parsed here is in [`EXCEPTIONS`] with its reason.
//!
//! An entry of a list that matches nothing fails, so that no list outlives its page.
//! Needs what `make test` builds: the programs beside this test, Helm (`scripts/helm.sh`) and kubectl (`scripts/kube.sh`).

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use lcl_tests::{
    data::{laion, mmc4, obelics, write_shard},
    process,
    run::Workbench,
    workspace,
};
use serde_json::{Map, Value, json};

/// A command that does not end well here: how it begins, why, and what it says.
const ENDS_OTHERWISE: &[(&str, &str, &str)] = &[
    ("lcl run job.yaml --local", "trains for hours; it comes as far as the data, which are not there", "train-000.tar"),
    ("lcl data check -f mmc4.yaml", "the small data have two images that are damaged, as published ones do", "bad: 2 (truncated_image 1"),
    ("lcl status /runs/my-run", "no run is going on", "no run is going on"),
    ("lcl resize /runs/my-run", "no run is going on", "no run is going on"),
    ("lcl drain /runs/my-run", "no run is going on", "no run is going on"),
    ("lcl checkpoint /runs/my-run", "no run is going on", "no run is going on"),
    ("lcl stop /runs/my-run", "no run is going on", "no run is going on"),
];

/// A command that this test leaves alone: how it begins, and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("ctr ", "containerd's client, on the reader's node"),
    ("docker load ", "the reader's Docker engine, which the project does not need"),
    (
        "img2dataset ",
        "fetches images from the web; the files that it leaves are made by tests/src/data.rs, or were made by it (fixtures of lcl-data)",
    ),
    ("curl --fail --remote-name --output-dir /data/mmc4", "fetches documents from the web"),
    ("python scripts/download_images.py ", "the publisher's script, which fetches images from the web"),
    ("hf download ", "fetches documents from the web"),
    ("docker build ", "the reader's Docker engine; images/test/assembly.py looks at the Dockerfile"),
];

/// Fields of a job's spec: YAML of these alone is a part of one.
const SPEC_FIELDS: [&str; 8] = ["model", "data", "optimization", "checkpoint", "workers", "serviceAccount", "elastic", "failurePolicy"];
/// Where the pages have runs, and what the tests have there.
const RUNS: &str = "/runs/";
const RUN: &str = "my-run";

/// A fenced block.
struct Block {
    file: PathBuf,
    line: usize,
    language: String,
    text: String,
}

impl Block {
    fn place(&self) -> String {
        format!("{}:{}", self.file.display(), self.line)
    }

    /// The file that a reader saves a manifest in, when its first line says it.
    fn manifest_name(&self) -> Option<&str> {
        let name = self.text.lines().next()?.strip_prefix("# ")?;
        let is_yaml = Path::new(name).extension().is_some_and(|ending| ending == "yaml");
        (self.language == "yaml" && is_yaml && !name.contains(' ')).then_some(name)
    }

    /// What a reader types: lines after a prompt, in a script every line; continued lines joined, comments left out.
    fn commands(&self) -> Vec<String> {
        let is_script = matches!(self.language.as_str(), "bash" | "sh" | "shell");
        let joined = self.text.replace("\\\n", " ");
        let typed = joined.lines().map(str::trim_start).filter_map(|line| line.strip_prefix("$ ").or_else(|| is_script.then_some(line)));
        let without_comment = typed.map(|line| line.split_once(" #").map_or(line, |(command, _)| command).trim().to_owned());
        without_comment.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
    }
}

/// Every Markdown file of the project, by its path from the root.
fn pages() -> Result<Vec<PathBuf>> {
    let (root, mut found) = (workspace(), Vec::new());
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let (path, name) = {
                let entry = entry?;
                (entry.path(), entry.file_name().to_string_lossy().into_owned())
            };
            if path.is_dir() && !name.starts_with('.') && name != "target" && !path.join("CACHEDIR.TAG").exists() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path.strip_prefix(&root)?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn blocks_of(file: &Path, text: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in text.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (open.as_mut(), fence) {
            (None, Some(language)) => {
                open = Some(Block { file: file.to_owned(), line: index + 1, language: language.trim().to_owned(), text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text.extend([line, "\n"]),
            (None, None) => {}
        }
    }
    ensure!(open.is_none(), "{}: a fenced block has no end", file.display());
    Ok(blocks)
}

fn blocks() -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    for page in pages()? {
        blocks.extend(blocks_of(&page, &fs::read_to_string(workspace().join(&page))?)?);
    }
    Ok(blocks)
}

/// Where what the pages speak of lies.
struct Place {
    workbench: Workbench,
}

impl Place {
    fn new(manifest: &str, manifests: &[&Block]) -> Result<Self> {
        let place = Self { workbench: Workbench::new(&[])? };
        fs::write(place.workbench.path("job.yaml"), place.here(manifest))?;
        for shard in ["shard.tar", "heldout.tar"] {
            write_shard(&place.workbench.path(shard), 8, &[])?;
        }
        for guide in manifests {
            place.add_manifest(guide)?;
        }
        place.add_data()?;
        let mut run = place.workbench.begin(RUN)?;
        run.config.optimization.steps = 4;
        run.complete(&[])?;
        Ok(place)
    }

    /// Writes a manifest of a guide under the name in its first line. Its model would take minutes to make, and its batch as long to read.
    fn add_manifest(&self, block: &Block) -> Result<()> {
        let name = block.manifest_name().context("no name")?;
        let mut job: Value = serde_saphyr::from_str(&self.here(&block.text)).with_context(|| block.place())?;
        job["spec"]["model"] = json!({ "shape": {
            "vision": { "imageSize": 32, "patchSize": 16, "width": 32, "layers": 1, "heads": 2 },
            "text": { "width": 16, "layers": 1, "heads": 2, "contextLength": 96 },
            "embedDim": 16,
            "poolHeads": 2,
        } });
        job["spec"]["optimization"]["globalBatchSize"] = 8.into();
        Ok(fs::write(self.workbench.path(name), job.to_string())?)
    }

    /// What the guides have under `/data`, in the publishers' forms.
    fn add_data(&self) -> Result<()> {
        let (data, made) = (self.workbench.path("data"), self.workbench.path("made"));
        laion(&data.join("laion"))?;
        mmc4(&made.join("mmc4"))?;
        obelics(&made.join("obelics"))?;
        fs::create_dir_all(data.join("mmc4"))?;
        fs::create_dir_all(data.join("mmc4-images"))?;
        for shard in 0..2 {
            let from = made.join(format!("mmc4/data/docs_shard_{shard}_v2.jsonl.zip"));
            fs::rename(from, data.join(format!("mmc4/docs_no_face_shard_{shard}_v2.jsonl.zip")))?;
            let images = data.join(format!("mmc4-images/{shard}"));
            fs::create_dir_all(&images)?;
            for entry in fs::read_dir(made.join("mmc4/images"))? {
                let image = entry?;
                fs::copy(image.path(), images.join(image.file_name()))?;
            }
        }
        fs::create_dir_all(data.join("obelics"))?;
        fs::rename(made.join("obelics/data"), data.join("obelics/data"))?;
        fs::rename(made.join("obelics/images"), data.join("obelics-images"))?;
        Ok(())
    }

    /// The pages' paths as paths of this machine.
    fn here(&self, text: &str) -> String {
        let folder = self.workbench.path("");
        let text = replace_roots(text, RUNS, &folder.display().to_string());
        replace_roots(&text, "/data/", &format!("{}data/", folder.display()))
    }

    /// Runs a line as a shell does.
    fn run(&self, line: &str) -> Result<Output> {
        let programs = process::trainer()?.parent().context("the trainer lies nowhere")?.to_owned();
        let path = std::env::var("PATH").unwrap_or_default();
        Command::new("bash")
            .args(["-c", &self.here(line)])
            .current_dir(self.workbench.path(""))
            .env("PATH", format!("{}:{path}", programs.display()))
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::null())
            .output()
            .context("starting bash")
    }
}

/// Replaces a folder where it is the beginning of a path, and not within one.
fn replace_roots(text: &str, root: &str, here: &str) -> String {
    let (mut replaced, mut end) = (String::new(), 0);
    for (at, _) in text.match_indices(root) {
        let before = &text[..at];
        if !before.ends_with(|last: char| last.is_alphanumeric() || "-_.*}".contains(last)) {
            replaced.extend([&text[end..at], here]);
            end = at + root.len();
        }
    }
    replaced + &text[end..]
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What one of the project's scripts prints last: the path of a program or of a folder of programs.
fn ask_script(script: &str) -> Result<PathBuf> {
    let output = Command::new(workspace().join("scripts").join(script)).output().with_context(|| format!("starting scripts/{script}"))?;
    ensure!(output.status.success(), "scripts/{script}: {}", said(&output));
    let text = String::from_utf8(output.stdout)?;
    Ok(PathBuf::from(text.lines().last().context("no path")?))
}

/// Has a program parse arguments without doing anything: unknown options are errors before help is printed, of the command that was meant.
fn parses(program: &Path, arguments: &str) -> Result<()> {
    let words: Vec<&str> = arguments.split_whitespace().take_while(|word| *word != "--").collect();
    let subcommand = *words.first().context("no command is named")?;
    let output = Command::new(program).args(&words).arg("--help").current_dir(workspace()).output().context("starting it")?;
    let text = said(&output);
    ensure!(output.status.success() && text.contains(&format!(" {subcommand}")), "{text}");
    Ok(())
}

/// `helm install NAME CHART …` renders what it would install.
fn renders(helm: &Path, arguments: &str) -> Result<()> {
    let home = tempfile::tempdir()?;
    let mut words = arguments.split_whitespace();
    let mut command = Command::new(helm);
    if matches!(words.next(), Some("install" | "upgrade")) {
        let output = command
            .arg("template")
            .args(words)
            .current_dir(workspace())
            .envs(["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"].map(|name| (name, home.path())))
            .env_remove("KUBECONFIG")
            .output()?;
        ensure!(output.status.success() && !output.stdout.is_empty(), "{}", said(&output));
    }
    Ok(())
}

/// Files of the project that a line names must be there.
fn names_only_what_is_there(line: &str) -> Result<()> {
    let folders = ["examples/", "charts/", "scripts/", "images/", "bench/", "tests/", "operator/", "trainer/"];
    for word in line.split_whitespace().filter(|word| folders.iter().any(|folder| word.starts_with(folder))) {
        ensure!(workspace().join(word).exists(), "{word} is not there");
    }
    Ok(())
}

fn check_command(place: &Place, line: &str) -> Result<()> {
    names_only_what_is_there(line)?;
    let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
    match program {
        "lcl" | "lcl-trainer" => {
            let output = place.run(line)?;
            let text = said(&output);
            match ENDS_OTHERWISE.iter().find(|(begin, ..)| line.starts_with(begin)) {
                Some((_, _, words)) => ensure!(!output.status.success() && text.contains(words), "{words} is not in: {text}"),
                None => ensure!(output.status.success(), "{text}"),
            }
        }
        "make" => {
            let arguments = format!("--dry-run --no-print-directory {arguments}");
            let output = Command::new("make").args(arguments.split_whitespace()).current_dir(workspace()).output()?;
            ensure!(output.status.success(), "{}", said(&output));
        }
        "cargo" => parses(Path::new("cargo"), arguments)?,
        "kubectl" => parses(&ask_script("kube.sh")?.join("kubectl"), arguments)?,
        "helm" => {
            let helm = ask_script("helm.sh")?;
            parses(&helm, arguments)?;
            renders(&helm, arguments)?;
        }
        "export" => {
            let output = Command::new("bash").args(["-n", "-c", line]).output()?;
            ensure!(output.status.success(), "{}", said(&output));
        }
        _ => bail!("{program} is neither run nor parsed here: add it to the exceptions, with the reason"),
    }
    Ok(())
}

/// The first manifest of the README: the one that a reader begins with.
fn first_manifest(blocks: &[Block]) -> Result<&Block> {
    let is_manifest = |block: &&Block| block.file == Path::new("README.md") && block.text.contains("kind: LCLTrainingJob");
    blocks.iter().find(is_manifest).context("README.md holds no manifest")
}

#[test]
fn every_command_of_the_documentation_is_understood_by_the_program_it_calls() -> Result<()> {
    let blocks = blocks()?;
    let guides: Vec<&Block> = blocks.iter().filter(|block| block.manifest_name().is_some()).collect();
    let place = Place::new(&first_manifest(&blocks)?.text, &guides)?;
    let (mut wrong, mut lines) = (Vec::new(), BTreeSet::new());
    for block in &blocks {
        for line in block.commands() {
            let is_new = lines.insert(line.clone());
            if !is_new || EXCEPTIONS.iter().any(|(begin, _)| line.starts_with(begin)) {
                continue;
            }
            if let Err(error) = check_command(&place, &line) {
                wrong.push(format!("{}: {line}\n  {error:#}", block.place()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} commands:\n{}", wrong.len(), lines.len(), wrong.join("\n"));
    let listed = EXCEPTIONS.iter().map(|(begin, _)| begin).chain(ENDS_OTHERWISE.iter().map(|(begin, ..)| begin));
    let stale: Vec<_> = listed.filter(|begin| !lines.iter().any(|line| line.starts_with(**begin))).collect();
    assert!(stale.is_empty(), "no page has a command that begins like these entries: {stale:?}");
    Ok(())
}

/// A part of a spec in a whole manifest.
fn complete(part: &Map<String, Value>) -> Value {
    let mut spec = json!({
        "model": { "preset": "tiny" },
        "data": { "webdataset": { "shards": ["/data/a.tar"] } },
        "optimization": { "steps": 100, "globalBatchSize": 64 },
        "checkpoint": { "uri": "file:///runs/a" },
    });
    // A part that names documents has them in the place of the shards.
    if part.get("data").is_some_and(|data| ["mmc4", "obelics", "mixture"].iter().any(|source| data.get(source).is_some())) {
        spec["data"] = json!({});
    }
    overlay(&mut spec, &Value::Object(part.clone()));
    json!({ "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "metadata": { "name": "a" }, "spec": spec })
}

fn overlay(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (name, value) in above {
                overlay(below.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above.clone(),
    }
}

/// The jobs that a block of YAML holds, or holds a part of.
fn jobs_of(block: &Block) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(&block.text).context("this is no YAML")?;
    let mut jobs = Vec::new();
    for document in documents {
        let Some(fields) = document.as_object() else { continue };
        let part = fields.get("spec").and_then(Value::as_object).unwrap_or(fields);
        if fields.get("kind").is_some_and(|kind| kind == "LCLTrainingJob") {
            jobs.push(document);
        } else if !fields.contains_key("kind") && !part.is_empty() && part.keys().all(|name| SPEC_FIELDS.contains(&name.as_str())) {
            jobs.push(complete(part));
        }
    }
    Ok(jobs)
}

fn validate(job: &Value) -> Result<()> {
    let mut child = Command::new(process::trainer()?.with_file_name("lcl"))
        .args(["validate", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("lcl is missing beside lcl-trainer: `cargo build -p lcl` makes it")?;
    child.stdin.take().context("its input")?.write_all(job.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(())
}

#[test]
fn every_manifest_of_the_documentation_is_valid() -> Result<()> {
    let blocks = blocks()?;
    let mut found = 0;
    for block in blocks.iter().filter(|block| matches!(block.language.as_str(), "yaml" | "yml")) {
        for job in jobs_of(block).with_context(|| block.place())? {
            validate(&job).with_context(|| block.place())?;
            found += 1;
        }
    }
    ensure!(found > 0, "no page holds a manifest: the test no longer reads them");
    Ok(())
}

#[test]
fn the_pages_folders_are_replaced_where_a_path_begins() {
    let here = replace_roots("a /data/x '/data/y/data/z' file:///data/ /my/data/ data/ /data", "/data/", "/tmp/t/");
    assert_eq!(here, "a /tmp/t/x '/tmp/t/y/data/z' file:///tmp/t/ /my/data/ data/ /data");
}

#[test]
fn commands_and_manifests_are_found_in_a_page() -> Result<()> {
    const PAGE: &str = "\
Text.

```console
$ lcl validate job.yaml   # a comment
job.yaml: valid
$ make images \\
    FLAVOUR=a
```

```bash
# only a comment
lcl status .
```

```
kubectl is only spoken of
```

```yaml
workers: {replicas: 3}
```
";

    let blocks = blocks_of(Path::new("page.md"), PAGE)?;
    let commands: Vec<String> = blocks.iter().flat_map(Block::commands).collect();
    let words: Vec<String> = commands.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(words, ["lcl validate job.yaml", "make images FLAVOUR=a", "lcl status ."]);
    let jobs = jobs_of(blocks.last().context("no block")?)?;
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0]["spec"]["workers"]["replicas"], 3);
    assert!(blocks_of(Path::new("page.md"), "```console\n$ make\n").is_err(), "a block without an end");
    Ok(())
}
