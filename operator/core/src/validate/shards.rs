//! The patterns of shards, read as the trainer reads them: no schema can say which braces are whole.

use lcl_trainer_config::ShardEntry;
use serde_json::Value;

use super::FieldError;

/// Where the list stands.
const FIELD: &str = "spec.data.webdataset.shards";

/// Appends an error for every entry that the trainer could not understand. What is no path has its error already.
pub(super) fn check(manifest: &Value, errors: &mut Vec<FieldError>) {
    let list = FIELD.split('.').try_fold(manifest, |value, name| value.get(name)).and_then(Value::as_array);
    for (index, entry) in list.into_iter().flatten().enumerate() {
        let field = format!("{FIELD}[{index}]");
        if let Some(Err(error)) = entry.as_str().map(ShardEntry::parse)
            && !errors.iter().any(|other| other.field == field)
        {
            errors.push(FieldError::new(field, Some(entry), error.to_string()));
        }
    }
}
