// The operations as other sources call them; what each wants is said where it is defined.
#pragma once

#include <cstdint>

extern "C" {

void xpyd_linear(int dtype, int out_dtype, const void* x, int64_t rows, int64_t depth,
                 int64_t columns, const void* panels, const float* scales, const float* bias,
                 void* out);
void xpyd_rms_norm(int dtype, const void* x, int64_t outer, int64_t inner, int64_t outer_stride,
                   int64_t inner_stride, int64_t dim, const void* weight, float eps, void* out);
void xpyd_add_rms_norm(int dtype, const void* x, const void* residual, int64_t rows, int64_t dim,
                       const void* weight, float eps, void* total, void* out);
void xpyd_silu_mul(int dtype, const void* gate_up, int64_t rows, int64_t stride, int64_t dim,
                   void* out);
void xpyd_rope(int dtype, void* x, int64_t tokens, int64_t heads, int64_t token_stride,
               int64_t head_stride, const float* cos, const float* sin, int64_t half,
               const int64_t* positions);
void xpyd_store_kv(const char* rows, int64_t tokens, int64_t heads, int64_t row_bytes,
                   int64_t token_stride, int64_t head_stride, char* cache, int64_t block_stride,
                   int64_t cache_head_stride, int64_t cache_token_stride, int64_t block_size,
                   const int64_t* slots);
void xpyd_attention(int dtype, const void* query, int64_t token_stride, int64_t head_stride,
                    const void* keys, const int64_t* k_strides, const void* values,
                    const int64_t* v_strides, const int32_t* tables, int64_t table_stride,
                    const int32_t* starts, const int32_t* contexts, const int64_t* sizes,
                    float scale, int64_t window, float softcap, void* out);
}
