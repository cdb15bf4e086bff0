//! Pods that are gone before the operator looks at them again.

use anyhow::{Result, ensure};
use tokio::sync::watch;

use super::{
    install, job,
    proxy::{Passed, Proxy},
    set_pod_status,
    support::wait_for,
    terminated, uids, wait_for_pods,
};

/// Keeps a write of a job's status from going on while `is_held` says so.
async fn hold_statuses(passed: Passed, mut is_held: watch::Receiver<bool>) {
    if passed.is("PATCH", "status") && passed.status.is_none() {
        // The sender goes with the test.
        let _ = is_held.wait_for(|is_held| !*is_held).await;
    }
}

#[test]
fn a_pod_that_failed_and_was_deleted_while_nobody_looked_counts_by_what_ended_it() -> Result<()> {
    let installed = install()?;
    let (holds, is_held) = watch::channel(false);
    let proxy = Proxy::start(&installed.kubeconfig_of("lcl-operator")?, move |passed, _| hold_statuses(passed, is_held.clone()))?;
    let operator = installed.start_operator_with(&proxy.kubeconfig, &[])?;
    installed.apply(&job("gone", "spec.workers = {'replicas': 2}"))?;
    let before = uids(&wait_for_pods(&installed, "gone", 3)?);
    wait_for("a status", || {
        ensure!(installed.status("gone")?["workers"]["created"] == 2, "not yet");
        Ok(())
    })?;
    // While it writes that the one has failed it does not look at the other.
    holds.send_replace(true);
    let asked = || proxy.log.borrow().iter().filter(|passed| passed.is("PATCH", "status") && passed.status.is_none()).count();
    let writes = asked();
    set_pod_status(&installed, "gone-w-1", &terminated("worker", 75, "the data could not be read"))?;
    wait_for("a look that takes its time", || {
        ensure!(asked() > writes, "nothing is written");
        Ok(())
    })?;
    set_pod_status(&installed, "gone-w-0", &terminated("worker", 1, "out of luck"))?;
    installed.kubectl(&["delete", "pod", "gone-w-0", "--force", "--grace-period=0"])?;
    holds.send_replace(false);
    let status = wait_for("replacements", || {
        let (now, status) = (uids(&installed.pods("gone")?), installed.status("gone")?);
        ensure!(["gone-w-0", "gone-w-1"].iter().all(|name| now.contains_key(*name) && now[*name] != before[*name]), "{now:?}");
        ensure!(status["restarts"]["total"] == 2 && status["replacing"].is_null(), "{status}");
        Ok(status)
    })?;
    assert_eq!(status["restarts"]["application"], 2, "{status}");
    assert_eq!((&status["lastFailure"]["pod"], &status["lastFailure"]["exitCode"]), (&"gone-w-0".into(), &1.into()), "{status}");
    operator.terminate()
}
