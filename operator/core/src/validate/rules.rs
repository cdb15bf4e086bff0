//! Evaluates the definition's CEL rules offline, by kube's own interpreter.
//!
//! The API server skips rules when the structure is wrong. Here they are evaluated nevertheless, so that all errors are seen at once;
//! a rule that cannot be evaluated because a field is missing or of the wrong type is left out, for that field has its error already.

use kube::core::cel::{CompiledSchema, ErrorKind, ValidationErrors, Validator, compile_schema};
use serde_json::Value;

use super::FieldError;

thread_local! {
    // Compiled once per thread: the interpreter's programs are not `Sync`.
    static COMPILED: std::cell::RefCell<Option<(Validator, CompiledSchema)>> = const { std::cell::RefCell::new(None) };
}

/// An object and what it comes from.
pub(super) struct Subject<'a> {
    /// What the user wrote; messages show its values.
    pub(super) manifest: &'a Value,
    /// The same with defaults filled in; rules see this.
    pub(super) complete: &'a Value,
    /// What it is to replace; rules about changes compare with it.
    pub(super) stored: Option<&'a Value>,
}

/// Appends an error for every rule that is broken. `errors` holds what is wrong with the structure.
pub(super) fn check(schema: &Value, subject: &Subject<'_>, errors: &mut Vec<FieldError>) {
    let of_structure: Vec<String> = errors.iter().map(|error| error.field.clone()).collect();
    let broken = COMPILED.with_borrow_mut(|compiled| {
        let (validator, compiled) = compiled.get_or_insert_with(|| (Validator::new(), compile_schema(schema)));
        validator.validate_compiled(compiled, subject.complete, subject.stored).err()
    });
    for error in broken.into_iter().flat_map(ValidationErrors::into_vec) {
        let field = error.field_path.trim_start_matches('.').to_owned();
        let cannot_be_evaluated = error.kind == ErrorKind::EvaluationError && !of_structure.is_empty();
        // A value that is out of its range breaks rules with others only as a consequence.
        if cannot_be_evaluated || of_structure.contains(&field) {
            continue;
        }
        let value = look_up(subject.manifest, &field).or_else(|| look_up(subject.complete, &field));
        errors.push(FieldError::new(field, value, error.message));
    }
}

/// The value at a path such as `spec.data.webdataset.shards[0]`.
fn look_up<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |value, segment| {
        let mut parts = segment.split('[');
        let named = value.get(parts.next()?)?;
        parts.try_fold(named, |list, index| list.get(index.trim_end_matches(']').parse::<usize>().ok()?))
    })
}
