//! The patterns of shards, read as the trainer reads them: no schema can say which braces are whole.

use lcl_trainer_config::ShardEntry;
use serde_json::Value;

use super::{FieldError, sources};

/// Appends an error for every entry that the trainer could not understand.
pub(super) fn check(spec: &Value, errors: &mut Vec<FieldError>) {
    sources::for_each(spec, |source, path| check_source(source, path, errors));
}

fn check_source(source: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for field in ["webdataset.shards", "mmc4.shards", "mmc4.images.shards", "obelics.shards", "obelics.images"] {
        let list = source.pointer(&format!("/{}", field.replace('.', "/"))).and_then(Value::as_array);
        for (index, entry) in list.into_iter().flatten().enumerate() {
            if let Some(Err(error)) = entry.as_str().map(ShardEntry::parse) {
                errors.push(FieldError::new(format!("{path}.{field}[{index}]"), Some(entry), error.to_string()));
            }
        }
    }
}
