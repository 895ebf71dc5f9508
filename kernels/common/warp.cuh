// What every architecture from sm_80 on has: asynchronous copies, matrix loads, tensor-core products of a warp, and
// named barriers. Shared addresses are 32-bit throughout.
//
// mma_m16n8k16_bf16, with g = lane / 4 and t = 2 * (lane % 4): a holds {row g, k t..}, {g + 8, t..}, {g, t + 8..},
// {g + 8, t + 8..}; b holds {k t.., column g}, {t + 8.., g}; d holds (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1).
#pragma once
#include "device.cuh"

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t smem_u32(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes, those past src_bytes zero.
__device__ __forceinline__ void cp_async_16(uint32_t to, const void* from, uint32_t src_bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(src_bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Four 8x8 matrices of 2-byte elements; lanes 8i..8i+7 name the rows of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// d += a b
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two numbers rounded to bf16, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
// The same number, of which the compiler does not know that it has it already.
__device__ __forceinline__ int anew(int x) {
    asm volatile("" : "+r"(x));
    return x;
}
// 2^x within two units in the last place; 0 for -infinity and for results below normal numbers.
__device__ __forceinline__ float exp2_approx(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// Ids are template arguments: with one known at run time only, all sixteen would be reserved. 0 is __syncthreads.
template <int ID>
__device__ __forceinline__ void bar_sync(int threads) {
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "r"(threads) : "memory");
}
template <int ID>
__device__ __forceinline__ void bar_arrive(int threads) {
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "r"(threads) : "memory");
}

#else

inline uint32_t smem_u32(const void* pointer) { return emu::shared_address(pointer); }
inline void cp_async_16(uint32_t to, const void* from, uint32_t src_bytes = 16) {
    emu::copy_async(to, from, src_bytes);
}
inline void cp_async_commit() { emu::copy_commit(); }
template <int LEFT>
void cp_async_wait() {
    emu::copy_wait(LEFT);
}
inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) { emu::ldmatrix(r, row, false); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) { emu::ldmatrix(r, row, true); }
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emu::mma_m16n8k16(d, a, b0, b1);
}
inline uint32_t pack_bf16(float low, float high) {
    return uint32_t(__float2bfloat16_rn(high).bits) << 16 | __float2bfloat16_rn(low).bits;
}
inline int anew(int x) { return x; }
inline float exp2_approx(float x) { return exp2f(x); }
template <int ID>
void bar_sync(int threads) {
    emu::named_barrier(ID, uint32_t(threads), true);
}
template <int ID>
void bar_arrive(int threads) {
    emu::named_barrier(ID, uint32_t(threads), false);
}

#endif
