//! Records a sample of every message that travels, as it is written today: `cargo run -p lcl-proto --example record_messages`.
//!
//! Goes out: `proto/tests/recorded/v<VERSION>.json`: for each sample its bytes in hexadecimal and its meaning as protobuf's JSON. What is
//! recorded is never taken out: programs that write it may still run. A change after which it would mean something else needs another
//! version.

use std::{collections::BTreeMap, error::Error, fmt::Write, fs, path::PathBuf};

use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value, prost::Message};
use serde_json::json;

/// `lcl_protocol::PROTOCOL_VERSION`.
pub(crate) const VERSION: u32 = 7;

/// Samples by name: bytes and meaning.
pub(crate) type Samples = BTreeMap<String, serde_json::Value>;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Where the samples of a version lie.
pub(crate) fn path(version: u32) -> PathBuf {
    folder().join(format!("tests/recorded/v{version}.json"))
}

/// What is recorded of a version.
pub(crate) fn recorded(version: u32) -> Result<Samples, Box<dyn Error>> {
    Ok(serde_json::from_str(&fs::read_to_string(path(version))?)?)
}

/// The messages of today's files.
pub(crate) fn pool() -> Result<DescriptorPool, Box<dyn Error>> {
    Ok(DescriptorPool::from_file_descriptor_set(protox::compile(["lcl/v1alpha1/coordinator.proto"], [folder()])?)?)
}

/// Samples of all that the service takes and gives, with every field set and every choice made once.
pub(crate) fn samples(pool: &DescriptorPool) -> Result<Samples, Box<dyn Error>> {
    let mut found = Samples::new();
    for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        for message in [method.input(), method.output()] {
            for (choices, sample) in samples_of(&message) {
                let name = format!("{}{choices}", message.full_name());
                found.insert(name, json!({ "bytes": hexadecimal(&sample.encode_to_vec()), "meaning": serde_json::to_value(&sample)? }));
            }
        }
    }
    Ok(found)
}

/// Named by the choices in which they differ.
fn samples_of(message: &MessageDescriptor) -> Vec<(String, DynamicMessage)> {
    let mut base = DynamicMessage::new(message.clone());
    let mut others = Vec::new();
    let chosen = |field: &FieldDescriptor| field.containing_oneof().is_some_and(|choice| !choice.is_synthetic());
    for field in message.fields().filter(|field| !chosen(field)) {
        let mut values = values_of(&field);
        if field.is_list() {
            let all = values.into_iter().map(|(_, value)| value).collect();
            base.set_field(&field, Value::List(all));
            continue;
        }
        let (_, first) = values.remove(0);
        base.set_field(&field, first);
        others.extend(values.into_iter().map(|(choices, value)| (field.clone(), choices, value)));
    }
    let mut samples: Vec<_> = others
        .into_iter()
        .map(|(field, choices, value)| {
            let mut sample = base.clone();
            sample.set_field(&field, value);
            (format!(".{}{choices}", field.name()), sample)
        })
        .collect();
    for field in message.fields().filter(chosen) {
        for (choices, value) in values_of(&field) {
            let mut sample = base.clone();
            sample.set_field(&field, value);
            samples.push((format!(".{}{choices}", field.name()), sample));
        }
    }
    if samples.is_empty() || message.fields().all(|field| !chosen(&field)) {
        samples.insert(0, (String::new(), base));
    }
    samples
}

/// Values that tell a field from all others.
fn values_of(field: &FieldDescriptor) -> Vec<(String, Value)> {
    let number = field.number();
    let value = match field.kind() {
        Kind::Message(message) => {
            return samples_of(&message).into_iter().map(|(choices, sample)| (choices, Value::Message(sample))).collect();
        }
        Kind::Enum(choices) => {
            return choices
                .values()
                .filter(|value| value.number() != 0)
                .map(|value| (format!(".{}", value.name()), Value::EnumNumber(value.number())))
                .collect();
        }
        Kind::Double => Value::F64(f64::from(number) + 0.5),
        Kind::Float => Value::F32(0.5),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(-100 - i32::try_from(number).unwrap_or_default()),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(-1_000_000 - i64::from(number)),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(100 + number),
        // Beyond 32 bits.
        Kind::Uint64 | Kind::Fixed64 => Value::U64((1 << 40) + u64::from(number)),
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String(field.full_name().to_owned()),
        Kind::Bytes => Value::Bytes(field.full_name().to_owned().into_bytes().into()),
    };
    vec![(String::new(), value)]
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut all = recorded(VERSION).unwrap_or_default();
    for (name, sample) in samples(&pool()?)? {
        // A field that is new leaves what was recorded as it is, and adds a sample.
        let is_known = all.get(&name).is_none_or(|known| *known == sample);
        all.insert(if is_known { name } else { format!("{name} since {}", all.len()) }, sample);
    }
    let path = path(VERSION);
    fs::write(&path, serde_json::to_string_pretty(&all)? + "\n")?;
    println!("wrote {}", path.display());
    Ok(())
}
