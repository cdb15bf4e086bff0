//! Captions and what img2dataset notes of a sample, in lengths that are known beforehand.

use super::layout::mix;

/// Captions are made of these.
const WORDS: [&str; 32] = [
    "a", "photo", "of", "the", "old", "red", "house", "by", "river", "with", "two", "boats", "and", "green", "hills", "vintage", "poster",
    "wooden", "table", "in", "kitchen", "black", "cat", "on", "white", "chair", "summer", "dress", "for", "women", "city", "night",
];

/// A caption of exactly so many bytes, of which the last is no blank.
pub(super) fn caption(identity: u64, length: usize) -> String {
    let mut text = String::with_capacity(length + 8);
    let mut count = 0;
    while text.len() < length {
        text.push_str(WORDS[(mix(identity, count) % WORDS.len() as u64) as usize]);
        text.push(' ');
        count += 1;
    }
    text.truncate(length);
    if text.ends_with(' ') {
        text.pop();
        text.push('s');
    }
    text
}

/// What img2dataset notes of a sample, with the fields that LAION-400M adds. Each number has always as many digits.
pub(super) fn json(key: &str, identity: u64, caption_length: usize, url_pad: u32) -> String {
    let caption = caption(identity, caption_length);
    let [width, height] = [1, 2].map(|salt| 1_000 + mix(identity, u64::MAX - salt) % 1_000);
    let similarity = 3_000 + identity % 2_000;
    format!(
        "{{\"caption\": \"{caption}\", \"url\": \"https://images.example.org/{identity:016x}/{pad:x<url_pad$}.jpg\", \"key\": \"{key}\", \
         \"status\": \"success\", \"error_message\": null, \"width\": 256, \"height\": 256, \"original_width\": {width}, \
         \"original_height\": {height}, \"exif\": \"{{}}\", \"NSFW\": \"UNLIKELY\", \"similarity\": 0.{similarity}, \"LICENSE\": \"?\"}}",
        pad = "",
        url_pad = url_pad as usize,
    )
}

/// Bytes of [`json`].
pub(super) fn json_length(key_length: usize, caption_length: u32, url_pad: u32) -> u64 {
    // Everything else has a fixed length: see there.
    const REST: usize = "{\"caption\": \"\", \"url\": \"https://images.example.org/0123456789abcdef/.jpg\", \"key\": \"\", \
         \"status\": \"success\", \"error_message\": null, \"width\": 256, \"height\": 256, \"original_width\": 1000, \
         \"original_height\": 1000, \"exif\": \"{}\", \"NSFW\": \"UNLIKELY\", \"similarity\": 0.3000, \"LICENSE\": \"?\"}"
        .len();
    (REST + key_length) as u64 + u64::from(caption_length) + u64::from(url_pad)
}
