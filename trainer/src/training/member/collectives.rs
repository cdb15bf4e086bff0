//! What a member's collectives need around them: a test before the member attaches, and a way out when they hang.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use lcl_torch::{
    Device,
    collectives::{AbortHandle, self_test},
    shim::{nccl, process},
    test_device,
};
use lcl_trainer_config::ExitCode;

use super::MemberRunError;

/// Of every operation of the self-test: two ranks of one process, some milliseconds each.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an operation may go on after its group was aborted. It ends within milliseconds; only a driver or a library that hangs takes
/// longer, and the others wait for this member to report itself.
const ABORT_DEADLINE: Duration = Duration::from_secs(20);

/// Fails on a machine that computes wrongly, and where groups cannot be formed at all: a member that found out in its first group would be
/// started again and again, and one that never found out would spoil what the others compute.
pub(super) fn check(host: IpAddr, device: Device) -> Result<(), MemberRunError> {
    let begun = Instant::now();
    test_device(device)?;
    if device.is_cuda() {
        nccl::load().map_err(|source| MemberRunError::Nccl { source })?;
    }
    self_test(host, SELF_TEST_TIMEOUT).map_err(|source| MemberRunError::SelfTest { host, source })?;
    tracing::debug!(%host, seconds = begun.elapsed().as_secs_f64(), "the machine passes the self-test");
    Ok(())
}

/// A handle for the next group. If aborting the group does not end its operation, the process starts itself anew: the coordinator sees the
/// member leave and come back, and it gets its state from the others.
pub(super) fn abort_handle() -> AbortHandle {
    AbortHandle::with_rescue(ABORT_DEADLINE, || {
        tracing::error!(seconds = ABORT_DEADLINE.as_secs(), "an operation goes on though its group was aborted: this process starts anew");
        let error = process::start_anew();
        tracing::error!(%error, "it cannot");
        std::process::exit(ExitCode::Retryable.code().into());
    })
}
