// CUDA's names for a host compiler: what `cuda_runtime.h` and `cuda_bf16.h` give under nvcc. Only what kernels here
// use; arithmetic intrinsics are exact where a device approximates.
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (emu::here->thread)
#define blockIdx (emu::here->block)
#define blockDim (emu::here->block_size)
#define gridDim (emu::here->grid_size)

#define KERNEL static
#define EMU_REGISTER(name) static const bool registered_##name = emu::enlist(#name, name);
#define DYN_SMEM(name) unsigned char* const name = emu::shared_memory()

namespace emu {

template <typename T>
__attribute__((no_sanitize("thread"))) T argument(const void* from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}

template <typename... A, size_t... I>
__attribute__((no_sanitize("thread"), noinline)) void unpack(Target target, void** arguments, std::index_sequence<I...>) {
    reinterpret_cast<void (*)(A...)>(target)(argument<std::remove_cv_t<A>>(arguments[I])...);
}

template <typename... A>
bool enlist(const char* name, void (*kernel)(A...)) {
    static const size_t sizes[] = {sizeof(A)..., 0};
    auto call = [](Target target, void** arguments) { unpack<A...>(target, arguments, std::index_sequence_for<A...>{}); };
    add_kernel({name, reinterpret_cast<Target>(kernel), call, sizes, sizeof...(A)});
    return true;
}

// One atomic step; the accesses inside are the step itself, so they are not instrumented.
template <typename T, typename F>
__attribute__((no_sanitize("thread"), noinline)) T atomic(T* address, F change) {
    atomic_access(address, sizeof(T));
    T old = *address;
    *address = change(old);
    return old;
}

template <typename T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <typename T>
T shuffled(Shuffle kind, uint32_t mask, T value, uint32_t operand, uint32_t width) {
    uint64_t bits = shuffle(kind, mask, to_bits(value), operand, width);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace emu

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

// 16 bytes at once, which must be aligned so.
__attribute__((no_sanitize("thread"), noinline)) inline uint4 load_16(const void* from) {
    emu::access(from, 16, false);
    return *static_cast<const uint4*>(from);
}
inline uint4 load_16_fresh(const void* from) { return load_16(from); }
inline float load_fresh(const float* from) { return *from; }
__attribute__((no_sanitize("thread"), noinline)) inline void store_16(void* to, uint4 value) {
    emu::access(to, 16, true);
    *static_cast<uint4*>(to) = value;
}
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float __uint_as_float(unsigned bits) { float f; memcpy(&f, &bits, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned bits; memcpy(&bits, &f, 4); return bits; }
inline float __int_as_float(int bits) { return __uint_as_float(unsigned(bits)); }
inline int __float_as_int(float f) { return int(__float_as_uint(f)); }
inline float __bfloat162float(__nv_bfloat16 b) { return __uint_as_float(unsigned(b.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    unsigned bits = __float_as_uint(f);
    if (f != f) return {0x7FFF};
    return {uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float f) { return __float2bfloat16_rn(f); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }

inline void sincospif(float x, float* sine, float* cosine) {
    *sine = float(sin(M_PI * double(x)));
    *cosine = float(cos(M_PI * double(x)));
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
template <typename T> T __ldg(const T* p) { return *p; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }

inline void __syncthreads() { emu::sync_threads(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { emu::sync_warp(mask); }
inline void __threadfence() { emu::thread_fence(); }
inline void __threadfence_block() {}
template <typename T> T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
    return emu::shuffled(emu::Shuffle::index, mask, v, unsigned(lane), unsigned(width));
}
template <typename T> T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    return emu::shuffled(emu::Shuffle::up, mask, v, delta, unsigned(width));
}
template <typename T> T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    return emu::shuffled(emu::Shuffle::down, mask, v, delta, unsigned(width));
}
template <typename T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
    return emu::shuffled(emu::Shuffle::butterfly, mask, v, unsigned(bits), unsigned(width));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emu::ballot(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return emu::ballot(mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emu::ballot(mask, predicate != 0) == mask; }

template <typename T> T atomicAdd(T* p, T v) { return emu::atomic(p, [v](T old) { return T(old + v); }); }
template <typename T> T atomicMax(T* p, T v) { return emu::atomic(p, [v](T old) { return old > v ? old : v; }); }
template <typename T> T atomicMin(T* p, T v) { return emu::atomic(p, [v](T old) { return old < v ? old : v; }); }
template <typename T> T atomicOr(T* p, T v) { return emu::atomic(p, [v](T old) { return T(old | v); }); }
template <typename T> T atomicExch(T* p, T v) { return emu::atomic(p, [v](T) { return v; }); }
template <typename T> T atomicCAS(T* p, T expected, T v) {
    return emu::atomic(p, [=](T old) { return old == expected ? v : old; });
}
