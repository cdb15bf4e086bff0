//! Where a pod may run: selectors, affinities, tolerations, spreading.

use k8s_openapi::{
    api::core::v1::{Affinity, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::{
    Findings,
    syntax::{DNS_LABEL, DNS_SUBDOMAIN, LABEL_VALUE, QUALIFIED_NAME},
};

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn check(path: &str, spec: &PodSpec, findings: &mut Findings<'_>) {
    for (key, value) in spec.node_selector.iter().flatten() {
        super::check_entry(&format!("{path}.nodeSelector"), (key, value), Some(&LABEL_VALUE), findings);
    }
    for (index, toleration) in spec.tolerations.iter().flatten().enumerate() {
        check_toleration(&format!("{path}.tolerations[{index}]"), toleration, findings);
    }
    for (index, constraint) in spec.topology_spread_constraints.iter().flatten().enumerate() {
        check_spread(&format!("{path}.topologySpreadConstraints[{index}]"), constraint, findings);
    }
    for (index, gate) in spec.scheduling_gates.iter().flatten().enumerate() {
        findings.check_name(&QUALIFIED_NAME, &format!("{path}.schedulingGates[{index}].name"), &gate.name);
    }
    if let Some(affinity) = &spec.affinity {
        check_affinity(&format!("{path}.affinity"), affinity, findings);
    }
    if let Some(group) = &spec.scheduling_group {
        let name = group.pod_group_name.as_deref().unwrap_or_default();
        findings.check_name(&DNS_SUBDOMAIN, &format!("{path}.schedulingGroup.podGroupName"), name);
    }
}

fn check_toleration(path: &str, toleration: &Toleration, findings: &mut Findings<'_>) {
    let field = |name: &str| format!("{path}.{name}");
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (key, operator, value, effect) =
        (text(&toleration.key), text(&toleration.operator), text(&toleration.value), text(&toleration.effect));
    findings.check_optional_name(&QUALIFIED_NAME, &field("key"), Some(&key));
    findings.check_one_of(&field("operator"), Some(&operator), &["Exists", "Equal"]);
    findings.check_one_of(&field("effect"), Some(&effect), &EFFECTS);
    if key.is_empty() && operator != "Exists" {
        findings.add(&field("operator"), operator.as_str(), "must be Exists when no key is given, which tolerates every taint");
    }
    match operator.as_str() {
        "Exists" if !value.is_empty() => findings.add(&field("value"), value, "must not be given when the operator is Exists"),
        "Equal" | "" => findings.check_name(&LABEL_VALUE, &field("value"), &value),
        _ => {}
    }
    if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
        findings.add(&field("effect"), effect, "must be NoExecute when tolerationSeconds is given");
    }
}

fn check_spread(path: &str, constraint: &TopologySpreadConstraint, findings: &mut Findings<'_>) {
    let field = |name: &str| format!("{path}.{name}");
    findings.check_range(&field("maxSkew"), Some(constraint.max_skew), 1, None);
    findings.check_range(&field("minDomains"), constraint.min_domains, 1, None);
    findings.check_given(&field("topologyKey"), &constraint.topology_key);
    findings.check_optional_name(&QUALIFIED_NAME, &field("topologyKey"), Some(&constraint.topology_key));
    let action = Some(constraint.when_unsatisfiable.as_str());
    findings.check_one_of(&field("whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
    if constraint.min_domains.is_some() && action != Some("DoNotSchedule") {
        findings.add(&field("whenUnsatisfiable"), constraint.when_unsatisfiable.as_str(), "must be DoNotSchedule when minDomains is given");
    }
    check_selector(&field("labelSelector"), constraint.label_selector.as_ref(), findings);
}

fn check_affinity(path: &str, affinity: &Affinity, findings: &mut Findings<'_>) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = &affinity.node_affinity {
        let path = format!("{path}.nodeAffinity");
        if let Some(selector) = &node.required_during_scheduling_ignored_during_execution {
            let path = format!("{path}.{REQUIRED}.nodeSelectorTerms");
            if selector.node_selector_terms.is_empty() {
                findings.add_rule(&path, "must have at least one entry");
            }
            for (index, term) in selector.node_selector_terms.iter().enumerate() {
                check_node_term(&format!("{path}[{index}]"), term, true, findings);
            }
        }
        for (index, term) in node.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate() {
            let path = format!("{path}.{PREFERRED}[{index}]");
            findings.check_range(&format!("{path}.weight"), Some(term.weight), 1, Some(100));
            check_node_term(&format!("{path}.preference"), &term.preference, false, findings);
        }
    }
    let pods = affinity.pod_affinity.as_ref().map(|pods| {
        let preferred = &pods.preferred_during_scheduling_ignored_during_execution;
        ("podAffinity", &pods.required_during_scheduling_ignored_during_execution, preferred)
    });
    let anti = affinity.pod_anti_affinity.as_ref().map(|pods| {
        let preferred = &pods.preferred_during_scheduling_ignored_during_execution;
        ("podAntiAffinity", &pods.required_during_scheduling_ignored_during_execution, preferred)
    });
    for (name, required, preferred) in pods.into_iter().chain(anti) {
        for (index, term) in required.iter().flatten().enumerate() {
            check_pod_term(&format!("{path}.{name}.{REQUIRED}[{index}]"), term, findings);
        }
        for (index, term) in preferred.iter().flatten().enumerate() {
            let path = format!("{path}.{name}.{PREFERRED}[{index}]");
            findings.check_range(&format!("{path}.weight"), Some(term.weight), 1, Some(100));
            check_pod_term(&format!("{path}.podAffinityTerm"), &term.pod_affinity_term, findings);
        }
    }
}

fn check_node_term(path: &str, term: &NodeSelectorTerm, is_required: bool, findings: &mut Findings<'_>) {
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        check_node_requirement(&format!("{path}.matchExpressions[{index}]"), requirement, is_required, findings);
    }
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        let path = format!("{path}.matchFields[{index}]");
        findings.check_one_of(&format!("{path}.key"), Some(&requirement.key), &["metadata.name"]);
        findings.check_one_of(&format!("{path}.operator"), Some(&requirement.operator), &["In", "NotIn"]);
        if requirement.values.as_ref().map_or(0, Vec::len) != 1 {
            findings.add_rule(&format!("{path}.values"), "must have exactly one entry");
        }
    }
}

fn check_node_requirement(path: &str, requirement: &NodeSelectorRequirement, is_required: bool, findings: &mut Findings<'_>) {
    findings.check_name(&QUALIFIED_NAME, &format!("{path}.key"), &requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let names = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
    check_operator(path, (&requirement.operator, values), &names, findings);
    for (index, value) in values.iter().enumerate().filter(|_| is_required) {
        findings.check_name(&LABEL_VALUE, &format!("{path}.values[{index}]"), value);
    }
}

/// An operator with as many values as it takes.
fn check_operator(path: &str, (operator, values): (&str, &[String]), allowed: &[&str], findings: &mut Findings<'_>) {
    let field = format!("{path}.values");
    match operator {
        _ if !allowed.contains(&operator) => {
            findings.add(&format!("{path}.operator"), operator, format!("must be one of {}", allowed.join(", ")));
        }
        "In" | "NotIn" if values.is_empty() => findings.add_rule(&field, format!("must have at least one entry with {operator}")),
        "Exists" | "DoesNotExist" if !values.is_empty() => findings.add_rule(&field, format!("must not be given with {operator}")),
        "Gt" | "Lt" if values.len() != 1 => findings.add_rule(&field, format!("must have exactly one entry with {operator}")),
        _ => {}
    }
}

fn check_pod_term(path: &str, term: &PodAffinityTerm, findings: &mut Findings<'_>) {
    findings.check_given(&format!("{path}.topologyKey"), &term.topology_key);
    findings.check_optional_name(&QUALIFIED_NAME, &format!("{path}.topologyKey"), Some(&term.topology_key));
    for (index, namespace) in term.namespaces.iter().flatten().enumerate() {
        findings.check_name(&DNS_LABEL, &format!("{path}.namespaces[{index}]"), namespace);
    }
    check_selector(&format!("{path}.labelSelector"), term.label_selector.as_ref(), findings);
    check_selector(&format!("{path}.namespaceSelector"), term.namespace_selector.as_ref(), findings);
}

fn check_selector(path: &str, selector: Option<&LabelSelector>, findings: &mut Findings<'_>) {
    let Some(selector) = selector else { return };
    for (key, value) in selector.match_labels.iter().flatten() {
        super::check_entry(&format!("{path}.matchLabels"), (key, value), Some(&LABEL_VALUE), findings);
    }
    for (index, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        findings.check_name(&QUALIFIED_NAME, &format!("{path}.key"), &requirement.key);
        let values = requirement.values.as_deref().unwrap_or_default();
        check_operator(&path, (&requirement.operator, values), &["In", "NotIn", "Exists", "DoesNotExist"], findings);
        for (index, value) in values.iter().enumerate() {
            findings.check_name(&LABEL_VALUE, &format!("{path}.values[{index}]"), value);
        }
    }
}
