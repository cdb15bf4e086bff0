//! The packed merge table is what the published vocabulary gives.
//!
//! `LCL_UPDATE=1 cargo test -p lcl-data --test vocabulary` writes `assets/clip-merges.bin` anew.

use std::{collections::HashMap, fs, io::Read, path::Path};

use anyhow::{Context, Result, ensure};

/// Merges that the reference uses of the published list: `merges[1:49152-256-2+1]`.
const MERGES: usize = 49_152 - 256 - 2;

/// The characters in which the published list writes bytes, in the order of the first 256 entries.
fn byte_names() -> Vec<char> {
    let shown: Vec<u32> = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').map(u32::from).collect();
    let hidden = (0..256).filter(|byte| !shown.contains(byte)).count() as u32;
    shown.iter().copied().chain(256..256 + hidden).filter_map(char::from_u32).collect()
}

fn pack(list: &str) -> Result<Vec<u8>> {
    let mut ids: HashMap<String, u16> = HashMap::new();
    let bytes: Vec<String> = byte_names().into_iter().map(String::from).collect();
    for name in bytes.iter().cloned().chain(bytes.iter().map(|name| format!("{name}</w>"))) {
        let id = u16::try_from(ids.len())?;
        ids.insert(name, id);
    }
    let mut packed = Vec::new();
    for line in list.lines().skip(1).take(MERGES) {
        let (left, right) = line.split_once(' ').with_context(|| format!("no two parts in {line:?}"))?;
        let id = u16::try_from(ids.len())?;
        for part in [left, right] {
            packed.extend_from_slice(&ids.get(part).with_context(|| format!("{part:?} comes before it is made"))?.to_le_bytes());
        }
        ensure!(ids.insert(format!("{left}{right}"), id).is_none(), "{line:?} makes an entry that is there already");
    }
    Ok(packed)
}

#[test]
fn the_packed_merges_are_those_of_the_published_vocabulary() -> Result<()> {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let mut list = String::new();
    flate2::read::GzDecoder::new(fs::File::open(assets.join("clip-bpe-vocabulary.txt.gz"))?).read_to_string(&mut list)?;
    let packed = pack(&list)?;
    let path = assets.join("clip-merges.bin");
    if std::env::var_os("LCL_UPDATE").is_some() {
        fs::write(&path, &packed)?;
    }
    ensure!(fs::read(&path)? == packed, "{} is not what the published vocabulary gives; see the head of this test", path.display());
    Ok(())
}
