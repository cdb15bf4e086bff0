//! What a decoder puts rows of pixels into.
//!
//! Comes in: rows, from the top down, of each colour by itself. Goes out: a whole image, or what a resize makes of it without the image ever being
//! there.

/// Takes rows one after the other.
pub(super) trait Lines {
    /// Where red, green and blue of the next row go. Asked again, it gives the same.
    fn line(&mut self) -> [&mut [u8]; 3];

    /// That row is filled.
    fn filled(&mut self);
}

/// All rows one behind the other, from the beginning of a buffer: `[height, width, 3]` bytes.
pub(super) struct Whole<'a> {
    pixels: std::slice::ChunksExactMut<'a, u8>,
    line: [Vec<u8>; 3],
}

impl<'a> Whole<'a> {
    /// Makes the buffer large enough for an image, if it is smaller.
    pub(super) fn new(pixels: &'a mut Vec<u8>, (width, height): (u32, u32)) -> Self {
        let (width, height) = (width as usize, height as usize);
        if pixels.len() < 3 * width * height {
            pixels.resize(3 * width * height, 0);
        }
        Self { pixels: pixels.chunks_exact_mut(3 * width.max(1)), line: std::array::from_fn(|_| vec![0; width]) }
    }
}

impl Lines for Whole<'_> {
    fn line(&mut self) -> [&mut [u8]; 3] {
        self.line.each_mut().map(Vec::as_mut_slice)
    }

    fn filled(&mut self) {
        let [red, green, blue] = &self.line;
        let colours = red.iter().zip(green).zip(blue);
        for (pixel, ((red, green), blue)) in self.pixels.next().unwrap_or_default().as_chunks_mut().0.iter_mut().zip(colours) {
            *pixel = [*red, *green, *blue];
        }
    }
}
