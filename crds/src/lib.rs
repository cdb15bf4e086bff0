//! The custom resource users write: its Rust types, the rules the API server checks, and the definition generated from both.
//!
//! Comes in: nothing. Goes out: [`LCLTrainingJob`] and [`custom_resource_definition`]. The committed YAML under `crds/generated/` is
//! written from that definition (`cargo run -p lcl-crds --example generate_crds`); a test fails when it drifts.
//! The documentation of every field here is what `kubectl explain` shows. Rules live here and nowhere else: `lcl-operator-core` evaluates
//! the very same schema and CEL expressions offline.
//! This crate must not know a client, an async runtime, or the trainer.

mod definition;
#[allow(unreachable_pub, reason = "KubeSchema's expansion repeats each public struct inside a function")]
#[allow(clippy::duplicated_attributes, reason = "the table's columns have the same attributes each")]
mod job;
mod names;
mod patterns;
mod pod_template;
mod resources;

pub use definition::custom_resource_definition;
pub use job::{
    LCLTrainingJob, LCLTrainingJobSpec,
    checkpoint::CheckpointSpec,
    coordinator::CoordinatorSpec,
    data::{
        AugmentationSpec, CacheSpec, CaptionSpec, DataSpec, KeySeparatorSpec, LayoutSpec, MixedSourceSpec, MixtureSpec, MixtureUnitSpec,
        Mmc4ImagesSpec, Mmc4LayoutSpec, Mmc4Spec, ObelicsSpec, ShuffleSpec, WebdatasetSpec,
    },
    failure_policy::{
        ConditionValueSpec, ExitCodeOperatorSpec, ExitCodesSpec, FailureActionSpec, FailureBudgetSpec, FailurePolicySpec, FailureRuleSpec,
        PodConditionSpec,
    },
    lifetime::CleanPodPolicySpec,
    model::{
        ClipObjectiveSpec, LclObjectiveSpec, ModelShapeSpec, ModelSpec, ObjectiveSpec, PrecisionSpec, PresetName, TextShapeSpec,
        VisionShapeSpec,
    },
    optimization::{ExactSpec, GradientCompressionSpec, NormalizationSpec, OptimizationSpec, ScheduleSpec, WarmupSpec},
    service_account::ServiceAccountSpec,
    status::{
        BudgetStatus, ExcludedNodeStatus, FailuresStatus, GroupStatus, JobState, LCLTrainingJobStatus, LastCheckpointStatus,
        LastFailureStatus, PinnedStatus, ReplacingStatus, RestartsStatus, SourceStatus, StartupStatus, StepsStatus, WorkersStatus,
    },
    timeouts::TimeoutsSpec,
    workers::{ElasticSpec, EvictSlowMembersSpec, WorkersSpec},
};
pub use names::{COORDINATOR_SUFFIX, GROUP, KIND, MANAGER, MAX_NAME_LENGTH, MAX_WORKERS, PLURAL, VERSION, WORKER_CONTAINER, WORKER_INFIX};
pub use patterns::explain_pattern;
pub use pod_template::{RESERVED_ENV_NAMES, RESERVED_ENV_PREFIXES};
