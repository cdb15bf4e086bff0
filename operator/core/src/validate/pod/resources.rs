//! What a container asks of its node: amounts that make sense for what they are amounts of, and that a node can give.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity as Text};

use super::{Findings, syntax::QUALIFIED_NAME};
use crate::quantity::Quantity;

const CPU: &str = "cpu";
const MEMORY: &str = "memory";
const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
const HUGE_PAGES: &str = "hugepages-";

/// Amounts by the name of what they are amounts of.
pub(super) type Amounts = BTreeMap<String, Text>;

/// Resources that are a node's own and no device's.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Devices: `nvidia.com/gpu` and the like.
fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && (QUALIFIED_NAME.holds)(&format!("requests.{name}"))
}

/// Whether a container may ask for less than it is limited to.
fn may_be_shared(name: &str) -> bool {
    is_native(name) && !name.starts_with(HUGE_PAGES)
}

/// What is wrong with the name of a resource.
fn name_rule(name: &str) -> Option<&'static str> {
    if !(QUALIFIED_NAME.holds)(name) {
        return Some(QUALIFIED_NAME.rule);
    }
    let is_known = matches!(name, CPU | MEMORY | EPHEMERAL_STORAGE) || name.starts_with(HUGE_PAGES);
    if !name.contains('/') && !is_known {
        return Some("is no resource of a container: cpu, memory, ephemeral-storage, hugepages-SIZE, or a device's name with its domain");
    }
    (!is_native(name) && !is_extended(name)).then_some("is no name of a device: a domain, '/', and at most 63 characters")
}

/// What is wrong with an amount of a resource.
fn amount_rule(name: &str, amount: Quantity) -> Option<String> {
    if amount.is_negative() {
        return Some("must not be negative".to_owned());
    }
    let is_memory = name == MEMORY;
    if name == CPU {
        return (!amount.is_multiple_of(Quantity::THOUSANDTH))
            .then(|| "must be whole thousandths of a processor: 1m is the least".to_owned());
    }
    if let Some(size) = name.strip_prefix(HUGE_PAGES) {
        let page = Quantity::parse(size).filter(|page| !page.is_zero() && !page.is_negative() && page.is_multiple_of(Quantity::ONE));
        return match page {
            None => Some(format!("is of pages of the size `{size}`, which is none: write hugepages-2Mi, hugepages-1Gi")),
            Some(page) => (!amount.is_multiple_of(page)).then(|| format!("must be a multiple of the page's size, {size}")),
        };
    }
    if (is_memory || name == EPHEMERAL_STORAGE) && !amount.is_multiple_of(Quantity::ONE) {
        return Some("must be whole bytes: `m` means thousandths, mebibytes are `Mi`".to_owned());
    }
    // No program starts in less, and a number without a suffix is a number of bytes.
    if is_memory && !amount.is_zero() && amount < Quantity::MEBI {
        return Some("is less than a mebibyte, in which nothing can run: write gibibytes as `Gi`, mebibytes as `Mi`".to_owned());
    }
    (is_extended(name) && !amount.is_multiple_of(Quantity::ONE)).then(|| "must be a whole number: a device is not divided".to_owned())
}

/// Names and amounts, each for itself. Amounts that are none have their error already.
pub(super) fn check_amounts(path: &str, amounts: &Amounts, findings: &mut Findings<'_>) {
    for (name, Text(text)) in amounts {
        let field = format!("{path}.{name}");
        if let Some(rule) = name_rule(name) {
            findings.add(&field, text.as_str(), rule);
        } else if let Some(rule) = Quantity::parse(text).and_then(|amount| amount_rule(name, amount)) {
            findings.add(&field, text.as_str(), rule);
        }
    }
}

/// Huge pages are part of no limit by themselves.
fn lack_processor_and_memory(amounts: &[&Amounts]) -> bool {
    let names = || amounts.iter().flat_map(|amounts| amounts.keys());
    names().any(|name| name.starts_with(HUGE_PAGES)) && !names().any(|name| matches!(name.as_str(), CPU | MEMORY))
}

/// The resources of a container or of a whole pod.
pub(super) fn check(path: &str, resources: &ResourceRequirements, findings: &mut Findings<'_>) {
    let none = Amounts::new();
    let limits = resources.limits.as_ref().unwrap_or(&none);
    let requests = resources.requests.as_ref().unwrap_or(&none);
    check_amounts(&format!("{path}.limits"), limits, findings);
    check_amounts(&format!("{path}.requests"), requests, findings);
    for (name, Text(text)) in requests {
        let field = format!("{path}.requests.{name}");
        let limit = limits.get(name).map(|Text(limit)| limit);
        match (limit, may_be_shared(name)) {
            (None, true) => {}
            (None, false) => findings.add(&field, text.as_str(), "must have an equal limit: it cannot be shared"),
            (Some(limit), may_be_shared) => {
                let (Some(asked), Some(most)) = (Quantity::parse(text), Quantity::parse(limit)) else { continue };
                if !may_be_shared && asked != most {
                    findings.add(&field, text.as_str(), format!("must be equal to its limit of {limit}: it cannot be shared"));
                } else if asked > most {
                    findings.add(&field, text.as_str(), format!("must not exceed its limit of {limit}"));
                }
            }
        }
    }
    if lack_processor_and_memory(&[limits, requests]) {
        findings.add_rule(path, "must ask for cpu or memory beside hugepages");
    }
}
