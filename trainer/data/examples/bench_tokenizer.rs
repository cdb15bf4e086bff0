//! Tokenizes the JSON strings of a file (one a line) again and again for some seconds on one thread and prints texts per second.
//!
//! `bench_tokenizer FILE SECONDS`; `bench/tokenizer.py` runs it in turns with the reference tokenizer.

use std::{
    env, fs,
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lcl_data::tokenizer::Tokenizer;

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let usage = "usage: bench_tokenizer FILE SECONDS";
    let path = arguments.next().context(usage)?;
    let seconds = Duration::try_from_secs_f64(arguments.next().context(usage)?.parse().context(usage)?).context(usage)?;
    let lines = fs::read_to_string(&path).with_context(|| path.clone())?;
    let texts: Vec<String> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>().with_context(|| path.clone())?;
    ensure!(!texts.is_empty(), "{path} has no text");

    let tokenizer = Tokenizer::clip();
    let pass = || texts.iter().map(|text| black_box(tokenizer.encode(text)).len()).sum::<usize>();
    let tokens = pass();
    let (mut passes, start) = (0usize, Instant::now());
    while start.elapsed() < seconds {
        ensure!(pass() == tokens, "the same texts gave another number of tokens");
        passes += 1;
    }
    let rate = (passes * texts.len()) as f64 / start.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({ "texts_per_second": rate, "texts": texts.len(), "tokens": tokens }));
    Ok(())
}
