// Hopper's tensor cores: 128 threads multiply A (64 x 16, shared or registers) by B (16 x N, shared), bf16 into f32.
//
// d is one named array from the first wgmma to the wait, register 4j + e of thread (warp w, g, t) is row
// 16w + g + 8(e / 2), column 8j + t + e % 2. Order: wgmma_fence, wgmmas, wgmma_commit, wgmma_wait; nothing touches d in
// between. Tiles are 1024-aligned with the 128-byte swizzle; `0` in a template is K-major, `1` MN-major.
#pragma once
#include "hopper.cuh"

// Leading and stride offsets in bytes. K-major: stride = 1024, leading is not used, 16 further k are 32 bytes on.
// MN-major: leading steps over 64 MN-elements, stride over 8 k.
__device__ __forceinline__ uint64_t desc_sw128(uint32_t address, uint32_t leading, uint32_t stride) {
    return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 |
           uint64_t(1) << 62;
}

#ifdef __CUDACC__
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// Keeps the compiler from moving accumulators across this point.
template <int COUNT>
__device__ __forceinline__ void wgmma_fence_regs(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)

// d (+)= A B, accumulating if scale_d is not 0.
template <int A_MN, int B_MN>
__device__ __forceinline__ void wgmma_m64n64k16(float (&d)[32], uint64_t a, uint64_t b, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, p, 1, 1, %35, %36;\n"
        "}\n"
        : D16(0), D16(16)
        : "l"(a), "l"(b), "r"(scale_d), "n"(A_MN), "n"(B_MN));
}
template <int B_MN>
__device__ __forceinline__ void wgmma_m64n64k16_rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n"
        "}\n"
        : D16(0), D16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(scale_d), "n"(B_MN));
}
template <int A_MN, int B_MN>
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, %67, %68;\n"
        "}\n"
        : D16(0), D16(16), D16(32), D16(48)
        : "l"(a), "l"(b), "r"(scale_d), "n"(A_MN), "n"(B_MN));
}
// Into registers FROM .. FROM + 48 of a longer array.
template <int A_MN, int B_MN, int FROM, int COUNT>
__device__ __forceinline__ void wgmma_m64n96k16(float (&d)[COUNT], uint64_t a, uint64_t b, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %50, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
        "%48, %49, p, 1, 1, %51, %52;\n"
        "}\n"
        : D16(FROM), D16(FROM + 16), D16(FROM + 32)
        : "l"(a), "l"(b), "r"(scale_d), "n"(A_MN), "n"(B_MN));
}
template <int A_MN, int B_MN>
__device__ __forceinline__ void wgmma_m64n192k16(float (&d)[96], uint64_t a, uint64_t b, int scale_d) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
        "%96, %97, p, 1, 1, %99, %100;\n"
        "}\n"
        : D16(0), D16(16), D16(32), D16(48), D16(64), D16(80)
        : "l"(a), "l"(b), "r"(scale_d), "n"(A_MN), "n"(B_MN));
}

#undef D4
#undef D16
#endif
#else

inline void wgmma_fence() { emu::wgmma_fence(); }
inline void wgmma_commit() { emu::wgmma_commit(); }
template <int LEFT>
void wgmma_wait() {
    emu::wgmma_wait(LEFT);
}
template <int COUNT>
void wgmma_fence_regs(float (&)[COUNT]) {}
template <int A_MN, int B_MN>
void wgmma_m64n64k16(float (&d)[32], uint64_t a, uint64_t b, int scale_d) {
    emu::wgmma(d, {64, A_MN != 0, B_MN != 0, a, b, scale_d != 0}, nullptr);
}
template <int B_MN>
void wgmma_m64n64k16_rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int scale_d) {
    emu::wgmma(d, {64, false, B_MN != 0, 0, b, scale_d != 0}, a);
}
template <int A_MN, int B_MN>
void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b, int scale_d) {
    emu::wgmma(d, {128, A_MN != 0, B_MN != 0, a, b, scale_d != 0}, nullptr);
}
template <int A_MN, int B_MN, int FROM, int COUNT>
void wgmma_m64n96k16(float (&d)[COUNT], uint64_t a, uint64_t b, int scale_d) {
    emu::wgmma(d + FROM, {96, A_MN != 0, B_MN != 0, a, b, scale_d != 0}, nullptr);
}
template <int A_MN, int B_MN>
void wgmma_m64n192k16(float (&d)[96], uint64_t a, uint64_t b, int scale_d) {
    emu::wgmma(d, {192, A_MN != 0, B_MN != 0, a, b, scale_d != 0}, nullptr);
}

#endif
