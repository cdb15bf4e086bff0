//! Learning rate over the steps.

use lcl_trainer_config::{OptimizationConfig, Schedule};

/// Learning rate of step `step` (from 0).
///
/// As in `open_clip`'s `scheduler.py`: the k-th warm-up step has (k + 1) / warm-up of the peak, so that the first is not wasted; then half a
/// cosine that reaches 0 at `steps`, one after the last step.
#[must_use]
pub fn learning_rate(config: &OptimizationConfig, step: u64) -> f64 {
    let warmup_steps = config.warmup_steps();
    if step < warmup_steps {
        return config.learning_rate * (step + 1) as f64 / warmup_steps as f64;
    }
    match config.schedule {
        Schedule::Constant { .. } => config.learning_rate,
        Schedule::Cosine { .. } => {
            let length = config.steps.saturating_sub(warmup_steps).max(1);
            let progress = ((step - warmup_steps) as f64 / length as f64).min(1.0);
            0.5 * (1.0 + (std::f64::consts::PI * progress).cos()) * config.learning_rate
        }
    }
}

#[cfg(test)]
mod tests {
    use lcl_trainer_config::{GradientCompression, Normalization};

    use super::*;

    fn config(schedule: Schedule) -> OptimizationConfig {
        OptimizationConfig {
            steps: 100,
            global_batch_size: 1,
            micro_batch_size: None,
            learning_rate: 2.0,
            weight_decay: 0.0,
            betas: [0.9, 0.98],
            epsilon: 1e-6,
            schedule,
            gradient_clip: None,
            normalization: Normalization::Global,
            gradient_compression: GradientCompression::None,
            exact: None,
            seed: 0,
            max_consecutive_skipped_steps: 1,
        }
    }

    fn check(schedule: Schedule, expected: &[(u64, f64)]) {
        for &(step, rate) in expected {
            let found = learning_rate(&config(schedule), step);
            assert!((found - rate).abs() < 1e-12, "{schedule:?}, step {step}: {found} instead of {rate}");
        }
    }

    #[test]
    fn warm_up_rises_linearly_and_the_cosine_falls_to_zero() {
        check(Schedule::Cosine { warmup_steps: Some(20) }, &[(0, 0.1), (9, 1.0), (19, 2.0), (20, 2.0), (60, 1.0), (100, 0.0), (500, 0.0)]);
    }

    #[test]
    fn a_constant_schedule_stays_at_the_peak() {
        check(Schedule::Constant { warmup_steps: Some(4) }, &[(0, 0.5), (3, 2.0), (4, 2.0), (99, 2.0)]);
        check(Schedule::Constant { warmup_steps: Some(0) }, &[(0, 2.0)]);
    }

    #[test]
    fn without_a_warm_up_that_is_given_a_short_run_has_a_tenth_of_its_steps() {
        check(Schedule::Constant { warmup_steps: None }, &[(0, 0.2), (9, 2.0), (10, 2.0)]);
    }

    #[test]
    fn a_schedule_that_is_all_warm_up_divides_by_nothing() {
        check(Schedule::Cosine { warmup_steps: Some(100) }, &[(99, 2.0), (100, 2.0)]);
    }
}
