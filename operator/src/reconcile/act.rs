//! What was decided is done: each action on its own, and their errors collected.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use lcl_crds::LCLTrainingJob;
use lcl_operator_core::{
    ValidatedJob,
    build::{BuildContext, worker_pod_name},
    decide::{Action, Decision},
    observe::MemberBounds,
    resources::AppliedResources,
};

use super::{ReconcileError, Reconciler};
use crate::pod_actions::{create_pod, delete_pod};

/// Pods of one job that are created side by side.
const PODS_AT_ONCE: usize = 32;
/// Certificates that were written so short a time ago are taken for being there while pods are refused, or do not start.
pub(super) const CERTIFICATES_FRESH: Duration = Duration::from_mins(1);

/// A pod to create, and its epoch if it is a coordinator's.
struct NewPod {
    pod: Pod,
    epoch: Option<i64>,
}

/// What came of a decision's actions.
#[derive(Default)]
pub(super) struct Acted {
    pub(super) has_created: bool,
    /// The status has something to tell that was found out just now.
    pub(super) has_news: bool,
    /// The first that somebody has to solve, or else the first.
    pub(super) error: Option<ReconcileError>,
}

impl Acted {
    fn note(&mut self, result: Result<(), ReconcileError>) {
        let Err(error) = result else { return };
        let is_worse = self.error.as_ref().is_none_or(|known| known.as_problem().is_none() && error.as_problem().is_some());
        if is_worse {
            self.error = Some(error);
        }
    }
}

impl Reconciler<'_> {
    /// Takes every action, whatever becomes of the others.
    pub(super) async fn act(
        &mut self,
        job: &ValidatedJob,
        build: &BuildContext,
        api: &Api<Pod>,
        decision: &Decision,
        resources: Option<&AppliedResources>,
    ) -> Acted {
        let mut acted = Acted::default();
        let mut new_pods = Vec::new();
        for action in &decision.actions {
            match action {
                Action::SetWorld(bounds) => acted.note(self.set_world(*bounds).await),
                Action::StopGroup => acted.note(self.stop_group().await),
                Action::DrainWorker { worker } => acted.note(self.drain_worker(worker).await),
                Action::DeletePod { name, uid, force } => {
                    let deleted = delete_pod(api, &self.context.pods, name, uid, *force).await;
                    if deleted.is_ok() {
                        tracing::info!(job = self.key.name, namespace = self.key.namespace, pod = name, force, "deleted");
                    }
                    acted.note(deleted);
                }
                Action::ExplainPod { uid } => acted.has_news |= self.explain(uid).await,
                Action::FindImagePull { uid } => acted.has_news |= self.find_image_pull(uid).await,
                Action::DeleteJob => acted.note(self.delete_job().await),
                Action::CreateCoordinator { epoch } => {
                    // Without a configuration and an address no pod could start.
                    let Some(resources) = resources else { continue };
                    self.memory.unused_epoch = None;
                    new_pods.push(NewPod { pod: resources.coordinator_pod(job, build, epoch.unsigned_abs()), epoch: Some(*epoch) });
                }
                Action::CreateWorker { index } => {
                    let Some(resources) = resources else { continue };
                    let name = worker_pod_name(job, *index);
                    let replaced = decision.status.replacing.iter().find(|replaced| replaced.pod == name);
                    let pod = match replaced.and_then(|replaced| replaced.avoided_node.as_deref()) {
                        Some(node) => resources.worker_pod_elsewhere(job, build, *index, node),
                        None => resources.worker_pod(job, build, *index),
                    };
                    match pod {
                        Ok(pod) => new_pods.push(NewPod { pod, epoch: None }),
                        Err(breaches) => acted.note(Err(ReconcileError::NotAllowed(breaches))),
                    }
                }
            }
        }
        if !new_pods.is_empty() {
            // A pod whose Secret somebody has deleted could not start.
            // Of one that is refused again and again they need not be written as often.
            let pause = if self.memory.gate.is_probing() { CERTIFICATES_FRESH } else { Duration::ZERO };
            let applied = self.apply_certificates(job, build, pause).await;
            if applied.is_err() {
                self.memory.gate.refuse(Instant::now(), fastrand::f64());
                acted.note(applied);
                return acted;
            }
        }
        self.create(api, new_pods, &mut acted).await;
        acted
    }

    /// Deletes the job that was looked at; Kubernetes takes what belongs to it along.
    async fn delete_job(&self) -> Result<(), ReconcileError> {
        let api = Api::<LCLTrainingJob>::namespaced(self.context.client.clone(), &self.key.namespace);
        let preconditions = Some(Preconditions { uid: Some(self.uid.to_owned()), resource_version: None });
        match api.delete(&self.key.name, &DeleteParams { preconditions, ..DeleteParams::background() }).await {
            Ok(_) => tracing::info!(job = self.key.name, namespace = self.key.namespace, "deleted: its time is over"),
            Err(source) => return ReconcileError::of_deletion("the job", source),
        }
        Ok(())
    }

    async fn set_world(&self, bounds: MemberBounds) -> Result<(), ReconcileError> {
        let Some(link) = &self.memory.link else { return Ok(()) };
        let answer = link.set_world(bounds, || self.context.fences.check(&self.key.namespace)).await;
        answer.map_err(|source| ReconcileError::Coordinator { what: "setting the world's size".to_owned(), source: source.into() })?;
        tracing::info!(job = self.key.name, namespace = self.key.namespace, ?bounds, "told the coordinator the size");
        Ok(())
    }

    async fn stop_group(&self) -> Result<(), ReconcileError> {
        let Some(link) = &self.memory.link else { return Ok(()) };
        let answer = link.stop_group(|| self.context.fences.check(&self.key.namespace)).await;
        answer.map_err(|source| ReconcileError::Coordinator { what: "stopping the group".to_owned(), source: source.into() })
    }

    async fn drain_worker(&self, worker: &str) -> Result<(), ReconcileError> {
        let Some(link) = &self.memory.link else { return Ok(()) };
        let answer = link.drain_worker(worker, || self.context.fences.check(&self.key.namespace)).await;
        answer.map_err(|source| ReconcileError::Coordinator { what: format!("draining {worker}"), source: source.into() })
    }

    /// Creates pods side by side; after a refusal one first, and the others when it was taken.
    async fn create(&mut self, api: &Api<Pod>, mut new_pods: Vec<NewPod>, acted: &mut Acted) {
        if self.memory.gate.is_probing() {
            new_pods.truncate(1);
        }
        let (pods, uid) = (&self.context.pods, self.uid);
        let created = stream::iter(new_pods).map(|new| async move { (new.epoch, create_pod(api, pods, uid, &new.pod).await) });
        // In order, so that of many refusals the same one is told each time.
        let results: Vec<_> = created.buffered(PODS_AT_ONCE).collect().await;
        let count = results.iter().filter(|(_, result)| result.is_ok()).count();
        if count > 0 {
            tracing::info!(job = self.key.name, namespace = self.key.namespace, count, "created pods");
        }
        acted.has_created = count > 0;
        let mut is_refused = false;
        for (epoch, result) in results {
            if let Err(error) = &result {
                is_refused |= !matches!(error, ReconcileError::Stale);
                if epoch.is_some() && error.is_refusal() {
                    self.memory.unused_epoch = epoch;
                }
            }
            acted.note(result);
        }
        match (is_refused, acted.has_created) {
            (true, _) => self.memory.gate.refuse(Instant::now(), fastrand::f64()),
            (false, true) => self.memory.gate.pass(),
            (false, false) => {}
        }
    }
}
