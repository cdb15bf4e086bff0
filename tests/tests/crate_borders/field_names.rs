//! Which fields the trainer's messages name, and that each is one that its user can find in a manifest.
//!
//! Comes in: the trainer's sources. A text within them names a field as `spec.…`; a text that is nothing but a path in the trainer's
//! configuration is looked up in the one table (`lcl_trainer_config::UserField`) before it is shown.

use std::{fs, path::Path, sync::LazyLock};

use anyhow::{Context, Result, ensure};
use lcl_tests::workspace;
use lcl_trainer_config::UserField;
use regex::Regex;
use serde_json::Value;

/// A path whose first name is a part of a job.
static NAMED: LazyLock<Regex> = LazyLock::new(|| {
    let parts = "data|model|optimization|checkpoint|runtime|workers|elastic";
    Regex::new(&format!(r"(^|[^\w./-])((?:spec\.)?(?:{parts})(?:\.[a-z]\w*)+)")).expect("a fixed pattern")
});

/// The texts between quotes in a source, without comments and without its tests, which stand at its end.
fn texts(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let (mut found, mut characters) = (Vec::new(), code.chars().peekable());
    while let Some(character) = characters.next() {
        match character {
            '/' if characters.peek() == Some(&'/') => {
                characters.by_ref().find(|other| *other == '\n');
            }
            // A quote as a character is no text's.
            '\'' if characters.peek() == Some(&'"') => {
                characters.next();
            }
            '"' => {
                let mut text = String::new();
                while let Some(inside) = characters.next().filter(|inside| *inside != '"') {
                    match (inside, characters.peek()) {
                        // A line that goes on.
                        ('\\', Some('\n')) => while characters.next_if(|next| next.is_whitespace()).is_some() {},
                        ('\\', _) => text.extend(characters.next()),
                        _ => text.push(inside),
                    }
                }
                found.push(text);
            }
            _ => {}
        }
    }
    found
}

/// What is wrong with the fields that a text names.
fn faults(text: &str, schema: &Value) -> Vec<String> {
    let has = |path: &str| path.split('.').try_fold(schema, |schema, name| schema["properties"].get(name)).is_some();
    let fault = |path: &str| {
        // Nothing but a path, in which numbers and names may be put: it is shown by the table's name.
        let is_of_path = |character: char| character.is_ascii_alphanumeric() || ".[]{}".contains(character);
        let is_looked_up = text.strip_prefix(path).is_some_and(|rest| rest.chars().all(is_of_path));
        if path.starts_with("spec.") {
            return (!has(path)).then(|| format!("no manifest has {path}"));
        }
        match UserField::of(path) {
            // Not a field at all, such as the name of a file.
            UserField::Manifest(known) if !has(&known) => None,
            UserField::Manifest(known) if !is_looked_up => Some(format!("{path} is {known} to its user")),
            UserField::Argument(option) if !is_looked_up => Some(format!("{path} is {option} to its user")),
            _ => None,
        }
    };
    NAMED.captures_iter(text).filter_map(|found| fault(found.get(2)?.as_str())).collect()
}

fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !["tests", "benches", "examples", "assets"].contains(&name.as_str()) {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !["tests.rs", "test_support.rs", "build.rs"].contains(&name.as_str())
        {
            found.push(path);
        }
    }
    Ok(())
}

fn schema() -> Result<Value> {
    let definition = serde_json::to_value(lcl_crds::custom_resource_definition())?;
    Ok(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
}

#[test]
fn every_field_that_a_message_of_the_trainer_names_is_one_of_the_manifest() -> Result<()> {
    let (schema, mut files, mut named, mut wrong) = (schema()?, Vec::new(), 0, Vec::new());
    sources(&workspace().join("trainer"), &mut files)?;
    for file in &files {
        for text in texts(&fs::read_to_string(file)?) {
            named += NAMED.find_iter(&text).count();
            wrong.extend(faults(&text, &schema).into_iter().map(|fault| format!("{}: {fault}: {text:?}", file.display())));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(files.len() > 100 && named > 60, "only {named} names in {} files: the sources are not read any more", files.len());
    Ok(())
}

#[test]
fn a_field_under_the_trainers_own_name_is_found_in_a_text() -> Result<()> {
    let schema = schema()?;
    let found = |source: &str| texts(source).iter().flat_map(|text| faults(text, &schema)).collect::<Vec<_>>();
    ensure!(found("#[error(\"check data.source.shards\")]") == ["data.source.shards is spec.data.webdataset.shards to its user"]);
    ensure!(found("f('\"', \"set \\\n   data.indexPath, \\\"runtime.device\\\"\")").len() == 2);
    ensure!(found("f(\"data.source.shards[{index}]\", \"data.source.mixture.sources[{index}].source{}\")").is_empty());
    ensure!(found("\"data.source.shards: none\"").len() == 1);
    ensure!(found("\"see spec.data.shards\"") == ["no manifest has spec.data.shards"]);
    ensure!(found("// \"data.indexPath is\"\nf(\"data.indexPath\", \"spec.data.indexPath\", \"data.tar is a file\")").is_empty());
    Ok(())
}
