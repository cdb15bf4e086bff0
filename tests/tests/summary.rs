//! What the summary of `make test` says of a run, by `scripts/test_summary.py`: results as cargo and cargo-nextest leave them go in.

use std::{fs, process::Command};

use anyhow::Result;
use lcl_tests::workspace;

const REPORT: &str = r#"<?xml version="1.0"?>
<testsuites><testsuite name="lcl-data::loader">
  <testcase name="good" time="2.5"/>
  <testcase name="left_out" time="0.1"><system-out>skipped: there is no GPU</system-out></testcase>
  <testcase name="deep::bad" time="0.2"><failure/><system-err>Error: the cause
Stack backtrace:
   0: noise</system-err></testcase>
</testsuite></testsuites>"#;

const UNIT: &str = "     Running unittests src/lib.rs (target/debug/deps/lcl_crds-0123abc)
test names::fit ... ok
test names::slow ... ignored, takes long
test names::wrong ... FAILED
---- names::wrong stdout ----
left: 1, see it again with `make sim RUNS=1 SEED=7`

failures:
";

/// The exit code and the output for a folder of results.
fn sum_up(report: &str, unit: &str) -> Result<(Option<i32>, String)> {
    let results = tempfile::tempdir()?;
    let no_suites = r#"{"rust-build-meta": {"target-directory": "/", "linked-paths": []}, "rust-suites": {}}"#;
    for (name, text) in [("junit.xml", report), ("ignored.json", no_suites), ("unit.log", unit)] {
        fs::write(results.path().join(name), text)?;
    }
    let output = Command::new("python3").arg(workspace().join("scripts/test_summary.py")).arg(results.path()).arg("42").output()?;
    Ok((output.status.code(), String::from_utf8(output.stdout)? + &String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_summary_names_what_failed_how_to_repeat_it_what_was_skipped_and_the_slowest() -> Result<()> {
    let (code, said) = sum_up(REPORT, UNIT)?;
    for expected in [
        "     2.5 s  lcl-data::loader good",
        "  lcl-data::loader left_out: there is no GPU",
        "  lcl_crds names::slow: takes long",
        "    | Error: the cause\n    alone: PROPTEST_RNG_SEED=42 cargo test --workspace --test loader -- --exact deep::bad --nocapture",
        "    alone: make sim RUNS=1 SEED=7",
        "failed (seed 42)",
        "\n2 passed, 2 failed, 2 skipped\n",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in:\n{said}");
    }
    assert!(code == Some(1) && !said.contains("noise"), "{code:?}: {said}");
    Ok(())
}

#[test]
fn a_run_that_did_not_build_or_ran_nothing_is_no_success() -> Result<()> {
    let (code, said) = sum_up("<testsuites/>", "error: could not compile\ncargo test --lib --bins ended with 101\n")?;
    assert!(
        code == Some(1) && said.contains("\n0 passed, 1 failed, 0 skipped\n") && said.contains("could not compile"),
        "{code:?}: {said}"
    );
    let (code, said) = sum_up("<testsuites/>", "")?;
    assert!(code == Some(1) && said.contains("no test was run"), "{code:?}: {said}");
    Ok(())
}
