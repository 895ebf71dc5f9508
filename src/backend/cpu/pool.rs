//! Threads that share one op at a time, and stay awake between two ops that follow each other closely.
//!
//! A decoding pass is some hundred ops of some tens of microseconds each; to wake a thread for each of them would
//! cost as much as a part of the op. So the workers watch for the next op for a while before they sleep, and so
//! does the caller when it has nothing left to do but wait for them.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a thread watches before it sleeps: longer than what lies between two ops of a pass.
const WATCH: Duration = Duration::from_micros(200);

/// Looks, of some nanoseconds each, between two offers of the core to whoever else wants it.
const LOOKS: usize = 256;

/// The caller of [`Pool::spread`] and the workers that help it.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller the workers help.
    busy: Mutex<()>,
}

/// What one op asks each thread to do, once; on the stack of the caller.
struct Job<'a> {
    work: &'a (dyn Fn() + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Debug)]
struct Shared {
    /// [`OPEN`] while a job may be entered, and [`INSIDE`] for each worker that is in it.
    gate: AtomicUsize,
    job: AtomicPtr<Job<'static>>,
    ended: AtomicBool,
    opened: Bell,
    left: Bell,
}

const OPEN: usize = 1;
const INSIDE: usize = 2;

impl Pool {
    /// The caller and `threads - 1` workers.
    pub(super) fn new(threads: usize) -> Result<Self> {
        // More threads than cores would watch in each other's way.
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let watch = if threads > cores { Duration::ZERO } else { WATCH };
        let shared = Arc::new(Shared {
            gate: AtomicUsize::new(0),
            job: AtomicPtr::new(ptr::null_mut()),
            ended: AtomicBool::new(false),
            opened: Bell::new(watch),
            left: Bell::new(watch),
        });
        let mut pool = Pool { shared: shared.clone(), workers: Vec::new(), busy: Mutex::new(()) };
        for at in 1..threads {
            let shared = shared.clone();
            let worker = thread::Builder::new().name(format!("pellucid-{at}")).spawn(move || shared.serve());
            let failed = |source| Error::machine_because("cpu", "threads could not be started", source);
            pool.workers.push(worker.map_err(failed)?);
        }
        Ok(pool)
    }

    /// Does each piece of work once, on whichever thread comes first. While the workers help somebody else, which
    /// may be the very piece of work that calls this, the caller does all pieces alone.
    pub(super) fn spread<T: Send>(&self, pieces: Vec<T>, work: impl Fn(T) + Sync) {
        if pieces.len() < 2 || self.workers.is_empty() {
            return pieces.into_iter().for_each(work);
        }
        let Some(mut busy) = self.claim() else { return pieces.into_iter().for_each(work) };
        let pieces = Mutex::new(pieces.into_iter());
        let next = || lock(&pieces).next();
        self.shared.run(&mut busy, &|| {
            while let Some(piece) = next() {
                work(piece);
            }
        });
    }

    /// The right to the workers, if nobody has it.
    fn claim(&self) -> Option<MutexGuard<'_, ()>> {
        match self.busy.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()), // an op panicked, and was waited for
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        self.shared.opened.ring();
        for worker in self.workers.drain(..) {
            // A worker catches what its work throws, so that there is nothing to learn from it.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Does `work` on this thread and on every worker that comes before this thread is done; returns when all are.
    fn run(&self, _the_only_caller: &mut MutexGuard<'_, ()>, work: &(dyn Fn() + Sync)) {
        let job = Job { work, panic: Mutex::new(None) };
        self.job.store((&raw const job).cast_mut().cast(), SeqCst);
        self.gate.store(OPEN, SeqCst);
        self.opened.ring();
        job.run();
        self.gate.fetch_and(!OPEN, SeqCst);
        self.left.wait(|| (self.gate.load(SeqCst) == 0).then_some(()));
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }

    /// A worker's life.
    fn serve(&self) {
        let called = || if self.ended.load(SeqCst) { Some(false) } else { self.enter().then_some(true) };
        while self.opened.wait(called) {
            let job = self.job.load(SeqCst);
            // SAFETY: `run` stored a pointer to its own job before it opened the gate, and neither returns nor unwinds
            // before it has closed the gate and everyone who entered has left; the lock it is given keeps a second
            // caller from storing another. This thread has entered, and leaves below, after its last use of the job.
            // All use it by shared reference, and it is `Sync`.
            unsafe { &*job }.run();
            self.gate.fetch_and(!OPEN, SeqCst); // nothing is left to do for those who come later
            if self.gate.fetch_sub(INSIDE, SeqCst) == INSIDE {
                self.left.ring();
            }
        }
    }

    /// Goes in, if the gate is open.
    fn enter(&self) -> bool {
        let inside = |gate: usize| (gate & OPEN != 0).then_some(gate + INSIDE);
        self.gate.load(SeqCst) & OPEN != 0 && self.gate.fetch_update(SeqCst, SeqCst, inside).is_ok()
    }
}

impl Job<'_> {
    /// Does the work, keeping its panic for the caller. Never unwinds.
    fn run(&self) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(self.work)) {
            let other = lock(&self.panic).replace(panic);
            std::mem::forget(other); // what was thrown may throw again when dropped
        }
    }
}

/// Where threads wait for a condition that others bring about, watching first and then asleep.
#[derive(Debug)]
struct Bell {
    watch: Duration,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    fn new(watch: Duration) -> Self {
        Bell { watch, sleepers: AtomicUsize::new(0), lock: Mutex::new(()), rung: Condvar::new() }
    }

    /// Returns what `ready` has, once it has something.
    fn wait<R>(&self, ready: impl Fn() -> Option<R>) -> R {
        let start = Instant::now();
        while start.elapsed() < self.watch {
            for _ in 0..LOOKS {
                if let Some(result) = ready() {
                    return result;
                }
                std::hint::spin_loop();
            }
            thread::yield_now(); // to another program's thread, or to one that this one waits for
        }
        let mut guard = lock(&self.lock);
        // Either whoever changes the condition sees this sleeper, or this sleeper sees the change.
        self.sleepers.fetch_add(1, SeqCst);
        let result = loop {
            if let Some(result) = ready() {
                break result;
            }
            guard = self.rung.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, SeqCst);
        result
    }

    /// Wakes those asleep; to be called after the condition has changed.
    fn ring(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            let _guard = lock(&self.lock);
            self.rung.notify_all();
        }
    }
}

/// Locks what no panic can leave in disorder.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn doubled(pool: &Pool, count: usize) -> Vec<usize> {
        let mut values: Vec<usize> = (0..count).collect();
        pool.spread(values.iter_mut().collect(), |value| *value *= 2);
        values
    }

    fn expected(count: usize) -> Vec<usize> {
        (0..count).map(|value| 2 * value).collect()
    }

    #[test]
    fn every_piece_is_done_once_awake_or_asleep() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.workers.len() + 1, threads);
            for round in 0..2000 {
                assert_eq!(doubled(&pool, round % 40), expected(round % 40));
                if round % 200 == 0 {
                    thread::sleep(10 * WATCH);
                }
            }
        }
    }

    #[test]
    fn pieces_are_done_by_all_threads() {
        let pool = Pool::new(3).unwrap();
        let (seen, all) = (Mutex::new(HashSet::new()), std::sync::Barrier::new(3));
        pool.spread(vec![(); 3], |()| {
            lock(&seen).insert(thread::current().id());
            all.wait();
        });
        assert_eq!(lock(&seen).len(), 3);
    }

    #[test]
    fn callers_at_once_and_within_one_another_do_not_meet() {
        let pool = Pool::new(4).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| assert_eq!(doubled(&pool, 30), expected(30))));
            }
            scope.spawn(|| {
                pool.spread((0..200).collect(), |_: usize| assert_eq!(doubled(&pool, 30), expected(30)));
            });
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_in_order() {
        let pool = Pool::new(4).unwrap();
        for culprit in 0..40 {
            let work = || pool.spread((0..40).collect(), |piece: usize| assert_ne!(piece, culprit, "piece"));
            let panic = catch_unwind(AssertUnwindSafe(work)).unwrap_err();
            assert!(panic.downcast_ref::<String>().unwrap().contains("piece"));
            assert_eq!(doubled(&pool, 40), expected(40));
        }
    }

    #[test]
    fn workers_end_with_the_pool() {
        let pool = Pool::new(4).unwrap();
        doubled(&pool, 10);
        let shared = Arc::downgrade(&pool.shared);
        drop(pool);
        assert_eq!(shared.strong_count(), 0);
    }
}
