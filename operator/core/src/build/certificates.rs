//! The job's `Secret` with certificates, and how pods mount what is theirs of it.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{Container, KeyToPath, PodSpec, Secret, SecretVolumeSource, Volume, VolumeMount},
};

use crate::{
    build::{BuildContext, labels::COORDINATOR_ROLE, metadata, pod_defaults::set_env},
    job::ValidatedJob,
};

/// A certificate and its key in the `Secret`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairFiles {
    /// The certificate.
    pub certificate: &'static str,
    /// Its key.
    pub key: &'static str,
}

/// The certificate of the job's authority in the `Secret`.
pub const AUTHORITY_FILE: &str = "ca.crt";
/// What the coordinator shows.
pub const COORDINATOR_PAIR: PairFiles = PairFiles { certificate: "coordinator.crt", key: "coordinator.key" };
/// What members show.
pub const WORKER_PAIR: PairFiles = PairFiles { certificate: "worker.crt", key: "worker.key" };
/// The volume, in every pod of a job.
pub(super) const CERTIFICATES_VOLUME: &str = "lcl-tls";
/// Where it is mounted. Not below the configuration, which is mounted read-only, so that nothing can be mounted in it.
const FOLDER: &str = "/etc/lcl-tls";

/// Characters of the uid in the name.
const UID_PART: usize = 8;

/// `<job>-tls-` and a part of the job's uid: the operator may write Secrets and not read them, so it must never meet one that is not its own.
pub(super) fn secret_name(job: &ValidatedJob, context: &BuildContext) -> String {
    let uid: String = context.uid.chars().take(UID_PART).collect();
    format!("{}-tls-{uid}", job.name())
}

/// The `Secret` of a job with these files. When they are renewed the pods' volumes follow, and the programs read them again for their next connection.
#[must_use]
pub fn build_secret(job: &ValidatedJob, context: &BuildContext, files: BTreeMap<String, ByteString>) -> Secret {
    Secret {
        metadata: metadata(job, context, secret_name(job, context), COORDINATOR_ROLE),
        type_: Some("Opaque".to_owned()),
        data: Some(files),
        ..Secret::default()
    }
}

/// Mounts the pair and the authority, and says so to the program. Of the `Secret` a pod sees nothing else.
pub(super) fn mount_certificates(spec: &mut PodSpec, container: &mut Container, secret: String, pair: PairFiles) {
    let items = [pair.certificate, pair.key, AUTHORITY_FILE].map(|name| KeyToPath {
        key: name.to_owned(),
        path: name.to_owned(),
        ..KeyToPath::default()
    });
    spec.volumes.get_or_insert_default().push(Volume {
        name: CERTIFICATES_VOLUME.to_owned(),
        secret: Some(SecretVolumeSource { secret_name: Some(secret), items: Some(items.into()), ..SecretVolumeSource::default() }),
        ..Volume::default()
    });
    container.volume_mounts.get_or_insert_default().push(VolumeMount {
        name: CERTIFICATES_VOLUME.to_owned(),
        mount_path: FOLDER.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
    for (variable, file) in [("LCL_TLS_CERTIFICATE", pair.certificate), ("LCL_TLS_KEY", pair.key), ("LCL_TLS_CA", AUTHORITY_FILE)] {
        set_env(container, variable, &format!("{FOLDER}/{file}"));
    }
}
