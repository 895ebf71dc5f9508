// Small kernels that use one facility each, for the emulator's own tests. With `bug` above 0 they are wrong on purpose,
// each value in one way.
#include "../../common/warp.cuh"

// y += a x; bug 1: one element too many, bug 2: vector loads off by one element
KERNEL void test_axpy(float* y, const float* x, float a, int n, int bug) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (bug == 2) {
        if (i == 0) y[0] = __uint_as_float(load_16(x + 1).x);
    } else if (i < n + (bug == 1)) {
        y[i] += a * x[i];
    }
}
EMU_REGISTER(test_axpy)

// out[block] = sum of the block's elements. bug 1: no barrier before the warps' sums are read; 2: one slot too many is
// read inside the array; 3: a shuffle names lanes that do not come; 4: reads past shared memory; 5: writes past it;
// 6: no barrier before the second use; 7: a thread leaves before a shuffle that names it; 8: an odd lane shuffles by
// another kind; 9: divides by zero on a grid of 1
KERNEL void test_reduce(float* out, const float* x, int n, int bug) {
    DYN_SMEM(memory);
    float* sums = reinterpret_cast<float*>(memory);  // one a warp, and one more
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warps = int(blockDim.x) / 32;
    float sum = i < n ? x[i] : 0.0f;
    if (bug == 7 && threadIdx.x == 5) return;
    if (bug == 3 && lane >= 16) {
        sum += 1.0f;
        __syncthreads();
    } else if (bug == 8 && lane % 2) {
        sum += __shfl_down_sync(0xFFFFFFFFu, sum, 1);
    } else {
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
    }
    if (lane == 0) sums[warp] = sum;
    if (bug == 5 && threadIdx.x == 0) sums[warps + 1] = sum;
    if (bug != 1) __syncthreads();
    float total = 0.0f;
    for (int w = 0; w < warps + (bug == 2); w++) total += sums[bug == 4 ? w + 2 : w];
    if (bug == 9) total += float(warps / (int(gridDim.x) - 1));
    if (bug != 6) __syncthreads();
    if (threadIdx.x == 0) sums[0] = total;
    __syncthreads();
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}
EMU_REGISTER(test_reduce)

// One warp: out = transpose of in [32, 32]; bug 1: no __syncwarp
KERNEL void test_transpose(int* out, const int* in, int bug) {
    DYN_SMEM(memory);
    int* tile = reinterpret_cast<int*>(memory);
    for (int row = 0; row < 32; row++) tile[row * 33 + threadIdx.x] = in[row * 32 + threadIdx.x];
    if (bug != 1) __syncwarp();
    for (int row = 0; row < 32; row++) out[row * 32 + threadIdx.x] = tile[threadIdx.x * 33 + row];
}
EMU_REGISTER(test_transpose)

// counts[v] of values in 0..16 over all blocks; bug 1: plain increments in shared memory
KERNEL void test_histogram(int* counts, const int* values, int n, int bug) {
    DYN_SMEM(memory);
    int* own = reinterpret_cast<int*>(memory);
    if (threadIdx.x < 16) own[threadIdx.x] = 0;
    __syncthreads();
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        if (bug == 1) {
            own[values[i]]++;
        } else {
            atomicAdd(&own[values[i]], 1);
        }
    }
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], own[threadIdx.x]);
}
EMU_REGISTER(test_histogram)

// The last block to finish adds up what all blocks left in `parts`. bug 1: no __threadfence, 2: all blocks use one slot
KERNEL void test_last_block(float* out, float* parts, int* done, int bug) {
    DYN_SMEM(memory);
    int* last = reinterpret_cast<int*>(memory);
    if (threadIdx.x == 0) {
        parts[bug == 2 ? 0 : blockIdx.x] = float(blockIdx.x + 1);
        if (bug != 1) __threadfence();
        *last = atomicAdd(done, 1) == int(gridDim.x) - 1;
    }
    __syncthreads();
    if (*last && threadIdx.x == 0) {
        float sum = 0.0f;
        for (unsigned b = 0; b < gridDim.x; b++) sum += parts[b];
        *out = sum;
    }
}
EMU_REGISTER(test_last_block)

// Warp 0 hands a number a round to warp 1, which adds them up. bug 1: a count that is no multiple of 32, 2: the wrong
// id, 3: two counts on one id, 4: the empty side is not waited for, 5: an arrival nobody waits for
KERNEL void test_named(int* out, int rounds, int bug) {
    DYN_SMEM(memory);
    int* box = reinterpret_cast<int*>(memory);
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        for (int i = 0; i < rounds; i++) {
            if (i && bug != 4) bar_sync<2>(64);
            box[lane] = i * lane;
            bug == 2 ? bar_arrive<3>(64) : bar_arrive<1>(bug == 1 ? 40 : 64);
        }
        if (bug == 5) bar_arrive<4>(64);
    } else {
        int sum = 0;
        for (int i = 0; i < rounds; i++) {
            bar_sync<1>(bug == 3 ? 32 : 64);
            sum += box[31 - lane];
            if (i + 1 < rounds) bar_arrive<2>(64);
        }
        out[lane] = sum;
    }
}
EMU_REGISTER(test_named)

// out[kind][lane] for the four shuffles and a vote
KERNEL void test_shuffles(int* out, int operand, int width) {
    const int lane = threadIdx.x;
    out[lane] = __shfl_sync(0xFFFFFFFFu, lane, operand, width);
    out[32 + lane] = __shfl_up_sync(0xFFFFFFFFu, lane, unsigned(operand), width);
    out[64 + lane] = __shfl_down_sync(0xFFFFFFFFu, lane, unsigned(operand), width);
    out[96 + lane] = __shfl_xor_sync(0xFFFFFFFFu, lane, operand, width);
    out[128 + lane] = int(__ballot_sync(0xFFFFFFFFu, lane % 3 == 0));
}
EMU_REGISTER(test_shuffles)

// Thread 0 polls a flag that nobody can set meanwhile.
KERNEL void test_spin(int* flag) {
    volatile int* polled = flag;
    while (*polled == 0) {
    }
}
EMU_REGISTER(test_spin)
