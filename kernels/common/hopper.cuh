// What sm_90 adds: mbarriers, the tensor memory accelerator, stmatrix, and moving registers between warpgroups.
//
// A consumer waits for parity 0 of a "full" barrier first, a producer for parity 1 of an "empty" one (true at once on
// a fresh barrier). One thread initialises, then fence_mbar_init, then __syncthreads. A thread that touched bytes by
// plain accesses calls fence_proxy_async before handing them to TMA or wgmma, reads before an overwrite included.
#pragma once
#include "warp.cuh"

#ifdef __CUDACC__
#include <cuda.h>

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ void mbar_init(uint32_t bar, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void mbar_inval(uint32_t bar) {
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void fence_mbar_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbar_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void mbar_arrive_expect_tx(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
// The only way to wait: the emulator must see that the thread blocks.
__device__ __forceinline__ void mbar_wait(uint32_t bar, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(bar),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void tma_prefetch(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ __forceinline__ void tma_load_2d(uint32_t to, const CUtensorMap* map, uint32_t bar, int c0, int c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            to),
        "l"(map), "r"(bar), "r"(c0), "r"(c1)
        : "memory");
}
__device__ __forceinline__ void tma_load_3d(uint32_t to, const CUtensorMap* map, uint32_t bar, int c0, int c1,
                                            int c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
        "[%2];" ::"r"(to),
        "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}
__device__ __forceinline__ void tma_load_4d(uint32_t to, const CUtensorMap* map, uint32_t bar, int c0, int c1, int c2,
                                            int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
        "[%2];" ::"r"(to),
        "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}
__device__ __forceinline__ void tma_store_2d(const CUtensorMap* map, uint32_t from, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(from),
                 "r"(c0), "r"(c1)
                 : "memory");
}
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all but LEFT groups have read their source; bulk_wait: until they are written, too.
template <int LEFT>
__device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LEFT) : "memory");
}
template <int LEFT>
__device__ __forceinline__ void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(LEFT) : "memory");
}

// The inverse of ldmatrix_x4.
__device__ __forceinline__ void stmatrix_x4(uint32_t row, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}

// One lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
    uint32_t chosen;
    asm volatile(
        "{\n"
        ".reg .pred one;\n"
        "elect.sync _|one, 0xFFFFFFFF;\n"
        "selp.u32 %0, 1, 0, one;\n"
        "}\n"
        : "=r"(chosen)
        :
        : "memory");
    return chosen != 0;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <int COUNT>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT) : "memory");
}
template <int COUNT>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT) : "memory");
}
#endif

#endif
#else

inline void mbar_init(uint32_t bar, uint32_t arrivals) { emu::mbarrier_init(bar, arrivals); }
inline void mbar_inval(uint32_t bar) { emu::mbarrier_invalidate(bar); }
inline void fence_mbar_init() {}
inline void mbar_arrive(uint32_t bar) { emu::mbarrier_arrive(bar, 0); }
inline void mbar_arrive_expect_tx(uint32_t bar, uint32_t bytes) { emu::mbarrier_arrive(bar, bytes); }
inline void mbar_wait(uint32_t bar, uint32_t parity) { emu::mbarrier_wait(bar, parity); }
inline void fence_proxy_async() { emu::proxy_fence(); }

inline void tma_prefetch(const CUtensorMap*) {}
inline void tma_load_2d(uint32_t to, const CUtensorMap* map, uint32_t bar, int c0, int c1) {
    const int at[] = {c0, c1};
    emu::tensor_load(to, map, bar, at, 2);
}
inline void tma_load_3d(uint32_t to, const CUtensorMap* map, uint32_t bar, int c0, int c1, int c2) {
    const int at[] = {c0, c1, c2};
    emu::tensor_load(to, map, bar, at, 3);
}
inline void tma_load_4d(uint32_t to, const CUtensorMap* map, uint32_t bar, int c0, int c1, int c2, int c3) {
    const int at[] = {c0, c1, c2, c3};
    emu::tensor_load(to, map, bar, at, 4);
}
inline void tma_store_2d(const CUtensorMap* map, uint32_t from, int c0, int c1) {
    const int at[] = {c0, c1};
    emu::tensor_store(map, from, at, 2);
}
inline void bulk_commit() { emu::bulk_commit(); }
template <int LEFT>
void bulk_wait_read() {
    emu::bulk_wait(LEFT);
}
template <int LEFT>
void bulk_wait() {
    emu::bulk_wait(LEFT);
}
inline void stmatrix_x4(uint32_t row, const uint32_t (&r)[4]) { emu::stmatrix(row, r); }
inline bool elect_one() { return emu::elect(); }
template <int COUNT>
void setmaxnreg_inc() {
    emu::set_max_registers(COUNT);
}
template <int COUNT>
void setmaxnreg_dec() {
    emu::set_max_registers(COUNT);
}

#endif
