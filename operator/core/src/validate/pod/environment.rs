//! Environment variables: how they are given, and those that the trainer reads.

use k8s_openapi::{
    api::core::v1::{Container, EnvVar, EnvVarSource},
    apimachinery::pkg::api::resource::Quantity as Text,
};

use super::{
    Findings,
    containers::check_single,
    syntax::{CONFIG_KEY, DNS_SUBDOMAIN, ENV_NAME, QUALIFIED_NAME},
};

/// Fields of its own pod that a container may ask for.
const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Its own resources that it may ask for, besides huge pages of a size.
const RESOURCES: [&str; 6] =
    ["limits.cpu", "limits.memory", "limits.ephemeral-storage", "requests.cpu", "requests.memory", "requests.ephemeral-storage"];
/// Units in which bytes may be told.
const BYTES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

const HEARTBEAT_INTERVAL: &str = "LCL_HEARTBEAT_INTERVAL";
const COORDINATOR_TIMEOUT: &str = "LCL_COORDINATOR_TIMEOUT";
/// The trainer's own value for [`HEARTBEAT_INTERVAL`], in seconds.
const DEFAULT_INTERVAL: f64 = 1.0;
/// The trainer's own value for [`COORDINATOR_TIMEOUT`], in seconds.
const DEFAULT_TIMEOUT: f64 = 10.0;

/// `env` and `envFrom` of a container at `path`.
pub(super) fn check(path: &str, container: &Container, findings: &mut Findings<'_>) {
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let field = format!("{path}.env[{index}]");
        findings.check_name(&ENV_NAME, &format!("{field}.name"), &variable.name);
        if let Some(source) = &variable.value_from {
            check_source(&format!("{field}.valueFrom"), variable, source, findings);
        }
    }
    for (index, source) in container.env_from.iter().flatten().enumerate() {
        let field = format!("{path}.envFrom[{index}]");
        findings.check_optional_name(&ENV_NAME, &format!("{field}.prefix"), source.prefix.as_deref());
        check_single(&field, &[source.config_map_ref.is_some(), source.secret_ref.is_some()], "configMapRef and secretRef", findings);
        let names = [
            ("configMapRef", source.config_map_ref.as_ref().map(|reference| &reference.name)),
            ("secretRef", source.secret_ref.as_ref().map(|reference| &reference.name)),
        ];
        for (kind, name) in names.into_iter().filter_map(|(kind, name)| Some((kind, name?))) {
            findings.check_name(&DNS_SUBDOMAIN, &format!("{field}.{kind}.name"), name);
        }
    }
}

fn check_source(path: &str, variable: &EnvVar, source: &EnvVarSource, findings: &mut Findings<'_>) {
    let given = [
        source.field_ref.is_some(),
        source.resource_field_ref.is_some(),
        source.config_map_key_ref.is_some(),
        source.secret_key_ref.is_some(),
    ];
    check_single(path, &given, "fieldRef, resourceFieldRef, configMapKeyRef and secretKeyRef", findings);
    if variable.value.as_deref().is_some_and(|value| !value.is_empty()) {
        findings.add_rule(path, "must not be given together with a value");
    }
    if let Some(reference) = &source.field_ref {
        check_field(&format!("{path}.fieldRef.fieldPath"), &reference.field_path, findings);
    }
    if let Some(reference) = &source.resource_field_ref {
        check_resource(&format!("{path}.resourceFieldRef"), &reference.resource, reference.divisor.as_ref(), findings);
    }
    let keys = [
        ("configMapKeyRef", source.config_map_key_ref.as_ref().map(|reference| (&reference.name, &reference.key))),
        ("secretKeyRef", source.secret_key_ref.as_ref().map(|reference| (&reference.name, &reference.key))),
    ];
    for (kind, (name, key)) in keys.into_iter().filter_map(|(kind, reference)| Some((kind, reference?))) {
        findings.check_name(&DNS_SUBDOMAIN, &format!("{path}.{kind}.name"), name);
        findings.check_name(&CONFIG_KEY, &format!("{path}.{kind}.key"), key);
    }
}

fn check_field(path: &str, field: &str, findings: &mut Findings<'_>) {
    let subscript = field.strip_suffix("']").and_then(|field| field.split_once("['"));
    let is_right = match subscript {
        Some(("metadata.labels", key)) => (QUALIFIED_NAME.holds)(key),
        Some(("metadata.annotations", key)) => (QUALIFIED_NAME.holds)(&key.to_lowercase()),
        Some(_) => false,
        None => FIELDS.contains(&field),
    };
    if !is_right {
        let fields = FIELDS.join(", ");
        findings.add(path, field, format!("must be one of {fields}, or metadata.labels['KEY'] or metadata.annotations['KEY']"));
    }
}

/// A resource of a container, and the unit it is told in.
pub(super) fn check_resource(path: &str, resource: &str, divisor: Option<&Text>, findings: &mut Findings<'_>) {
    let is_huge_pages = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if !RESOURCES.contains(&resource) && !is_huge_pages {
        findings.add(&format!("{path}.resource"), resource, format!("must be one of {}", RESOURCES.join(", ")));
    }
    let Some(Text(divisor)) = divisor.filter(|Text(divisor)| divisor != "0") else { return };
    let allowed: &[&str] = if matches!(resource, "limits.cpu" | "requests.cpu") { &["1m", "1"] } else { &BYTES };
    findings.check_one_of(&format!("{path}.divisor"), Some(divisor), allowed);
}

/// Variables of the container `worker` that the trainer would refuse. Those that the operator sets go before whatever stands here.
pub(super) fn check_of_worker(path: &str, container: &Container, findings: &mut Findings<'_>) {
    let (mut interval, mut timeout) = (Some(DEFAULT_INTERVAL), Some(DEFAULT_TIMEOUT));
    let mut last = None;
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let field = format!("{path}[{index}].value");
        let value = variable.value.as_deref().unwrap_or_default();
        // Kubernetes fills in what stands in `$(…)`; what comes from elsewhere is not known here.
        let is_known = variable.value_from.is_none() && !value.contains("$(");
        let seconds = value.parse::<f64>().ok().filter(|seconds| std::time::Duration::try_from_secs_f64(*seconds).is_ok());
        match variable.name.as_str() {
            HEARTBEAT_INTERVAL => (interval, last) = (seconds.filter(|_| is_known), Some((field.clone(), value))),
            COORDINATOR_TIMEOUT => (timeout, last) = (seconds.filter(|_| is_known), Some((field.clone(), value))),
            _ => {}
        }
        match variable.name.as_str() {
            HEARTBEAT_INTERVAL | COORDINATOR_TIMEOUT | "LCL_DRAIN_TIMEOUT" if is_known && seconds.is_none() => {
                findings.add(&field, value, "must be a number of seconds");
            }
            HEARTBEAT_INTERVAL if seconds == Some(0.0) => findings.add(&field, value, "must be more than 0 seconds"),
            "LCL_THREADS" if is_known && value.parse::<std::num::NonZeroU32>().is_err() => {
                findings.add(&field, value, "must be a whole number of threads, at least 1");
            }
            _ => {}
        }
    }
    if let (Some(interval), Some(timeout), Some((field, value))) = (interval, timeout, last)
        && interval > 0.0
        && timeout < 2.0 * interval
    {
        let rule = format!("{COORDINATOR_TIMEOUT} ({timeout}) must be at least two times {HEARTBEAT_INTERVAL} ({interval})");
        findings.add(&field, value, rule);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_the_pod_may_be_a_single_label() {
        let count = |field: &str| {
            let mut errors = Vec::new();
            check_field("a", field, &mut Findings(&mut errors));
            errors.len()
        };
        for right in ["metadata.name", "status.podIP", "metadata.labels['a.b/c']", "metadata.annotations['A.b/c']"] {
            assert_eq!(count(right), 0, "{right}");
        }
        for wrong in ["", "metadata.labels", "metadata.labels['']", "metadata.labels['a b']", "spec.containers['a']", "metadata.labels[a]"]
        {
            assert_eq!(count(wrong), 1, "{wrong}");
        }
    }
}
