//! A test of a device at the start: products of matrices of whole numbers, which are exact in any order of summing, compared with what they
//! have to be.
//!
//! It finds a device that gives errors and one that is wrong always or often; a flipped bit once a day it does not find.

use std::cmp::Ordering;

use tch::{Device, Kind, TchError, Tensor};

/// Rows and columns on a processor: some milliseconds.
const SIDE: usize = 256;
/// On a GPU all of its multiprocessors have something to do.
const SIDE_CUDA: usize = 2048;
/// What is tested, in which precision: with what inner dimension and up to which absolute value, so that all sums are exact in it.
const PRODUCTS: [Product; 2] = [Product { kind: Kind::Float, inner: SIDE, most: 8 }, Product { kind: Kind::BFloat16, inner: 64, most: 1 }];

/// A device does not do what is asked of it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceTestError {
    /// libtorch or the driver reports an error.
    #[error("{device:?} cannot multiply matrices")]
    Failed {
        /// The device.
        device: Device,
        /// libtorch's reason.
        source: TchError,
    },
    /// The result is wrong.
    #[error(
        "{device:?} computes wrongly: row {row} of a product of whole numbers in {kind:?} is not what it has to be; have the machine checked"
    )]
    Wrong {
        /// The device.
        device: Device,
        /// The precision.
        kind: Kind,
        /// The first wrong row.
        row: usize,
    },
}

#[derive(Clone, Copy, Debug)]
struct Product {
    kind: Kind,
    inner: usize,
    most: i64,
}

impl DeviceTestError {
    /// Whether the device has no room: somebody else may be on it, and be gone the next time.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Failed { source, .. } if source.to_string().contains("out of memory"))
    }
}

/// Multiplies matrices in float32 and bfloat16 and checks the results on the host. Takes some milliseconds.
///
/// # Errors
/// See [`DeviceTestError`].
pub fn test_device(device: Device) -> Result<(), DeviceTestError> {
    let side = if device.is_cuda() { SIDE_CUDA } else { SIDE };
    for product in PRODUCTS {
        let (left, right) = (values(side, product.inner, product.most), values(product.inner, side, product.most));
        let found = multiply(product, side, &left, &right, device).map_err(|source| DeviceTestError::Failed { device, source })?;
        if let Some(row) = find_wrong_row(&left, &right, &found, side) {
            return Err(DeviceTestError::Wrong { device, kind: product.kind, row });
        }
    }
    Ok(())
}

fn multiply(product: Product, side: usize, left: &[f64], right: &[f64], device: Device) -> Result<Vec<f64>, TchError> {
    let (side, inner) = (side as i64, product.inner as i64);
    let place =
        |values: &[f64], shape: [i64; 2]| Tensor::f_from_slice(values)?.f_reshape(shape)?.f_to_kind(product.kind)?.f_to_device(device);
    let result = place(left, [side, inner])?.f_matmul(&place(right, [inner, side])?)?;
    Vec::try_from(result.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_reshape([-1])?)
}

/// Whole numbers from `-most` to `most`, row by row, without a pattern that a shifted row would keep.
fn values(rows: usize, columns: usize, most: i64) -> Vec<f64> {
    let span = 2 * most + 1;
    let value = |row: i64, column: i64| ((31 * row + 17 * column + 7 * row * column + row * row) % span - most) as f64;
    (0..rows as i64).flat_map(|row| (0..columns as i64).map(move |column| value(row, column))).collect()
}

/// Both sides of `found = left · right` are multiplied with one vector, which takes a square of the side instead of its cube. No element of the
/// vector is zero, so no single wrong element goes unseen.
fn find_wrong_row(left: &[f64], right: &[f64], found: &[f64], side: usize) -> Option<usize> {
    let vector: Vec<f64> = (0..side).map(|index| (1 + index * 7 % 13) as f64).collect();
    let times = |matrix: &[f64], vector: &[f64]| -> Vec<f64> {
        matrix.chunks(vector.len()).map(|row| row.iter().zip(vector).map(|(value, factor)| value * factor).sum()).collect()
    };
    let expected = times(left, &times(right, &vector));
    times(found, &vector).iter().zip(&expected).position(|(found, expected)| found.partial_cmp(expected) != Some(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_computes_rightly() -> Result<(), DeviceTestError> {
        test_device(Device::Cpu)
    }

    #[test]
    fn every_wrong_element_is_found() -> Result<(), TchError> {
        for product in PRODUCTS {
            let (left, right) = (values(SIDE, product.inner, product.most), values(product.inner, SIDE, product.most));
            let found = multiply(product, SIDE, &left, &right, Device::Cpu)?;
            assert!(found.iter().any(|value| value.abs() > 16.0), "all are small: {:?}", product.kind);
            for place in (0..SIDE * SIDE).step_by(997) {
                let mut wrong = found.clone();
                wrong[place] += 1.0;
                assert_eq!(find_wrong_row(&left, &right, &wrong, SIDE), Some(place / SIDE), "{place}");
                wrong[place] = f64::NAN;
                assert_eq!(find_wrong_row(&left, &right, &wrong, SIDE), Some(place / SIDE), "{place}");
            }
        }
        Ok(())
    }
}
