//! Decoding and transforms of images: bytes in, normalised pixels out.
