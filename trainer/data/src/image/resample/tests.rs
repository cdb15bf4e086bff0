//! What a resize makes, against another implementation of Pillow's: that of the crate `fast_image_resize`, by two passes. Whether they are Pillow's is
//! tested in `tests/image.rs`, by what Pillow made.

use fast_image_resize::{
    FilterType, ResizeAlg, ResizeOptions, Resizer,
    images::{TypedCroppedImage, TypedImage, TypedImageRef},
    pixels::U8x3,
};
use proptest::prelude::*;

use super::{strip::Long, *};

/// A pass of the other implementation: from the part `.0` of length `.1` of the columns and the rows of `part`, of an image of `columns`.
fn pass(
    (bytes, columns, part): (&[u8], u32, CropBox),
    ((left, width), (top, height)): ((f64, f64), (f64, f64)),
    (out_width, out_height): (u32, u32),
) -> Vec<u8> {
    let image = TypedImageRef::<U8x3>::from_buffer(columns, bytes.len() as u32 / 3 / columns, bytes).expect("the bytes are an image");
    let source = TypedCroppedImage::new(image, part.left, part.top, part.width, part.height).expect("the part lies within it");
    let mut out = vec![0; out_width as usize * out_height as usize * 3];
    let mut target = TypedImage::<U8x3>::from_buffer(out_width, out_height, &mut out).expect("the target has its size");
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).use_alpha(false);
    Resizer::new().resize_typed(&source, &mut target, &options.crop(left, top, width, height)).expect("the area lies within the part");
    out
}

fn reference(source: Pixels<'_>, window: Window, size: u32) -> Vec<u8> {
    let CropBox { left, width, .. } = window.visible;
    let CropBox { top, height, .. } = window.needed(size);
    let [area_left, area_top, area_width, area_height] = window.area;
    let columns = (area_left - f64::from(left), area_width);
    let part = CropBox { top, left, height, width };
    let narrowed = pass((source.bytes, source.width, part), (columns, (0.0, f64::from(height))), (size, height));
    let all = CropBox { top: 0, left: 0, height, width: size };
    pass((&narrowed, size, all), ((0.0, f64::from(size)), (area_top - f64::from(top), area_height)), (size, size))
}

/// Noise, with as many samples of 0 and of 255 as of all others: sums beyond both ends.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let sample = |number: u32| if number.is_multiple_of(2) { (number >> 8) as u8 } else { (number >> 1 & 1) as u8 * 255 };
    (0..length).map(|_| sample(random())).collect()
}

/// By what any processor can, and by what this one can besides.
fn resized(source: Pixels<'_>, window: Window, size: u32) -> Vec<Vec<u8>> {
    let all = [Some(Passes::of_any())].into_iter().chain(Passes::faster()).flatten();
    let resize = |passes| {
        let mut resampler = Resampler::with(passes);
        // Buffers are used again, with what was in them.
        resampler.rows.resize(4000, 77);
        resampler.quads.fill(Quad([[77; 16]; ROWS / 2]));
        resampler.between.resize(5000, 0x4d_004d);
        let mut out = vec![0; 3 * (size * size) as usize];
        resampler.resize(source, window, size, &mut out);
        out
    };
    all.map(resize).collect()
}

/// Sides that are small, or far from each other.
fn side() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 1..80_u32, 1 => 80..1500_u32]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn any_crop_at_any_scale_is_what_the_other_implementation_makes(
        (seed, width, height, size) in (0..u64::MAX, side(), side(), 1..70_u32),
        [top, left, bottom, right] in [0.0..1.0_f64, 0.0..1.0, 0.0..1.0, 0.0..1.0],
        reduction in 0..4_u32,
    ) {
        let bytes = noise(seed, 3 * (width * height) as usize);
        let source = Pixels { width, height, bytes: &bytes, tolerated: None };
        // A crop of the whole image, of which this one is the reduced.
        let reduction = 1 << reduction;
        let along = |first: f64, second: f64, length: u32| {
            let place = |part: f64| (part * f64::from(length * reduction)) as u32;
            (place(first.min(second)), place(first.max(second)) + 1)
        };
        let ((top, bottom), (left, right)) = (along(top, bottom, height), along(left, right, width));
        let window = Window::of_crop(CropBox { top, left, height: bottom - top, width: right - left }, reduction);
        let expected = reference(source, window, size);
        prop_assert!(resized(source, window, size).into_iter().all(|out| out == expected));
    }

    #[test]
    fn the_central_square_is_what_the_other_implementation_makes(
        (seed, width, height, size) in (0..u64::MAX, side(), side(), 1..70_u32),
    ) {
        let bytes = noise(seed, 3 * (width * height) as usize);
        let source = Pixels { width, height, bytes: &bytes, tolerated: None };
        let mut window = Window::of_central_square(width, height, size);
        // It takes no area that ends behind the image by a rounding.
        window.area[2] = window.area[2].min(f64::from(width) - window.area[0]).next_down();
        window.area[3] = window.area[3].min(f64::from(height) - window.area[1]).next_down();
        let expected = reference(source, window, size);
        prop_assert!(resized(source, window, size).into_iter().all(|out| out == expected));
    }

    #[test]
    fn a_strip_is_resized_in_either_order(
        (seed, width, height, size) in (0..u64::MAX, 1..40_u32, 1..40_u32, 1..40_u32),
        [top, left] in [0.0..1.0_f64, 0.0..1.0],
    ) {
        let bytes = noise(seed, 3 * (width * height) as usize);
        let source = Pixels { width, height, bytes: &bytes, tolerated: None };
        let (top, left) = ((top * f64::from(height)) as u32, (left * f64::from(width)) as u32);
        let crop = CropBox { top, left, height: height - top, width: width - left };
        let window = Window::of_crop(crop, 1);
        let mut resampler = Resampler::default();
        let mut out = vec![0; 3 * (size * size) as usize];
        let plan = resampler.plan(window, size);
        resampler.resize_strip(Long::Row, source, plan, &mut out);
        prop_assert!(out == reference(source, window, size));
        let plan = resampler.plan(window, size);
        resampler.resize_strip(Long::Column, source, plan, &mut out);
        // The other implementation's own order.
        let area = ((0.0, f64::from(crop.width)), (0.0, f64::from(crop.height)));
        prop_assert!(out == pass((&bytes, width, crop), area, (size, size)));
    }
}

#[test]
fn resizing_a_long_strip_keeps_the_memory_bounded() {
    for (width, height) in [(1, 2_000_000), (2_000_000, 1)] {
        let strip = vec![77; width as usize * height as usize * 3];
        let mut resampler = Resampler::default();
        let mut out = vec![0; 224 * 224 * 3];
        let window = Window::of_crop(CropBox { top: 0, left: 0, height, width }, 1);
        resampler.resize(Pixels { width, height, bytes: &strip, tolerated: None }, window, 224, &mut out);
        assert!(out.iter().all(|&value| value == 77));
        let bytes = resampler.rows.capacity() + resampler.between.capacity() * size_of::<Two>();
        assert!(bytes + resampler.strip.capacity() <= 32 << 20, "{bytes}");
    }
}

#[test]
fn an_image_of_the_outputs_size_is_copied() {
    let bytes = noise(1, 3 * 32 * 32);
    let source = Pixels { width: 32, height: 32, bytes: &bytes, tolerated: None };
    for out in resized(source, Window::of_crop(CropBox { top: 0, left: 0, height: 32, width: 32 }, 1), 32) {
        assert_eq!(out, bytes);
    }
}
