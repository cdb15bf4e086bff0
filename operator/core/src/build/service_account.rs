//! The pods' `ServiceAccount`: no rights, no token.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ServiceAccount;

use crate::{
    build::{BuildContext, labels::COORDINATOR_ROLE, metadata},
    job::ValidatedJob,
};

/// Keys of the annotations that the job gives. An object may have more than is wanted of it: without this, one that is taken back would stay.
const GIVEN_ANNOTATION: &str = "lcl.dev/given-annotations";

/// The job's name.
pub(crate) fn service_account_name(job: &ValidatedJob) -> String {
    job.name().to_owned()
}

/// An account of the job's name that no role is bound to and whose token is not mounted: training needs nothing of the API server. Its
/// annotations are the job's, for workload identities of clouds.
pub(crate) fn build_service_account(job: &ValidatedJob, context: &BuildContext) -> ServiceAccount {
    let mut account_metadata = metadata(job, context, service_account_name(job), COORDINATOR_ROLE);
    let mut annotations: BTreeMap<String, String> = job.spec().service_account.clone().unwrap_or_default().annotations;
    let keys = annotations.keys().map(String::as_str).collect::<Vec<_>>().join(",");
    annotations.insert(GIVEN_ANNOTATION.to_owned(), keys);
    account_metadata.annotations = Some(annotations);
    ServiceAccount { metadata: account_metadata, automount_service_account_token: Some(false), ..ServiceAccount::default() }
}
