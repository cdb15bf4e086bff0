//! What the API server refuses in a pod, and what the trainer refuses in its container, found before there is one.
//!
//! Comes in: a manifest whose structure was looked at. Goes out: an error for everything in `spec.workers` with which no pod could be
//! created or started. A custom resource's schema cannot say these rules (most walk lists of a length that makes them too expensive), and
//! the API server applies them to the pod alone: a job would be accepted, and its pods refused for ever.
//! The rules are those of `k8s.io/kubernetes/pkg/apis/core/validation` (1.37) for what people write into a training pod; a rule that
//! depends on the cluster (which classes, nodes, policies there are) is not among them. A field with an error of the schema is left out.

mod containers;
mod environment;
mod resources;
mod scheduling;
mod syntax;
mod volumes;

use std::fmt::Display;

use k8s_openapi::api::core::v1::{PodSecurityContext, PodSpec, PodTemplateSpec};
use lcl_crds::{CoordinatorSpec, ServiceAccountSpec};
use serde_json::{Map, Value};

use self::syntax::{DNS_LABEL, DNS_SUBDOMAIN, LABEL_VALUE, QUALIFIED_NAME, Syntax};
use super::FieldError;
use crate::pod_policy::PodPolicy;

/// The worker's pod in a manifest.
const TEMPLATE: &str = "spec.workers.template";

/// Bytes of all annotations of an object together, keys and values.
const MOST_ANNOTATIONS: usize = 256 << 10;
/// Greatest user or group id that a node can give a process.
const HIGHEST_ID: i64 = i32::MAX as i64;

/// The errors found so far.
struct Findings<'a>(&'a mut Vec<FieldError>);

impl Findings<'_> {
    fn add(&mut self, field: &str, value: impl Into<Value>, rule: impl Into<String>) {
        self.0.push(FieldError::new(field, Some(&value.into()), rule));
    }

    /// About a field as a whole.
    fn add_rule(&mut self, field: &str, rule: impl Into<String>) {
        self.0.push(FieldError::new(field, None, rule));
    }

    fn missing(&mut self, field: impl Into<String>) {
        self.0.push(FieldError::missing(field));
    }

    fn check_name(&mut self, syntax: &Syntax, field: &str, name: &str) {
        if !(syntax.holds)(name) {
            self.add(field, name, syntax.rule);
        }
    }

    fn check_optional_name(&mut self, syntax: &Syntax, field: &str, name: Option<&str>) {
        // An empty name is one that is left out.
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            self.check_name(syntax, field, name);
        }
    }

    fn check_one_of(&mut self, field: &str, value: Option<&str>, allowed: &[&str]) {
        if let Some(value) = value.filter(|value| !value.is_empty() && !allowed.contains(value)) {
            self.add(field, value, format!("must be one of {}", allowed.join(", ")));
        }
    }

    fn check_range<N: Copy + PartialOrd + Display + Into<Value>>(&mut self, field: &str, value: Option<N>, least: N, greatest: Option<N>) {
        let Some(value) = value else { return };
        if value < least {
            self.add(field, value, format!("must be at least {least}"));
        } else if let Some(greatest) = greatest.filter(|greatest| value > *greatest) {
            self.add(field, value, format!("must be at most {greatest}"));
        }
    }

    /// A required text.
    fn check_given(&mut self, field: &str, value: &str) {
        if value.is_empty() {
            self.missing(field);
        }
    }

    /// A path below a folder.
    fn check_path_below(&mut self, field: &str, path: &str) {
        if path.starts_with('/') {
            self.add(field, path, "must be a relative path");
        } else if has_backsteps(path) {
            self.add(field, path, "must not hold a `..` component");
        }
    }
}

fn has_backsteps(path: &str) -> bool {
    path.split('/').any(|component| component == "..")
}

/// Labels and annotations of the job itself, as far as they are objects.
pub(super) fn check_metadata(metadata: &Map<String, Value>, errors: &mut Vec<FieldError>) {
    let mut findings = Findings(errors);
    for (kind, syntax) in [("labels", Some(LABEL_VALUE)), ("annotations", None)] {
        let field = format!("metadata.{kind}");
        match metadata.get(kind) {
            None => {}
            Some(Value::Object(entries)) => {
                for (key, value) in entries {
                    match value {
                        Value::String(text) => check_entry(&field, (key, text), syntax.as_ref(), &mut findings),
                        other => findings.add(&format!("{field}.{key}"), other.clone(), "must be a string (put it in quotes)"),
                    }
                }
                let texts = entries.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len));
                check_size(&field, texts.sum(), syntax.is_none(), &mut findings);
            }
            Some(other) => findings.add(&field, other.clone(), "must be an object"),
        }
    }
    if let Some(Value::String(namespace)) = metadata.get("namespace") {
        findings.check_optional_name(&DNS_LABEL, "metadata.namespace", Some(namespace));
    }
}

/// A label (with the syntax of its value) or an annotation. Annotations' keys may have capitals in their domain.
fn check_entry(field: &str, (key, value): (&str, &str), of_value: Option<&Syntax>, findings: &mut Findings<'_>) {
    let key_field = format!("{field}.{key}");
    let is_key = if of_value.is_some() { (QUALIFIED_NAME.holds)(key) } else { (QUALIFIED_NAME.holds)(&key.to_lowercase()) };
    if !is_key {
        findings.add(&key_field, value, format!("the key {}", QUALIFIED_NAME.rule));
    }
    if let Some(syntax) = of_value {
        findings.check_name(syntax, &key_field, value);
    }
}

fn check_size(field: &str, bytes: usize, is_bounded: bool, findings: &mut Findings<'_>) {
    if is_bounded && bytes > MOST_ANNOTATIONS {
        findings.add_rule(field, format!("must have at most {MOST_ANNOTATIONS} bytes together"));
    }
}

/// `spec.coordinator` and `spec.workers`.
pub(super) fn check(spec: &Value, policy: &PodPolicy, errors: &mut Vec<FieldError>) {
    let mut findings = Findings(errors);
    // What does not have the schema's form has its errors already.
    if let Some(coordinator) = spec.get("coordinator").and_then(|coordinator| serde_json::from_value(coordinator.clone()).ok()) {
        check_coordinator("spec.coordinator", coordinator, &mut findings);
    }
    if let Some(account) = spec.get("serviceAccount").and_then(|account| serde_json::from_value(account.clone()).ok()) {
        check_account("spec.serviceAccount", &account, &mut findings);
    }
    let Some(workers) = spec.get("workers") else { return };
    if let Some(resources) = workers.get("resources").and_then(|resources| serde_json::from_value(resources.clone()).ok()) {
        resources::check("spec.workers.resources", &resources, &mut findings);
    }
    if let Some(template) = workers.get("template").and_then(|template| serde_json::from_value::<PodTemplateSpec>(template.clone()).ok()) {
        check_template(TEMPLATE, &template, &mut findings);
        errors.extend(policy.check(TEMPLATE, template.metadata.as_ref(), template.spec.as_ref()));
    }
}

fn check_coordinator(path: &str, coordinator: CoordinatorSpec, findings: &mut Findings<'_>) {
    if let Some(resources) = &coordinator.resources {
        resources::check(&format!("{path}.resources"), resources, findings);
    }
    let names = [
        ("priorityClassName", &coordinator.priority_class_name),
        ("runtimeClassName", &coordinator.runtime_class_name),
        ("schedulerName", &coordinator.scheduler_name),
    ];
    for (name, value) in names {
        findings.check_optional_name(&DNS_SUBDOMAIN, &format!("{path}.{name}"), value.as_deref());
    }
    let placement = PodSpec {
        node_selector: coordinator.node_selector,
        tolerations: coordinator.tolerations,
        affinity: coordinator.affinity,
        topology_spread_constraints: coordinator.topology_spread_constraints,
        ..PodSpec::default()
    };
    scheduling::check(path, &placement, findings);
}

fn check_account(path: &str, account: &ServiceAccountSpec, findings: &mut Findings<'_>) {
    let field = format!("{path}.annotations");
    for (key, value) in &account.annotations {
        check_entry(&field, (key, value), None, findings);
    }
    check_size(&field, account.annotations.iter().map(|(key, value)| key.len() + value.len()).sum(), true, findings);
}

fn check_template(path: &str, template: &PodTemplateSpec, findings: &mut Findings<'_>) {
    let metadata = template.metadata.as_ref();
    let labels = metadata.and_then(|metadata| metadata.labels.as_ref());
    let annotations = metadata.and_then(|metadata| metadata.annotations.as_ref());
    for (key, value) in labels.into_iter().flatten() {
        check_entry(&format!("{path}.metadata.labels"), (key, value), Some(&LABEL_VALUE), findings);
    }
    for (key, value) in annotations.into_iter().flatten() {
        check_entry(&format!("{path}.metadata.annotations"), (key, value), None, findings);
    }
    let bytes = annotations.into_iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
    check_size(&format!("{path}.metadata.annotations"), bytes, true, findings);
    if let Some(spec) = &template.spec {
        check_pod(&format!("{path}.spec"), spec, findings);
    }
}

fn check_pod(path: &str, spec: &PodSpec, findings: &mut Findings<'_>) {
    let field = |name: &str| format!("{path}.{name}");
    volumes::check(&field("volumes"), spec.volumes.as_deref().unwrap_or_default(), findings);
    containers::check(path, spec, findings);
    scheduling::check(path, spec, findings);
    if let Some(resources) = &spec.resources {
        resources::check(&field("resources"), resources, findings);
    }
    if let Some(overhead) = &spec.overhead {
        resources::check_amounts(&field("overhead"), overhead, findings);
    }
    findings.check_one_of(&field("dnsPolicy"), spec.dns_policy.as_deref(), &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    if spec.dns_policy.as_deref() == Some("None")
        && spec.dns_config.as_ref().and_then(|config| config.nameservers.as_ref()).is_none_or(Vec::is_empty)
    {
        findings.add_rule(&field("dnsConfig.nameservers"), "must name at least one server when dnsPolicy is None");
    }
    findings.check_range(&field("terminationGracePeriodSeconds"), spec.termination_grace_period_seconds, 0, None);
    if let Some(seconds) = spec.active_deadline_seconds {
        findings.add(&field("activeDeadlineSeconds"), seconds, "must be left out: spec.activeDeadlineSeconds limits the time of the job");
    }
    if let Some(policy) = spec.restart_policy.as_deref().filter(|policy| *policy != "Never") {
        findings.add(&field("restartPolicy"), policy, "must be left out, or Never: the operator replaces a worker that has ended");
    }
    for (name, syntax, value) in [
        ("serviceAccountName", DNS_SUBDOMAIN, &spec.service_account_name),
        ("priorityClassName", DNS_SUBDOMAIN, &spec.priority_class_name),
        ("runtimeClassName", DNS_SUBDOMAIN, &spec.runtime_class_name),
        ("nodeName", DNS_SUBDOMAIN, &spec.node_name),
        ("hostname", DNS_LABEL, &spec.hostname),
        ("subdomain", DNS_LABEL, &spec.subdomain),
    ] {
        findings.check_optional_name(&syntax, &field(name), value.as_deref());
    }
    // The operator fills in the other name of the same field, which goes before this one: the wish would be lost.
    if let Some(account) = spec.service_account.as_deref().filter(|account| Some(*account) != spec.service_account_name.as_deref()) {
        findings.add(&field("serviceAccount"), account, "must not be given: it is called serviceAccountName now");
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        findings.add(&field("shareProcessNamespace"), true, "must not be true when hostPID is");
    }
    findings.check_one_of(&field("preemptionPolicy"), spec.preemption_policy.as_deref(), &["PreemptLowerPriority", "Never"]);
    check_host_aliases(&field("hostAliases"), spec, findings);
    if let Some(security) = &spec.security_context {
        check_security(&field("securityContext"), security, findings);
    }
}

fn check_host_aliases(path: &str, spec: &PodSpec, findings: &mut Findings<'_>) {
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        if alias.ip.parse::<std::net::IpAddr>().is_err() {
            findings.add(&format!("{path}[{index}].ip"), alias.ip.as_str(), "must be an IP address");
        }
        for (position, name) in alias.hostnames.iter().flatten().enumerate() {
            findings.check_name(&DNS_SUBDOMAIN, &format!("{path}[{index}].hostnames[{position}]"), name);
        }
    }
}

fn check_security(path: &str, security: &PodSecurityContext, findings: &mut Findings<'_>) {
    for (name, id) in [("runAsUser", security.run_as_user), ("runAsGroup", security.run_as_group), ("fsGroup", security.fs_group)] {
        findings.check_range(&format!("{path}.{name}"), id, 0, Some(HIGHEST_ID));
    }
    for (index, id) in security.supplemental_groups.iter().flatten().enumerate() {
        findings.check_range(&format!("{path}.supplementalGroups[{index}]"), Some(*id), 0, Some(HIGHEST_ID));
    }
    let policy = security.fs_group_change_policy.as_deref();
    findings.check_one_of(&format!("{path}.fsGroupChangePolicy"), policy, &["OnRootMismatch", "Always"]);
    if let Some(profile) = &security.seccomp_profile {
        containers::check_seccomp(&format!("{path}.seccompProfile"), profile, findings);
    }
}
