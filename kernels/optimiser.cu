// What happens to parameters once gradients are there: squared norms, and a step of AdamW. Many tensors in one launch.
//
//   sq_norm  out[i] = sum of x[i]^2
//   adamw    m = b1 m + (1 - b1) s g,  v = b2 v + (1 - b2) (s g)^2,
//            w -= rate (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w),  weight = w rounded
//
// in      x f32 tensors of any lengths; g f32. Tables name tensors and where their blocks begin, as
//         src/backend/gpu/optimiser.rs lays them out: up to 128 tensors (sq_norm), 48 (adamw)
// out     out f32 [tensors]; weight bf16 or null
// inout   m, v, w f32
// work    of sq_norm: partial f32 [blocks]; tickets i32 [tensors], zero before and after
// launch  sq_norm: a block per 16384 elements of each tensor, block (256), shared 32 bytes; adamw: a block per 2048 of each,
//         block (256); no tensor is empty; 16-byte accesses where a tensor is 16-byte aligned
// floor   bytes 4n (sq_norm), 30n (adamw, with weight): bound by memory. n = 10^8 at 4.3 TB/s: 93 us, 700 us
// order   sq_norm: a thread sums elements 4i..4i + 3 of each 1024 of its block in order, then a butterfly, then warps in
//         order; a tensor: blocks i, i + 256, ... in order, then as within a block. The length fixes all. adamw: none
// pair    CPU reference: backend::plain sq_norm, adamw; emulated: yes
#include "common/pieces.cuh"

constexpr int THREADS = 256;
constexpr int NORM_BLOCK = 16384;  // elements
constexpr int STEP_BLOCK = 2048;

struct NormTable {
    const float* tensors[128];
    int64_t elements[128];
    int first[128];  // block
    int count, unused;
};

struct StepTable {
    float *master[48], *m[48], *v[48];
    const float* gradient[48];
    __nv_bfloat16* weight[48];
    int64_t elements[48];
    int first[48];  // block
    float decay[48];
    float rate, beta1, beta2, eps, scale, correct1, correct2;  // the last: 1 / (1 - b1^t), 1 / sqrt(1 - b2^t)
    int count;
};

// The tensor that a block belongs to.
template <class Table>
__device__ __forceinline__ int tensor_of(const Table& table) {
    int low = 0, high = table.count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (table.first[middle] <= int(blockIdx.x)) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

__device__ __forceinline__ void read_four(float (&values)[4], const float* from, int count) {
    if (count >= 4 && (reinterpret_cast<uintptr_t>(from) & 15) == 0) {
        const uint4 four = load_16(from);
        values[0] = __uint_as_float(four.x), values[1] = __uint_as_float(four.y);
        values[2] = __uint_as_float(four.z), values[3] = __uint_as_float(four.w);
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++) values[e] = e < count ? from[e] : 0.0f;
}
__device__ __forceinline__ void write_four(float* to, const float (&values)[4], int count) {
    if (count >= 4 && (reinterpret_cast<uintptr_t>(to) & 15) == 0) {
        return store_16(to, make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                                       __float_as_uint(values[3])));
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        if (e < count) to[e] = values[e];
    }
}

// Over all threads, for thread 0.
__device__ __forceinline__ float block_sum(float sum, float* warps) {
#pragma unroll
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = warps[0];
    for (int warp = 1; warp < THREADS / 32; warp++) sum += warps[warp];
    return sum;
}

KERNEL void __launch_bounds__(THREADS)
    sq_norm(float* out, float* partial, int* tickets, const __grid_constant__ NormTable table) {
    DYN_SMEM(memory);
    float* warps = reinterpret_cast<float*>(memory);  // [8]
    const int tensor = tensor_of(table), first = table.first[tensor];
    const int64_t begin = int64_t(int(blockIdx.x) - first) * NORM_BLOCK, elements = table.elements[tensor];
    const int blocks = int((elements + NORM_BLOCK - 1) / NORM_BLOCK);
    const float* from = table.tensors[tensor] + begin;
    const int here = int(min((long long)(elements - begin), (long long)(NORM_BLOCK)));
    float sum = 0.0f, values[4];
#pragma unroll 4
    for (int at = int(threadIdx.x) * 4; at < here; at += THREADS * 4) {
        read_four(values, from + at, here - at);
#pragma unroll
        for (int e = 0; e < 4; e++) sum = __fmaf_rn(values[e], values[e], sum);
    }
    sum = block_sum(sum, warps);
    if (blocks > 1) {
        // Each block leaves its sum, and the last one of a tensor adds them up.
        __syncthreads();
        int* last = reinterpret_cast<int*>(memory);
        if (threadIdx.x == 0) {
            partial[blockIdx.x] = sum;
            __threadfence();
            *last = atomicAdd(&tickets[tensor], 1) == blocks - 1;
            if (*last) atomicExch(&tickets[tensor], 0);
            __threadfence();
        }
        __syncthreads();
        if (!*last) return;
        sum = 0.0f;
        for (int block = threadIdx.x; block < blocks; block += THREADS) sum += load_fresh(partial + first + block);
        __syncthreads();
        sum = block_sum(sum, warps);
    }
    if (threadIdx.x == 0) out[tensor] = sum;
}
EMU_REGISTER(sq_norm)

KERNEL void __launch_bounds__(THREADS) adamw(const __grid_constant__ StepTable table) {
    const int tensor = tensor_of(table);
    const int64_t elements = table.elements[tensor], block = int64_t(int(blockIdx.x) - table.first[tensor]) * STEP_BLOCK;
#pragma unroll
    for (int part = 0; part < STEP_BLOCK; part += THREADS * 4) {
        const int64_t at = block + part + threadIdx.x * 4;
        if (at >= elements) return;
        const int count = int(min((long long)(elements - at), 4LL));
        float w[4], m[4], v[4], g[4];
        read_four(w, table.master[tensor] + at, count);
        read_four(m, table.m[tensor] + at, count);
        read_four(v, table.v[tensor] + at, count);
        read_four(g, table.gradient[tensor] + at, count);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            g[e] *= table.scale;
            m[e] = __fmaf_rn(table.beta1, m[e], (1.0f - table.beta1) * g[e]);
            v[e] = __fmaf_rn(table.beta2, v[e], (1.0f - table.beta2) * g[e] * g[e]);
            const float length = __fmaf_rn(__fsqrt_rn(v[e]), table.correct2, table.eps);
            const float step = __fmaf_rn(table.decay[tensor], w[e], __fdiv_rn(m[e] * table.correct1, length));
            w[e] = __fmaf_rn(-table.rate, step, w[e]);
        }
        write_four(table.master[tensor] + at, w, count);
        write_four(table.m[tensor] + at, m, count);
        write_four(table.v[tensor] + at, v, count);
        __nv_bfloat16* weight = table.weight[tensor];
        if (weight) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (e < count) weight[at + e] = __float2bfloat16_rn(w[e]);
            }
        }
    }
}
EMU_REGISTER(adamw)
