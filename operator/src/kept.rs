//! Objects as they are kept between two looks: as text, beside the little that is asked for without a look.
//!
//! There may be ten thousand jobs, nearly all of them at rest, and the objects of those that are not. As a typed value an object takes several
//! times its text, since it has room for every field that it could have; so it is read again when somebody looks at it, which takes some
//! microseconds. Left out is what nobody here asks for: who manages which field, and annotations of jobs, in which `kubectl apply` keeps the
//! whole manifest once more.

use std::{borrow::Cow, sync::Arc};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use kube::{
    Resource,
    core::{DeserializeGuard, NamespaceResourceScope},
};
use lcl_crds::{JobState, LCLTrainingJob, MANAGER};
use lcl_operator_core::{decide::is_final, run_folder};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// An object as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text(Box<str>);

impl Text {
    /// Writes it down. An object that was read as JSON can be written so: one that cannot be is kept as nothing, and read as an error.
    pub(crate) fn of(object: &impl Serialize) -> Self {
        Self(serde_json::to_string(object).unwrap_or_default().into_boxed_str())
    }

    /// Reads it again.
    pub(crate) fn read<K: DeserializeOwned>(&self) -> Result<K, serde_json::Error> {
        serde_json::from_str(&self.0)
    }
}

/// A job as the API server gives it; one that this version cannot read must not hide the others.
pub(crate) type ReadJob = DeserializeGuard<LCLTrainingJob>;

/// A stored job.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "ReadJob")]
pub(crate) struct StoredJob {
    /// Names, uid and version alone.
    metadata: ObjectMeta,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Job {
        summary: Summary,
        text: Text,
    },
    /// This version cannot read it, for this reason.
    Unreadable(Box<str>),
}

/// What is asked about jobs at large.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    /// The one name of the folder in which it keeps its run, if others can reach that.
    pub(crate) folder: Option<Box<str>>,
    /// When it was created.
    pub(crate) created: Option<Timestamp>,
    /// What the status says of its state.
    pub(crate) state: Option<JobState>,
    /// Something was pinned for a group.
    pub(crate) has_begun: bool,
    /// It is complete, has failed, or is being deleted.
    pub(crate) is_over: bool,
    /// It is this operator's to run.
    pub(crate) is_ours: bool,
}

impl Summary {
    fn of(job: &LCLTrainingJob) -> Self {
        let status = job.status.as_ref();
        Self {
            folder: run_folder(job).map(String::into_boxed_str),
            created: job.metadata.creation_timestamp.as_ref().map(|time| time.0),
            state: status.and_then(|status| status.state),
            has_begun: status.is_some_and(|status| status.pinned.is_some()),
            is_over: status.is_some_and(is_final) || job.metadata.deletion_timestamp.is_some(),
            is_ours: job.spec.managed_by.as_deref().is_none_or(|manager| manager == MANAGER),
        }
    }
}

impl From<ReadJob> for StoredJob {
    fn from(read: ReadJob) -> Self {
        let given = read.meta();
        let metadata = ObjectMeta {
            name: given.name.clone(),
            namespace: given.namespace.clone(),
            uid: given.uid.clone(),
            resource_version: given.resource_version.clone(),
            ..ObjectMeta::default()
        };
        let content = match read.0 {
            Ok(mut job) => {
                (job.metadata.managed_fields, job.metadata.annotations) = (None, None);
                Content::Job { summary: Summary::of(&job), text: Text::of(&job) }
            }
            Err(invalid) => Content::Unreadable(invalid.error.into_boxed_str()),
        };
        Self { metadata, content }
    }
}

impl StoredJob {
    /// The job, but for its annotations.
    ///
    /// # Errors
    /// This version cannot read it: why.
    pub(crate) fn read(&self) -> Result<Arc<LCLTrainingJob>, String> {
        match &self.content {
            Content::Job { text, .. } => text.read().map(Arc::new).map_err(|error| error.to_string()),
            Content::Unreadable(why) => Err(why.to_string()),
        }
    }

    /// What is asked about it beside others; `None` of one that cannot be read.
    pub(crate) fn summary(&self) -> Option<&Summary> {
        match &self.content {
            Content::Job { summary, .. } => Some(summary),
            Content::Unreadable(_) => None,
        }
    }
}

impl Resource for StoredJob {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        LCLTrainingJob::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        LCLTrainingJob::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        LCLTrainingJob::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        LCLTrainingJob::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn stored(job: &Value) -> StoredJob {
        serde_json::from_value(job.clone()).expect("an object")
    }

    fn job() -> Value {
        json!({
            "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob",
            "metadata": {
                "name": "job", "namespace": "team", "uid": "u", "resourceVersion": "7", "generation": 3,
                "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-02T00:00:00Z",
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}" },
                "managedFields": [{ "manager": "kubectl" }],
            },
            "spec": {
                "model": { "preset": "tiny" }, "data": { "webdataset": { "shards": ["/data/a.tar"] } },
                "optimization": { "steps": 1, "globalBatchSize": 8, "schedule": { "constant": { "warmupSteps": 0 } } },
                "checkpoint": { "uri": "s3://bucket/run" }, "suspend": true, "managedBy": "example.com/another",
            },
            "status": { "state": "Suspended", "coordinatorEpoch": 4 },
        })
    }

    #[test]
    fn a_job_is_kept_whole_but_for_what_nobody_asks_for() {
        let (given, kept) = (job(), stored(&job()));
        let read = kept.read().expect("a job");
        let mut expected: LCLTrainingJob = serde_json::from_value(given).expect("a job");
        (expected.metadata.annotations, expected.metadata.managed_fields) = (None, None);
        assert_eq!(*read, expected);
        let summary = kept.summary().expect("it can be read");
        assert_eq!((summary.folder.as_deref(), summary.state), (Some("s3://bucket/run"), Some(JobState::Suspended)));
        assert_eq!((summary.is_over, summary.is_ours, summary.has_begun), (true, false, false));
        assert_eq!((kept.meta().name.as_deref(), kept.meta().resource_version.as_deref()), (Some("job"), Some("7")));
    }

    #[test]
    fn one_that_cannot_be_read_says_why_and_has_its_name_all_the_same() {
        let mut given = job();
        given["spec"] = json!({ "of": "another version" });
        let kept = stored(&given);
        assert!(kept.summary().is_none() && kept.read().is_err_and(|why| why.contains("model")), "{kept:?}");
        assert_eq!((kept.meta().name.as_deref(), kept.meta().uid.as_deref()), (Some("job"), Some("u")));
    }
}
