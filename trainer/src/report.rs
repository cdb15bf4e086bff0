//! A run as one HTML page that needs nothing else: curves from `metrics.jsonl`, retrieval figures and examples.
//!
//! Comes in: records and, when there, an evaluation. Goes out: the page's text. It reads no file.

use std::fmt::Write;

use crate::{
    evaluation::retrieval::{Direction, Evaluation, Example},
    run::records::{Ended, Record, Started, StepRecord},
};

pub mod curve;

use curve::{Series, draw, escape};

/// The page of a run: its steps, what else happened, and evaluations.
#[must_use]
pub fn page(steps: &[StepRecord], events: &[Record], evaluations: &[Evaluation]) -> String {
    let started = events.iter().rev().find_map(|record| if let Record::Started(started) = record { Some(started) } else { None });
    let ended = events.iter().rev().find_map(|record| if let Record::Ended(ended) = record { Some(ended) } else { None });
    let title = started.map_or_else(|| "Training run".to_owned(), |started| format!("Training run {}", started.job));
    let mut html = format!("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>", escape(&title));
    html.push_str("<meta name=\"viewport\" content=\"width=device-width\"><style>");
    html.push_str(STYLE);
    let _ = write!(html, "</style></head><body><h1>{}</h1>", escape(&title));
    facts(&mut html, steps, started, ended);
    html.push_str("<h2>Curves</h2><div class=\"curves\">");
    curves(&mut html, steps);
    html.push_str("</div>");
    for evaluation in evaluations {
        retrieval(&mut html, evaluation);
    }
    html.push_str("</body></html>\n");
    html
}

const STYLE: &str = "\
body{font:15px/1.45 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}\
table{border-collapse:collapse}td,th{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top}td.n,th.n{text-align:right}\
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(430px,1fr));gap:1rem}\
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#555}\
.grid{stroke:#e3e3e3}.examples{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:1rem}\
.example{display:flex;gap:.8rem;border:1px solid #e3e3e3;border-radius:6px;padding:.7rem}.example img{width:96px;height:96px;image-rendering:auto}\
ol{margin:.2rem 0;padding-left:1.2rem}.hit{font-weight:600;color:#00734f}.small{color:#555}code{word-break:break-all}";

fn facts(html: &mut String, steps: &[StepRecord], started: Option<&Started>, ended: Option<&Ended>) {
    let mut rows: Vec<(&str, String)> = Vec::new();
    if let Some(started) = started {
        rows.push(("model", format!("{:.2} M parameters on {}", started.parameters as f64 / 1e6, started.device)));
        rows.push(("data", format!("{} samples a pass, {} a step", started.samples_per_pass, started.global_batch_size)));
    }
    if let (Some(first), Some(last)) = (steps.first(), steps.last()) {
        let planned = started.map_or(last.step + 1, |started| started.steps);
        rows.push(("steps", format!("{} of {planned}", last.step + 1)));
        rows.push(("loss", format!("{:.4} at the first step, {:.4} at the last", first.loss, last.loss)));
        rows.push(("samples trained", steps.iter().map(|step| step.rows).sum::<u64>().to_string()));
        let skipped: usize = steps.iter().map(|step| step.skipped_samples.len()).sum();
        if skipped > 0 {
            rows.push(("samples left out", skipped.to_string()));
        }
        let tolerated: u64 = steps.iter().flat_map(|step| step.tolerated_images.values()).sum();
        if tolerated > 0 {
            rows.push(("images used in spite of a fault that cost no pixel", tolerated.to_string()));
        }
        let seconds: f64 = steps.iter().map(|step| step.step_seconds + step.data_wait_seconds).sum();
        let speed = steps.iter().map(|step| step.rows).sum::<u64>() as f64 / seconds.max(f64::MIN_POSITIVE);
        rows.push(("speed", format!("{speed:.1} samples/s over all steps")));
    }
    if let Some(ended) = ended {
        rows.push(("parameter hash", format!("<code>{}</code>", escape(&ended.parameter_hash))));
    }
    html.push_str("<table>");
    for (name, value) in rows {
        let _ = write!(html, "<tr><th>{name}</th><td>{value}</td></tr>");
    }
    html.push_str("</table>");
}

fn curves(html: &mut String, steps: &[StepRecord]) {
    let series = |name: &'static str, value: fn(&StepRecord) -> f64| Series {
        name,
        points: steps.iter().map(|step| ((step.step + 1) as f64, value(step))).collect(),
    };
    let mut losses = vec![series("total", |step| step.loss), series("generation", |step| step.generation_loss)];
    if steps.iter().all(|step| step.generation_loss == 0.0) {
        losses.truncate(1);
    }
    html.push_str(&draw("Loss", &losses));
    html.push_str(&draw("Contrastive loss", &[series("contrastive", |step| step.contrastive_loss)]));
    html.push_str(&draw("Gradient norm", &[series("L2 over all parameters", |step| step.gradient_norm)]));
    html.push_str(&draw("Learning rate", &[series("learning rate", |step| step.learning_rate)]));
    html.push_str(&draw("Logit scale", &[series("exp(logit_scale)", |step| step.logit_scale)]));
    html.push_str(&draw("Samples per second", &[series("samples/s", |step| step.samples_per_second)]));
}

fn retrieval(html: &mut String, evaluation: &Evaluation) {
    let _ = write!(
        html,
        "<h2>Retrieval: {}</h2><p class=\"small\">{} images with {} distinct captions; an equal caption counts as a hit. Step {}.</p>",
        escape(&evaluation.name),
        evaluation.gallery,
        evaluation.distinct_captions,
        evaluation.completed_steps
    );
    html.push_str("<table><tr><th></th>");
    for k in evaluation.image_to_text.recalls.iter().map(|recall| recall.k) {
        let _ = write!(html, "<th class=\"n\">@{k}</th><th class=\"n small\">chance</th>");
    }
    html.push_str("</tr>");
    for (name, direction) in [("image → text", &evaluation.image_to_text), ("text → image", &evaluation.text_to_image)] {
        recall_row(html, name, direction);
    }
    html.push_str("</table><div class=\"examples\">");
    for example in &evaluation.examples {
        example_card(html, example);
    }
    html.push_str("</div>");
}

fn recall_row(html: &mut String, name: &str, direction: &Direction) {
    let _ = write!(html, "<tr><th>{name}</th>");
    for recall in &direction.recalls {
        let _ =
            write!(html, "<td class=\"n\">{:.1} %</td><td class=\"n small\">{:.1} %</td>", 100.0 * recall.recall, 100.0 * recall.chance);
    }
    html.push_str("</tr>");
}

fn example_card(html: &mut String, example: &Example) {
    html.push_str("<div class=\"example\">");
    if let Some(image) = &example.image_png_base64 {
        let _ = write!(html, "<img alt=\"\" src=\"data:image/png;base64,{}\">", escape(image));
    }
    let _ = write!(html, "<div><div class=\"small\">{}</div><ol>", escape(&example.caption));
    for found in &example.retrieved {
        let class = if found.correct { " class=\"hit\"" } else { "" };
        let _ = write!(html, "<li{class}>{} <span class=\"small\">{:.2}</span></li>", escape(&found.caption), found.similarity);
    }
    html.push_str("</ol></div></div>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::retrieval::{Recall, Retrieved};
    use crate::run::records::tests::step_record;

    fn evaluation() -> Evaluation {
        let direction = Direction { recalls: vec![Recall { k: 1, recall: 0.25, chance: 0.005 }] };
        Evaluation {
            name: "held-out <styles>".to_owned(),
            completed_steps: 3,
            gallery: 191,
            distinct_captions: 190,
            skipped: 0,
            image_to_text: direction.clone(),
            text_to_image: direction,
            examples: vec![Example {
                caption: "a <b>cat</b>".to_owned(),
                image_png_base64: Some("iVBORw0KGgo=".to_owned()),
                rank: 1,
                retrieved: vec![Retrieved { caption: "a cat".to_owned(), similarity: 0.5, correct: true }],
            }],
        }
    }

    #[test]
    fn the_page_holds_every_curve_and_loads_nothing() {
        let steps: Vec<StepRecord> = (0..20).map(step_record).collect();
        let html = page(&steps, &[], &[evaluation()]);
        for text in ["Loss", "Learning rate", "Logit scale", "Samples per second", "25.0 %", "0.5 %", "191 images", "20 of 20"] {
            assert!(html.contains(text), "{text} is missing");
        }
        assert_eq!(html.matches("<svg").count(), 6);
        for outside in ["http:", "https:", "<script", "<link", "url("] {
            assert!(!html.contains(outside), "{outside} is there");
        }
    }

    #[test]
    fn captions_cannot_put_markup_into_the_page() {
        let html = page(&[], &[], &[evaluation()]);
        assert!(html.contains("a &lt;b&gt;cat&lt;/b&gt;") && html.contains("held-out &lt;styles&gt;"));
        assert!(!html.contains("<b>cat"));
    }

    #[test]
    fn a_run_without_steps_still_has_a_page() {
        assert!(page(&[], &[], &[]).contains("no values yet"));
    }
}
