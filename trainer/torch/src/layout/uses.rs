//! What training does with each token of a sequence, for looking at data.
//!
//! Comes in: a model's configuration and one sequence. Goes out: for every token whether a loss predicts it, and whether an image is contrasted with
//! the text up to it. The rules are those that lay out batches.

use lcl_trainer_config::{ModelConfig, Objective};

use super::{BatchError, Extent, LayoutFaults, RowReadings, Rules};

/// What training does with a token. One that is neither has an influence through attention alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUse {
    /// The generation loss predicts it from what is before it.
    pub predicted: bool,
    /// The contrastive loss reads the feature of the text here, for an image.
    pub contrasted: bool,
}

/// What training does with each of `tokens`, a sequence without padding. A loss without weight does nothing.
pub fn token_uses(config: &ModelConfig, tokens: &[i64]) -> Result<Vec<TokenUse>, BatchError> {
    let rules = Rules::new(config, LayoutFaults::default());
    if tokens.len() as u64 > rules.context.unsigned_abs() {
        return Err(BatchError::Length { length: tokens.len(), context: rules.context });
    }
    rules.check_row(0, tokens)?;
    let read = RowReadings::new(&rules, 0, tokens, Extent::Losses)?;
    let (predicts, contrasts) = match config.objective {
        Objective::Lcl { generation_weight, contrastive_weight } => (generation_weight > 0.0, contrastive_weight > 0.0),
        Objective::Clip => (false, true),
    };
    let mut uses = vec![TokenUse::default(); tokens.len()];
    // What a position predicts is the token behind it.
    for (position, _) in read.predictions.iter().filter(|_| predicts) {
        uses.get_mut(position + 1).into_iter().for_each(|token| token.predicted = true);
    }
    for (position, _) in read.contrast.iter().filter(|_| contrasts) {
        uses.get_mut(*position).into_iter().for_each(|token| token.contrasted = true);
    }
    Ok(uses)
}

#[cfg(test)]
mod tests {
    use lcl_trainer_config::{ModelShape, Precision, SpecialTokens, TextShape, VisionShape};

    use super::*;

    /// `.` for nothing, `p` for predicted, `c` for contrasted, `b` for both.
    fn check(objective: Objective, tokens: &[i64], expected: &str) {
        let special_tokens =
            SpecialTokens { start_of_text: 90, end_of_text: 91, image_placeholder: 92, start_of_image: 93, end_of_image: 94 };
        let vision = VisionShape { image_size: 2, patch_size: 1, width: 4, layers: 1, heads: 1 };
        let text = TextShape { width: 4, layers: 1, heads: 1, context_length: 12, vocab_size: 95 };
        let shape = ModelShape { vision, text, embed_dim: 4, pool_heads: 1, special_tokens };
        let precision = Precision::Float32;
        let config = ModelConfig { shape, objective, drop_path: 0.0, layer_scale: None, activation_checkpointing: false, precision };
        let uses = token_uses(&config, tokens).map(|uses| uses.into_iter().map(letter).collect::<String>());
        assert_eq!(uses.as_deref().map_err(ToString::to_string), Ok(expected), "{tokens:?}");
    }

    fn letter(used: TokenUse) -> char {
        match (used.predicted, used.contrasted) {
            (false, false) => '.',
            (true, false) => 'p',
            (false, true) => 'c',
            (true, true) => 'b',
        }
    }

    #[test]
    fn every_token_has_the_losses_that_training_gives_it() {
        let lcl = |generation_weight, contrastive_weight| Objective::Lcl { generation_weight, contrastive_weight };
        let document = [90, 5, 93, 92, 92, 92, 92, 94, 6, 91];
        check(lcl(1.0, 0.1), &document, ".pb.....pp");
        check(lcl(1.0, 0.0), &document, ".pp.....pp");
        check(lcl(0.0, 0.1), &document, "..c.......");
        // An image at the beginning has no text before it, and nothing predicts it.
        check(lcl(1.0, 0.1), &[93, 92, 92, 92, 92, 94, 6, 91], "......pp");
        check(Objective::Clip, &[90, 5, 6, 91], "...c");
    }
}
