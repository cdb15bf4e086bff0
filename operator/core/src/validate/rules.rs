//! Evaluates the definition's CEL rules offline, by kube's own interpreter.
//!
//! The API server skips rules when the structure is wrong. Here they are evaluated nevertheless, so that all errors are seen at once;
//! a rule that cannot be evaluated because a field is missing or of the wrong type is left out, for that field has its error already.

use kube::core::cel::{CompiledSchema, ErrorKind, ValidationError, Validator, compile_schema};
use serde_json::Value;

use super::FieldError;

thread_local! {
    // Compiled once per thread: the interpreter's programs are not `Sync`.
    static COMPILED: std::cell::RefCell<Option<(Validator, CompiledSchema)>> = const { std::cell::RefCell::new(None) };
}

/// Appends an error for every rule that `object` breaks; rules about changes compare with `stored`.
pub(super) fn check(schema: &Value, object: &Value, stored: Option<&Value>, errors: &mut Vec<FieldError>) {
    let structure_is_sound = errors.is_empty();
    let broken = COMPILED.with_borrow_mut(|compiled| {
        let (validator, compiled) = compiled.get_or_insert_with(|| (Validator::new(), compile_schema(schema)));
        validator.validate_compiled(compiled, object, stored).err()
    });
    for error in broken.into_iter().flat_map(|broken| broken.into_vec()) {
        if error.kind == ErrorKind::EvaluationError && !structure_is_sound {
            continue;
        }
        errors.push(to_field_error(object, error));
    }
}

fn to_field_error(object: &Value, error: ValidationError) -> FieldError {
    let field = error.field_path.trim_start_matches('.').to_owned();
    let value = look_up(object, &field);
    FieldError::new(field, value, error.message)
}

/// The value at a path such as `spec.data.webdataset.shards[0]`.
fn look_up<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |value, segment| {
        let mut parts = segment.split('[');
        let named = value.get(parts.next()?)?;
        parts.try_fold(named, |list, index| list.get(index.trim_end_matches(']').parse::<usize>().ok()?))
    })
}
