//! The pods' `ServiceAccount`: no rights, no token.

use k8s_openapi::api::core::v1::ServiceAccount;

use crate::{
    build::{BuildContext, labels::COORDINATOR_ROLE, metadata},
    job::ValidatedJob,
};

/// The job's name.
pub(crate) fn service_account_name(job: &ValidatedJob) -> String {
    job.name().to_owned()
}

/// An account of the job's name that no role is bound to and whose token is not mounted: training needs nothing of the API server.
pub(crate) fn build_service_account(job: &ValidatedJob, context: &BuildContext) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(job, context, service_account_name(job), COORDINATOR_ROLE),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
