//! The operator's clock is another one than the API server's, the coordinator's and the members': three minutes ahead; and a month behind, so
//! that one with the right clock finds certificates to renew.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{
    lab::{Lab, Place, uids},
    member::{Member, Process},
    support::{Operator, condition, name_of, wait_for},
};

/// Less than the clock is ahead: a time of another clock that is taken for its own would end the job at once, or never.
const LIMITS: &str = "spec.activeDeadlineSeconds = 175; spec.preRunningDeadlineSeconds = 170; spec.ttlSecondsAfterFinished = 3";

/// The part of libfaketime for programs with threads, wherever Debian puts it.
fn library() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib")?.filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")));
    folders.into_iter().find(|path| path.is_file()).context("libfaketime is missing: `make test` installs it")
}

/// Where the coordinator's pod is, and what the job's pods mount.
fn coordinator(place: &Place) -> Result<(String, PathBuf)> {
    let pods = place.pods()?;
    let pod = pods.iter().find(|pod| name_of(pod) == "job-coordinator").context("no coordinator")?;
    let (ip, uid) = (pod["status"]["podIP"].as_str().context("no address")?, pod["metadata"]["uid"].as_str().unwrap_or_default());
    Ok((format!("{ip}:7433"), place.lab.installed.cluster.ready().folder.join("pods").join(uid)))
}

/// A member with what its pod mounts.
fn attach(place: &Place, worker: &str, run: u64) -> Result<Member> {
    let (address, certificates) = wait_for("a coordinator", || coordinator(place))?;
    let attached = || Member::attach(&address, &certificates, Process { worker, run });
    wait_for("a coordinator that takes the pods' certificates", attached)
}

/// All members do this step in one group, whose number is told.
fn train(place: &Place, members: &[&Member], step: u64) -> Result<u64> {
    let group = wait_for(&format!("a group of all at step {step}"), || {
        let groups: Option<Vec<_>> = members.iter().map(|member| member.group()).collect();
        let groups = groups.context("not all have one")?;
        ensure!(groups.iter().all(|group| *group == groups[0]), "{groups:?}");
        Ok(groups[0].number)
    })?;
    for member in members {
        member.train(step);
    }
    wait_for("a job that trains", || {
        let status = place.job()?["status"].take();
        let trains = condition(&status, "Running")["status"] == "True" && status["workers"]["ready"] == members.len();
        ensure!(trains && status["steps"]["completed"] == step && status["group"]["number"] == group, "{status}");
        Ok(())
    })?;
    Ok(group)
}

fn time(value: &Value) -> Result<Timestamp> {
    Ok(value.as_str().with_context(|| format!("no time: {value}"))?.parse()?)
}

/// An operator whose clock shows another time by so much.
fn start_operator(place: &Place, offset: &str) -> Result<Operator> {
    let library = library()?.display().to_string();
    // What it waits for is measured by the clock that nobody can set.
    let environment = [("LD_PRELOAD", library.as_str()), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    place.start_operator_with(&place.lab.kubeconfig, &environment)
}

/// A job from its creation to its deletion: it trains, fails twice in a row, saves, and completes.
pub(crate) fn is_ahead(lab: &Lab) -> Result<()> {
    let place = lab.place("ahead")?;
    let operator = start_operator(&place, "+180s")?;
    place.create_job(1, LIMITS)?;
    let member = attach(&place, "job-w-0", 1)?;
    train(&place, &[&member], 1)?;
    let job = place.job()?;
    let (created, started) = (time(&job["metadata"]["creationTimestamp"])?, time(&job["status"]["startTime"])?);
    ensure!(started.duration_since(created).as_secs() >= 175, "the operator's clock is not ahead: {created} and {started}");
    drop(member);
    // Of two failures without a step in between the second one is followed by a pause.
    for failures in 1..3 {
        let before = uids(&place.pods()?);
        lab.kubelets.exit(&place.namespace, "job-w-0", 75, "the data could not be read")?;
        wait_for("a replacement", || {
            let (now, status) = (uids(&place.pods()?), place.job()?["status"].take());
            ensure!(now.len() == 2 && now["job-w-0"] != before["job-w-0"], "{now:?}");
            ensure!(status["restarts"]["total"] == failures && status["replacing"].is_null(), "{status}");
            Ok(())
        })?;
    }
    let member = attach(&place, "job-w-0", 2)?;
    train(&place, &[&member], 7)?;
    member.save(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis().try_into()?);
    wait_for("a checkpoint that is fresh", || {
        let status = place.job()?["status"].take();
        ensure!(status["lastCheckpoint"]["step"] == 7 && condition(&status, "CheckpointFresh")["status"] == "True", "{status}");
        Ok(())
    })?;
    member.finish();
    let status = wait_for("completion", || {
        let status = place.job()?["status"].take();
        ensure!(condition(&status, "Complete")["status"] == "True", "{status}");
        Ok(status)
    })?;
    let took = time(&status["completionTime"])?.duration_since(started).as_secs();
    ensure!((0..175).contains(&took), "{status}");
    lab.kubelets.exit(&place.namespace, "job-w-0", 0, "")?;
    wait_for("the end of the job's time", || {
        let gone = place.job().err().context("it is still there")?;
        ensure!(format!("{gone:#}").contains("not found"), "{gone:#}");
        Ok(())
    })?;
    operator.terminate()
}

/// What the job's pods mount, by the name of the file.
fn mounted(place: &Place) -> Result<BTreeMap<String, Vec<u8>>> {
    let secrets = place.lab.installed.look(&place.objects("secrets?labelSelector=lcl.dev/job-name=job"))?;
    let data = secrets["items"][0]["data"].as_object().context("no Secret")?;
    data.iter().map(|(name, text)| Ok((name.clone(), BASE64_STANDARD.decode(text.as_str().unwrap_or_default())?))).collect()
}

/// The job begins a month ago, by the clock of its operator; the next operator renews its certificates while it trains.
pub(crate) fn renews(lab: &Lab) -> Result<()> {
    let place = lab.place("renewed")?;
    let operator = start_operator(&place, "-31d")?;
    place.create_job(2, "")?;
    let members = [attach(&place, "job-w-0", 1)?, attach(&place, "job-w-1", 1)?];
    let group = train(&place, &[&members[0], &members[1]], 1)?;
    let (pods, before) = (uids(&place.pods()?), mounted(&place)?);
    let expiry = || time(&place.job()?["status"]["pinned"]["certificatesExpire"]);
    let expired = expiry()?;
    operator.terminate()?;
    let operator = place.start_operator(&lab.kubeconfig)?;
    wait_for("renewed certificates", || {
        ensure!(expiry()? > expired, "they expire at {expired}");
        Ok(())
    })?;
    let after = mounted(&place)?;
    for (name, text) in &before {
        let is_key = Path::new(name).extension().is_some_and(|extension| extension == "key");
        ensure!((after[name] == *text) == is_key, "{name}: keys stay, and nothing else does");
    }
    // The operator shows its own of now, and the coordinator knows those of a month ago.
    ensure!(train(&place, &[&members[0], &members[1]], 2)? == group, "another group");

    // The kubelet brings them into the pod; then one member's process is another one, and shows those of now.
    let (_, folder) = coordinator(&place)?;
    for (name, text) in &after {
        fs::write(folder.join(name), text)?;
    }
    let [stays, leaves] = members;
    drop(leaves);
    let new = attach(&place, "job-w-1", 2)?;
    ensure!(train(&place, &[&stays, &new], 3)? > group, "the same group");
    let log = fs::read_to_string(folder.join("log"))?;
    ensure!(log.contains("certificates have changed and are read again"), "{log}");
    let status = place.job()?["status"].take();
    ensure!(uids(&place.pods()?) == pods && status["restarts"]["total"] == 0 && status["coordinatorEpoch"] == 1, "{status}");
    place.delete_job()?;
    operator.terminate()
}
