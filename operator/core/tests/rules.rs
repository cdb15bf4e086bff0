//! Every rule of the custom resource, broken once with its message checked, and its boundary kept once.

#[path = "rules/cases.rs"]
mod cases;
#[macro_use]
#[path = "rules/pod_cases.rs"]
mod pod_cases;
#[path = "rules/policy_cases.rs"]
mod policy_cases;
#[path = "support/jobs.rs"]
mod support;

use std::collections::BTreeSet;

use kube::core::cel::compile_schema;
use lcl_operator_core::{Allowance, FieldErrors, PodPolicy, validate, validate_change, validate_under};
use regex::Regex;
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
    assert!(
        matches!(found.as_slice(), [(at, says)] if *at == field && says.contains(rule)),
        "{case}\nexpected {field}: {rule}\ngot {found:?}"
    );
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
fn what_no_pod_could_be_created_or_started_with_is_found_in_the_job() {
    let mut wrong = Vec::new();
    let policy = PodPolicy::everything();
    for (case, field, rule, _) in pod_cases::BROKEN {
        match validate_under(&changed(case), &policy) {
            Ok(_) => wrong.push(format!("{case}\n  was accepted")),
            Err(errors) => {
                let is_right = matches!(errors.as_slice(), [error] if error.field == *field && error.rule.contains(rule));
                wrong.extend((!is_right).then(|| format!("{case}\n  expected {field}: {rule}\n  got {errors}")));
            }
        }
    }
    for case in pod_cases::KEPT {
        wrong.extend(validate_under(&changed(case), &policy).err().map(|errors| format!("{case}\n  was refused: {errors}")));
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_reaches_into_the_node_or_the_api_server_is_refused_by_its_field_unless_exactly_that_is_allowed() {
    for (case, needed, field) in policy_cases::NOT_ALLOWED {
        let job = changed(case);
        let others = PodPolicy::allowing(Allowance::ALL.into_iter().filter(|allowance| allowance != needed));
        for policy in [PodPolicy::default(), others] {
            let errors = validate_under(&job, &policy).expect_err(case);
            check(&errors, case, &format!("spec.workers.template.{field}"), &format!("security.allow{needed}"));
        }
        if let Err(errors) = validate_under(&job, &PodPolicy::allowing([*needed])) {
            panic!("{case} was refused though {needed} is allowed:\n{errors}");
        }
        // Nor as a change of a stored job.
        assert!(validate_change(&job, &job).is_err(), "{case}");
    }
    let seen: BTreeSet<_> = policy_cases::NOT_ALLOWED.iter().map(|(_, needed, _)| *needed).collect();
    assert_eq!(seen.len(), Allowance::ALL.len());
    for case in policy_cases::ALLOWED {
        if let Err(errors) = validate(&changed(case)) {
            panic!("{case} was refused:\n{errors}");
        }
    }
}

#[test]
fn a_token_for_an_audience_by_which_the_api_server_goes_is_refused() {
    let job = changed(
        "spec.workers.template.spec = {'containers': [{'name': 'worker'}], 'volumes': [{'name': 't', 'projected': {'sources': \
         [{'serviceAccountToken': {'audience': 'https://id.example.com/1', 'path': 't'}}]}}]}",
    );
    assert!(validate(&job).is_ok());
    let policy = PodPolicy::default().with_api_audiences(vec!["https://id.example.com/1".to_owned()]);
    let errors = validate_under(&job, &policy).unwrap_err();
    check(&errors, "", "spec.workers.template.spec.volumes[0].projected.sources[0].serviceAccountToken.audience", "allowApiTokens");
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
fn every_rule_compiles() {
    assert!(!compile_schema(&schema()).has_errors());
}

/// Lists that a rule walks by itself (`self.a.b.exists(…)`) as paths from where it stands.
fn walked_lists(rule: &str) -> Vec<Vec<String>> {
    let walks = Regex::new(r"\bself((?:\.\w+)+)\.(?:all|exists|exists_one|filter|map)\(").unwrap();
    walks.captures_iter(rule).map(|found| found[1].split('.').skip(1).map(str::to_owned).collect()).collect()
}

/// The API server multiplies the cost of a rule by the lengths of the lists around it and in it, and refuses the definition when a length
/// has no bound.
#[test]
fn rules_walk_only_lists_with_a_bound() {
    fn check(schema: &Value, path: &str, unbounded: Option<&str>, seen: &mut usize) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            assert_eq!(unbounded, None, "{path}: {rule} stands in a list without maxItems");
            for names in walked_lists(rule["rule"].as_str().unwrap()) {
                let list = names.iter().fold(schema, |schema, name| &schema["properties"][name]);
                assert!(list["maxItems"].is_number(), "{path}: {rule} walks {names:?}, which has no maxItems");
                *seen += 1;
            }
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            check(field, &format!("{path}.{name}"), unbounded, seen);
        }
        if schema["items"].is_object() {
            let unbounded = if schema["maxItems"].is_number() { unbounded } else { Some(path) };
            check(&schema["items"], &format!("{path}[]"), unbounded, seen);
        }
    }
    let mut seen = 0;
    check(&schema(), "", None, &mut seen);
    assert!(seen >= 2, "only {seen} walks were found: the test no longer reads the rules");
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
        "spec.optimization.schedule.cosine.warmupSteps is 101, but must not exceed optimization.steps"
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
