//! Small files that lie beside the checkpoints, such as a run's metrics.
//!
//! Comes in: a plain file name and bytes. Unlike a checkpoint such a file may be written again; the last writer wins.

use bytes::Bytes;
use object_store::{ObjectStoreExt, PutPayload};

use crate::store::{CheckpointStore, StoreError};

impl CheckpointStore {
    /// Writes `name` into the store's folder, over what was there. Blocks. For files of some megabytes: it goes out in one request.
    pub fn write_file(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let (store, path) = (self.clone(), self.file(name));
        let written = self.block_on(async move { store.objects().put(&path, PutPayload::from_bytes(bytes)).await.map(drop) })?;
        written.map_err(|source| StoreError::Write { uri: self.uri().to_owned(), file: name.to_owned(), source })
    }

    /// Removes `name` from the store's folder; it need not be there. Blocks.
    pub fn remove_file(&self, name: &str) -> Result<(), StoreError> {
        let (store, path) = (self.clone(), self.file(name));
        let removed = self.block_on(async move {
            match store.objects().delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })?;
        removed.map_err(|source| StoreError::Write { uri: self.uri().to_owned(), file: name.to_owned(), source })
    }

    /// Names of the files in the store's folder that begin like this, in no order. Blocks.
    pub fn file_names(&self, beginning: &str) -> Result<Vec<String>, StoreError> {
        let (store, beginning) = (self.clone(), beginning.to_owned());
        let found = self.block_on(async move {
            let listing = store.objects().list_with_delimiter(Some(store.prefix())).await?;
            let names = listing.objects.iter().filter_map(|object| object.location.filename().map(str::to_owned));
            Ok(names.filter(|name| name.starts_with(&beginning)).collect())
        })?;
        found.map_err(|source| StoreError::List { uri: self.uri().to_owned(), source })
    }

    /// Reads `name` from the store's folder; `None` when it is not there. Blocks.
    pub fn read_file(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let (store, path) = (self.clone(), self.file(name));
        let read = self.block_on(async move {
            match store.objects().get(&path).await {
                Ok(answer) => answer.bytes().await.map(Some),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        read.map_err(|source| StoreError::Read { uri: self.uri().to_owned(), file: name.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn a_file_reads_back_as_it_was_written_last_and_is_no_checkpoint() {
        let store = CheckpointStore::from_object_store("memory", Arc::new(InMemory::new()), u64::MAX).unwrap();
        assert_eq!(store.read_file("metrics.jsonl").unwrap(), None);
        for text in ["first", "second"] {
            store.write_file("metrics.jsonl", Bytes::from_static(text.as_bytes())).unwrap();
            assert_eq!(store.read_file("metrics.jsonl").unwrap().as_deref(), Some(text.as_bytes()));
        }
        assert!(store.list().unwrap().is_empty());
        store.write_file("run.jsonl", Bytes::new()).unwrap();
        assert_eq!(store.file_names("metrics.").unwrap(), ["metrics.jsonl"]);
    }
}
