// Boxes of every rank and wgmma operands in every layout, for the emulator's own tests: shared memory as it is, so that
// the other side of the comparison can be plain loops on the host.
#include "../../common/wgmma.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// out [bytes]: shared memory after one box has been loaded.
KERNEL void __launch_bounds__(32) test_box(unsigned char* out, const __grid_constant__ CUtensorMap map, int rank, int bytes,
                                           int c0, int c1, int c2, int c3) {
    DYN_SMEM(memory);
    const uint32_t base = smem_u32(memory), bar = base + bytes;
    if (threadIdx.x == 0) {
        mbar_init(bar, 1);
        fence_mbar_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbar_arrive_expect_tx(bar, bytes);
        if (rank == 2) tma_load_2d(base, &map, bar, c0, c1);
        if (rank == 3) tma_load_3d(base, &map, bar, c0, c1, c2);
        if (rank == 4) tma_load_4d(base, &map, bar, c0, c1, c2, c3);
    }
    mbar_wait(bar, 0);
    for (int i = threadIdx.x * 16; i < bytes; i += 512) store_16(out + i, load_16(memory + i));
}
EMU_REGISTER(test_box)

// A box of shared memory that holds `image`, stored at (c0, c1).
KERNEL void __launch_bounds__(32)
    test_box_store(const unsigned char* image, const __grid_constant__ CUtensorMap map, int bytes, int c0, int c1) {
    DYN_SMEM(memory);
    for (int i = threadIdx.x * 16; i < bytes; i += 512) store_16(memory + i, load_16(image + i));
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        tma_store_2d(&map, smem_u32(memory), c0, c1);
        bulk_commit();
        bulk_wait<0>();
    }
}
EMU_REGISTER(test_box_store)

// d [64, WIDTH] = the sum over 4 steps of 16 k of what the descriptors find in `image`, which fills shared memory.
// a, b: all of a descriptor but its address; starts [2, 4]: the address for each operand and step.
template <int WIDTH, int A_MN, int B_MN>
__device__ __forceinline__ void layout(float* d, uint32_t base, int64_t a, int64_t b, const int* starts) {
    float sum[WIDTH / 2] = {};
    wgmma_fence_regs(sum);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
        const uint64_t da = uint64_t(a) | (base + starts[step]) >> 4, db = uint64_t(b) | (base + starts[4 + step]) >> 4;
        if constexpr (WIDTH == 64) wgmma_m64n64k16<A_MN, B_MN>(sum, da, db, 1);
        if constexpr (WIDTH == 96) wgmma_m64n96k16<A_MN, B_MN, 0>(sum, da, db, 1);
        if constexpr (WIDTH == 128) wgmma_m64n128k16<A_MN, B_MN>(sum, da, db, 1);
        if constexpr (WIDTH == 192) wgmma_m64n192k16<A_MN, B_MN>(sum, da, db, 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_fence_regs(sum);
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) d[(row + i / 2 % 2 * 8) * WIDTH + i / 4 * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

#define LAYOUT(WIDTH)                                                                                                  \
    KERNEL void __launch_bounds__(128) test_layout_##WIDTH(float* d, const unsigned char* image, int bytes, int64_t a, \
                                                           int64_t b, const int* starts, int a_mn, int b_mn) {         \
        DYN_SMEM(memory);                                                                                              \
        for (int i = threadIdx.x * 16; i < bytes; i += 2048) store_16(memory + i, load_16(image + i));                 \
        fence_proxy_async();                                                                                           \
        __syncthreads();                                                                                               \
        const uint32_t base = smem_u32(memory);                                                                        \
        if (a_mn && b_mn) layout<WIDTH, 1, 1>(d, base, a, b, starts);                                                  \
        if (a_mn && !b_mn) layout<WIDTH, 1, 0>(d, base, a, b, starts);                                                 \
        if (!a_mn && b_mn) layout<WIDTH, 0, 1>(d, base, a, b, starts);                                                 \
        if (!a_mn && !b_mn) layout<WIDTH, 0, 0>(d, base, a, b, starts);                                                \
    }                                                                                                                  \
    EMU_REGISTER(test_layout_##WIDTH)
LAYOUT(64)
LAYOUT(96)
LAYOUT(128)
LAYOUT(192)

// out[warp] = how many lanes are elected, per warp; the elected one sums up its lanes' numbers into out[warps + warp].
KERNEL void __launch_bounds__(128) test_elect(int* out) {
    DYN_SMEM(memory);
    int* numbers = reinterpret_cast<int*>(memory);
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    numbers[threadIdx.x] = threadIdx.x;
    __syncwarp();
    const bool chosen = elect_one();
    const unsigned all = __ballot_sync(0xFFFFFFFFu, chosen);
    if (chosen) {
        int sum = 0;
        for (int i = 0; i < 32; i++) sum += numbers[warp * 32 + i];
        out[warp] = __popc(all);
        out[warps + warp] = sum;
    }
}
EMU_REGISTER(test_elect)

// A barrier that serves 64 arrivals, is given up, its memory used as a number, and initialised again for 2. bug 1: not
// given up, 2: waited for after it was given up, 3: its memory is used while it lives
KERNEL void __launch_bounds__(64) test_inval(int* out, int bug) {
    DYN_SMEM(memory);
    int* number = reinterpret_cast<int*>(memory);
    const uint32_t bar = smem_u32(memory);
    if (threadIdx.x == 0) {
        mbar_init(bar, 64);
        fence_mbar_init();
    }
    __syncthreads();
    mbar_arrive(bar);
    mbar_wait(bar, 0);
    __syncthreads();
    if (threadIdx.x == 0) {
        if (bug != 1 && bug != 3) mbar_inval(bar);
        if (bug == 2) mbar_wait(bar, 0);
        if (bug != 1) *number = 7;
    }
    __syncthreads();
    if (bug == 3) mbar_arrive(bar);
    out[threadIdx.x] = *number;
    __syncthreads();
    if (threadIdx.x == 0) {
        mbar_init(bar, 2);
        fence_mbar_init();
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) mbar_arrive(bar);
    mbar_wait(bar, 0);
}
EMU_REGISTER(test_inval)

// Adds 1 to tiles of 8 rows and 32 columns of f32, one after another through one buffer. bug 1: the next tile is loaded
// before the last one's store has read it, 2: the barrier's parity is not turned, 3: thread 0 does not wait for the
// others to have added before it stores, 4: nobody waits at the end
KERNEL void __launch_bounds__(64) test_tiles(const __grid_constant__ CUtensorMap map, int tiles, int bug) {
    DYN_SMEM(memory);
    float* buffer = reinterpret_cast<float*>(memory);
    const uint32_t base = smem_u32(memory), bar = base + 1024;
    if (threadIdx.x == 0) {
        mbar_init(bar, 1);
        fence_mbar_init();
    }
    __syncthreads();
    for (int tile = 0; tile < tiles; tile++) {
        if (threadIdx.x == 0) {
            if (bug != 1) bulk_wait_read<0>();
            mbar_arrive_expect_tx(bar, 1024);
            tma_load_2d(base, &map, bar, 0, tile * 8);
        }
        mbar_wait(bar, bug == 2 ? 0 : tile % 2);
        for (int i = threadIdx.x; i < 256; i += 64) buffer[i] += 1.0f;
        fence_proxy_async();
        if (bug != 3) __syncthreads();
        if (threadIdx.x == 0) {
            tma_store_2d(&map, base, 0, tile * 8);
            bulk_commit();
        }
    }
    if (threadIdx.x == 0 && bug != 4) bulk_wait<0>();
}
EMU_REGISTER(test_tiles)

// d [64, 64] = the identity times its transpose, by each of two warpgroups, and then by way of the operand's own memory.
// bug 1: a warpgroup writes there while the other may still multiply, 2: it reads rows of B that nobody wrote
KERNEL void __launch_bounds__(256) test_over(float* d, int bug) {
    DYN_SMEM(memory);
    const uint32_t base = smem_u32(memory);
    const int group = threadIdx.x / 128, thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < (bug == 2 ? 504 : 512); i += 256) {  // 16-byte pieces
        const int row = i / 8, piece = i % 8;
        const unsigned one = row % 2 ? 0x3F800000u : 0x3F80u;  // in bf16, in either half of a word
        const auto word = [&](int w) { return row / 8 == piece && row % 8 / 2 == w ? one : 0u; };
        store_16(memory + row * 128 + (piece ^ row % 8) * 16, make_uint4(word(0), word(1), word(2), word(3)));
    }
    fence_proxy_async();
    __syncthreads();
    float sum[32] = {};
    wgmma_fence_regs(sum);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        wgmma_m64n64k16<0, 0>(sum, desc_sw128(base + 32 * k, 0, 1024), desc_sw128(base + 32 * k, 0, 1024), 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_fence_regs(sum);
    if (bug != 1) __syncthreads();
    if (group == 0) {
        float* tile = reinterpret_cast<float*>(memory);  // [64, 64]
        const int row = thread / 32 * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < 32; i++) tile[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = sum[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 4096; i += 256) d[i] = reinterpret_cast<const float*>(memory)[i];
}
EMU_REGISTER(test_over)

#endif
