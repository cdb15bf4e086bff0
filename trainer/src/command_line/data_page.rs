//! Samples as one HTML page that needs nothing else: pictures as the model gets them, and every token coloured by what training does with it.
//!
//! Comes in: samples that were made visible, and the model's configuration. Goes out: the page's text. It reads no file.

use std::fmt::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use lcl_data::{Seen, Viewed, tokenizer::Tokenizer};
use lcl_torch::{BatchError, TokenUse, token_uses};
use lcl_trainer_config::ModelConfig;

use crate::report::curve::escape;

const STYLE: &str = "\
body{font:15px/1.7 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1rem;margin:2rem 0 .3rem;word-break:break-all}.small{color:#555}\
.tokens{border:1px solid #e3e3e3;border-radius:6px;padding:.7rem}.tokens img{vertical-align:middle;margin:.2rem;max-height:160px}\
span.t{border-radius:3px;padding:0 1px;white-space:pre-wrap}\
.generation{background:#d7ecff}.contrast{background:#ffe0b8}.both{background:linear-gradient(#ffe0b8 50%,#d7ecff 50%)}.none{color:#999}";

/// The page of some samples. `all` is how many there are.
pub fn page(title: &str, config: &ModelConfig, samples: &[(u64, Viewed)], all: u64) -> Result<String, BatchError> {
    let mut html = format!("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>", escape(title));
    let _ = write!(html, "<meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>");
    let _ = write!(
        html,
        "<h1>{}</h1><p>{} of {all} samples, as the model sees them: pictures after the transform, ",
        escape(title),
        samples.len()
    );
    html.push_str("and every token by what training does with it: ");
    for (class, words) in [
        ("generation", "predicted by the generation loss from what is before it"),
        ("contrast", "where the text before it is contrasted with the image"),
        ("both", "both"),
        ("none", "neither: an influence through attention alone"),
    ] {
        let _ = write!(html, "<span class=\"t {class}\">{words}</span> ");
    }
    html.push_str("</p>");
    for (number, viewed) in samples {
        let source = if viewed.source == "data" { String::new() } else { format!("{}: ", viewed.source) };
        let name = format!("sample {number}: {source}{} of {}", viewed.key, viewed.shard.display());
        let _ = write!(html, "<h2>{}</h2>", escape(&name));
        match &viewed.content {
            Ok(seen) => sequence(&mut html, config, seen)?,
            Err(cause) => {
                let _ = write!(html, "<p class=\"small\">of no use in training: {}</p>", escape(cause));
            }
        }
    }
    html.push_str("</body></html>\n");
    Ok(html)
}

fn sequence(html: &mut String, config: &ModelConfig, seen: &Seen) -> Result<(), BatchError> {
    let uses = token_uses(config, &seen.tokens)?;
    let names = Tokenizer::clip().describe(&seen.tokens);
    let special = &config.shape.special_tokens;
    let placeholders = |tokens: &[i64]| tokens.iter().take_while(|token| **token == special.image_placeholder).count();
    let _ = write!(html, "<p class=\"small\">{} tokens, {} images</p><div class=\"tokens\">", seen.tokens.len(), seen.images.len());
    let mut images = seen.images.iter();
    let mut at = 0;
    while let (Some(token), Some(name), Some(used)) = (seen.tokens.get(at), names.get(at), uses.get(at)) {
        let count = if *token == special.image_placeholder { placeholders(seen.tokens.get(at..).unwrap_or_default()) } else { 1 };
        if count > 1 || *token == special.image_placeholder {
            for png in images.by_ref().take(1) {
                let _ = write!(html, "<img alt=\"\" src=\"data:image/png;base64,{}\">", STANDARD.encode(png));
            }
            let _ = write!(html, "<span class=\"t none\" title=\"{at}\">{} × {count}</span> ", escape(name));
        } else {
            let text = name.strip_suffix("</w>").map_or_else(|| escape(name), |word| escape(word) + " ");
            let _ = write!(html, "<span class=\"t {}\" title=\"{at}: {token}\">{text}</span>", class_of(*used));
        }
        at += count;
    }
    // Without a place in the sequence, as with the clip objective.
    for png in images {
        let _ = write!(html, "<img alt=\"\" src=\"data:image/png;base64,{}\">", STANDARD.encode(png));
    }
    html.push_str("</div>");
    Ok(())
}

const fn class_of(used: TokenUse) -> &'static str {
    match (used.predicted, used.contrasted) {
        (true, true) => "both",
        (true, false) => "generation",
        (false, true) => "contrast",
        (false, false) => "none",
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use lcl_trainer_config::{Objective, Precision, Preset};

    use super::*;

    #[test]
    fn pictures_stand_at_their_places_and_tokens_have_the_colour_of_their_loss() {
        let mut shape = Preset::Tiny.shape();
        (shape.vision.image_size, shape.vision.patch_size, shape.text.context_length) = (32, 16, 32);
        let objective = Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 };
        let precision = Precision::Float32;
        let config = ModelConfig { shape, objective, drop_path: 0.0, layer_scale: None, activation_checkpointing: false, precision };
        let special = config.shape.special_tokens;
        let image = [[special.start_of_image].as_slice(), &[special.image_placeholder; 4], &[special.end_of_image]].concat();
        let cat: Vec<i64> = Tokenizer::clip().encode("<b> cat").into_iter().map(i64::from).collect();
        let tokens = [[special.start_of_text].as_slice(), &cat, &image, &[special.end_of_text]].concat();
        let viewed = |content| Viewed { source: "mmc4".to_owned(), shard: PathBuf::from("/a<b.zip"), key: "line".to_owned(), content };
        let seen = Seen { tokens, images: vec![b"picture".to_vec()] };
        let samples = [(3, viewed(Ok(seen))), (4, viewed(Err("no_image_fits".to_owned())))];
        let html = page("a & b", &config, &samples, 9).expect("the sequence is sound");
        for part in [
            "<title>a &amp; b</title>",
            "2 of 9 samples",
            "sample 3: mmc4: line of /a&lt;b.zip",
            "class=\"t none\" title=\"0: 49406\">&lt;start_of_text&gt;",
            ">cat </span>",
            "data:image/png;base64,cGljdHVyZQ==\"><span class=\"t none\"",
            "&lt;img_placehold&gt; × 4",
            "of no use in training: no_image_fits",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
        let of_class = |class: &str| html.matches(&format!("<span class=\"t {class}\" title")).count();
        // The text and the end; the mark of the image; start, placeholders and end of the image.
        assert_eq!((of_class("generation"), of_class("both"), of_class("contrast"), of_class("none")), (cat.len() + 1, 1, 0, 3));
        assert!(!html.contains("/a<b"));
    }
}
