//! Every rule of the custom resource, broken once with its message checked, and its boundary kept once.

#[path = "rules/cases.rs"]
mod cases;
mod support;

use std::collections::BTreeSet;

use kube::core::cel::{ScopeContext, analyze_rule, compile_schema};
use lcl_operator_core::{FieldErrors, validate, validate_change};
use serde_json::{Value, json};

use cases::{BROKEN, BROKEN_CHANGES, KEPT, KEPT_CHANGES};
use support::{assign, minimal_job};

fn schema() -> Value {
    let definition = serde_json::to_value(lcl_crds::custom_resource_definition()).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn changed(assignments: &str) -> Value {
    let mut job = minimal_job();
    assign(&mut job, assignments);
    job
}

/// Exactly one field breaks a rule, and the message says how.
fn check(errors: &FieldErrors, case: &str, field: &str, rule: &str) {
    let found: Vec<_> = errors.as_slice().iter().map(|error| (error.field.as_str(), error.rule.as_str())).collect();
    assert!(matches!(found.as_slice(), [(at, says)] if *at == field && says.contains(rule)), "{case}\nexpected {field}: {rule}\ngot {found:?}");
}

#[test]
fn every_broken_rule_names_its_field_and_says_what_is_expected() {
    for (case, field, rule) in BROKEN {
        match validate(&changed(case)) {
            Ok(_) => panic!("{case} was accepted"),
            Err(errors) => check(&errors, case, field, rule),
        }
    }
}

#[test]
fn values_at_the_boundary_of_a_rule_are_accepted() {
    for case in KEPT {
        if let Err(errors) = validate(&changed(case)) {
            panic!("{case} was refused:\n{errors}");
        }
    }
}

#[test]
fn what_is_fixed_in_a_job_cannot_be_changed() {
    for (before, after, field) in BROKEN_CHANGES {
        match validate_change(&changed(after), &changed(before)) {
            Ok(_) => panic!("{before} -> {after} was accepted"),
            Err(errors) => check(&errors, after, field, "must not change after the job was created"),
        }
    }
}

#[test]
fn what_may_change_can_be_changed_and_writing_the_defaults_out_is_no_change() {
    for (before, after) in KEPT_CHANGES {
        if let Err(errors) = validate_change(&changed(after), &changed(before)) {
            panic!("{before} -> {after} was refused:\n{errors}");
        }
    }
}

/// Messages of all CEL rules of the schema, with the path of the field they stand at.
fn all_rules(schema: &Value, path: &str, found: &mut BTreeSet<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let field = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
        found.insert((field, rule["message"].as_str().unwrap_or_default().to_owned()));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        all_rules(field, &format!("{path}.{name}"), found);
    }
    if schema["items"].is_object() {
        all_rules(&schema["items"], &format!("{path}[0]"), found);
    }
}

#[test]
fn no_rule_of_the_definition_is_missing_from_the_cases() {
    let mut rules = BTreeSet::new();
    all_rules(&schema()["properties"]["spec"], "spec", &mut rules);
    let mut broken = BTreeSet::new();
    let new = BROKEN.iter().filter_map(|(case, ..)| validate(&changed(case)).err());
    let changes = BROKEN_CHANGES.iter().filter_map(|(before, after, _)| validate_change(&changed(after), &changed(before)).err());
    for errors in new.chain(changes) {
        broken.extend(errors.as_slice().iter().map(|error| (error.field.clone(), error.rule.clone())));
    }
    let missing: Vec<_> = rules.difference(&broken).collect();
    assert!(missing.is_empty(), "rules that no case breaks: {missing:#?}");
}

#[test]
fn every_rule_compiles_and_walks_only_bounded_lists() {
    fn check(schema: &Value, path: &str) {
        let compiled = compile_schema(schema);
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let expression = rule["rule"].as_str().unwrap();
            let warnings = analyze_rule(expression, &compiled, ScopeContext::CrdValidation);
            assert!(warnings.is_empty(), "{path}: {expression}: {warnings:?}");
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            check(field, &format!("{path}.{name}"));
        }
        if schema["items"].is_object() {
            check(&schema["items"], &format!("{path}[]"));
        }
    }
    let schema = schema();
    assert!(!compile_schema(&schema).has_errors());
    check(&schema, "");
}

#[test]
fn all_errors_are_reported_at_once_even_when_the_structure_is_wrong() {
    let job = changed(
        "spec.optimization.steps = 'many'; spec.optimization.globalBatchSize = 0; spec.model.shape = {}; spec.modle = 1; \
         spec.checkpoint.uri = '/runs'; metadata.name = 'No'",
    );
    let errors = validate(&job).unwrap_err();
    let fields: BTreeSet<_> = errors.as_slice().iter().map(|error| error.field.as_str()).collect();
    for field in [
        "metadata.name",
        "spec.checkpoint.uri",
        "spec.model",
        "spec.model.shape.vision",
        "spec.modle",
        "spec.optimization.globalBatchSize",
        "spec.optimization.steps",
    ] {
        assert!(fields.contains(field), "{field} is not among {fields:?}");
    }
    assert!(!errors.to_string().contains("evaluation"), "{errors}");
}

#[test]
fn an_error_reads_as_a_sentence_with_field_value_and_rule() {
    let message = |case: &str| validate(&changed(case)).unwrap_err().to_string();
    assert_eq!(message("spec.optimization.steps = 0"), "spec.optimization.steps is 0, but must be at least 1");
    assert_eq!(
        message("spec.optimization.schedule = {'cosine': {'warmupSteps': 101}}"),
        "spec.optimization.schedule.cosine.warmupSteps is 101, but must not exceed optimization.steps (the default is 2000)"
    );
    assert_eq!(message("spec.checkpoint.url = 'x'"), "spec.checkpoint.url: no such field; did you mean `uri`?");
    let long = format!("spec.model.precision = '{}'", "x".repeat(200));
    assert!(message(&long).len() < 200, "a long value is not shortened");
}

#[test]
fn something_that_is_no_object_is_refused() {
    for value in [Value::Null, json!([]), json!("text"), json!({ "kind": "LCLTrainingJob", "spec": null })] {
        assert!(validate(&value).is_err(), "{value}");
    }
}
