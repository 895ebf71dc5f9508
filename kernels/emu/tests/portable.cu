// cp.async, ldmatrix and mma.sync, for the emulator's own tests. `bug` as in basics.cu.
#include "../../common/warp.cuh"

// out = in, n floats, through two shared buffers of a block's 16-byte pieces. bug 1: waits for one group too few, 2: no
// barrier after the wait, 3: no barrier before a buffer is used again, 4: a source off by one element
KERNEL void test_copy(float* out, const float* in, int n, int bug) {
    DYN_SMEM(memory);
    float* buffer = reinterpret_cast<float*>(memory);
    const int chunk = int(blockDim.x) * 4, chunks = (n + chunk - 1) / chunk, mine = threadIdx.x * 4;
    auto fetch = [&](int c) {
        const int from = c * chunk + mine, left = n - from;
        const int bytes = left >= 4 ? 16 : left > 0 ? left * 4 : 0;
        if (c < chunks) cp_async_16(smem_u32(buffer + c % 2 * chunk + mine), in + (left > 0 ? from + (bug == 4) : 0), bytes);
        cp_async_commit();
    };
    fetch(0);
    for (int c = 0; c < chunks; c++) {
        fetch(c + 1);
        bug == 1 ? cp_async_wait<2>() : cp_async_wait<1>();
        if (bug != 2) __syncthreads();
        for (int i = 0; i < 4; i++) {
            const int at = chunk - 1 - (mine + i), to = c * chunk + at;  // another thread's piece
            if (to < n) out[to] = buffer[c % 2 * chunk + at];
        }
        if (bug != 3) __syncthreads();
    }
}
EMU_REGISTER(test_copy)

// One warp: d [16, 8] = a [16, k] b, where b is [8, k], or [k, 8] with `turned`; k a multiple of 16.
// bug 1: a misaligned matrix row
KERNEL void test_mma(float* d, const __nv_bfloat16* a, const __nv_bfloat16* b, int k, int turned, int bug) {
    DYN_SMEM(memory);
    __nv_bfloat16* tile_a = reinterpret_cast<__nv_bfloat16*>(memory);
    __nv_bfloat16* tile_b = tile_a + 256;  // [8, 16] or [16, 8], twice, for x4
    const int lane = threadIdx.x;
    float sum[4] = {};
    for (int from = 0; from < k; from += 16) {
        __syncwarp();
        for (int i = lane; i < 256; i += 32) tile_a[i] = a[i / 16 * k + from + i % 16];
        for (int i = lane; i < 256; i += 32) {
            const int j = i % 128;
            tile_b[i] = turned ? b[(from + j / 8) * 8 + j % 8] : b[j / 16 * k + from + j % 16];
        }
        __syncwarp();
        uint32_t fragment_a[4], fragment_b[4];
        const uint32_t row = smem_u32(tile_a + lane % 16 * 16 + lane / 16 * 8);
        ldmatrix_x4(fragment_a, bug == 1 ? row + 2 : row);
        if (turned) {
            ldmatrix_x4_trans(fragment_b, smem_u32(tile_b + lane % 16 * 8 + lane / 16 * 128));
        } else {
            ldmatrix_x4(fragment_b, smem_u32(tile_b + lane % 8 * 16 + lane / 8 % 2 * 8 + lane / 16 * 128));
        }
        mma_m16n8k16_bf16(sum, fragment_a, fragment_b[0], fragment_b[1]);
    }
    for (int e = 0; e < 4; e++) d[(lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2] = sum[e];
}
EMU_REGISTER(test_mma)
