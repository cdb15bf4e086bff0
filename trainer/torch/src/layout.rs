//! Where every token of a micro-batch goes: which positions the language model computes, what is read from it, what is predicted.
//!
//! Comes in: token ids on the host and the sizes of a model. Goes out: a [`Layout`] of index lists, or a [`BatchError`] that names the
//! row. No tensor is touched, so every rule about sequences is tested without libtorch.
//!
//! A position is *needed* when a loss reads it or when a needed position of its row comes after it (attention is causal). All others,
//! padding and the image tokens at a row's end among them, have no influence on losses or gradients and are not computed: rows are
//! cut after their last needed position and lie packed one after the other.

mod uses;

use lcl_trainer_config::{ModelConfig, ModelShape, Objective, SpecialTokens};

pub use uses::{TokenUse, token_uses};

/// Id of padding.
const PAD: i64 = 0;

/// A micro-batch does not fit the model or itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Tokens are not a matrix of int64.
    #[error("tokens are {found}: expected an int64 tensor [rows, length]")]
    Tokens {
        /// Kind and shape.
        found: String,
    },
    /// Images have the wrong size or type.
    #[error("images are {found}: expected {expected}")]
    Images {
        /// Kind and shape.
        found: String,
        /// Kind and shape the model wants.
        expected: String,
    },
    /// There is not one slot per row.
    #[error("{rows} rows with {slots} slots: every row needs its slot")]
    Slots {
        /// Rows of tokens.
        rows: usize,
        /// Slots given.
        slots: usize,
    },
    /// A row is longer than the model's context.
    #[error("rows have {length} tokens, but the model's context is {context}: cut them or choose a model with a longer context")]
    Length {
        /// Tokens of a row.
        length: usize,
        /// The model's context.
        context: i64,
    },
    /// A token is not in the vocabulary.
    #[error("row {row} has token {token} at position {position}, outside of the vocabulary of {vocabulary} entries")]
    Vocabulary {
        /// The row.
        row: usize,
        /// Position in the row.
        position: usize,
        /// The id.
        token: i64,
        /// Entries of the vocabulary.
        vocabulary: i64,
    },
    /// Image tokens and starts of images disagree.
    #[error("row {row} has {placeholders} image tokens for {starts} starts of images: the model puts {per_image} tokens in for an image")]
    Placeholders {
        /// The row.
        row: usize,
        /// `img_placehold` tokens in it.
        placeholders: usize,
        /// `soi` tokens in it.
        starts: usize,
        /// Tokens of one image.
        per_image: i64,
    },
    /// There is not one source per row, or one is unknown.
    #[error("{rows} rows have the sources {given:?}: every row needs one of the {known} that losses are told apart by")]
    Sources {
        /// Rows of tokens.
        rows: usize,
        /// Sources given.
        given: Vec<u32>,
        /// How many there are.
        known: usize,
    },
    /// There are more or fewer images than the tokens ask for.
    #[error("the tokens have places for {places} images, but {images} images are given")]
    ImageCount {
        /// `soi` tokens (LCL) or rows (CLIP) of the batch.
        places: usize,
        /// Images given.
        images: usize,
    },
    /// The given rows of the images are not those of the tokens.
    #[error("image {image} is said to belong to row {given:?}, but the tokens place it in row {row}")]
    ImageRow {
        /// Index among the batch's images.
        image: usize,
        /// The row given with the batch; `None` when there is none for this image.
        given: Option<u32>,
        /// The row that has its place.
        row: usize,
    },
    /// A caption has nothing to read the text feature at.
    #[error("row {row} has no end of text: the CLIP objective reads the text's feature there")]
    NoEndOfText {
        /// The row.
        row: usize,
    },
    /// A text to encode is empty.
    #[error("row {row} has only padding: a text needs at least one token")]
    EmptyText {
        /// The row.
        row: usize,
    },
}

/// What is to be read from the language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What the losses need.
    Losses,
    /// What the contrastive loss alone needs: the first pass of accumulation.
    Contrast,
    /// Every position of every row, padding included: for comparison with recorded outputs.
    Everything,
}

/// Departures from the definition that tests put in to see that others notice. The default is the definition.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayoutFaults {
    /// Counts an image whose `soi` has no context before it.
    pub count_leading_image: bool,
    /// Counts the prediction of `eoi`.
    pub count_end_of_image: bool,
}

/// The sizes that rows have to fit.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    special: SpecialTokens,
    tokens_per_image: i64,
    context: i64,
    vocabulary: i64,
    clip: bool,
    faults: LayoutFaults,
}

impl Rules {
    pub(crate) fn new(config: &ModelConfig, faults: LayoutFaults) -> Self {
        let ModelShape { vision, text, special_tokens, .. } = &config.shape;
        Self {
            special: *special_tokens,
            tokens_per_image: vision.tokens(),
            context: text.context_length,
            vocabulary: text.vocab_size,
            clip: matches!(config.objective, Objective::Clip),
            faults,
        }
    }

    /// Whether the position before `token` is trained to predict it.
    fn predicted(&self, token: i64) -> bool {
        let end_of_image = token == self.special.end_of_image && !self.faults.count_end_of_image;
        !(self.clip || token == PAD || token == self.special.image_placeholder || end_of_image)
    }

    fn check_row(&self, row: usize, tokens: &[i64]) -> Result<(), BatchError> {
        let outside = tokens.iter().position(|token| !(0..self.vocabulary).contains(token));
        if let Some((position, &token)) = outside.and_then(|position| Some((position, tokens.get(position)?))) {
            return Err(BatchError::Vocabulary { row, position, token, vocabulary: self.vocabulary });
        }
        let count = |id| tokens.iter().filter(|token| **token == id).count();
        let (placeholders, starts) = (count(self.special.image_placeholder), count(self.special.start_of_image));
        if placeholders as u64 != starts as u64 * self.tokens_per_image.unsigned_abs() {
            return Err(BatchError::Placeholders { row, placeholders, starts, per_image: self.tokens_per_image });
        }
        Ok(())
    }
}

/// Token ids of a micro-batch on the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) tokens: &'a [i64],
    /// Tokens of a row, at least 1.
    pub(crate) length: usize,
}

impl<'a> Rows<'a> {
    fn iter(self) -> impl Iterator<Item = (usize, &'a [i64])> {
        self.tokens.chunks(self.length.max(1)).enumerate()
    }
}

/// Index lists of a micro-batch. "Packed" indices count computed positions, rows one after the other; "output" indices count the
/// positions whose final hidden state is read, in packed order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Token id of every packed position.
    pub(crate) tokens: Vec<i64>,
    /// Place in its row of every packed position.
    pub(crate) positions: Vec<i64>,
    /// Rows with a computed position.
    pub(crate) rows: usize,
    /// Computed positions of the longest row.
    pub(crate) length: usize,
    /// For every place of the padded matrix [rows, length]: a packed index; places behind a row's end have that of its last position.
    pub(crate) unpack: Vec<i64>,
    /// For every packed index: its place in the padded matrix.
    pub(crate) pack: Vec<i64>,
    /// Packed indices that take an image token.
    pub(crate) image_targets: Vec<i64>,
    /// Which one each takes: image · tokens per image + token.
    pub(crate) image_sources: Vec<i64>,
    /// Packed indices of the outputs.
    pub(crate) outputs: Vec<i64>,
    /// Output indices that predict the next token.
    pub(crate) predictions: Vec<i64>,
    /// What each has to predict.
    pub(crate) labels: Vec<i64>,
    /// Output indices of the contrastive text features.
    pub(crate) contrast_texts: Vec<i64>,
    /// The image each belongs to.
    pub(crate) contrast_images: Vec<i64>,
    /// Row of every image.
    pub(crate) image_rows: Vec<usize>,
    /// Predicted tokens of every row.
    pub(crate) row_predictions: Vec<usize>,
}

impl Layout {
    /// Lays out rows with their images. `image_rows`: row of every image if the caller says so; it is checked against the tokens.
    pub(crate) fn new(
        rules: &Rules,
        rows: Rows<'_>,
        images: usize,
        image_rows: Option<&[u32]>,
        extent: Extent,
    ) -> Result<Self, BatchError> {
        if rows.length as u64 > rules.context.unsigned_abs() {
            return Err(BatchError::Length { length: rows.length, context: rules.context });
        }
        let mut layout = Self::default();
        for (row, tokens) in rows.iter() {
            rules.check_row(row, tokens)?;
            let read = RowReadings::new(rules, row, tokens, extent)?;
            layout.push_row(rules, row, tokens, &read);
        }
        layout.check_images(images, image_rows)?;
        layout.pad();
        Ok(layout)
    }

    /// Lays out texts without images whose feature is read at the first `end_of_text`, or at the last token if there is none. With the
    /// LCL objective that token becomes `soi`, the token at which training asks for the feature of the text before it.
    pub(crate) fn for_texts(rules: &Rules, rows: Rows<'_>) -> Result<Self, BatchError> {
        if rows.length as u64 > rules.context.unsigned_abs() {
            return Err(BatchError::Length { length: rows.length, context: rules.context });
        }
        let mut layout = Self::default();
        for (row, tokens) in rows.iter() {
            let end = tokens.iter().position(|token| *token == rules.special.end_of_text);
            let end = end.or_else(|| tokens.iter().rposition(|token| *token != PAD)).ok_or(BatchError::EmptyText { row })?;
            let mut text = tokens.get(..=end).unwrap_or(tokens).to_vec();
            if let (false, Some(last)) = (rules.clip, text.last_mut()) {
                *last = rules.special.start_of_image;
            }
            let outside = text.iter().position(|token| !(0..rules.vocabulary).contains(token));
            if let Some((position, &token)) = outside.and_then(|position| Some((position, text.get(position)?))) {
                return Err(BatchError::Vocabulary { row, position, token, vocabulary: rules.vocabulary });
            }
            let read = RowReadings { needed: text.len(), outputs: vec![end], contrast: vec![(end, row)], ..RowReadings::default() };
            layout.push_row(rules, row, &text, &read);
        }
        layout.pad();
        Ok(layout)
    }

    /// Whether the packed rows fill the padded matrix, so that one is the other.
    pub(crate) fn is_dense(&self) -> bool {
        self.tokens.len() == self.rows * self.length
    }

    fn push_row(&mut self, rules: &Rules, row: usize, tokens: &[i64], read: &RowReadings) {
        let start = self.tokens.len() as i64;
        let first_output = self.outputs.len() as i64;
        let first_image = self.image_rows.len() as i64;
        let mut placeholder = first_image * rules.tokens_per_image;
        for (position, &token) in tokens.iter().enumerate().take(read.needed) {
            if token == rules.special.image_placeholder {
                self.image_targets.push(start + position as i64);
                self.image_sources.push(placeholder);
                placeholder += 1;
            }
            self.tokens.push(token);
            self.positions.push(position as i64);
        }
        self.outputs.extend(read.outputs.iter().map(|position| start + *position as i64));
        let output = |position: &usize| first_output + read.outputs.partition_point(|other| other < position) as i64;
        self.predictions.extend(read.predictions.iter().map(|(position, _)| output(position)));
        self.labels.extend(read.predictions.iter().map(|(_, label)| *label));
        self.row_predictions.push(read.predictions.len());
        self.contrast_texts.extend(read.contrast.iter().map(|(position, _)| output(position)));
        self.contrast_images.extend(read.contrast.iter().map(|(_, image)| first_image + *image as i64));
        self.image_rows.extend(std::iter::repeat_n(row, read.images));
        if read.needed > 0 {
            self.rows += 1;
            self.length = self.length.max(read.needed);
        }
    }

    fn check_images(&self, images: usize, given: Option<&[u32]>) -> Result<(), BatchError> {
        if images != self.image_rows.len() {
            return Err(BatchError::ImageCount { places: self.image_rows.len(), images });
        }
        let Some(given) = given else { return Ok(()) };
        for (image, &row) in self.image_rows.iter().enumerate() {
            let given = given.get(image).copied();
            if given.is_none_or(|given| given as usize != row) {
                return Err(BatchError::ImageRow { image, given, row });
            }
        }
        Ok(())
    }

    /// Fills `pack` and `unpack` from `positions`: a row starts where the position is 0.
    fn pad(&mut self) {
        let length = self.length as i64;
        let mut row = -1;
        for (index, &position) in self.positions.iter().enumerate() {
            if position == 0 {
                let filled = self.unpack.len() as i64;
                let last = index as i64 - 1;
                row += 1;
                self.unpack.extend(std::iter::repeat_n(last, (row * length - filled).max(0) as usize));
            }
            self.unpack.push(index as i64);
            self.pack.push(row * length + position);
        }
        let last = self.positions.len() as i64 - 1;
        self.unpack.resize(self.rows * self.length, last);
    }
}

/// What is read from one row.
#[derive(Debug, Default)]
struct RowReadings {
    /// Positions to compute.
    needed: usize,
    /// Ascending positions whose hidden state is read.
    outputs: Vec<usize>,
    /// (position, next token).
    predictions: Vec<(usize, i64)>,
    /// (position, image within the row).
    contrast: Vec<(usize, usize)>,
    /// Images of the row.
    images: usize,
}

impl RowReadings {
    fn new(rules: &Rules, row: usize, tokens: &[i64], extent: Extent) -> Result<Self, BatchError> {
        let mut read = Self::default();
        if rules.clip {
            let end = tokens.iter().position(|token| *token == rules.special.end_of_text);
            read.contrast.push((end.ok_or(BatchError::NoEndOfText { row })?, 0));
            read.images = 1;
        } else {
            let starts = tokens.iter().enumerate().filter(|(_, token)| **token == rules.special.start_of_image);
            for (image, (position, _)) in starts.enumerate() {
                // A start of image at position 0 has no context.
                if position > 0 || rules.faults.count_leading_image {
                    read.contrast.push((position, image));
                }
                read.images += 1;
            }
        }
        if extent != Extent::Contrast {
            let next = tokens.iter().enumerate().skip(1).filter(|(_, token)| rules.predicted(**token));
            read.predictions.extend(next.map(|(position, token)| (position - 1, *token)));
        }
        if extent == Extent::Everything {
            read.outputs.extend(0..tokens.len());
        } else {
            read.outputs.extend(read.predictions.iter().map(|(position, _)| *position));
            read.outputs.extend(read.contrast.iter().map(|(position, _)| *position));
            read.outputs.sort_unstable();
            read.outputs.dedup();
        }
        read.needed = read.outputs.last().map_or(0, |last| last + 1);
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
