//! Settings, all of them flags with an environment variable each.

use std::{net::SocketAddr, str::FromStr};

use clap::{ArgAction, Parser, ValueEnum, builder::FalseyValueParser};
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use lcl_operator_core::{Allowance, DEFAULT_API_AUDIENCES, PodPolicy, build::NetworkAccess};

/// Runs training jobs in a Kubernetes cluster.
#[derive(Clone, Debug, Parser)]
#[command(version, after_help = "Finds the API server as kubectl does: in a pod through its service account, else through KUBECONFIG.")]
pub struct Settings {
    /// Image of the coordinators
    #[arg(long, env = "LCL_COORDINATOR_IMAGE")]
    pub coordinator_image: String,
    /// Image of workers whose manifest names none
    #[arg(long, env = "LCL_TRAINER_IMAGE")]
    pub trainer_image: String,
    /// When these images are pulled
    #[arg(long, env = "LCL_IMAGE_PULL_POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: Option<String>,
    /// Namespaces to look after, separated by commas; all without it
    #[arg(long, env = "LCL_WATCH_NAMESPACES", value_delimiter = ',', value_parser = parse_namespace)]
    pub watch_namespaces: Vec<String>,
    /// Jobs that are reconciled side by side
    #[arg(long, env = "LCL_CONCURRENCY", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub concurrency: u16,
    /// Requests to the API server, per second on average
    #[arg(long, env = "LCL_KUBE_API_QPS", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub kube_api_qps: u32,
    /// Requests to the API server, at once
    #[arg(long, env = "LCL_KUBE_API_BURST", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub kube_api_burst: u32,
    /// Where /healthz and /readyz are served; port 0 takes a free one
    #[arg(long, env = "LCL_HEALTH_ADDR", default_value = "[::]:8081")]
    pub health_addr: SocketAddr,
    /// Where /metrics is served; port 0 takes a free one
    #[arg(long, env = "LCL_METRICS_ADDR", default_value = "[::]:8080")]
    pub metrics_addr: SocketAddr,
    /// Act only while holding a lease, so that of several operators one acts
    #[arg(long, env = "LCL_LEADER_ELECT")]
    pub leader_elect: bool,
    /// Namespace of the lease by which a leader is elected; without it the one of the service account or of the KUBECONFIG's context
    #[arg(long, env = "POD_NAMESPACE", hide = true)]
    pub pod_namespace: Option<String>,
    /// The beginning of this process's name in leases and Events; without it the host's name
    #[arg(long, env = "POD_NAME", hide = true)]
    pub pod_name: Option<String>,
    /// Secret in the namespace `POD_NAMESPACE` that the certificates of jobs come from; made if it is not there
    #[arg(long, env = "LCL_CA_SECRET", default_value = "lcl-operator-ca")]
    pub ca_secret: String,
    /// What templates of pods may do, separated by commas: `HostPath` (volumes of the node), `HostNamespaces` (its network, processes
    /// and ports), `Privileged` (containers, added capabilities, no confinement), `Root` (user 0), `ApiTokens` (for the API server); nothing
    /// of it by default
    #[arg(long, env = "LCL_ALLOW", value_delimiter = ',')]
    pub allow: Vec<Allowance>,
    /// Audiences of the API server, separated by commas, where it was told others than usual: templates get no tokens for them
    #[arg(long, env = "LCL_API_AUDIENCES", value_delimiter = ',', default_values = DEFAULT_API_AUDIENCES)]
    pub api_audiences: Vec<String>,
    /// Give every job network policies: its pods are reached by each other, by this process and by who reads metrics alone
    #[arg(long, env = "LCL_NETWORK_POLICIES", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub network_policies: bool,
    /// Labels of this process's pods, as key=value separated by commas, for these policies; all pods of its namespace without it
    #[arg(long, env = "LCL_OPERATOR_LABELS", value_delimiter = ',')]
    pub operator_labels: Vec<Label>,
    /// Who may read the metrics of coordinators, as a JSON list of what a `NetworkPolicy` has in `from`; everybody when empty
    #[arg(long, env = "LCL_METRICS_FROM", default_value = "[]")]
    pub metrics_from: Peers,
    /// How log lines are written
    #[arg(long, env = "LCL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
}

/// A namespace's name, or nothing.
fn parse_namespace(text: &str) -> Result<String, String> {
    let name = text.trim();
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = name.len() <= 63
        && name.bytes().all(|byte| is_word(byte) || byte == b'-')
        && name.bytes().next().is_some_and(is_word)
        && name.bytes().last().is_some_and(is_word);
    if name.is_empty() || is_label {
        Ok(name.to_owned())
    } else {
        Err("no namespace has such a name: at most 63 lower case letters, digits and `-`, the first and the last no `-`".to_owned())
    }
}

impl Settings {
    /// What pods may do.
    #[must_use]
    pub fn pod_policy(&self) -> PodPolicy {
        PodPolicy::allowing(self.allow.iter().copied()).with_api_audiences(self.api_audiences.clone())
    }

    /// From where pods are reached, if policies are to say so.
    #[must_use]
    pub fn network_access(&self, namespace: &str) -> Option<NetworkAccess> {
        self.network_policies.then(|| NetworkAccess {
            operator_namespace: namespace.to_owned(),
            operator_labels: self.operator_labels.iter().cloned().map(|Label(key, value)| (key, value)).collect(),
            metrics_from: self.metrics_from.0.clone(),
        })
    }
}

/// A label, as key=value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label(String, String);

impl FromStr for Label {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("must be a key, `=` and a value")?;
        Ok(Self(key.to_owned(), value.to_owned()))
    }
}

/// What a `NetworkPolicy` has in `from`.
#[derive(Clone, Debug, PartialEq)]
pub struct Peers(Vec<NetworkPolicyPeer>);

impl FromStr for Peers {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text).map(Self)
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Human,
    /// One JSON object a line
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(namespaces: &str) -> Result<Vec<String>, String> {
        let flag = format!("--watch-namespaces={namespaces}");
        let arguments = ["lcl-operator", "--coordinator-image=c", "--trainer-image=t", &flag];
        Settings::try_parse_from(arguments).map(|settings| settings.watch_namespaces).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_that_no_namespace_can_have_is_refused_by_the_flag() {
        assert_eq!(parse("team-a, team-b,"), Ok(vec!["team-a".to_owned(), "team-b".to_owned(), String::new()]));
        for wrong in ["Team", "team_a", "-team", "team-", "team.a", &"a".repeat(64)] {
            let refused = parse(wrong).expect_err(wrong);
            assert!(refused.contains("--watch-namespaces") && refused.contains(wrong), "{refused}");
        }
    }
}
