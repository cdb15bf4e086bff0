//! Which folder a job keeps its run in, whatever it is called: two jobs must not write one.

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Volume, VolumeMount};
use lcl_crds::{LCLTrainingJob, WORKER_CONTAINER};
use url::Url;

/// The folder's one name in the cluster: that of the bucket and prefix, or of the claim, host path or export with the path in it. `None`:
/// other jobs cannot reach it, or nothing is known of its volume.
#[must_use]
pub fn run_folder(job: &LCLTrainingJob) -> Option<String> {
    let uri = Url::parse(&job.spec.checkpoint.uri).ok()?;
    if uri.scheme() != "file" {
        let parts: Vec<&str> = uri.path_segments()?.filter(|part| !part.is_empty()).collect();
        return Some(format!("{}://{}/{}", uri.scheme(), uri.host_str()?.to_lowercase(), parts.join("/")));
    }
    let path = clean(&uri.to_file_path().ok()?);
    let pod = job.spec.workers.template.as_ref()?.spec.as_ref()?;
    let container = pod.containers.iter().find(|container| container.name == WORKER_CONTAINER)?;
    let mounts = container.volume_mounts.iter().flatten().filter(|mount| path.starts_with(clean(Path::new(&mount.mount_path))));
    let mount = mounts.max_by_key(|mount| clean(Path::new(&mount.mount_path)).components().count())?;
    let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name)?;
    let below = path.strip_prefix(clean(Path::new(&mount.mount_path))).ok()?;
    name_in(volume, mount, below, job.metadata.namespace.as_deref().unwrap_or_default())
}

fn name_in(volume: &Volume, mount: &VolumeMount, below: &Path, namespace: &str) -> Option<String> {
    let inside = Path::new(mount.sub_path.as_deref().unwrap_or_default()).join(below);
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some(format!("claim {namespace}/{}: {}", claim.claim_name, clean(&inside).display()));
    }
    if let Some(host) = &volume.host_path {
        return Some(format!("host path {}", clean(&Path::new(&host.path).join(inside)).display()));
    }
    let nfs = volume.nfs.as_ref()?;
    Some(format!("NFS {}: {}", nfs.server, clean(&Path::new(&nfs.path).join(inside)).display()))
}

/// Without `.` and doubled slashes; `..` is refused where paths are checked.
fn clean(path: &Path) -> PathBuf {
    path.components().filter(|component| *component != Component::CurDir).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder(namespace: &str, uri: &str, mount: (&str, &str), volume: serde_json::Value) -> Option<String> {
        let mut volume = volume;
        volume["name"] = json!("runs");
        let job = json!({
            "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "metadata": { "name": "job", "namespace": namespace },
            "spec": {
                "model": { "preset": "tiny" }, "data": { "webdataset": { "shards": ["/a.tar"] } },
                "optimization": { "steps": 1, "globalBatchSize": 1 }, "checkpoint": { "uri": uri },
                "workers": { "template": { "spec": {
                    "containers": [{ "name": "worker", "volumeMounts": [
                        { "name": "other", "mountPath": "/" }, { "name": "runs", "mountPath": mount.0, "subPath": mount.1 },
                    ] }],
                    "volumes": [volume],
                } } },
            },
        });
        run_folder(&serde_json::from_value(job).expect("a job"))
    }

    #[test]
    fn one_folder_has_one_name_however_it_is_written_and_mounted() {
        let claim = || json!({ "persistentVolumeClaim": { "claimName": "c" } });
        let host = || json!({ "hostPath": { "path": "/srv/runs/" } });
        let same = [
            folder("team", "file:///runs/a", ("/runs", ""), claim()),
            folder("team", "file:///runs//a/", ("/runs/", ""), claim()),
            folder("team", "file:///here/./b", ("/here/b", "a"), claim()),
        ];
        assert!(same[0].is_some() && same.iter().all(|name| *name == same[0]), "{same:?}");
        let hosts = [
            folder("team", "file:///runs/a", ("/runs", ""), host()),
            folder("other", "file:///x", ("/x", "a"), host()),
            folder("other", "file:///x/runs/a", ("/x", ""), json!({ "hostPath": { "path": "/srv" } })),
        ];
        assert!(hosts[0].is_some() && hosts.iter().all(|name| *name == hosts[0]), "{hosts:?}");
        let buckets = ["s3://Bucket/a/b", "s3://bucket/a/b/", "s3://bucket//a/b"].map(|uri| folder("team", uri, ("/runs", ""), host()));
        assert!(buckets[0].is_some() && buckets.iter().all(|name| *name == buckets[0]), "{buckets:?}");
        // Others are others.
        let others = [
            folder("other", "file:///runs/a", ("/runs", ""), claim()),
            folder("team", "file:///runs/b", ("/runs", ""), claim()),
            folder("team", "gs://bucket/a/b", ("/runs", ""), claim()),
        ];
        for other in others {
            assert!(other.is_some() && ![&same[0], &hosts[0], &buckets[0]].contains(&&other), "{other:?}");
        }
        assert_eq!(folder("team", "file:///runs/a", ("/runs", ""), json!({ "emptyDir": {} })), None, "nobody else can reach it");
    }
}
