//! The real binary, with a small script in the trainer's place where only the wiring is looked at.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use lcl_trainer_config::{DataSource, Schedule, TrainerConfig};
use serde_json::Value;
use tempfile::TempDir;

const JOB: &str = "\
apiVersion: lcl.dev/v1alpha1
kind: LCLTrainingJob
metadata:
  name: first
spec:
  model:
    preset: tiny
  data:
    webdataset:
      shards: [/data/a.tar]
  optimization:
    steps: 100
    globalBatchSize: 8
    schedule:
      constant: {warmupSteps: 0}
  checkpoint:
    uri: file:///runs/a
  workers:
    template:
      spec:
        containers:
          - name: worker
            volumeMounts:
              - {name: data, mountPath: /data}
              - {name: runs, mountPath: /runs}
        volumes:
          - {name: data, hostPath: {path: /srv/data}}
          - {name: runs, emptyDir: {}}
";

/// The same job with data that no operator has to allow.
fn job_for_a_cluster() -> String {
    JOB.replace("hostPath: {path: /srv/data}", "persistentVolumeClaim: {claimName: data}")
}

/// A folder with a manifest and a trainer that writes its arguments down, a line each.
struct Workplace {
    folder: TempDir,
}

impl Workplace {
    fn new(manifest: &str) -> Self {
        let place = Self { folder: TempDir::new().unwrap() };
        fs::write(place.path("job.yaml"), manifest).unwrap();
        place.set_trainer("printf '%s\\n' \"$@\" > arguments");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn set_trainer(&self, script: &str) {
        let path = self.path("trainer");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lcl"));
        command.args(arguments).current_dir(self.folder.path()).env("LCL_TRAINER", self.path("trainer"));
        command
    }

    fn lcl(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the manifest locally with its volume `runs` in the folder `runs`.
    fn run(&self, more: &[&str]) -> Output {
        self.lcl(&[&["run", "job.yaml", "--local", "--volume", "runs=runs"], more].concat())
    }

    fn trainer_arguments(&self) -> Vec<String> {
        fs::read_to_string(self.path("arguments")).unwrap().lines().map(str::to_owned).collect()
    }

    fn config(&self, path: &str) -> TrainerConfig {
        serde_json::from_slice(&fs::read(self.path(path)).unwrap()).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The command ends with `code` and says each of `words` on standard error.
fn check_refused(output: &Output, code: i32, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for word in words {
        assert!(message.contains(word), "{word} is not in: {message}");
    }
}

#[test]
fn a_valid_manifest_is_said_to_be_valid() {
    let place = Workplace::new(&job_for_a_cluster());
    let output = place.lcl(&["validate", "job.yaml"]);
    assert_eq!(text(&output.stdout), "job.yaml: LCLTrainingJob first is valid\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn every_example_is_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let paths: Vec<_> = std::fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(paths.len() >= 3, "{paths:?}");
    for path in paths {
        let output = Workplace::new(JOB).lcl(&["validate", "--allow", "HostPath", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    }
}

#[test]
fn what_a_cluster_has_to_allow_is_named_unless_it_is_said_that_it_does() {
    let place = Workplace::new(JOB);
    check_refused(&place.lcl(&["validate", "--allow", "Everything", "job.yaml"]), 2, &["must be one of HostPath, HostNamespaces"]);
    let output = place.lcl(&["validate", "job.yaml"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("spec.workers.template.spec.volumes[0].hostPath is \"/srv/data\"") && said.contains("security.allowHostPath"),
        "{said}"
    );
    let output = place.lcl(&["validate", "--allow", "Root,HostPath", "job.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
}

#[test]
fn each_error_stands_on_a_line_with_its_place_field_value_and_rule() {
    let broken =
        job_for_a_cluster().replace("steps: 100", "steps: 0").replace("preset:", "presett:").replace("- name: worker", "- name: trainer");
    let place = Workplace::new(&broken);
    let output = place.lcl(&["validate", "job.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    insta::assert_snapshot!(text(&output.stdout), @r#"
    job.yaml:6:3: spec.model is {"presett":"tiny"}, but exactly one of preset and shape must be given
    job.yaml:7:5: spec.model.presett: no such field; did you mean `preset`?
    job.yaml:12:5: spec.optimization.steps is 0, but must be at least 1
    job.yaml:21:9: spec.workers.template.spec.containers is [{"name":"trainer","volumeMounts":[{"mountPath":"/data","name":"data"},{"mountPa…, but must hold a container named `worker`, in which the trainer runs
    "#);
}

#[test]
fn documents_of_other_kinds_are_passed_over_and_all_jobs_are_checked() {
    let first = job_for_a_cluster();
    let second = first.replace("name: first", "name: Second");
    let place = Workplace::new(&format!("kind: ConfigMap\n---\n{first}---\n{second}---\n"));
    let output = place.lcl(&["validate", "-o", "json", "job.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    insta::assert_json_snapshot!(findings);
}

#[test]
fn a_manifest_is_read_from_standard_input() {
    let place = Workplace::new(&job_for_a_cluster());
    let input = fs::File::open(place.path("job.yaml")).unwrap();
    let output = place.command(&["validate", "-"]).stdin(input).output().unwrap();
    assert_eq!(text(&output.stdout), "-: LCLTrainingJob first is valid\n");
}

#[test]
fn files_that_cannot_be_read_or_hold_no_job_are_named() {
    let place = Workplace::new("kind: ConfigMap\n");
    fs::write(place.path("torn.yaml"), "a: 1\nb: [1, 2\nc: 3\n").unwrap();
    let output = place.lcl(&["validate", "job.yaml", "torn.yaml", "nowhere.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    for words in ["job.yaml: holds no LCLTrainingJob", "torn.yaml: must be valid YAML", "line", "nowhere.yaml: cannot read", "No such file"]
    {
        assert!(said.contains(words), "{words} is not in: {said}");
    }
}

#[test]
fn a_run_renders_the_configuration_into_its_folder_and_becomes_the_trainer() {
    let place = Workplace::new(JOB);
    let output = place.run(&["--steps", "5", "--threads", "3", "--device", "cpu", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let folder = fs::canonicalize(place.path("runs/a")).unwrap();
    let file = folder.join("trainer-config.json");
    let arguments = place.trainer_arguments();
    assert_eq!(fs::canonicalize(&arguments[2]).unwrap(), file);
    assert_eq!([&arguments[..2], &arguments[3..]].concat(), ["train", "--config", "--steps", "5", "--output", "json"]);
    let config = place.config("runs/a/trainer-config.json");
    config.validate().unwrap();
    let DataSource::Webdataset { shards, .. } = &config.data.source else { panic!("pairs") };
    assert_eq!(shards, &["/srv/data/a.tar"], "a hostPath volume keeps its own path");
    assert!(config.checkpoint.uri.ends_with("/runs/a"), "{}", config.checkpoint.uri);
    assert_eq!((config.runtime.threads, config.data.threads), (Some(3), 3));
    assert_eq!(config.runtime.device, lcl_trainer_config::Device::Cpu);
}

#[test]
fn the_data_of_a_manifest_are_given_to_the_trainers_tools_without_a_place_for_the_run() {
    let place = Workplace::new(JOB);
    place.set_trainer("printf '%s\\n' \"$@\" > arguments; cat > input");
    let output = place.lcl(&["data", "check", "-f", "job.yaml", "--all", "--volume", "data=here", "--threads", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(place.trainer_arguments(), ["data", "check", "--all", "--threads", "2", "--config", "-"]);
    let config = place.config("input");
    config.validate().unwrap();
    let DataSource::Webdataset { shards, .. } = &config.data.source else { panic!("pairs") };
    assert_eq!(Path::new(&shards[0]), place.path("here/a.tar").canonicalize().unwrap_or(place.path("here/a.tar")));
    // Without a manifest everything passes as it is.
    assert_eq!(place.lcl(&["data", "show", "a.tar", "--sample", "3"]).status.code(), Some(0));
    assert_eq!(place.trainer_arguments(), ["data", "show", "a.tar", "--sample", "3"]);
}

#[test]
fn a_manifest_that_cannot_be_used_never_reaches_the_trainers_tools() {
    let place = Workplace::new(&JOB.replace("steps: 100", "steps: 0"));
    let invalid = place.lcl(&["data", "check", "-f", "job.yaml"]);
    assert_eq!(invalid.status.code(), Some(65));
    assert!(text(&invalid.stdout).contains("spec.optimization.steps is 0"), "{}", text(&invalid.stdout));
    check_refused(&place.lcl(&["data", "check", "--volume", "data=here", "a.tar"]), 65, &["name it with -f"]);
    check_refused(&place.lcl(&["data", "check", "-f", "nowhere.yaml"]), 65, &["nowhere.yaml"]);
    check_refused(&Workplace::new(JOB).lcl(&["data", "check", "-f", "job.yaml", "--volume", "other=x"]), 65, &["other"]);
    assert!(!place.path("arguments").exists());
}

#[test]
fn the_ways_to_begin_are_passed_on_and_exclude_each_other() {
    let place = Workplace::new(JOB);
    for (flags, passed) in [
        (&[][..], &[][..]),
        (&["--resume"], &["--resume"]),
        (&["--fresh"], &["--fresh"]),
        (&["--fresh", "--delete-existing"], &["--fresh", "--delete-existing"]),
    ] {
        assert_eq!(place.run(flags).status.code(), Some(0));
        assert_eq!(place.trainer_arguments()[3..], *passed);
    }
    check_refused(&place.run(&["--fresh", "--resume"]), 2, &["cannot be used with"]);
    check_refused(&place.run(&["--delete-existing"]), 2, &["--fresh"]);
}

#[test]
fn the_folder_of_another_job_is_refused_by_name_and_left_as_it_is() {
    let place = Workplace::new(JOB);
    assert_eq!(place.run(&[]).status.code(), Some(0));
    fs::write(place.path("job.yaml"), JOB.replace("name: first", "name: second")).unwrap();
    assert_eq!(place.run(&[]).status.code(), Some(0), "without a checkpoint nothing is at stake");
    fs::create_dir(place.path("runs/a/step-00000010-g000001-000000")).unwrap();
    fs::write(place.path("job.yaml"), JOB).unwrap();
    for flags in [&[][..], &["--resume"], &["--fresh"]] {
        check_refused(&place.run(flags), 65, &["checkpoints of the job `second`, not of `first`", "--fresh --delete-existing"]);
        assert_eq!(place.config("runs/a/trainer-config.json").job, "second");
    }
    assert_eq!(place.run(&["--fresh", "--delete-existing"]).status.code(), Some(0));
    assert_eq!(place.config("runs/a/trainer-config.json").job, "first");
}

#[test]
fn a_remote_run_keeps_its_configuration_in_a_temporary_file() {
    let place = Workplace::new(&JOB.replace("file:///runs/a", "s3://bucket/a"));
    place.set_trainer("cat \"$3\" > config");
    let output = place.command(&["run", "job.yaml", "--local"]).env("TMPDIR", place.folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(place.config("config").checkpoint.uri, "s3://bucket/a");
}

#[test]
fn a_manifest_that_breaks_a_rule_is_not_run() {
    let place = Workplace::new(&JOB.replace("globalBatchSize: 8", "globalBatchSize: -8"));
    let output = place.run(&[]);
    assert_eq!(output.status.code(), Some(65));
    assert_eq!(text(&output.stdout), "job.yaml:13:5: spec.optimization.globalBatchSize is -8, but must be at least 1\n");
    assert!(!place.path("arguments").exists() && !place.path("runs").exists());
}

#[test]
fn a_run_is_checked_with_the_steps_of_the_command_line_and_a_warm_up_that_nobody_gave_is_no_obstacle() {
    let place = Workplace::new(&JOB.replace("{warmupSteps: 0}", "{warmupSteps: 90}"));
    let output = place.run(&["--steps", "50"]);
    assert_eq!(output.status.code(), Some(65));
    assert_eq!(
        text(&output.stdout),
        "job.yaml:15:18: spec.optimization.schedule.constant.warmupSteps is 90, but must not exceed optimization.steps\n"
    );
    assert!(text(&output.stderr).contains("with the 50 steps of --steps"), "{}", text(&output.stderr));
    assert!(!place.path("arguments").exists());
    let without = Workplace::new(&JOB.replace("    schedule:\n      constant: {warmupSteps: 0}\n", ""));
    assert_eq!(without.run(&["--steps", "5"]).status.code(), Some(0));
    let config = without.config("runs/a/trainer-config.json");
    assert_eq!(config.optimization.schedule, Schedule::Cosine { warmup_steps: None }, "the trainer derives it");
}

#[test]
fn what_cannot_be_run_here_is_refused_with_what_to_do() {
    let place = Workplace::new(JOB);
    check_refused(&place.lcl(&["run", "job.yaml"]), 65, &["--local", "kubectl apply -f job.yaml"]);
    let no_folder = ["spec.checkpoint.uri is /runs/a", "--volume runs=DIR"];
    check_refused(&place.lcl(&["run", "job.yaml", "--local"]), 65, &no_folder);
    check_refused(&place.run(&["--volume", "dta=x"]), 65, &["no volume is named `dta`", "data, runs"]);
    check_refused(&place.run(&["--volume", "runs=x"]), 65, &["given twice"]);
    check_refused(&place.run(&["--volume", "data"]), 2, &["must be NAME=DIR"]);
    check_refused(&place.run(&["--steps", "0"]), 2, &["--steps"]);
    fs::write(place.path("job.yaml"), format!("{JOB}---\n{}", JOB.replace("first", "second"))).unwrap();
    check_refused(&place.run(&[]), 65, &["several jobs", "--name (first, second)"]);
    check_refused(&place.run(&["--name", "third"]), 65, &["no LCLTrainingJob named third"]);
    assert_eq!(place.run(&["--name", "second"]).status.code(), Some(0));
    assert_eq!(place.config("runs/a/trainer-config.json").job, "second");
}

#[test]
fn a_job_for_many_members_runs_as_many_processes_that_share_the_processors() {
    let many = JOB.replace("  workers:\n", "  workers:\n    replicas: 4\n    membersPerWorker: 2\n");
    let place = Workplace::new(&many);
    assert_eq!(place.run(&["--threads", "1"]).status.code(), Some(0));
    let arguments = place.trainer_arguments();
    let numbers = ["--workers", "4", "--members-per-worker", "2", "--min-workers", "4"];
    assert_eq!([&arguments[..2], &arguments[3..]].concat(), [&["local", "--config"], &numbers[..]].concat());
    assert_eq!(place.config("runs/a/trainer-config.json").runtime.threads, Some(1));

    let elastic = many.replacen("spec:\n", "spec:\n  elastic: { minWorkers: 2, maxWorkers: 4 }\n", 1);
    let place = Workplace::new(&elastic);
    assert_eq!(place.run(&[]).status.code(), Some(0));
    assert_eq!(place.trainer_arguments()[7..], ["--min-workers", "2", "--max-workers", "4"]);
    let config = place.config("runs/a/trainer-config.json");
    assert_eq!(config.runtime.threads, None, "the launcher shares the processors out whenever it starts a worker");
    assert!(config.data.threads >= 1);
}

#[test]
fn the_time_outs_of_a_job_are_its_local_coordinators_too() {
    let timeouts = "timeouts: { heartbeatSeconds: 30, stallSeconds: 600 }";
    let two = JOB.replace("  workers:\n", "  workers:\n    replicas: 2\n");
    let place = Workplace::new(&two.replacen("spec:\n", &format!("spec:\n  {timeouts}\n"), 1));
    assert_eq!(place.run(&[]).status.code(), Some(0));
    assert_eq!(place.trainer_arguments()[9..], ["--heartbeat-timeout", "30", "--stall-timeout", "600"]);
    let elastic = "elastic: { minWorkers: 1, maxWorkers: 2, evictSlowMembers: { factor: 2.5 } }";
    let place = Workplace::new(&two.replacen("spec:\n", &format!("spec:\n  {elastic}\n"), 1));
    assert_eq!(place.run(&[]).status.code(), Some(0));
    assert_eq!(place.trainer_arguments()[11..], ["--evict-slow-factor", "2.5", "--evict-slow-after", "300"]);
}

#[test]
fn a_job_of_one_member_that_others_may_join_runs_with_a_coordinator() {
    let place = Workplace::new(&JOB.replacen("spec:\n", "spec:\n  elastic: { minWorkers: 1, maxWorkers: 2 }\n", 1));
    assert_eq!(place.run(&[]).status.code(), Some(0));
    let arguments = place.trainer_arguments();
    let numbers = ["--workers", "1", "--members-per-worker", "1", "--min-workers", "1", "--max-workers", "2"];
    assert_eq!([&arguments[..2], &arguments[3..]].concat(), [&["local", "--config"], &numbers[..]].concat());
}

#[test]
fn a_run_on_this_machine_is_asked_by_its_folder_or_by_its_manifest() {
    let place = Workplace::new(JOB);
    fs::create_dir_all(place.path("runs/a")).unwrap();
    let check = |arguments: &[&str], expected: &[&str]| {
        let output = place.lcl(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        let mut passed = place.trainer_arguments();
        if passed[1].starts_with('/') {
            passed[1] = Path::new(&passed[1]).strip_prefix(place.folder.path()).unwrap().display().to_string();
        }
        assert_eq!(passed, expected);
    };
    check(&["status"], &["status", "."]);
    check(&["status", "runs/a", "-o", "json"], &["status", "runs/a", "--output", "json"]);
    check(&["status", "job.yaml", "--volume", "runs=runs"], &["status", "runs/a"]);
    check(&["resize", "runs/a", "--workers", "3"], &["resize", "runs/a", "--workers", "3"]);
    check(&["resize", "job.yaml", "--workers", "3", "--volume", "runs=runs"], &["resize", "runs/a", "--workers", "3"]);
    check(&["checkpoint", "runs/a"], &["checkpoint", "runs/a"]);
    check(&["stop", "job.yaml", "--volume", "runs=runs", "-o", "json"], &["stop", "runs/a", "--output", "json"]);
    check(&["drain", "runs/a", "first-w-1", "-o", "json"], &["drain", "runs/a", "first-w-1", "--output", "json"]);
}

#[test]
fn what_is_no_run_on_this_machine_cannot_be_asked_and_it_is_said_who_can() {
    let place = Workplace::new(JOB);
    // Each says what does it for a job in a cluster.
    let elsewhere: [(&[&str], &str); 4] = [
        (&["status", "first"], "kubectl describe lcljob first"),
        (&["resize", "first", "--workers", "2"], "kubectl scale lcljob first --replicas=N"),
        (&["drain", "first", "first-w-1"], "kubectl delete pod"),
        (&["stop", "first"], "runs on this machine alone"),
    ];
    for (command, instead) in elsewhere {
        check_refused(&place.lcl(command), 65, &["first is neither", instead]);
    }
    check_refused(&place.lcl(&["status", "job.yaml"]), 65, &["--volume runs=DIR"]);
    check_refused(&place.lcl(&["resize", "runs", "--workers", "0"]), 2, &["--workers"]);
    fs::write(place.path("job.yaml"), JOB.replace("steps: 100", "steps: 0")).unwrap();
    check_refused(&place.lcl(&["status", "job.yaml"]), 65, &["no valid LCLTrainingJob", "lcl validate job.yaml"]);
    fs::write(place.path("job.yaml"), JOB.replace("file:///runs/a", "s3://bucket/a")).unwrap();
    check_refused(&place.lcl(&["status", "job.yaml"]), 65, &["s3://bucket/a", "the run printed when it began"]);
    assert!(!place.path("arguments").exists());
}

#[test]
fn a_missing_trainer_is_named_with_how_to_give_one() {
    let place = Workplace::new(JOB);
    let output = place.command(&["export"]).env("LCL_TRAINER", "/nowhere/lcl-trainer").output().unwrap();
    check_refused(&output, 65, &["no program /nowhere/lcl-trainer", "LCL_TRAINER", "PATH"]);
}

#[test]
fn the_trainer_is_found_beside_the_binary_and_then_in_the_path() {
    let place = Workplace::new(JOB);
    let beside = place.path("bin");
    fs::create_dir(&beside).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_lcl"), beside.join("lcl")).unwrap();
    place.set_trainer("echo from the path");
    fs::rename(place.path("trainer"), place.path("lcl-trainer")).unwrap();
    let said = || {
        let mut command = Command::new(beside.join("lcl"));
        let path = format!("{}:/bin:/usr/bin", place.folder.path().display());
        text(&command.arg("report").env_remove("LCL_TRAINER").env("PATH", path).output().unwrap().stdout)
    };
    assert_eq!(said(), "from the path\n");
    place.set_trainer("echo from beside");
    fs::rename(place.path("trainer"), beside.join("lcl-trainer")).unwrap();
    assert_eq!(said(), "from beside\n");
}

#[test]
fn commands_of_the_trainer_get_their_arguments_unchanged_even_help() {
    let place = Workplace::new(JOB);
    for arguments in [
        &["data", "show", "a b.tar", "--sample", "3", "--", "-x"][..],
        &["data", "tokenize"],
        &["export", "--help"],
        &["import", "-h"],
        &["evaluate", "--output", "json"],
        &["report", "runs/a"],
    ] {
        assert_eq!(place.lcl(arguments).status.code(), Some(0), "{arguments:?}");
        assert_eq!(place.trainer_arguments(), arguments);
    }
}

#[test]
fn the_trainers_exit_code_is_passed_on() {
    let place = Workplace::new(JOB);
    for code in [0, 2, 65, 75, 80] {
        place.set_trainer(&format!("exit {code}"));
        assert_eq!(place.run(&[]).status.code(), Some(code));
    }
}

#[test]
fn a_signal_reaches_the_trainer_itself() {
    let place = Workplace::new(JOB);
    // A trainer that ends by the signal only; the deadline is for a run in which the signal is lost.
    place.set_trainer(
        "trap 'exit 80' TERM\ntouch ready\nend=$(($(date +%s) + 30))\nwhile [ $(date +%s) -lt $end ]; do sleep 0.05; done\nexit 1",
    );
    let arguments = ["run", "job.yaml", "--local", "--volume", "runs=runs"];
    let mut child = place.command(&arguments).stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !place.path("ready").exists() {
        assert!(Instant::now() < deadline, "the trainer did not start");
        thread::sleep(Duration::from_millis(10));
    }
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(80));
}

#[test]
fn help_shows_commands_options_and_examples() {
    let place = Workplace::new(JOB);
    let help = |arguments: &[&str]| text(&place.lcl(arguments).stdout);
    insta::assert_snapshot!("help", help(&["--help"]));
    insta::assert_snapshot!("help_run", help(&["run", "--help"]));
    insta::assert_snapshot!("help_validate", help(&["validate", "--help"]));
    for command in ["status", "resize", "drain", "checkpoint", "stop"] {
        insta::assert_snapshot!(format!("help_{command}"), help(&[command, "--help"]));
    }
}

#[test]
fn version_and_completion_are_there() {
    let place = Workplace::new(JOB);
    assert_eq!(text(&place.lcl(&["--version"]).stdout), format!("lcl {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&place.lcl(&["completion", shell]).stdout);
        assert!(script.contains("validate") && script.contains("delete-existing"), "{shell}");
    }
}
