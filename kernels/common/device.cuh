// The one door to the device: every kernel includes this first. Under nvcc it is CUDA, under a host compiler the
// emulator in `kernels/emu`. PTX is written in `kernels/common` alone, each piece with its emulated twin.
//
// Rules that keep kernels the same on both sides: shared memory is dynamic and comes from DYN_SMEM, tiles first;
// vector accesses go through load_16 and store_16; nobody spins; two threads never touch the same bytes unordered.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>

#include <cstdint>

#define KERNEL extern "C" __global__
#define EMU_REGISTER(name)
#define DYN_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]

__device__ __forceinline__ uint4 load_16(const void* from) { return *static_cast<const uint4*>(from); }
// Not from L1: what other blocks of this launch wrote.
__device__ __forceinline__ uint4 load_16_fresh(const void* from) { return __ldcg(static_cast<const uint4*>(from)); }
__device__ __forceinline__ float load_fresh(const float* from) { return __ldcg(from); }
__device__ __forceinline__ void store_16(void* to, uint4 value) { *static_cast<uint4*>(to) = value; }
#else
#include "../emu/device.h"
#endif
