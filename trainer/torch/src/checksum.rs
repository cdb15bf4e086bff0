//! A number by which members notice that their states have drifted apart: far cheaper than a hash, and blind to nothing that happens by
//! chance.
//!
//! Comes in: tensors, on any device. Goes out: 64 bits, computed where the tensors are. Every flipped bit changes it; two faults cancel each
//! other in one case in 2⁶⁴ or so. It is no protection against somebody who means it.

use tch::{Kind, TchError, Tensor};

/// Over the bits of all tensors, in the order given.
pub(crate) fn checksum<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<u64, TchError> {
    // Asked for before they are read, so that a GPU computes one sum after the other.
    let sums = tensors.into_iter().map(sum_of_words).collect::<Result<Vec<_>, _>>()?;
    let mut all = 0;
    for sum in sums {
        all = mix(all ^ u64::from_ne_bytes(sum.f_int64_value(&[])?.to_ne_bytes()));
    }
    Ok(all)
}

/// The sum, without carry, of a tensor's memory read as numbers of 64 bits.
fn sum_of_words(tensor: &Tensor) -> Result<Tensor, TchError> {
    let mut flat = tensor.f_detach()?.f_contiguous()?.f_view([-1])?;
    if !(flat.data_ptr() as usize).is_multiple_of(8) {
        // A window into a larger tensor, which cannot be read as other numbers where it lies.
        let mut copy = flat.f_empty_like()?;
        copy.f_copy_(&flat)?;
        flat = copy;
    }
    let bytes = flat.f_view_dtype(Kind::Uint8)?;
    let length = bytes.numel() as i64;
    let words = bytes.f_narrow(0, 0, length - length % 8)?.f_view_dtype(Kind::Int64)?.f_sum(Kind::Int64)?;
    let rest = bytes.f_narrow(0, length - length % 8, length % 8)?;
    // Their places count, too.
    let weights = Tensor::f_arange(length % 8, (Kind::Int64, bytes.device()))?;
    let rest = rest.f_to_kind(Kind::Int64)?.f_bitwise_left_shift(&weights.f_mul_scalar(8)?)?.f_sum(Kind::Int64)?;
    words.f_add(&rest)
}

/// The finalizer of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): without it two tensors
/// that change places would not be noticed.
const fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_every_tensor_counts() -> Result<(), TchError> {
        for length in [1, 2, 3, 7, 64] {
            let numbers: Vec<f32> = (0..length).map(|index| 0.25 + index as f32).collect();
            let other = Tensor::from_slice(&[9f32, 8.0]);
            let expected = checksum([&Tensor::from_slice(&numbers), &other])?;
            assert_eq!(checksum([&Tensor::from_slice(&numbers).view([-1, 1]), &other])?, expected, "no bit is another");
            assert_ne!(checksum([&other, &Tensor::from_slice(&numbers)])?, expected, "their order counts");
            for index in 0..numbers.len() {
                for bit in 0..32 {
                    let mut flipped = numbers.clone();
                    flipped[index] = f32::from_bits(flipped[index].to_bits() ^ 1 << bit);
                    assert_ne!(checksum([&Tensor::from_slice(&flipped), &other])?, expected, "bit {bit} of number {index} of {length}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn where_a_tensor_begins_in_memory_does_not_count() -> Result<(), TchError> {
        let whole = Tensor::arange(9, (Kind::Float, tch::Device::Cpu));
        assert_eq!(checksum([&whole.narrow(0, 1, 7)])?, checksum([&whole.narrow(0, 1, 7).copy()])?);
        Ok(())
    }

    #[test]
    fn a_tensor_that_is_a_window_of_another_is_read_as_it_is_seen() -> Result<(), TchError> {
        let whole = Tensor::arange(12, (Kind::Float, tch::Device::Cpu)).view([3, 4]);
        let window = whole.narrow(1, 1, 2);
        assert_eq!(checksum([&window])?, checksum([&window.copy()])?);
        assert_ne!(checksum([&window])?, checksum([&whole.narrow(1, 0, 2)])?);
        Ok(())
    }
}
