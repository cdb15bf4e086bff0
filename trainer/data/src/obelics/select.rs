//! Which images of a stretch are used.
//!
//! Comes in: a stretch, and for every address its image or that there is none. Goes out: the document that is composed to a sequence, with the
//! images in it. What an image is and what makes it readable is the caller's matter.

use crate::{document::Document, obelics::Part};

/// Images of a stretch that are kept unless a setting says otherwise: as many as LCL's reader of MMC4 keeps of a document, and `OmniCorpus`'s
/// readers of OBELICS.
pub const IMAGES_KEPT: usize = 6;

/// Fills `document` with the parts of a stretch, and gives the images in it: image `n` of the document is entry `n`.
///
/// `fetch` is asked for one address after the other until `limit` images are there (without one, until the end); further images are left out
/// without being asked for. One that it does not have, not stored or not readable, is left out and does not count. Texts all stay.
pub fn select_images<T, E>(
    parts: &[Part],
    limit: Option<usize>,
    mut fetch: impl FnMut(&str) -> Result<Option<T>, E>,
    document: &mut Document,
) -> Result<Vec<T>, E> {
    document.clear();
    let mut images = Vec::new();
    for part in parts {
        match part {
            Part::Text(text) => document.push_text(text),
            Part::Image(_) if limit.is_some_and(|limit| images.len() >= limit) => {}
            Part::Image(address) => {
                if let Some(image) = fetch(address)? {
                    document.push_image(images.len() as u32);
                    images.push(image);
                }
            }
        }
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document;

    /// Keeps of `a`, text, `b`, `c`, `d` those that are not in `gone`; gives the order of parts and the addresses that were asked for.
    fn check(limit: Option<usize>, gone: &str, expected: &str, asked: &str) {
        let image = |name: &str| Part::Image(name.to_owned());
        let parts = [image("a"), Part::Text("text".to_owned()), image("b"), image("c"), image("d")];
        let (mut document, mut asked_for) = (Document::new(), String::new());
        document.push_text("of another stretch");
        let fetch = |address: &str| {
            asked_for.push_str(address);
            Ok::<_, ()>((!gone.contains(address)).then(|| address.to_owned()))
        };
        let images = select_images(&parts, limit, fetch, &mut document).expect("nothing fails");
        let part = |part: &document::Part| match part {
            document::Part::Text(range) => document.text(range).to_owned(),
            document::Part::Image(number) => images[*number as usize].clone(),
        };
        let found: Vec<String> = document.parts().iter().map(part).collect();
        assert_eq!((found.join(" ").as_str(), asked_for.as_str()), (expected, asked));
    }

    #[test]
    fn the_first_images_that_are_there_are_kept_in_their_order() {
        check(None, "", "a text b c d", "abcd");
        check(Some(2), "", "a text b", "ab");
        check(Some(2), "b", "a text c", "abc");
        check(Some(2), "abc", "text d", "abcd");
        check(Some(9), "abcd", "text", "abcd");
        check(Some(0), "", "text", "");
    }

    #[test]
    fn an_error_ends_the_selection() {
        let fetch = |_: &str| Err::<Option<()>, &str>("storage is away");
        assert_eq!(select_images(&[Part::Image("a".to_owned())], None, fetch, &mut Document::new()), Err("storage is away"));
    }
}
