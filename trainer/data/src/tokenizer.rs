//! CLIP byte-pair encoding: text in, token ids out.
