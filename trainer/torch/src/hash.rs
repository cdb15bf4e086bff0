//! A fingerprint of tensors, to compare members and runs.

use tch::{Device, TchError, Tensor};

/// Bytes from which on several threads hash them: BLAKE3's own advice, below which handing them over takes longer.
const WORTH_THREADS: usize = 128 << 10;

/// BLAKE3 over names, shapes, types and bytes, in the order given; hexadecimal. Equal exactly when every bit is. Takes all cores.
pub(crate) fn hash_tensors<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<String, TchError> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    for (name, tensor) in tensors {
        // Lengths first, so that no two lists of tensors give the same stream.
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&(tensor.dim() as u64).to_le_bytes());
        for size in tensor.size() {
            hasher.update(&size.to_le_bytes());
        }
        hasher.update(format!("{:?}", tensor.kind()).as_bytes());
        let host = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        bytes.resize(host.numel() * host.kind().elt_size_in_bytes(), 0);
        host.f_copy_data_u8(&mut bytes, host.numel())?;
        if bytes.len() < WORTH_THREADS {
            hasher.update(&bytes);
        } else {
            hasher.update_rayon(&bytes);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_shape_type_and_every_bit_count() -> Result<(), TchError> {
        let base = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]);
        let hash = |name: &str, tensor: &Tensor| hash_tensors([(name, tensor)]);
        let expected = hash("a", &base)?;
        assert_eq!(hash("a", &base.copy())?, expected);
        for (name, other) in [
            ("b", base.shallow_clone()),
            ("a", base.view([2, 2])),
            ("a", Tensor::from_slice(&[1f32, 2.0, 3.0, f32::from_bits(4f32.to_bits() + 1)])),
            ("a", base.to_kind(tch::Kind::Double)),
        ] {
            assert_ne!(hash(name, &other)?, expected);
        }
        Ok(())
    }
}
