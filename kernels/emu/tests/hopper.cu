// TMA, mbarriers, stmatrix and wgmma, for the emulator's own tests. `bug` as in basics.cu.
#include "../../common/wgmma.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Byte offset of 16-byte piece `chunk` of 128-byte row `row` in a 1024-aligned tile under the 128-byte swizzle.
__device__ __forceinline__ uint32_t swizzled_offset(int row, int chunk) {
    return uint32_t(row * 128 + (chunk ^ (row & 7)) * 16);
}

// out[round, column] = sum over 4 rows of a box of 32 columns, boxes two by two down the tensor; a producer warp fills
// a ring of two stages that a consumer warp reads by plain loads. bug 1: consumer's parity inverted, 2: expects 16
// bytes too many, 3: expects half, 4: the producer does not wait for empty stages, 5: a consumer forgets to release,
// 6: no barrier after the initialisation, 7: no proxy fence before a release, 8: a tile off the 128-byte grid
KERNEL void __launch_bounds__(64) test_ring(float* out, const __grid_constant__ CUtensorMap map, int rounds, int bug) {
    DYN_SMEM(memory);
    constexpr uint32_t STAGE = 512;
    const float* tiles = reinterpret_cast<const float*>(memory);
    const uint32_t base = smem_u32(memory), full = base + 2 * STAGE, empty = full + 16;
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < 2; s++) {
            mbar_init(full + 8 * s, 1);    // the producer
            mbar_init(empty + 8 * s, 32);  // the consumer's lanes
        }
        fence_mbar_init();
    }
    if (bug != 6) __syncthreads();
    if (threadIdx.x < 32) {
        for (int i = 0; i < rounds && lane == 0; i++) {
            const int s = i % 2;
            if (bug != 4) mbar_wait(empty + 8 * s, (i / 2 + 1) % 2);
            mbar_arrive_expect_tx(full + 8 * s, bug == 2 ? STAGE + 16 : bug == 3 ? STAGE / 2 : STAGE);
            tma_load_2d(base + s * STAGE + (bug == 8 ? 16 : 0), &map, full + 8 * s, i % 2 * 32, i / 2 * 4);
        }
    } else {
        for (int i = 0; i < rounds; i++) {
            const int s = i % 2;
            mbar_wait(full + 8 * s, (i / 2 + (bug == 1)) % 2);
            float sum = 0.0f;
            for (int row = 0; row < 4; row++) sum += tiles[s * (STAGE / 4) + row * 32 + lane];
            out[i * 32 + lane] = sum;
            if (bug != 7) fence_proxy_async();
            if (bug != 5 || lane != 7) mbar_arrive(empty + 8 * s);
        }
    }
}
EMU_REGISTER(test_ring)

// A 64 x 64 tile of (64 row + column) % 251, by stmatrix and one TMA store. bug 1: no proxy fence, 2: no barrier before
// the store, 3: the tile is written again before the store has read it, 4: nobody waits for the store
KERNEL void __launch_bounds__(128) test_store(const __grid_constant__ CUtensorMap map, int bug) {
    DYN_SMEM(memory);
    const uint32_t tile = smem_u32(memory);
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16;
    for (int part = 0; part < 4; part++) {
        uint32_t registers[4];
        for (int i = 0; i < 4; i++) {
            const int row = first + lane / 4 + i % 2 * 8, column = part * 16 + lane % 4 * 2 + i / 2 * 8;
            const unsigned low = __float_as_uint(float((64 * row + column) % 251)) >> 16;
            registers[i] = low | (__float_as_uint(float((64 * row + column + 1) % 251)) & 0xFFFF0000u);
        }
        const int row = first + lane % 16;
        stmatrix_x4(tile + swizzled_offset(row, part * 2 + lane / 16), registers);
    }
    if (bug != 1) fence_proxy_async();
    if (bug != 2) __syncthreads();
    if (threadIdx.x == 0) {
        tma_store_2d(&map, tile, 0, 0);
        bulk_commit();
        if (bug != 3 && bug != 4) bulk_wait<0>();
        if (bug == 3) memory[0] = 0;
        if (bug == 3) bulk_wait<0>();
    }
}
EMU_REGISTER(test_store)

// d [64, 64] = a b by four wgmmas over k. a is [64 m, 64 k], or [64 k, 64 m] with a_mn; b is [64 n, 64 k], or
// [64 k, 64 n] with b_mn; rs takes a from registers. bug 1: no wgmma_fence, 2: reads d before the wait, 3: no proxy fence
// after the plain stores, 4: a descriptor off the atom's first row, 5: no wait at all, 6: threads differ
KERNEL void __launch_bounds__(128)
    test_wgmma(float* d, const __nv_bfloat16* a, const __nv_bfloat16* b, int a_mn, int b_mn, int rs, int bug) {
    DYN_SMEM(memory);
    const uint32_t tile_a = smem_u32(memory), tile_b = tile_a + 8192;
    for (int i = threadIdx.x; i < 512; i += 128) {
        const uint32_t at = swizzled_offset(i / 8, i % 8);
        store_16(memory + at, load_16(a + i * 8));
        store_16(memory + 8192 + at, load_16(b + i * 8));
    }
    if (bug != 3) fence_proxy_async();
    __syncthreads();
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16 + lane / 4;
    float sum[32] = {};
    wgmma_fence_regs(sum);
    if (bug != 1) wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint32_t skew = bug == 4 ? 128 : bug == 6 && threadIdx.x == 9 ? 1024 : 0;
        const uint64_t da = desc_sw128(tile_a + k * (a_mn ? 2048 : 32), 8192, 1024);
        const uint64_t db = desc_sw128(tile_b + k * (b_mn ? 2048 : 32) + skew, 8192, 1024);
        if (rs) {
            uint32_t registers[4];
            for (int i = 0; i < 4; i++) {
                const __nv_bfloat16* pair = a + (first + i % 2 * 8) * 64 + k * 16 + lane % 4 * 2 + i / 2 * 8;
                registers[i] = *reinterpret_cast<const uint32_t*>(pair);
            }
            b_mn ? wgmma_m64n64k16_rs<1>(sum, registers, db, k) : wgmma_m64n64k16_rs<0>(sum, registers, db, k);
        } else if (a_mn) {
            b_mn ? wgmma_m64n64k16<1, 1>(sum, da, db, k) : wgmma_m64n64k16<1, 0>(sum, da, db, k);
        } else {
            b_mn ? wgmma_m64n64k16<0, 1>(sum, da, db, k) : wgmma_m64n64k16<0, 0>(sum, da, db, k);
        }
    }
    wgmma_commit();
    if (bug == 2) d[0] = sum[0];
    if (bug != 5) wgmma_wait<0>();
    wgmma_fence_regs(sum);
    if (bug == 5) return;
    for (int i = 0; i < 32; i++) d[(first + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
EMU_REGISTER(test_wgmma)

// d [64, 128] = a [64, k] b [128, k]^T: one warpgroup loads tiles of 64 k by TMA, the other multiplies.
// bug 1: a stage is released before the wgmmas that read it are done
KERNEL void __launch_bounds__(256, 1) test_gemm(float* d, const __grid_constant__ CUtensorMap map_a,
                                                const __grid_constant__ CUtensorMap map_b, int k, int bug) {
    DYN_SMEM(memory);
    constexpr uint32_t A = 8192, STAGE = A + 16384;
    const uint32_t base = smem_u32(memory), full = base + 2 * STAGE, empty = full + 16;
    const int tiles = (k + 63) / 64;
    if (threadIdx.x == 0) {
        for (int s = 0; s < 2; s++) {
            mbar_init(full + 8 * s, 1);   // the producer
            mbar_init(empty + 8 * s, 1);  // the consumer's first thread
        }
        fence_mbar_init();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        setmaxnreg_dec<40>();
        for (int i = 0; i < tiles && threadIdx.x == 0; i++) {
            const int s = i % 2;
            mbar_wait(empty + 8 * s, (i / 2 + 1) % 2);
            mbar_arrive_expect_tx(full + 8 * s, STAGE);
            tma_load_2d(base + s * STAGE, &map_a, full + 8 * s, i * 64, 0);
            tma_load_2d(base + s * STAGE + A, &map_b, full + 8 * s, i * 64, 0);
        }
    } else {
        setmaxnreg_inc<232>();
        float sum[64] = {};
        for (int i = 0; i < tiles; i++) {
            const int s = i % 2;
            mbar_wait(full + 8 * s, i / 2 % 2);
            wgmma_fence_regs(sum);
            wgmma_fence();
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const uint32_t tile = base + s * STAGE + part * 32;
                wgmma_m64n128k16<0, 0>(sum, desc_sw128(tile, 0, 1024), desc_sw128(tile + A, 0, 1024), 1);
            }
            wgmma_commit();
            if (bug != 1) wgmma_wait<0>();
            bar_sync<1>(128);
            if (threadIdx.x == 128) mbar_arrive(empty + 8 * s);
            if (bug == 1) wgmma_wait<0>();
            wgmma_fence_regs(sum);
        }
        const int lane = threadIdx.x % 32, first = (threadIdx.x / 32 - 4) * 16 + lane / 4;
        for (int i = 0; i < 64; i++) d[(first + i / 2 % 2 * 8) * 128 + i / 4 * 8 + lane % 4 * 2 + i % 2] = sum[i];
    }
}
EMU_REGISTER(test_gemm)

#endif
