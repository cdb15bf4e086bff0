//! A Rust [`Store`] as the callbacks of the shim's `c10d::Store`.
#![allow(unsafe_code, reason = "called by the C++ shim")]

use std::{
    ffi::{CString, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
    sync::Arc,
    time::Duration,
};

use super::{checkpoint::panic_message, ffi};
use crate::collectives::{Store, StoreError};

/// The callbacks for a store. The shim calls `drop` once, which frees what is allocated here.
pub(super) fn callbacks(store: Arc<dyn Store>) -> ffi::StoreCallbacks {
    ffi::StoreCallbacks {
        data: Box::into_raw(Box::new(store)).cast(),
        set,
        get,
        compare_set,
        add,
        remove,
        check,
        count,
        wait,
        drop: drop_store,
    }
}

/// Runs one callback; an error or a panic becomes the shim's last error.
///
/// # Safety
/// `data` comes from [`callbacks`] and was not dropped.
unsafe fn call(data: *mut c_void, body: impl FnOnce(&dyn Store) -> Result<(), StoreError>) -> c_int {
    // SAFETY: the caller's promise.
    let store = unsafe { &*data.cast::<Arc<dyn Store>>() };
    let message = match catch_unwind(AssertUnwindSafe(|| body(store.as_ref()))) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("panic: {}", panic_message(panic.as_ref())),
    };
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    // SAFETY: a NUL-terminated string; the shim copies it.
    unsafe { ffi::lcl_set_error(message.as_ptr()) };
    1
}

/// # Safety
/// `text` is a live string of the shim for as long as the result is used.
unsafe fn bytes<'a>(text: ffi::ShimString) -> &'a [u8] {
    if text.size == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(text.data.cast(), text.size) }
}

/// # Safety
/// As [`bytes`].
unsafe fn key<'a>(text: ffi::ShimString) -> Result<&'a str, StoreError> {
    // SAFETY: the caller's promise.
    std::str::from_utf8(unsafe { bytes(text) }).map_err(|_| StoreError::Unreachable { reason: "a key is no UTF-8".to_owned() })
}

/// # Safety
/// `keys` are `count` strings as for [`bytes`].
unsafe fn all_keys<'a>(keys: *const ffi::ShimString, count: usize) -> Result<Vec<&'a str>, StoreError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(keys, count) }.iter().map(|text| unsafe { key(*text) }).collect()
}

/// Hands bytes to the shim.
///
/// # Safety
/// `value` is the shim's place for them.
unsafe fn assign(value: *mut c_void, found: &[u8]) {
    // SAFETY: the caller's promise; the shim copies.
    unsafe { ffi::lcl_bytes_assign(value, found.as_ptr(), found.len()) };
}

fn duration(milliseconds: i64) -> Duration {
    Duration::from_millis(milliseconds.max(0).unsigned_abs())
}

unsafe extern "C" fn set(data: *mut c_void, name: ffi::ShimString, value: *const u8, size: usize, timeout: i64) -> c_int {
    // SAFETY: here and below, the shim passes what `callbacks` made, and arguments that live as long as the call.
    unsafe { call(data, |store| store.set(key(name)?, bytes(ffi::ShimString { data: value.cast(), size }), duration(timeout))) }
}

unsafe extern "C" fn get(data: *mut c_void, name: ffi::ShimString, value: *mut c_void, timeout: i64) -> c_int {
    // SAFETY: as above.
    unsafe { call(data, |store| store.get(key(name)?, duration(timeout)).map(|found| assign(value, &found))) }
}

unsafe extern "C" fn compare_set(
    data: *mut c_void,
    name: ffi::ShimString,
    expected: ffi::ShimString,
    desired: ffi::ShimString,
    value: *mut c_void,
    timeout: i64,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        call(data, |store| {
            store.compare_set(key(name)?, bytes(expected), bytes(desired), duration(timeout)).map(|found| assign(value, &found))
        })
    }
}

unsafe extern "C" fn add(data: *mut c_void, name: ffi::ShimString, amount: i64, sum: *mut i64, timeout: i64) -> c_int {
    // SAFETY: as above.
    unsafe { call(data, |store| store.add(key(name)?, amount, duration(timeout)).map(|found| *sum = found)) }
}

unsafe extern "C" fn remove(data: *mut c_void, name: ffi::ShimString, removed: *mut i32, timeout: i64) -> c_int {
    // SAFETY: as above.
    unsafe { call(data, |store| store.delete(key(name)?, duration(timeout)).map(|found| *removed = i32::from(found))) }
}

unsafe extern "C" fn check(data: *mut c_void, keys: *const ffi::ShimString, size: usize, present: *mut i32, timeout: i64) -> c_int {
    // SAFETY: as above.
    unsafe { call(data, |store| store.contains(&all_keys(keys, size)?, duration(timeout)).map(|found| *present = i32::from(found))) }
}

unsafe extern "C" fn count(data: *mut c_void, keys: *mut i64, timeout: i64) -> c_int {
    // SAFETY: as above.
    unsafe { call(data, |store| store.count(duration(timeout)).map(|found| *keys = found as i64)) }
}

unsafe extern "C" fn wait(data: *mut c_void, keys: *const ffi::ShimString, size: usize, timeout: i64) -> c_int {
    // SAFETY: as above.
    unsafe { call(data, |store| store.wait(&all_keys(keys, size)?, duration(timeout))) }
}

unsafe extern "C" fn drop_store(data: *mut c_void) {
    // A panic of a destructor must not pass through C++.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: made by `Box::into_raw` in `callbacks`, dropped once.
        drop(unsafe { Box::from_raw(data.cast::<Arc<dyn Store>>()) });
    }));
}
