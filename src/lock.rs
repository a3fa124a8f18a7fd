//! Locks on plain data that is whole after every statement: what a thread that panicked left is as good as any.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic of someone who held it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a lock held, when nobody needs it any more.
pub(crate) fn unlocked<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}
