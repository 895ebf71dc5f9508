// Backward of what stands between two linears of an MLP, in place: results of linears become their gradients.
//
//   gated_backward     d gate = dout up f'(gate),  d up = dout f(gate),  and dout becomes out = f(gate) up
//   activate_backward  d x = dout f'(x)                                    of out = f(x)
//
// in      function as `enum Ending` numbers them; activate_backward's dout bf16 [n]
// inout   gate, up, x, gated_backward's dout bf16 [n]
// launch  grid (n / 2048), block (256); any n >= 1; 16-byte accesses where a tensor is 16-byte aligned
// floor   bytes 12n (6n): bound by memory. T = 4096, F = 11008 at 4.3 TB/s: 126 us (63 us)
// order   none: each element stands alone
// pair    forward: linear.cu's endings; CPU reference: backend::plain gated_backward, activate_backward; emulated: yes
#include "common/linear.cuh"

// f'(x). All but GELU are x s(z) with s(z) = 1 / (1 + exp(-z)), so f' = s (1 + x z' (1 - s)).
__device__ __forceinline__ float slope(float x, int function) {
    if (function == GELU) {
        const float below = __fmul_rn(0.5f, erfcf(__fmul_rn(-0.70710678f, x)));  // of a normal number
        return __fmaf_rn(__fmul_rn(x, 0.39894228f), __expf(__fmul_rn(-0.5f, __fmul_rn(x, x))), below);
    }
    float z = x, steep = 1.0f;
    if (function == QUICK_GELU) z = __fmul_rn(1.702f, x), steep = 1.702f;
    if (function == GELU_TANH) {
        const float square = __fmul_rn(x, x);
        z = __fmul_rn(1.5957691f, __fmaf_rn(__fmul_rn(0.044715f, square), x, x));
        steep = __fmul_rn(1.5957691f, __fmaf_rn(0.134145f, square, 1.0f));
    }
    const float s = __fdividef(1.0f, __fadd_rn(1.0f, __expf(-z))), rest = __fadd_rn(1.0f, -s);
    return __fmul_rn(s, __fmaf_rn(__fmul_rn(x, steep), rest, 1.0f));
}

KERNEL void __launch_bounds__(256)
    gated_backward(__nv_bfloat16* gate, __nv_bfloat16* up, __nv_bfloat16* dout, int64_t elements, int function) {
    const int64_t at = (int64_t(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (at >= elements) return;
    const int count = int(min((long long)(elements - at), 8LL));
    float x[8], y[8], d[8];
    read_values(x, gate + at, count);
    read_values(y, up + at, count);
    read_values(d, dout + at, count);
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const float gradient = d[e], activated = activate(x[e], function);
        d[e] = __fmul_rn(activated, y[e]);
        y[e] = __fmul_rn(__fmul_rn(gradient, y[e]), slope(x[e], function));
        x[e] = __fmul_rn(gradient, activated);
    }
    write_values(gate + at, y, count);
    write_values(up + at, x, count);
    write_values(dout + at, d, count);
}
EMU_REGISTER(gated_backward)

KERNEL void __launch_bounds__(256)
    activate_backward(__nv_bfloat16* x, const __nv_bfloat16* dout, int64_t elements, int function) {
    const int64_t at = (int64_t(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (at >= elements) return;
    const int count = int(min((long long)(elements - at), 8LL));
    float values[8], d[8];
    read_values(values, x + at, count);
    read_values(d, dout + at, count);
#pragma unroll
    for (int e = 0; e < 8; e++) values[e] = __fmul_rn(d[e], slope(values[e], function));
    write_values(x + at, values, count);
}
EMU_REGISTER(activate_backward)
