//! How programs are put into images, which a Python program shows with small ones in place of ours.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use lcl_tests::workspace;

#[test]
fn images_are_put_together_as_they_should_be() -> Result<()> {
    let output = Command::new("python3").arg(workspace().join("images/test/assembly.py")).output().context("starting python3")?;
    // What it skipped, and why, is among what it says.
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "python3 images/test/assembly.py: {said}");
    println!("{said}");
    Ok(())
}
