//! What a job's pods may not do to their node and to the cluster, unless who runs the operator allows it.
//!
//! Who may create a job may not always create pods, but the operator may: without these rules its rights would be his. They are those of
//! the level *restricted* of Kubernetes' pod security standards as far as a template can break them, and one more, about tokens for the API
//! server. Comes in: a pod, or a template of one. Goes out: the fields that are not allowed. A job is held against them when it is read, and
//! every worker's pod once more when it is built, however its job was read.

use std::{collections::BTreeSet, fmt, str::FromStr};

use k8s_openapi::{
    api::core::v1::{
        AppArmorProfile, Container, PodSecurityContext, PodSpec, SELinuxOptions, SeccompProfile, SecurityContext, Volume,
        WindowsSecurityContextOptions,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use crate::validate::FieldError;

/// Something that a template may do once it is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allowance {
    /// Volumes that are folders or devices of the node.
    HostPath,
    /// The node's network, processes, shared memory, users and ports.
    HostNamespaces,
    /// Privileged containers, added capabilities, and what else takes away what a container is confined by.
    Privileged,
    /// The user 0 in a container.
    Root,
    /// Tokens with which the API server can be asked.
    ApiTokens,
}

impl Allowance {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::HostPath, Self::HostNamespaces, Self::Privileged, Self::Root, Self::ApiTokens];

    /// As flags and messages have it; the chart's value is `security.allow` and this.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HostPath => "HostPath",
            Self::HostNamespaces => "HostNamespaces",
            Self::Privileged => "Privileged",
            Self::Root => "Root",
            Self::ApiTokens => "ApiTokens",
        }
    }
}

impl fmt::Display for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that is no [`Allowance`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {}", Allowance::ALL.map(Allowance::name).join(", "))]
pub struct UnknownAllowance;

impl FromStr for Allowance {
    type Err = UnknownAllowance;

    fn from_str(text: &str) -> Result<Self, UnknownAllowance> {
        Self::ALL.into_iter().find(|allowance| allowance.name() == text).ok_or(UnknownAllowance)
    }
}

/// Audiences of an API server that was told no other; beside a token without an audience, which is for it whatever it is called.
pub const DEFAULT_API_AUDIENCES: [&str; 2] = ["https://kubernetes.default.svc.cluster.local", "https://kubernetes.default.svc"];

/// `SELinux` types that every container may have.
const CONTAINER_TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
/// Annotations by which `AppArmor` was switched off before there was a field; kubelets still read them.
const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
const ROOT: i64 = 0;

/// What is allowed. By default nothing is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPolicy {
    allowed: BTreeSet<Allowance>,
    api_audiences: Vec<String>,
}

impl Default for PodPolicy {
    fn default() -> Self {
        Self::allowing([])
    }
}

impl PodPolicy {
    /// Allows this.
    #[must_use]
    pub fn allowing(allowances: impl IntoIterator<Item = Allowance>) -> Self {
        Self { allowed: allowances.into_iter().collect(), api_audiences: DEFAULT_API_AUDIENCES.map(str::to_owned).into() }
    }

    /// Allows everything: for where no pod is made.
    #[must_use]
    pub fn everything() -> Self {
        Self::allowing(Allowance::ALL)
    }

    /// With these audiences of the API server in place of the usual ones.
    #[must_use]
    pub fn with_api_audiences(self, api_audiences: Vec<String>) -> Self {
        Self { api_audiences, ..self }
    }

    /// What in a pod, or a template of one, is not allowed; `path` is where it stands.
    #[must_use]
    pub fn check(&self, path: &str, metadata: Option<&ObjectMeta>, spec: Option<&PodSpec>) -> Vec<FieldError> {
        let mut breaches = Breaches { policy: self, errors: Vec::new() };
        for (key, value) in metadata.and_then(|metadata| metadata.annotations.as_ref()).into_iter().flatten() {
            if key.starts_with(APP_ARMOR_ANNOTATION) && value == "unconfined" {
                breaches.add(Allowance::Privileged, format!("{path}.metadata.annotations.{key}"), value.as_str());
            }
        }
        if let Some(spec) = spec {
            breaches.check_pod(&format!("{path}.spec"), spec);
        }
        breaches.errors
    }
}

struct Breaches<'a> {
    policy: &'a PodPolicy,
    errors: Vec<FieldError>,
}

impl Breaches<'_> {
    fn add(&mut self, needed: Allowance, field: String, value: impl Into<Value>) {
        if !self.policy.allowed.contains(&needed) {
            let what = match needed {
                Allowance::HostPath => "reaches into the node",
                Allowance::HostNamespaces => "shares what belongs to the node",
                Allowance::Privileged => "takes away what a container is confined by",
                Allowance::Root => "runs as root",
                Allowance::ApiTokens => "gives a token for the API server",
            };
            let rule = format!("that {what}: the operator has to allow {needed} (its chart's value security.allow{needed})");
            self.errors.push(FieldError::new(field, Some(&value.into()), rule));
        }
    }

    /// A field that may be anything but true.
    fn check_true(&mut self, needed: Allowance, field: String, value: Option<bool>) {
        if value == Some(true) {
            self.add(needed, field, true);
        }
    }

    fn check_pod(&mut self, path: &str, spec: &PodSpec) {
        let field = |name: &str| format!("{path}.{name}");
        for (name, value) in
            [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc), ("hostUsers", spec.host_users)]
        {
            self.check_true(Allowance::HostNamespaces, field(name), value);
        }
        self.check_true(Allowance::ApiTokens, field("automountServiceAccountToken"), spec.automount_service_account_token);
        for (index, volume) in spec.volumes.iter().flatten().enumerate() {
            self.check_volume(&field(&format!("volumes[{index}]")), volume);
        }
        if let Some(security) = &spec.security_context {
            self.check_pod_security(&field("securityContext"), security);
        }
        for (index, container) in spec.containers.iter().enumerate() {
            self.check_container(&field(&format!("containers[{index}]")), container);
        }
        for (index, container) in spec.init_containers.iter().flatten().enumerate() {
            self.check_container(&field(&format!("initContainers[{index}]")), container);
        }
        for (index, container) in spec.ephemeral_containers.iter().flatten().enumerate() {
            // A template has none.
            self.add(Allowance::Privileged, field(&format!("ephemeralContainers[{index}]")), container.name.as_str());
        }
    }

    fn check_volume(&mut self, path: &str, volume: &Volume) {
        if let Some(source) = &volume.host_path {
            self.add(Allowance::HostPath, format!("{path}.hostPath"), source.path.as_str());
        }
        // The kubelet runs git as root on the node for it.
        if let Some(source) = &volume.git_repo {
            self.add(Allowance::HostPath, format!("{path}.gitRepo"), source.repository.as_str());
        }
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()).enumerate();
        for (index, token) in sources.filter_map(|(index, source)| Some((index, source.service_account_token.as_ref()?))) {
            let audience = token.audience.as_deref().unwrap_or_default();
            if audience.is_empty() || self.policy.api_audiences.iter().any(|own| own == audience) {
                self.add(Allowance::ApiTokens, format!("{path}.projected.sources[{index}].serviceAccountToken.audience"), audience);
            }
        }
    }

    fn check_pod_security(&mut self, path: &str, security: &PodSecurityContext) {
        self.check_user(path, security.run_as_user, security.run_as_non_root);
        self.check_profiles(path, security.seccomp_profile.as_ref(), security.app_armor_profile.as_ref());
        self.check_labels(path, security.se_linux_options.as_ref());
        self.check_windows(path, security.windows_options.as_ref());
    }

    fn check_container(&mut self, path: &str, container: &Container) {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            if let Some(number) = port.host_port.filter(|number| *number != 0) {
                self.add(Allowance::HostNamespaces, format!("{path}.ports[{index}].hostPort"), number);
            }
        }
        if let Some(security) = &container.security_context {
            self.check_security(&format!("{path}.securityContext"), security);
        }
    }

    fn check_security(&mut self, path: &str, security: &SecurityContext) {
        self.check_true(Allowance::Privileged, format!("{path}.privileged"), security.privileged);
        self.check_true(Allowance::Privileged, format!("{path}.allowPrivilegeEscalation"), security.allow_privilege_escalation);
        let added = security.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_ref());
        for (index, capability) in added.into_iter().flatten().enumerate() {
            self.add(Allowance::Privileged, format!("{path}.capabilities.add[{index}]"), capability.as_str());
        }
        if let Some(mount) = security.proc_mount.as_deref().filter(|mount| !["", "Default"].contains(mount)) {
            self.add(Allowance::Privileged, format!("{path}.procMount"), mount);
        }
        self.check_user(path, security.run_as_user, security.run_as_non_root);
        self.check_profiles(path, security.seccomp_profile.as_ref(), security.app_armor_profile.as_ref());
        self.check_labels(path, security.se_linux_options.as_ref());
        self.check_windows(path, security.windows_options.as_ref());
    }

    fn check_user(&mut self, path: &str, user: Option<i64>, non_root: Option<bool>) {
        if user == Some(ROOT) {
            self.add(Allowance::Root, format!("{path}.runAsUser"), ROOT);
        }
        if non_root == Some(false) {
            self.add(Allowance::Root, format!("{path}.runAsNonRoot"), false);
        }
    }

    fn check_profiles(&mut self, path: &str, seccomp: Option<&SeccompProfile>, app_armor: Option<&AppArmorProfile>) {
        let types = [
            ("seccompProfile", seccomp.map(|profile| profile.type_.as_str())),
            ("appArmorProfile", app_armor.map(|profile| profile.type_.as_str())),
        ];
        for (name, kind) in types {
            if kind == Some("Unconfined") {
                self.add(Allowance::Privileged, format!("{path}.{name}.type"), "Unconfined");
            }
        }
    }

    fn check_labels(&mut self, path: &str, options: Option<&SELinuxOptions>) {
        let Some(options) = options else { return };
        for (name, value, usual) in
            [("user", &options.user, &[""][..]), ("role", &options.role, &[""]), ("type", &options.type_, &CONTAINER_TYPES)]
        {
            if let Some(value) = value.as_deref().filter(|value| !usual.contains(value)) {
                self.add(Allowance::Privileged, format!("{path}.seLinuxOptions.{name}"), value);
            }
        }
    }

    fn check_windows(&mut self, path: &str, options: Option<&WindowsSecurityContextOptions>) {
        let host_process = options.and_then(|options| options.host_process);
        self.check_true(Allowance::Privileged, format!("{path}.windowsOptions.hostProcess"), host_process);
    }
}
