//! Sequences are written as words: `sot`, `eot`, `img`, `soi`, `eoi`, `pad` or a text token's number. An image has two tokens.

use lcl_trainer_config::{ModelConfig, Precision, TextShape, VisionShape};

use super::*;

const SPECIAL: SpecialTokens =
    SpecialTokens { start_of_text: 90, end_of_text: 91, image_placeholder: 92, start_of_image: 93, end_of_image: 94 };

fn rules(objective: Objective, faults: LayoutFaults) -> Rules {
    let vision = VisionShape { image_size: 2, patch_size: 1, width: 4, layers: 1, heads: 1 };
    let text = TextShape { width: 4, layers: 1, heads: 1, context_length: 12, vocab_size: 95 };
    let shape = ModelShape { vision, text, embed_dim: 4, pool_heads: 1, special_tokens: SPECIAL };
    let precision = Precision::Float32;
    let config = ModelConfig { shape, objective, drop_path: 0.0, layer_scale: None, activation_checkpointing: false, precision };
    Rules { tokens_per_image: 2, ..Rules::new(&config, faults) }
}

fn lcl() -> Rules {
    rules(Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 }, LayoutFaults::default())
}

fn clip() -> Rules {
    rules(Objective::Clip, LayoutFaults::default())
}

fn ids(words: &str) -> Vec<i64> {
    words
        .split_whitespace()
        .map(|word| match word {
            "sot" => 90,
            "eot" => 91,
            "img" => 92,
            "soi" => 93,
            "eoi" => 94,
            "pad" => 0,
            number => number.parse().expect("a test's token is a number"),
        })
        .collect()
}

fn layout(rules: &Rules, rows: &[&str], images: usize, extent: Extent) -> Result<Layout, BatchError> {
    let length = rows.iter().map(|row| ids(row).len()).max().unwrap_or(0);
    let tokens: Vec<i64> = rows
        .iter()
        .flat_map(|row| {
            let mut row = ids(row);
            row.resize(length, 0);
            row
        })
        .collect();
    Layout::new(rules, Rows { tokens: &tokens, length }, images, None, extent)
}

type Pairs = Vec<(i64, i64)>;

/// (position, label) of every prediction and (position, image) of every contrast, positions counted in the packed rows.
fn readings(layout: &Layout) -> (Pairs, Pairs) {
    let position = |output: &i64| layout.outputs[*output as usize];
    (
        layout.predictions.iter().map(position).zip(layout.labels.iter().copied()).collect(),
        layout.contrast_texts.iter().map(position).zip(layout.contrast_images.iter().copied()).collect(),
    )
}

#[test]
fn an_image_first_pair_predicts_its_text_and_contrasts_nothing() -> Result<(), BatchError> {
    let found = layout(&lcl(), &["soi img img eoi 5 6 eot pad"], 1, Extent::Losses)?;
    // From `eoi` on: 5, 6 and the end of text; neither image tokens nor `eoi` are predicted.
    assert_eq!(readings(&found), (vec![(3, 5), (4, 6), (5, 91)], vec![]));
    // The end of text predicts nothing and is not computed.
    assert_eq!(found.tokens, ids("soi img img eoi 5 6"));
    assert_eq!((found.image_targets, found.image_sources), (vec![1, 2], vec![0, 1]));
    Ok(())
}

#[test]
fn a_text_first_pair_contrasts_at_its_start_of_image_and_computes_nothing_behind_it() -> Result<(), BatchError> {
    let found = layout(&lcl(), &["sot 5 6 soi img img eoi"], 1, Extent::Losses)?;
    assert_eq!(readings(&found), (vec![(0, 5), (1, 6), (2, 93)], vec![(3, 0)]));
    assert_eq!(found.tokens, ids("sot 5 6 soi"));
    assert!(found.image_targets.is_empty());
    Ok(())
}

#[test]
fn documents_take_their_images_in_order_and_skip_those_without_context() -> Result<(), BatchError> {
    let rows = ["soi img img eoi 5 soi img img eoi 6", "7 soi img img eoi 8 eot", "9 9 9"];
    let found = layout(&lcl(), &rows, 3, Extent::Losses)?;
    assert_eq!(found.image_rows, [0, 0, 1]);
    let (predictions, contrast) = readings(&found);
    // Row 0 has 9 computed positions, row 1 starts behind them.
    assert_eq!(contrast, [(5, 1), (9 + 1, 2)]);
    assert_eq!(predictions, [(3, 5), (4, 93), (8, 6), (9, 93), (13, 8), (14, 91), (15, 9), (16, 9)]);
    assert_eq!(found.image_sources, [0, 1, 2, 3, 4, 5]);
    assert_eq!(found.image_targets, [1, 2, 6, 7, 11, 12]);
    Ok(())
}

#[test]
fn packed_rows_and_the_padded_matrix_lead_to_each_other() -> Result<(), BatchError> {
    let found = layout(&lcl(), &["1 2 3 4 5 6", "1 2", "1 2 3 4"], 0, Extent::Losses)?;
    // The last token of a row predicts nothing.
    assert_eq!((found.rows, found.length), (3, 5));
    assert_eq!(found.pack, [0, 1, 2, 3, 4, 5, 10, 11, 12]);
    assert_eq!(found.unpack, [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 6, 7, 8, 8, 8]);
    for (packed, padded) in found.pack.iter().enumerate() {
        assert_eq!(found.unpack[*padded as usize], packed as i64);
    }
    assert!(!found.is_dense());
    assert!(layout(&lcl(), &["1 2 3", "4 5 6"], 0, Extent::Losses)?.is_dense());
    Ok(())
}

#[test]
fn a_row_without_any_reading_is_left_out_and_its_image_keeps_its_number() -> Result<(), BatchError> {
    let rows = ["soi img img eoi", "5 soi img img eoi"];
    let found = layout(&lcl(), &rows, 2, Extent::Losses)?;
    assert_eq!((found.rows, found.image_rows.as_slice()), (1, [0, 1].as_slice()));
    assert_eq!(readings(&found).1, [(1, 1)]);
    Ok(())
}

#[test]
fn the_contrast_alone_needs_no_predictions() -> Result<(), BatchError> {
    let rows = ["soi img img eoi 5 6 eot", "5 6 soi img img eoi 7 eot"];
    let found = layout(&lcl(), &rows, 2, Extent::Contrast)?;
    assert_eq!(found.tokens, ids("5 6 soi"));
    assert_eq!(readings(&found), (vec![], vec![(2, 1)]));
    Ok(())
}

#[test]
fn everything_is_everything() -> Result<(), BatchError> {
    let rows = ["soi img img eoi 5 6 eot pad", "5 soi img img eoi"];
    let found = layout(&lcl(), &rows, 2, Extent::Everything)?;
    assert_eq!((found.rows, found.length, found.tokens.len()), (2, 8, 16));
    assert!(found.is_dense());
    let (predictions, contrast) = readings(&found);
    assert_eq!(predictions, [(3, 5), (4, 6), (5, 91), (8, 93)]);
    assert_eq!(contrast, [(9, 1)]);
    Ok(())
}

#[test]
fn the_clip_objective_reads_at_the_end_of_text_and_predicts_nothing() -> Result<(), BatchError> {
    let found = layout(&clip(), &["sot 5 eot pad", "sot 5 6 eot"], 2, Extent::Losses)?;
    assert_eq!(readings(&found), (vec![], vec![(2, 0), (6, 1)]));
    assert_eq!(layout(&clip(), &["sot 5 6"], 1, Extent::Losses), Err(BatchError::NoEndOfText { row: 0 }));
    Ok(())
}

#[test]
fn faults_count_what_the_definition_leaves_out() -> Result<(), BatchError> {
    let rules = |faults| rules(Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 }, faults);
    let row = ["soi img img eoi 5"];
    let leading = layout(&rules(LayoutFaults { count_leading_image: true, ..LayoutFaults::default() }), &row, 1, Extent::Losses)?;
    assert_eq!(readings(&leading).1, [(0, 0)]);
    let end = layout(&rules(LayoutFaults { count_end_of_image: true, ..LayoutFaults::default() }), &row, 1, Extent::Losses)?;
    assert_eq!(readings(&end).0, [(2, 94), (3, 5)]);
    Ok(())
}

#[test]
fn texts_are_read_at_the_first_end_or_at_the_last_token() -> Result<(), BatchError> {
    let texts = ids("sot 5 eot 6 eot pad sot 5 6 7 pad pad sot 1 2 3 4 5");
    let found = Layout::for_texts(&lcl(), Rows { tokens: &texts, length: 6 })?;
    assert_eq!(found.tokens, ids("sot 5 soi sot 5 6 soi sot 1 2 3 4 soi"));
    assert_eq!(readings(&found).1, [(2, 0), (6, 1), (12, 2)]);
    let found = Layout::for_texts(&clip(), Rows { tokens: &texts, length: 6 })?;
    assert_eq!(found.tokens, ids("sot 5 eot sot 5 6 7 sot 1 2 3 4 5"));
    let empty = Layout::for_texts(&lcl(), Rows { tokens: &[0, 0], length: 2 });
    assert_eq!(empty, Err(BatchError::EmptyText { row: 0 }));
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() {
    let check = |rows: &[&str], images, expected: BatchError| {
        assert_eq!(layout(&lcl(), rows, images, Extent::Losses), Err(expected), "{rows:?} with {images} images");
    };
    check(&["5 6 95"], 0, BatchError::Vocabulary { row: 0, position: 2, token: 95, vocabulary: 95 });
    check(&["5 6", "5 -1"], 0, BatchError::Vocabulary { row: 1, position: 1, token: -1, vocabulary: 95 });
    check(&["1 2 3 4 5 6 7 8 9 10 11 12 13"], 0, BatchError::Length { length: 13, context: 12 });
    check(&["5 soi img eoi"], 1, BatchError::Placeholders { row: 0, placeholders: 1, starts: 1, per_image: 2 });
    check(&["5 6", "5 img img"], 1, BatchError::Placeholders { row: 1, placeholders: 2, starts: 0, per_image: 2 });
    check(&["5 soi img img eoi"], 0, BatchError::ImageCount { places: 1, images: 0 });
    check(&["5 soi img img eoi"], 2, BatchError::ImageCount { places: 1, images: 2 });
    let tokens = ids("5 soi img img eoi");
    let given = Layout::new(&lcl(), Rows { tokens: &tokens, length: 5 }, 1, Some(&[3]), Extent::Losses);
    assert_eq!(given, Err(BatchError::ImageRow { image: 0, given: Some(3), row: 0 }));
}

#[test]
fn an_empty_batch_is_laid_out_as_nothing() -> Result<(), BatchError> {
    let found = Layout::new(&lcl(), Rows { tokens: &[], length: 0 }, 0, None, Extent::Losses)?;
    assert_eq!(found, Layout::default());
    Ok(())
}
