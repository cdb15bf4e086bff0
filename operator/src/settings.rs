//! Settings, all of them flags with an environment variable each.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};

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
    #[arg(long, env = "LCL_HEALTH_ADDR", default_value = "0.0.0.0:8081")]
    pub health_addr: SocketAddr,
    /// Where /metrics is served; port 0 takes a free one
    #[arg(long, env = "LCL_METRICS_ADDR", default_value = "0.0.0.0:8080")]
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
