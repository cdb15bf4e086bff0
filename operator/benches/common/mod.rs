//! What measurements against a real API server have in common.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Namespace, ServiceAccount},
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::support::Installed;

/// Requests of a measurement itself under way at once.
const IN_FLIGHT: usize = 64;
/// The longest that a part may take.
pub(super) const PATIENCE: Duration = Duration::from_mins(10);
/// Between two looks.
pub(super) const POLL: Duration = Duration::from_millis(500);

/// A client of the cluster with every right.
pub(super) async fn connect(installed: &Installed) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(&installed.cluster.ready().kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// A new namespace in which pods may be created.
pub(super) async fn make_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    // Pods of Indexed Jobs need it, and a controller makes it a moment later.
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), name);
    let end = Instant::now() + PATIENCE;
    while accounts.get_opt("default").await?.is_none() {
        if Instant::now() > end {
            bail!("{name} got no default ServiceAccount");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Creates all of them, many side by side.
pub(super) async fn create_all<K>(client: &Client, namespace: &str, objects: Vec<K>) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let create = |object: K| {
        let api = &api;
        async move { api.create(&PostParams::default(), &object).await.with_context(|| format!("creating {}", object.name_any())) }
    };
    stream::iter(objects).map(create).buffer_unordered(IN_FLIGHT).try_for_each(|_| async { Ok(()) }).await
}

/// Processor seconds of a process so far.
pub(super) fn cpu_time(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path)?;
    // After the name, which may hold spaces: utime and stime are the twelfth and the thirteenth.
    let fields: Vec<&str> = text.rsplit_once(')').context(path)?.1.split_whitespace().collect();
    let ticks = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    Ok(f64::from(ticks) / f64::from(u32::try_from(rustix::param::clock_ticks_per_second())?))
}

/// A number of `/proc/PID/status`, in KiB: `VmRSS`, `VmHWM`.
pub(super) fn memory_kib(process: u32, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).with_context(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
