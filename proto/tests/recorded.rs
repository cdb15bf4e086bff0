//! What programs of other versions write is read as it was meant.
//!
//! An operator follows the coordinators of groups that were started before it was upgraded, and `lcl` asks coordinators of any version.

#[path = "../examples/record_messages.rs"]
#[allow(dead_code, reason = "the example's main is not called here")]
mod record;

use std::{collections::BTreeSet, fs};

use lcl_proto::v1alpha1 as wire;
use prost::Message;
use prost_reflect::DynamicMessage;
use serde_json::Value;

use record::{Samples, VERSION, pool, recorded, samples};

fn bytes(sample: &Value) -> Vec<u8> {
    let text = sample["bytes"].as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// All versions that are recorded.
fn versions() -> Vec<u32> {
    let files = fs::read_dir(record::path(VERSION).parent().unwrap()).unwrap();
    let mut versions: Vec<u32> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_prefix('v')?.strip_suffix(".json")?.parse().ok())
        .collect();
    versions.sort_unstable();
    versions
}

#[test]
fn what_was_written_by_every_recorded_version_means_today_what_it_meant_then() {
    let pool = pool().unwrap();
    assert_eq!(versions().last(), Some(&VERSION), "the newest record is that of today's version");
    for version in versions() {
        for (name, sample) in recorded(version).unwrap() {
            let message = name.split(' ').next().unwrap();
            let message = message.split('.').take(3).collect::<Vec<_>>().join(".");
            let descriptor = pool.get_message_by_name(&message).unwrap_or_else(|| panic!("{message} of version {version} is gone"));
            let read = DynamicMessage::decode(descriptor, bytes(&sample).as_slice()).unwrap();
            assert_eq!(read.unknown_fields().count(), 0, "version {version}, {name}: a field is not known any more");
            assert_eq!(serde_json::to_value(&read).unwrap(), sample["meaning"], "version {version}, {name}: it means something else");
        }
    }
}

#[test]
fn every_field_and_choice_of_todays_messages_is_recorded() {
    let known = recorded(VERSION).unwrap();
    let known: BTreeSet<String> = known.values().map(Value::to_string).collect();
    let missing: Vec<String> = samples(&pool().unwrap())
        .unwrap()
        .into_iter()
        .filter(|(_, sample)| !known.contains(&sample.to_string()))
        .map(|(name, _)| name)
        .collect();
    assert!(
        missing.is_empty(),
        "messages were changed: {missing:?}. If programs of before understand them and are understood, record them by `cargo run -p lcl-proto \
         --example record_messages`; if not, with another PROTOCOL_VERSION"
    );
}

/// The generated code reads and writes them without loss.
#[test]
fn the_programs_types_hold_all_that_is_recorded() {
    fn again<M: Message + Default>(bytes: &[u8]) -> Vec<u8> {
        M::decode(bytes).unwrap().encode_to_vec()
    }
    let pool = pool().unwrap();
    let check = |samples: &Samples, name: &str, again: fn(&[u8]) -> Vec<u8>| {
        let prefix = format!("lcl.v1alpha1.{name}");
        let descriptor = pool.get_message_by_name(&prefix).unwrap();
        let of_it = |key: &String| key.strip_prefix(&prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', ' ']));
        let mut count = 0;
        for (key, sample) in samples.iter().filter(|(key, _)| of_it(key)) {
            // The order in which fields are written means nothing.
            let written = DynamicMessage::decode(descriptor.clone(), again(&bytes(sample)).as_slice()).unwrap();
            assert_eq!(serde_json::to_value(&written).unwrap(), sample["meaning"], "{key}");
            count += 1;
        }
        assert!(count > 0, "nothing is recorded of {name}");
    };
    for version in versions() {
        let samples = recorded(version).unwrap();
        check(&samples, "ToCoordinator", again::<wire::ToCoordinator>);
        check(&samples, "ToMember", again::<wire::ToMember>);
        check(&samples, "WatchRequest", again::<wire::WatchRequest>);
        check(&samples, "Status", again::<wire::Status>);
        check(&samples, "CommandRequest", again::<wire::CommandRequest>);
        check(&samples, "CommandResponse", again::<wire::CommandResponse>);
    }
}
