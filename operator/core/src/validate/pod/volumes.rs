//! Volumes of a pod.

use k8s_openapi::{
    api::core::v1::{DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Volume, VolumeProjection},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use serde_json::Value;

use super::{
    Findings,
    containers::{check_host_path, check_single},
    environment,
    syntax::{CONFIG_KEY, DNS_LABEL, DNS_SUBDOMAIN},
};
pub(super) use crate::build::OWN_VOLUMES;
use crate::quantity::Quantity;

/// Every bit of a file's mode.
const HIGHEST_MODE: i32 = 0o777;
const HOST_PATH_TYPES: [&str; 7] = ["DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
const ACCESS_MODES: [&str; 4] = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"];
/// A token that is shorter-lived is refused, ten minutes.
const SHORTEST_TOKEN: i64 = 600;
const LONGEST_TOKEN: i64 = 1 << 32;

pub(super) fn check(path: &str, volumes: &[Volume], findings: &mut Findings<'_>) {
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("{path}[{index}]");
        findings.check_name(&DNS_LABEL, &format!("{path}.name"), &volume.name);
        if OWN_VOLUMES.contains(&volume.name.as_str()) {
            findings.add(&format!("{path}.name"), volume.name.as_str(), "is the name of a volume that the operator adds itself");
        }
        check_sources(&path, volume, findings);
        check_source(&path, volume, findings);
    }
}

/// At most one: without any it is an `emptyDir`.
fn check_sources(path: &str, volume: &Volume, findings: &mut Findings<'_>) {
    let fields = serde_json::to_value(volume).unwrap_or_default();
    let given: Vec<&str> = fields.as_object().into_iter().flat_map(|fields| fields.keys()).map(String::as_str).collect();
    let sources: Vec<&str> = given.into_iter().filter(|field| *field != "name").collect();
    if sources.len() > 1 {
        findings.add_rule(path, format!("must be of one kind, not of {} at once: {}", sources.len(), sources.join(", ")));
    }
}

fn check_source(path: &str, volume: &Volume, findings: &mut Findings<'_>) {
    let field = |name: &str| format!("{path}.{name}");
    if let Some(Text(limit)) = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref()) {
        check_size(&field("emptyDir.sizeLimit"), limit, findings);
    }
    if let Some(source) = &volume.empty_dir {
        findings.check_one_of(
            &field("emptyDir.medium"),
            source.medium.as_deref().filter(|medium| !is_huge_pages(medium)),
            &["Memory", "HugePages"],
        );
    }
    if let Some(source) = &volume.host_path {
        check_host_path(&field("hostPath.path"), &source.path, findings);
        findings.check_one_of(&field("hostPath.type"), source.type_.as_deref(), &HOST_PATH_TYPES);
    }
    if let Some(source) = &volume.persistent_volume_claim {
        findings.check_given(&field("persistentVolumeClaim.claimName"), &source.claim_name);
    }
    if let Some(source) = &volume.nfs {
        findings.check_given(&field("nfs.server"), &source.server);
        if !source.path.starts_with('/') {
            findings.add(&field("nfs.path"), source.path.as_str(), "must be an absolute path");
        }
    }
    if let Some(source) = &volume.csi {
        findings.check_name(&DNS_SUBDOMAIN, &field("csi.driver"), &source.driver.to_lowercase());
    }
    if let Some(source) = &volume.config_map {
        findings.check_given(&field("configMap.name"), &source.name);
        check_mode(&field("configMap.defaultMode"), source.default_mode, findings);
        check_items(&field("configMap.items"), source.items.as_deref(), findings);
    }
    if let Some(source) = &volume.secret {
        findings.check_given(&field("secret.secretName"), source.secret_name.as_deref().unwrap_or_default());
        check_mode(&field("secret.defaultMode"), source.default_mode, findings);
        check_items(&field("secret.items"), source.items.as_deref(), findings);
    }
    if let Some(source) = &volume.downward_api {
        check_mode(&field("downwardAPI.defaultMode"), source.default_mode, findings);
        check_files(&field("downwardAPI.items"), source.items.as_deref().unwrap_or_default(), findings);
    }
    if let Some(source) = &volume.projected {
        check_projected(&field("projected"), source, findings);
    }
    if let Some(source) = &volume.ephemeral {
        check_claim(&field("ephemeral.volumeClaimTemplate"), source.volume_claim_template.as_ref().map(|claim| &claim.spec), findings);
    }
    if volume.image.as_ref().is_some_and(|image| image.reference.as_deref().unwrap_or_default().is_empty()) {
        findings.missing(field("image.reference"));
    }
}

fn is_huge_pages(medium: &str) -> bool {
    medium.starts_with("HugePages-")
}

fn check_size(path: &str, text: &str, findings: &mut Findings<'_>) {
    let Some(size) = Quantity::parse(text) else { return };
    if size.is_negative() {
        findings.add(path, text, "must not be negative");
    } else if !size.is_multiple_of(Quantity::ONE) {
        findings.add(path, text, "must be whole bytes: `m` means thousandths, mebibytes are `Mi`");
    }
}

fn check_mode(path: &str, mode: Option<i32>, findings: &mut Findings<'_>) {
    if let Some(mode) = mode.filter(|mode| !(0..=HIGHEST_MODE).contains(mode)) {
        findings.add(path, mode, "must be the bits of a file's mode: 0 to 0777 in octal, to 511 in decimal");
    }
}

fn check_items(path: &str, items: Option<&[KeyToPath]>, findings: &mut Findings<'_>) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        findings.check_name(&CONFIG_KEY, &format!("{path}[{index}].key"), &item.key);
        check_file(&format!("{path}[{index}].path"), &item.path, findings);
        check_mode(&format!("{path}[{index}].mode"), item.mode, findings);
    }
}

/// Where a file lies in the volume.
fn check_file(path: &str, file: &str, findings: &mut Findings<'_>) {
    findings.check_given(path, file);
    findings.check_path_below(path, file);
    if file.starts_with("..") && !file.starts_with("../") {
        findings.add(path, file, "must not begin with '..'");
    }
}

fn check_files(path: &str, files: &[DownwardAPIVolumeFile], findings: &mut Findings<'_>) {
    for (index, file) in files.iter().enumerate() {
        let path = format!("{path}[{index}]");
        check_file(&format!("{path}.path"), &file.path, findings);
        check_mode(&format!("{path}.mode"), file.mode, findings);
        check_single(&path, &[file.field_ref.is_some(), file.resource_field_ref.is_some()], "fieldRef and resourceFieldRef", findings);
        if let Some(reference) = &file.resource_field_ref {
            findings
                .check_given(&format!("{path}.resourceFieldRef.containerName"), reference.container_name.as_deref().unwrap_or_default());
            environment::check_resource(&format!("{path}.resourceFieldRef"), &reference.resource, reference.divisor.as_ref(), findings);
        }
    }
}

fn check_projected(path: &str, source: &ProjectedVolumeSource, findings: &mut Findings<'_>) {
    check_mode(&format!("{path}.defaultMode"), source.default_mode, findings);
    for (index, projection) in source.sources.iter().flatten().enumerate() {
        check_projection(&format!("{path}.sources[{index}]"), projection, findings);
    }
}

fn check_projection(path: &str, projection: &VolumeProjection, findings: &mut Findings<'_>) {
    let given = serde_json::to_value(projection).unwrap_or_default().as_object().map_or(0, serde_json::Map::len);
    if given > 1 {
        findings.add_rule(path, "must be of one kind: a list entry each");
    }
    if let Some(source) = &projection.config_map {
        findings.check_given(&format!("{path}.configMap.name"), &source.name);
        check_items(&format!("{path}.configMap.items"), source.items.as_deref(), findings);
    }
    if let Some(source) = &projection.secret {
        findings.check_given(&format!("{path}.secret.name"), &source.name);
        check_items(&format!("{path}.secret.items"), source.items.as_deref(), findings);
    }
    if let Some(source) = &projection.downward_api {
        check_files(&format!("{path}.downwardAPI.items"), source.items.as_deref().unwrap_or_default(), findings);
    }
    if let Some(token) = &projection.service_account_token {
        let field = format!("{path}.serviceAccountToken");
        findings.check_range(&format!("{field}.expirationSeconds"), token.expiration_seconds, SHORTEST_TOKEN, Some(LONGEST_TOKEN));
        check_file(&format!("{field}.path"), &token.path, findings);
    }
}

fn check_claim(path: &str, claim: Option<&k8s_openapi::api::core::v1::PersistentVolumeClaimSpec>, findings: &mut Findings<'_>) {
    let Some(claim) = claim else {
        findings.missing(path);
        return;
    };
    let field = |name: &str| format!("{path}.spec.{name}");
    let modes = claim.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        findings.missing(field("accessModes"));
    }
    for (index, mode) in modes.iter().enumerate().filter(|(_, mode)| !ACCESS_MODES.contains(&mode.as_str())) {
        findings.add(
            &field(&format!("accessModes[{index}]")),
            Value::from(mode.as_str()),
            format!("must be one of {}", ACCESS_MODES.join(", ")),
        );
    }
    findings.check_one_of(&field("volumeMode"), claim.volume_mode.as_deref(), &["Filesystem", "Block"]);
    let requests = claim.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    match requests.and_then(|requests| requests.get("storage")) {
        None => findings.missing(field("resources.requests.storage")),
        Some(Text(text)) => {
            let field = field("resources.requests.storage");
            check_size(&field, text, findings);
            if Quantity::parse(text).is_some_and(Quantity::is_zero) {
                findings.add(&field, text.as_str(), "must be more than 0");
            }
        }
    }
    if let Some(resources) =
        claim.resources.as_ref().and_then(|resources| resources.limits.as_ref()).and_then(|limits| limits.get("storage"))
    {
        check_size(&field("resources.limits.storage"), &resources.0, findings);
    }
}
