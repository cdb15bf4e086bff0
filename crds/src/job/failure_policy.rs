//! `spec.failurePolicy`: which failures a job survives, and how many of them.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most incidents of a budget: each one is a time in the status.
const MAX_INCIDENTS: i32 = 100;
/// Thirty days, in which the budget of a job of the longest usual kind is spent once.
const MAX_WINDOW: i64 = 2_592_000;
/// Most nodes that a job does without: each stands in every pod of it.
const MAX_NODES: i32 = 64;
/// As many rules, and conditions of one, as those of batch Jobs have.
const MAX_RULES: u32 = 20;

/// Which failures a job survives, and how many of them. What several pods suffer within a minute, and for the same cause, is one incident,
/// however many they are. A job fails when a budget's window holds more incidents than its limit.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailurePolicySpec {
    /// The training program ended with an error, or was killed for its memory.
    #[serde(default = "application")]
    pub application: FailureBudgetSpec,
    /// A node was lost, a pod evicted, refused by its node, or deleted by somebody.
    #[serde(default = "infrastructure")]
    pub infrastructure: FailureBudgetSpec,
    /// A pod made room for another of a higher priority, or was asked to leave.
    #[serde(default = "preemption")]
    pub preemption: FailureBudgetSpec,
    /// Nodes that the job does without because a worker failed its self-test there (exit code 82); one more fails the job. A suspension
    /// forgets them.
    #[serde(default = "some_nodes")]
    #[schemars(range(min = 0, max = MAX_NODES))]
    pub max_excluded_nodes: i32,
    /// Looked at in their order when a pod ends with an error or is deleted; the first that fits says what follows. Without one that fits,
    /// exit codes of the program that say that it would fail again fail the job, and everything else counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_RULES))]
    pub rules: Vec<FailureRuleSpec>,
}

impl Default for FailurePolicySpec {
    fn default() -> Self {
        Self {
            application: application(),
            infrastructure: infrastructure(),
            preemption: preemption(),
            max_excluded_nodes: some_nodes(),
            rules: Vec::new(),
        }
    }
}

/// Incidents that a job survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailureBudgetSpec {
    /// Most incidents within the window; one more fails the job.
    #[schemars(range(min = 0, max = MAX_INCIDENTS))]
    pub limit: i32,
    /// Length of the window that ends now, in seconds.
    #[serde(default = "an_hour")]
    #[schemars(range(min = 60, max = MAX_WINDOW))]
    pub window_seconds: i64,
}

/// What follows from the end of a pod.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "has(self.onExitCodes) != has(self.onPodConditions)",
    "exactly one of onExitCodes and onPodConditions must be given"
))]
pub struct FailureRuleSpec {
    /// What follows.
    pub action: FailureActionSpec,
    /// The exit code of the container `worker`, or of the coordinator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_exit_codes: Option<ExitCodesSpec>,
    /// Conditions of the pod, any of which is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_RULES))]
    pub on_pod_conditions: Option<Vec<PodConditionSpec>>,
}

/// What follows from a pod's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FailureActionSpec {
    /// The job fails.
    FailJob,
    /// The pod is replaced, and no budget is charged.
    Ignore,
    /// The pod is replaced, and its cause's budget is charged, also if the program said that it would fail again.
    Count,
}

/// Exit codes other than 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExitCodesSpec {
    /// Whether the code has to be among the values or must not be.
    pub operator: ExitCodeOperatorSpec,
    /// The codes; those of the trainer are in `docs/operations.md`.
    #[schemars(length(min = 1, max = 255), inner(range(min = 1, max = 255)))]
    pub values: Vec<i32>,
}

/// How an exit code is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExitCodeOperatorSpec {
    /// It is one of the values.
    In,
    /// It is none of them, and not 0.
    NotIn,
}

/// A condition of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodConditionSpec {
    /// Its type, such as `DisruptionTarget`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub type_: String,
    /// Its value.
    #[serde(default)]
    pub status: ConditionValueSpec,
}

/// Value of a condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionValueSpec {
    /// It holds.
    #[default]
    True,
    /// It does not.
    False,
    /// Nobody can say.
    Unknown,
}

/// The pauses before replacements, up to a minute each, make these some ten minutes of a program that fails as soon as it starts.
fn application() -> FailureBudgetSpec {
    FailureBudgetSpec { limit: 10, window_seconds: an_hour() }
}

/// One every two minutes: more is no cluster to train on.
fn infrastructure() -> FailureBudgetSpec {
    FailureBudgetSpec { limit: 30, window_seconds: an_hour() }
}

/// When a fourth node fails in the same way it is not the nodes.
const fn some_nodes() -> i32 {
    3
}

/// As often as a minute's incidents allow, nearly: who trains on capacity that is taken away has asked for it.
fn preemption() -> FailureBudgetSpec {
    FailureBudgetSpec { limit: 50, window_seconds: an_hour() }
}

fn an_hour() -> i64 {
    3600
}
