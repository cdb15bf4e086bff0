//! The learning member: a model, its optimizer, and one training step over micro-batches.
//!
//! Comes in: the configuration, then micro-batches of a step. Goes out: updated parameters and a [`StepReport`]; state as bytes.
//! It reads no file and keeps no random state: a step is a function of parameters, moments, step number, slots and the rows themselves.
//! Other members are met in a [`Group`](crate::collectives::Group) that the caller forms, or not at all.
//!
//! # How a step is computed
//! The contrastive loss joins all images of the step, so a step has two passes over the micro-batches: the first gives detached features
//! u, v of all of them; their gradients `g_u`, `g_v` are computed once; the second runs every micro-batch with a graph and one backward
//! pass on ⟨u, `g_u`⟩ + ⟨v, `g_v`⟩ + generation. With one micro-batch the first pass keeps its graph and is the second, too. Accumulation
//! thereby changes the cost and not the result, and nothing has to be exchanged inside of a backward pass but the gradients themselves.
//!
//! Several members take the same path. Their counts are gathered first, then their features; each computes the similarities of its own
//! rows to all others, and with the sums over everybody's rows the gradients of its own; gradients of parameters are summed while the last
//! backward pass runs. In exact mode ([`OwnShards`]) the same is done per virtual shard, and gradients are summed along a fixed tree.

mod by_source;
mod encode;
mod exact;
mod exchange;
mod forward;
mod gradients;
mod inspect;
mod schedule;
mod shard_gradients;
mod tree;

use std::thread;

use lcl_trainer_config::{ConfigError, Normalization, Objective, OptimizationConfig, TrainerConfig};
use tch::{Device, Kind, TchError, Tensor};

pub use by_source::{SourceLosses, Terms};
pub use exact::{OwnShards, PreparedShards, Verified, shards_of};
pub use exchange::{Agreement, MemberStep};
pub use forward::{PreparedRows, RowPreparer};
pub use inspect::Inspection;
pub use schedule::learning_rate;

use self::exchange::Exchange;
use crate::{
    batch::MicroBatch,
    checksum::checksum,
    collectives::GroupError,
    hash::hash_tensors,
    layout::{BatchError, LayoutFaults, Rules},
    model::{Model, ModelError, ModelFaults},
    optimizer::{AdamW, AdamWOptions},
    probe::{self, Phase},
    shim::ShimError,
    state::{self, HostState, HostTensor, Readers, Source, StateCopy, StateError, StateTensor},
    step_span,
};

/// The temperature's factor stays below 100, as in CLIP (arXiv 2103.00020, §2.5).
const HIGHEST_LOGIT_SCALE: f64 = 4.605_170_185_988_092;
/// Keeps clipping from dividing by 0, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPSILON: f64 = 1e-6;

/// A step or a copy of state fails.
#[derive(Debug, thiserror::Error)]
pub enum LearnerError {
    /// The configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model cannot be made.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A micro-batch is malformed.
    #[error("micro-batch {index}")]
    Batch {
        /// Place among the step's micro-batches.
        index: usize,
        /// What is wrong.
        #[source]
        source: BatchError,
    },
    /// Images or texts to encode are malformed.
    #[error("encoding")]
    Encode(#[source] BatchError),
    /// The forward computation failed, for want of memory most likely.
    #[error("forward pass")]
    Forward {
        /// libtorch's reason.
        #[source]
        source: TchError,
    },
    /// The backward computation failed, for want of memory most likely.
    #[error("backward pass")]
    Backward {
        /// libtorch's reason.
        #[source]
        source: TchError,
    },
    /// The contrastive loss failed.
    #[error("contrastive loss of {images} images")]
    Contrast {
        /// Images of the step.
        images: u64,
        /// libtorch's reason.
        #[source]
        source: TchError,
    },
    /// Exact mode cannot be used like this.
    #[error("virtual shards: {reason}")]
    Shards {
        /// What is wrong.
        reason: String,
    },
    /// Two members have computed the gradient of one virtual shard, and their bits differ. The group is closed; gradients are dropped, and
    /// parameters are as before the step.
    #[error(
        "the gradient of virtual shard {shard} has other bits on rank {} than on rank {}: one of the two computes wrongly; nothing was updated",
        .ranks[0], .ranks[1]
    )]
    Unequal {
        /// The shard.
        shard: usize,
        /// Who has computed it.
        ranks: [usize; 2],
    },
    /// A member was lost, or the group was aborted. It is closed; gradients are dropped, and parameters are as before the step.
    #[error("exchange with other members")]
    Collective(#[from] GroupError),
    /// The optimizer failed. Parameters and moments may be half updated: go back to a checkpoint.
    #[error("optimizer update")]
    Update(#[source] ShimError),
    /// The temperature could not be clamped or read.
    #[error("reading or clamping the temperature")]
    Temperature(#[source] TchError),
    /// Hashing failed.
    #[error("hashing parameters")]
    Hash(#[source] TchError),
    /// A state that was received is not the one that was sent.
    #[error("the received state has hash {found}, {sent} was sent: the sender or the way is faulty; nothing was changed")]
    Received {
        /// Of what came.
        found: String,
        /// Of what was sent.
        sent: String,
    },
    /// A received tensor cannot take its place.
    #[error("replacing {name} by what was received")]
    Replace {
        /// The tensor.
        name: String,
        /// Why.
        source: TchError,
    },
    /// State does not fit or cannot be copied.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Losses of a step before its update.
#[derive(Clone, Debug, PartialEq)]
pub struct LossReport {
    /// Weighted sum of the two losses.
    pub total: f64,
    /// Mean cross-entropy of the predicted tokens, not weighted; 0 without any.
    pub generation: f64,
    /// Mean contrastive loss, not weighted; 0 without a contrastive image.
    pub contrastive: f64,
    /// Predicted tokens.
    pub generation_positions: u64,
    /// Images with a context before them.
    pub contrastive_images: u64,
    /// The losses by source, in their order; empty unless they are told apart.
    pub sources: Vec<SourceLosses>,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Weighted sum of the two losses.
    pub total: f64,
    /// Mean cross-entropy of the predicted tokens, not weighted; 0 without any.
    pub generation: f64,
    /// Mean contrastive loss, not weighted; 0 without a contrastive image.
    pub contrastive: f64,
    /// L2 norm over all gradients, before clipping.
    pub gradient_norm: f64,
    /// Factor of the similarities, exp(`logit_scale`), after the step.
    pub logit_scale: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Images with a context before them.
    pub contrastive_images: u64,
    /// Predicted tokens.
    pub generation_positions: u64,
    /// A loss or gradient was not finite: nothing was updated.
    pub skipped: bool,
    /// The losses by source, in their order; empty unless they are told apart.
    pub sources: Vec<SourceLosses>,
}

/// For tests: another number type and deliberate faults. The default is what training uses.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct LearnerOptions {
    /// Type of parameters, moments and arithmetic.
    pub kind: Kind,
    /// Departures in the model.
    pub model_faults: ModelFaults,
    /// Departures in what is counted.
    pub layout_faults: LayoutFaults,
}

impl Default for LearnerOptions {
    fn default() -> Self {
        Self { kind: Kind::Float, model_faults: ModelFaults::default(), layout_faults: LayoutFaults::default() }
    }
}

/// Weights of the two losses in the total.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LossWeights {
    pub(crate) generation: f64,
    pub(crate) contrastive: f64,
}

/// A model in training.
#[derive(Debug)]
pub struct Learner {
    model: Model,
    optimizer: AdamW,
    optimization: OptimizationConfig,
    rules: Rules,
    weights: LossWeights,
    /// Sources whose losses are told apart; 0: they are not.
    sources: usize,
    /// Who reads parameters and moments beside this thread: before they are changed these are waited for.
    readers: Readers,
}

impl Learner {
    /// A model with initial weights drawn from the configuration's seed, and an optimizer whose moments are 0.
    pub fn new(config: &TrainerConfig, device: Device) -> Result<Self, LearnerError> {
        config.validate()?;
        Self::with_options(config, device, LearnerOptions::default())
    }

    /// As [`Learner::new`], for tests.
    #[doc(hidden)]
    pub fn with_options(config: &TrainerConfig, device: Device, options: LearnerOptions) -> Result<Self, LearnerError> {
        let optimization = config.optimization.clone();
        let model = Model::with_kind(&config.model, optimization.seed, device, options.kind, options.model_faults)?;
        let rule = AdamWOptions { betas: optimization.betas, epsilon: optimization.epsilon, weight_decay: optimization.weight_decay };
        let optimizer = AdamW::new(model.parameters().iter().map(|parameter| (&parameter.tensor, parameter.decays)), rule);
        let weights = match config.model.objective {
            Objective::Lcl { generation_weight, contrastive_weight } => {
                LossWeights { generation: generation_weight, contrastive: contrastive_weight }
            }
            Objective::Clip => LossWeights { generation: 0.0, contrastive: 1.0 },
        };
        let rules = Rules::new(&config.model, options.layout_faults);
        Ok(Self { model, optimizer, optimization, rules, weights, sources: 0, readers: Readers::default() })
    }

    /// Tells losses apart by so many sources from the next step on: every row then needs its source ([`MicroBatch::sources`]). All members
    /// set the same. No bit of the losses, gradients and parameters depends on it, and neither does the number of exchanges.
    ///
    /// How much a sample counts is not changed by its source: losses are averages over all predicted tokens and all images of the global
    /// batch ([`Normalization::Global`]), and those of a source over its own among these.
    pub fn set_sources(&mut self, sources: usize) {
        self.sources = sources;
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Steps of the learning rate's linear part, as they were given, derived, or set by [`Learner::set_warmup_steps`].
    #[must_use]
    pub fn warmup_steps(&self) -> u64 {
        self.optimization.warmup_steps()
    }

    /// Goes on with the linear part that a run began with: what is derived from the number of steps would be another after that changed.
    pub fn set_warmup_steps(&mut self, steps: u64) {
        self.optimization.schedule = self.optimization.schedule.with_warmup(steps);
    }

    /// Learning rate of step `step` (from 0).
    #[must_use]
    pub fn learning_rate(&self, step: u64) -> f64 {
        learning_rate(&self.optimization, step)
    }

    /// Updates applied so far. Steps that were skipped are not among them.
    #[must_use]
    pub fn completed_updates(&self) -> u64 {
        self.optimizer.completed_updates()
    }

    /// One step over the micro-batches of step `step` (from 0): losses, gradients, and the update unless something is not finite.
    ///
    /// On an error parameters are unchanged, unless it is [`LearnerError::Update`].
    pub fn train_step(&mut self, step: u64, micro_batches: &[MicroBatch]) -> Result<StepReport, LearnerError> {
        let losses = self.compute_gradients(step, micro_batches)?;
        self.apply_gradients(step, losses)
    }

    /// The first half of a step: losses and, in every parameter's `grad`, the gradient of the total.
    pub fn compute_gradients(&mut self, step: u64, micro_batches: &[MicroBatch]) -> Result<LossReport, LearnerError> {
        self.compute_gradients_of_members(step, &[micro_batches])
    }

    /// As [`Learner::compute_gradients`] for the micro-batches of several members, all computed here: what those members' gradients add
    /// up to. For tests of the normalisation.
    #[doc(hidden)]
    pub fn compute_gradients_of_members(&mut self, step: u64, members: &[&[MicroBatch]]) -> Result<LossReport, LearnerError> {
        let rows = members.iter().map(|batches| self.prepare(batches)).collect::<Result<Vec<_>, _>>()?;
        self.compute_with(step, &rows.iter().collect::<Vec<_>>(), &mut Exchange::Alone)
    }

    /// As [`Learner::compute_gradients`] for this member's micro-batches of a step of several members: losses of the global batch, and
    /// gradients summed over all members, which are the same bits on each of them.
    ///
    /// All members call it with the same step. It succeeds only when every gradient was summed without an error; on an error the group is
    /// closed, the gradients are dropped and nothing is left to apply. A group of one member gives what
    /// [`Learner::compute_gradients`] gives.
    pub fn compute_gradients_with(
        &mut self,
        step: u64,
        micro_batches: &[MicroBatch],
        member: MemberStep<'_>,
    ) -> Result<(LossReport, Agreement), LearnerError> {
        let mut exchange = Exchange::new(member);
        let result = self.prepare(micro_batches).and_then(|rows| self.compute_with(step, &[&rows], &mut exchange));
        if result.is_err() {
            exchange.close();
        }
        Ok((result?, exchange.agreement()))
    }

    /// One step of several members: [`Learner::compute_gradients_with`] and the update.
    ///
    /// Whether a step is skipped depends on sums that are the same on all members, and so is the decision.
    pub fn train_step_with(
        &mut self,
        step: u64,
        micro_batches: &[MicroBatch],
        member: MemberStep<'_>,
    ) -> Result<(StepReport, Agreement), LearnerError> {
        let (losses, agreement) = self.compute_gradients_with(step, micro_batches, member)?;
        Ok((self.apply_gradients(step, losses)?, agreement))
    }

    /// As [`Learner::compute_gradients_with`] in virtual shards: losses and gradients have the same bits at every number of members, one
    /// without a group among them.
    pub fn compute_gradients_exactly(
        &mut self,
        step: u64,
        given: OwnShards<'_>,
        member: Option<MemberStep<'_>>,
    ) -> Result<(LossReport, Agreement), LearnerError> {
        let OwnShards { shards, total, keep_activations } = given;
        let shards = shards.iter().map(|batches| self.prepare(batches)).collect::<Result<Vec<_>, _>>()?;
        self.gradients_of_shards(step, PreparedShards { shards: &shards, total, keep_activations, verified: None }, member)
    }

    fn gradients_of_shards(
        &mut self,
        step: u64,
        given: PreparedShards<'_>,
        member: Option<MemberStep<'_>>,
    ) -> Result<(LossReport, Agreement), LearnerError> {
        let mut exchange = member.map_or(Exchange::Alone, Exchange::new);
        let result = self.guard(&mut exchange, |learner, exchange| learner.accumulate_exactly(step, given, exchange));
        Ok((result?, exchange.agreement()))
    }

    /// As [`RowPreparer::prepare`].
    pub fn prepare(&self, batches: &[MicroBatch]) -> Result<PreparedRows, LearnerError> {
        self.row_preparer().prepare(batches)
    }

    /// What prepares rows for this learner, also while it computes.
    #[must_use]
    pub fn row_preparer(&self) -> RowPreparer {
        RowPreparer { rules: self.rules.clone(), image_side: self.model.config().shape.vision.image_size, sources: self.sources }
    }

    /// As [`Learner::train_step_with`] over rows that are prepared; without `member` alone.
    pub fn train_prepared(&mut self, step: u64, rows: &PreparedRows, member: Option<MemberStep<'_>>) -> Result<StepReport, LearnerError> {
        let mut exchange = member.map_or(Exchange::Alone, Exchange::new);
        let losses = self.compute_with(step, &[rows], &mut exchange)?;
        self.apply_gradients(step, losses)
    }

    /// As [`Learner::train_step_exactly`] over rows that are prepared.
    pub fn train_prepared_exactly(
        &mut self,
        step: u64,
        given: PreparedShards<'_>,
        member: Option<MemberStep<'_>>,
    ) -> Result<StepReport, LearnerError> {
        let (losses, _) = self.gradients_of_shards(step, given, member)?;
        self.apply_gradients(step, losses)
    }

    /// One step in virtual shards: [`Learner::compute_gradients_exactly`] and the update.
    pub fn train_step_exactly(
        &mut self,
        step: u64,
        given: OwnShards<'_>,
        member: Option<MemberStep<'_>>,
    ) -> Result<(StepReport, Agreement), LearnerError> {
        let (losses, agreement) = self.compute_gradients_exactly(step, given, member)?;
        Ok((self.apply_gradients(step, losses)?, agreement))
    }

    fn compute_with(&mut self, step: u64, members: &[&PreparedRows], exchange: &mut Exchange<'_>) -> Result<LossReport, LearnerError> {
        self.guard(exchange, |learner, exchange| learner.accumulate_gradients(step, members, exchange))
    }

    /// Computes gradients from none; after an error the group is left and there are none again.
    fn guard<'a>(
        &mut self,
        exchange: &mut Exchange<'a>,
        compute: impl FnOnce(&mut Self, &mut Exchange<'a>) -> Result<LossReport, LearnerError>,
    ) -> Result<LossReport, LearnerError> {
        self.optimizer.zero_gradients().map_err(LearnerError::Update)?;
        probe::reach(Phase::Forward);
        let result = compute(self, exchange);
        if result.is_err() {
            // The others wait for this member, and nothing of the group may run when gradients are touched again.
            exchange.close();
            // No half-summed gradient may meet the next step.
            self.optimizer.zero_gradients().map_err(LearnerError::Update)?;
        }
        result
    }

    /// The second half of a step: clips, updates, clamps the temperature and drops the gradients.
    pub fn apply_gradients(&mut self, step: u64, losses: LossReport) -> Result<StepReport, LearnerError> {
        let _span = step_span!("update");
        probe::reach(Phase::BeforeUpdate);
        let gradient_norm = self.optimizer.gradient_norm().map_err(LearnerError::Update)?;
        let learning_rate = self.learning_rate(step);
        let skipped = !(losses.total.is_finite() && gradient_norm.is_finite());
        if !skipped {
            let scale = self.optimization.gradient_clip.map_or(1.0, |clip| (clip / (gradient_norm + CLIP_EPSILON)).min(1.0));
            self.readers.wait();
            self.optimizer.step(learning_rate, scale).map_err(LearnerError::Update)?;
            let clamp = || tch::no_grad(|| self.model.logit_scale().shallow_clone().f_clamp_(0.0, HIGHEST_LOGIT_SCALE)).map(drop);
            clamp().map_err(LearnerError::Temperature)?;
        }
        probe::reach(Phase::AfterUpdate);
        self.optimizer.zero_gradients().map_err(LearnerError::Update)?;
        Ok(StepReport {
            total: losses.total,
            generation: losses.generation,
            contrastive: losses.contrastive,
            gradient_norm,
            logit_scale: self.model.logit_scale().f_double_value(&[]).map_err(LearnerError::Temperature)?.exp(),
            learning_rate,
            contrastive_images: losses.contrastive_images,
            generation_positions: losses.generation_positions,
            skipped,
            sources: losses.sources,
        })
    }

    /// Name and gradient of every parameter, between [`Learner::compute_gradients`] and [`Learner::apply_gradients`].
    #[must_use]
    pub fn gradients(&self) -> Vec<(&str, Tensor)> {
        self.model.parameters().iter().map(|parameter| (parameter.name.as_str(), parameter.tensor.grad())).collect()
    }

    /// Parameters and both moments, sharing the learner's memory: `model.<name>` …, `moment1.<name>` …, `moment2.<name>` ….
    #[must_use]
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let names = || self.model.parameters().iter().map(|parameter| parameter.name.as_str());
        let model = self.model.parameters().iter().map(|parameter| (format!("model.{}", parameter.name), parameter.tensor.detach()));
        let first = names().zip(self.optimizer.moments()).map(|(name, (first, _))| (format!("moment1.{name}"), first.shallow_clone()));
        let second = names().zip(self.optimizer.moments()).map(|(name, (_, second))| (format!("moment2.{name}"), second.shallow_clone()));
        model.chain(first).chain(second).collect()
    }

    /// Host memory for [`Learner::copy_state_into`] and [`Learner::copy_state_beside`], allocated and touched, so that the first copy is as fast as the later ones.
    #[must_use]
    pub fn prepare_host_state(&self) -> HostState {
        let mut buffers = HostState::default();
        buffers.reserve(&self.state());
        buffers
    }

    /// As [`Learner::prepare_host_state`], for copies of the tensors of these names only.
    #[must_use]
    pub fn prepare_host_part(&self, names: impl IntoIterator<Item = String>) -> HostState {
        let mut buffers = HostState::for_part(names.into_iter().collect());
        buffers.reserve(&self.state());
        buffers
    }

    /// Copies parameters and moments to host memory that is used again for the next copy.
    pub fn copy_state_into(&self, buffers: &mut HostState) -> Result<(), LearnerError> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        Ok(buffers.copy_from(&Source::now(self.state())?, threads)?)
    }

    /// Copies parameters and moments, as they are now, on a thread of its own while training goes on: what changes them, the next update
    /// first of all, waits for the end of the copy. `done` is told on that thread what was copied, or why it was not.
    ///
    /// On a GPU the copy goes beside the computation on a stream of its own; on a processor it takes time and memory bandwidth of one thread
    /// from it.
    ///
    /// # Errors
    /// There is no thread for it, or the device fails; `done` is not called, and `memory` is gone.
    pub fn copy_state_beside(
        &self,
        memory: HostState,
        done: impl FnOnce(Result<Vec<HostTensor>, StateError>) + Send + 'static,
    ) -> Result<StateCopy, LearnerError> {
        Ok(self.readers.copy(Source::now(self.state())?, memory, done)?)
    }

    /// Replaces parameters and moments by a saved state, and the number of updates they have seen. Everything is checked first: on an
    /// error about names, shapes or lengths nothing has changed.
    pub fn load_state<'a>(
        &mut self,
        tensors: impl IntoIterator<Item = StateTensor<'a>>,
        completed_updates: u64,
    ) -> Result<(), LearnerError> {
        self.readers.wait();
        state::load(&self.state(), tensors)?;
        self.optimizer.set_completed_updates(completed_updates);
        Ok(())
    }

    /// Replaces parameters and moments by a state received from another learner, after its hash (as [`Learner::state_hash`] gives it) was
    /// compared with `hash`. On an error nothing has changed. `tensors` are named and ordered as [`Learner::state`] has them.
    pub fn replace_state(&mut self, tensors: &[(String, Tensor)], completed_updates: u64, hash: &str) -> Result<(), LearnerError> {
        let found = Self::hash_state(tensors)?;
        if found != hash {
            return Err(LearnerError::Received { found, sent: hash.to_owned() });
        }
        self.readers.wait();
        for ((name, target), (_, source)) in self.state().iter_mut().zip(tensors) {
            let copy = tch::no_grad(|| target.f_copy_(source));
            copy.map_err(|source| LearnerError::Replace { name: name.clone(), source })?;
        }
        self.optimizer.set_completed_updates(completed_updates);
        Ok(())
    }

    /// Replaces the parameters alone, under the reference's names; moments stay. For importing weights.
    pub fn load_parameters<'a>(&mut self, tensors: impl IntoIterator<Item = StateTensor<'a>>) -> Result<(), LearnerError> {
        self.readers.wait();
        let targets: Vec<_> = self.model.parameters().iter().map(|parameter| (parameter.name.clone(), parameter.tensor.detach())).collect();
        Ok(state::load(&targets, tensors)?)
    }

    /// Fingerprint of all parameters, hexadecimal: equal exactly when every bit is.
    pub fn parameter_hash(&self) -> Result<String, LearnerError> {
        let named = self.model.parameters().iter().map(|parameter| (parameter.name.as_str(), &parameter.tensor));
        hash_tensors(named).map_err(LearnerError::Hash)
    }

    /// A number that differs when any bit of parameters or moments does: for comparing members while they train, at the cost of one read of
    /// the state where it lies.
    pub fn state_checksum(&self) -> Result<u64, LearnerError> {
        checksum(self.state().iter().map(|(_, tensor)| tensor)).map_err(LearnerError::Hash)
    }

    /// Flips a bit of the first parameter, as a memory that fails would. For tests.
    #[doc(hidden)]
    pub fn flip_bit(&mut self) -> Result<(), LearnerError> {
        self.readers.wait();
        let flip = || {
            let Some(parameter) = self.model.parameters().first() else { return Ok(()) };
            let mut bits = parameter.tensor.f_detach()?.f_view([-1])?.f_narrow(0, 0, 1)?.f_view_dtype(Kind::Int)?;
            bits.f_bitwise_xor_(1 << 12).map(drop)
        };
        flip().map_err(LearnerError::Hash)
    }

    /// Fingerprint of parameters and moments, hexadecimal.
    pub fn state_hash(&self) -> Result<String, LearnerError> {
        Self::hash_state(&self.state())
    }

    /// That of a learner whose [`Learner::state`] this is: it can be found on another thread.
    pub fn hash_state<'a>(state: impl IntoIterator<Item = &'a (String, Tensor)>) -> Result<String, LearnerError> {
        hash_tensors(state.into_iter().map(|(name, tensor)| (name.as_str(), tensor))).map_err(LearnerError::Hash)
    }

    fn normalization(&self) -> Normalization {
        self.optimization.normalization
    }
}
