//! Work spread over threads, each computing on its own.
//!
//! The tensor library splits a product over the rayon pool that it is called from. Every worker here is a pool of one
//! thread, so a forward pass stays on it: no global setting is touched, and the units run beside each other.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::fault;
use crate::evaluate::Fault;

/// Threads that score.
pub(super) struct Workers {
    pools: Vec<ThreadPool>,
}

impl Workers {
    /// # Errors
    /// An infrastructure fault when the system gives no thread.
    pub(super) fn new(threads: NonZeroUsize) -> Result<Self, Fault> {
        let pool = |number| {
            ThreadPoolBuilder::new()
                .num_threads(1)
                .thread_name(move |_| format!("evaluate-{number}"))
                .build()
                .map_err(fault::no_thread)
        };
        Ok(Self { pools: (0..threads.get()).map(pool).collect::<Result<_, _>>()? })
    }

    /// `work(0)` to `work(units - 1)`, in order. After a fault nothing new starts; of several the one with the lowest
    /// index is returned, which does not depend on timing, as units start in order.
    ///
    /// # Errors
    /// The first fault; an infrastructure fault for a panic, and when the system gives no thread.
    pub(super) fn map<R: Send>(
        &self,
        units: usize,
        work: impl Fn(usize) -> Result<R, Fault> + Sync,
    ) -> Result<Vec<R>, Fault> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let run = || {
            let mut done = Vec::new();
            while !failed.load(Ordering::Relaxed) {
                let unit = next.fetch_add(1, Ordering::Relaxed);
                if unit >= units {
                    break;
                }
                let result = work(unit);
                if result.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
                done.push((unit, result));
            }
            done
        };
        let finished: Vec<Vec<_>> = std::thread::scope(|scope| {
            let (mut handles, mut refused) = (Vec::new(), None);
            for pool in self.pools.iter().take(units) {
                match std::thread::Builder::new().spawn_scoped(scope, move || pool.install(run)) {
                    Ok(handle) => handles.push(handle),
                    Err(error) => {
                        // Those that run need not begin anything more.
                        failed.store(true, Ordering::Relaxed);
                        refused = Some(fault::no_thread(error));
                        break;
                    }
                }
            }
            // All of them: the scope itself panics for one that panicked and was not asked.
            let joined: Vec<_> = handles.into_iter().map(|handle| handle.join()).collect();
            let finished = joined.into_iter().collect::<Result<Vec<_>, _>>();
            match refused {
                Some(fault) => Err(fault),
                None => finished.map_err(|_| fault::internal("a scoring thread panicked; please report this")),
            }
        })?;
        let mut results: Vec<_> = finished.into_iter().flatten().collect();
        results.sort_unstable_by_key(|(unit, _)| *unit);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_on_any_number_of_threads() {
        for threads in [1, 2, 7] {
            let workers = Workers::new(NonZeroUsize::new(threads).unwrap()).unwrap();
            let squares = workers.map(50, |unit| Ok(unit * unit)).unwrap();
            assert_eq!(squares, (0..50).map(|unit| unit * unit).collect::<Vec<_>>());
            assert!(workers.map(0, Ok).unwrap().is_empty());
        }
    }

    #[test]
    fn the_lowest_fault_is_returned() {
        let workers = Workers::new(NonZeroUsize::new(4).unwrap()).unwrap();
        for _ in 0..20 {
            let fault = workers
                .map(40, |unit| if unit >= 5 { Err(fault::invalid(unit.to_string())) } else { Ok(()) })
                .unwrap_err();
            assert_eq!(fault.detail, "5");
        }
    }

    #[test]
    fn a_panic_is_a_fault_and_the_workers_go_on() {
        let workers = Workers::new(NonZeroUsize::new(2).unwrap()).unwrap();
        let fault = workers.map(3, |unit| if unit == 1 { panic!("on purpose") } else { Ok(()) }).unwrap_err();
        assert_eq!(fault.code, "internal");
        assert_eq!(workers.map(2, Ok).unwrap(), [0, 1]);
    }

    #[test]
    fn several_panics_are_one_fault() {
        let workers = Workers::new(NonZeroUsize::new(4).unwrap()).unwrap();
        // Each thread has its unit before any panics.
        let all_begun = std::sync::Barrier::new(4);
        let fault = workers
            .map(4, |unit| -> Result<(), Fault> {
                all_begun.wait();
                panic!("on purpose, in unit {unit}")
            })
            .unwrap_err();
        assert_eq!(fault.code, "internal");
    }

    #[test]
    fn where_the_system_gives_no_thread_people_are_told_what_to_do() {
        let told = fault::no_thread(std::io::Error::from(std::io::ErrorKind::WouldBlock));
        assert_eq!((told.class, told.code.as_str()), (crate::evaluate::FaultClass::Infrastructure, "no_thread"));
        assert!(told.detail.contains("lower `evaluator.threads`"), "{told}");
    }
}
