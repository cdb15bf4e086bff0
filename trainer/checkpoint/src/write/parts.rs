//! Uploads in parts, for shards too large for one request.

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use object_store::{MultipartUpload, UploadPart};

use crate::store::blocking;

/// Parts of a large upload under way at once per shard.
const PARALLEL_PARTS: usize = 4;

/// Least bytes of a part. S3 asks for 5 MiB.
const LEAST_PART_BYTES: u64 = 16 << 20;

/// Most parts S3 allows in one upload.
const MOST_PARTS: u64 = 10_000;

/// Bytes of a part: what S3 allows for a file of this length, and no more than one request may have.
pub(super) fn part_bytes(length: u64, single_put_limit: u64) -> usize {
    let bytes = length.div_ceil(MOST_PARTS).max(LEAST_PART_BYTES.min(single_put_limit)).max(1);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

pub(super) enum PartError {
    Hash(std::io::Error),
    Put(object_store::Error),
}

/// Hashes and uploads the pieces in parts of equal length (some stores insist), each a rope of the pieces' own memory.
pub(super) async fn put_parts(
    upload: &mut dyn MultipartUpload,
    pieces: Vec<Bytes>,
    part_bytes: usize,
) -> Result<blake3::Hasher, PartError> {
    let mut hasher = blake3::Hasher::new();
    let mut under_way = FuturesUnordered::<UploadPart>::new();
    for pieces in split_into_parts(pieces, part_bytes) {
        let part;
        (hasher, part) = hash_pieces(hasher, pieces).await.map_err(PartError::Hash)?;
        if under_way.len() >= PARALLEL_PARTS
            && let Some(result) = under_way.next().await
        {
            result.map_err(PartError::Put)?;
        }
        under_way.push(upload.put_part(part.into_iter().collect()));
    }
    while let Some(result) = under_way.next().await {
        result.map_err(PartError::Put)?;
    }
    Ok(hasher)
}

/// Cuts a sequence of pieces every `part_bytes` without copying.
fn split_into_parts(pieces: Vec<Bytes>, part_bytes: usize) -> Vec<Vec<Bytes>> {
    let mut parts = Vec::new();
    let (mut part, mut room) = (Vec::new(), part_bytes);
    for mut piece in pieces {
        while !piece.is_empty() {
            let head = piece.split_to(room.min(piece.len()));
            room -= head.len();
            part.push(head);
            if room == 0 {
                parts.push(std::mem::take(&mut part));
                room = part_bytes;
            }
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

pub(super) async fn hash_pieces(mut hasher: blake3::Hasher, pieces: Vec<Bytes>) -> std::io::Result<(blake3::Hasher, Vec<Bytes>)> {
    blocking(move || {
        for piece in &pieces {
            hasher.update(piece);
        }
        Ok((hasher, pieces))
    })
    .await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_of_equal_length_and_lose_nothing(lengths in prop::collection::vec(0_usize..50, 0..10), part_bytes in 1_usize..40) {
            let pieces: Vec<Bytes> = lengths.iter().enumerate().map(|(index, &length)| vec![index as u8; length].into()).collect();
            let parts = split_into_parts(pieces.clone(), part_bytes);
            prop_assert_eq!(parts.concat().concat(), pieces.concat());
            let sizes: Vec<usize> = parts.iter().map(|part| part.iter().map(Bytes::len).sum()).collect();
            prop_assert!(sizes.iter().rev().skip(1).all(|&size| size == part_bytes));
            prop_assert!(sizes.iter().all(|&size| (1..=part_bytes).contains(&size)));
        }
    }

    #[test]
    fn a_part_is_as_large_as_the_store_asks_for() {
        assert_eq!(part_bytes(100 << 20, 64 << 20), 16 << 20);
        assert_eq!(part_bytes(1 << 40, 64 << 20), 109_951_163);
        assert_eq!(part_bytes(1000, 10), 10);
    }
}
