//! A job's objects that are not pods: applied, renewed, and deleted once nobody needs them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Secret},
        networking::v1::NetworkPolicy,
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use lcl_crds::PinnedStatus;
use lcl_operator_core::{
    ValidatedJob,
    build::{BuildContext, SPEC_FILE, build_secret, network_policy_names},
    pins::find_change,
    resources::{AppliedResources, PinnedConfig, PreparedResources, address_of},
};

use super::{ReconcileError, Reconciler};
use crate::{
    FIELD_MANAGER,
    authority::Authority,
    children::{Applier, Child, Found},
};

/// New certificates are not written again while the status does not say yet that they were.
const RENEWAL_PAUSE: Duration = Duration::from_hours(1);

impl Reconciler<'_> {
    /// All objects but the pods, if they are there, as far as the watch knows. `is_held`: pods are there that have the configuration.
    pub(super) async fn apply_children(
        &mut self,
        job: &ValidatedJob,
        build: &BuildContext,
        is_held: bool,
    ) -> Result<Option<Arc<AppliedResources>>, ReconcileError> {
        let prepared = PreparedResources::prepare(job, build);
        if prepared.policies.is_empty() {
            self.delete_policies(&network_policy_names(job)).await?;
        }
        let (client, stores) = (&self.context.client, &self.context.children);
        let mut applier = Applier { client, stores, job_uid: self.uid, applied: &mut self.memory.applied };
        let found = (applier.ensure(&prepared.account).await?, applier.ensure(&prepared.service).await?);
        let mut is_protected = applier.ensure(&prepared.budget).await?.is_there();
        for policy in &prepared.policies {
            is_protected &= applier.ensure(policy).await?.is_there();
        }
        if !is_protected {
            return Ok(None);
        }
        let config = self.apply_config(prepared.config, build, is_held).await?;
        let known = || self.memory.resources.as_deref().map(|known| known.address().to_owned());
        let address = found.1.or_known(|service| address_of(&service).map(str::to_owned), known);
        let resources = address.zip(config).filter(|_| found.0.is_there());
        let resources = resources.map(|(address, config)| Arc::new(AppliedResources::new(address, config)));
        // Another one of the same is not kept beside it.
        if resources.is_some() && resources != self.memory.resources {
            self.memory.resources.clone_from(&resources);
        }
        Ok(resources)
    }

    /// The pinned configuration, if it is there. One that pods have is never made from another spec than theirs.
    pub(super) async fn apply_config(
        &mut self,
        prepared: ConfigMap,
        build: &BuildContext,
        is_held: bool,
    ) -> Result<Option<PinnedConfig>, ReconcileError> {
        let name = &build.pins.config;
        let there = self.context.children.get::<ConfigMap>(name, &build.namespace);
        if let Some(found) = there.filter(|found| found.owner_references().iter().any(|owner| owner.uid == self.uid)) {
            return Ok(Some(PinnedConfig::read(found)));
        }
        let known = self.memory.resources.as_ref().map(|known| known.config()).filter(|known| known.name == *name).cloned();
        let wanted = match &known {
            Some(known) if is_held => ConfigMap { data: Some(known.files.clone()), ..prepared },
            None if is_held && self.job.metadata.generation != Some(build.pins.generation) => return Ok(None),
            _ => prepared,
        };
        let (client, stores) = (&self.context.client, &self.context.children);
        let mut applier = Applier { client, stores, job_uid: self.uid, applied: &mut self.memory.applied };
        let result = applier.ensure(&wanted).await?;
        if matches!(result, Found::There(_)) {
            self.delete_other_configs(name).await?;
        }
        Ok(result.or_known(|config| Some(PinnedConfig::read(config)), || known))
    }

    /// What was applied while the operator still had it so.
    pub(super) async fn delete_policies(&self, names: &[String]) -> Result<(), ReconcileError> {
        for name in names {
            let Some(found) = self.context.children.get::<NetworkPolicy>(name, &self.key.namespace) else { continue };
            if found.owner_references().iter().any(|owner| owner.uid == self.uid) {
                self.delete_child(&found).await?;
            }
        }
        Ok(())
    }

    /// Deletes the very object that was seen.
    pub(super) async fn delete_child<K: Child>(&self, object: &K) -> Result<(), ReconcileError> {
        let api = Api::<K>::namespaced(self.context.client.clone(), &self.key.namespace);
        let name = object.name_any();
        let preconditions = Some(Preconditions { uid: object.uid(), resource_version: None });
        match api.delete(&name, &DeleteParams { preconditions, ..DeleteParams::default() }).await {
            Ok(_) => Ok(()),
            Err(source) => ReconcileError::of_deletion(&format!("{} {name}", K::KIND), source),
        }
    }

    /// Configurations of earlier groups of the job, which nobody reads any more.
    pub(super) async fn delete_other_configs(&self, kept: &str) -> Result<(), ReconcileError> {
        let owned = ConfigMap::store(&self.context.children).owned_by(self.uid, &self.key.namespace);
        for old in owned.iter().filter(|old| old.name_any() != kept) {
            self.delete_child(old).await?;
        }
        Ok(())
    }

    /// In what the job differs from what its group was started with.
    pub(super) fn find_change(&self, job: &ValidatedJob, held: &PinnedStatus) -> Option<String> {
        if self.job.metadata.generation == Some(held.generation) {
            return None;
        }
        let stored = self.context.children.get::<ConfigMap>(&held.config, &self.key.namespace).map(PinnedConfig::read);
        let known = self.memory.resources.as_ref().map(|known| known.config()).filter(|config| config.name == held.config);
        let Some(spec) = stored.as_ref().or(known).and_then(|config| config.files.get(SPEC_FILE)) else {
            return Some(format!("the ConfigMap {}", held.config));
        };
        find_change(&serde_json::from_str(spec).unwrap_or_default(), job)
    }

    /// Writes certificates that the group does not have yet, and from time to time those that pods may wait for: nothing tells when somebody
    /// deletes the Secret, which the operator may not read. `starting`: pods are on their way, and how often that is.
    pub(super) async fn renew_certificates(
        &mut self,
        job: &ValidatedJob,
        build: &BuildContext,
        held: Option<&PinnedStatus>,
        starting: Option<Duration>,
    ) -> Result<(), ReconcileError> {
        let (expiry, authority) = (Authority::expiry(Timestamp::now()), self.context.authority.fingerprint());
        let is_current = |held: &PinnedStatus| {
            held.certificates_expire.as_ref().is_some_and(|until| until.0 == expiry) && held.authority.as_deref() == Some(authority)
        };
        let renewal = held.is_some_and(|held| !is_current(held)).then_some(RENEWAL_PAUSE);
        match starting.or(renewal) {
            Some(pause) => self.apply_certificates(job, build, pause).await,
            None => Ok(()),
        }
    }

    /// Writes the job's certificates, unless they were written a moment ago.
    pub(super) async fn apply_certificates(
        &mut self,
        job: &ValidatedJob,
        build: &BuildContext,
        pause: Duration,
    ) -> Result<(), ReconcileError> {
        let now = Timestamp::now();
        let expiry = Authority::expiry(now);
        if self.memory.certificates.is_some_and(|(until, at)| until == expiry && at.elapsed() < pause) {
            return Ok(());
        }
        let secret = build_secret(job, build, self.context.authority.files(self.uid, now)?);
        let name = secret.name_any();
        let api = Api::<Secret>::namespaced(self.context.client.clone(), &self.key.namespace);
        let applied = api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&secret)).await;
        applied.map_err(|source| ReconcileError::Api { what: format!("applying Secret {name}"), source })?;
        self.memory.certificates = Some((expiry, Instant::now()));
        Ok(())
    }
}
