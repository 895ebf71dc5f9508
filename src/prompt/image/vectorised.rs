//! The one place where this crate's image code asks for more than the baseline instruction set.
#![allow(unsafe_code)] // calling code compiled for AVX2, having asked the processor

/// Runs `work`, compiled for AVX2 where the processor has it. What `work` calls must be `#[inline(always)]` to
/// be compiled so too. The results are the same: all arithmetic in it is on integers.
#[inline(always)]
pub(super) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: `avx2` may only run on a processor with AVX2; the line above has asked this one.
            return unsafe { avx2(work) };
        }
    }
    work()
}
