// Operations on single rows or heads: norm, rope, gated activation, storing KV. A row's result is made
// of its own values only, in one order; the ends of rows take the same instructions (see simd.h).
#include <algorithm>

#include "pool.h"
#include "simd.h"

namespace xpyd {
namespace {

constexpr int64_t kTaskValues = 16 << 10;  // below this a second thread costs more than it brings

// Calls f(row) for all rows, in tasks of about kTaskValues values.
template <class F>
void for_rows(int64_t rows, int64_t row_values, F&& f) {
  const int64_t per_task = std::max<int64_t>(1, kTaskValues / std::max<int64_t>(1, row_values));
  parallel_for((rows + per_task - 1) / per_task, [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * per_task);
    for (int64_t row = task * per_task; row < end; row++) f(row);
  });
}

// To storage type T and back.
template <class T>
INLINE vf round_to(vf x) {
  typename T::type stored[W];
  T::store(stored, x);
  return T::load(stored);
}

template <class T>
float sum_of_squares(const typename T::type* x, int64_t dim) {
  vf sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= dim; i += 4 * W)
    for (int j = 0; j < 4; j++) {
      vf v = T::load(x + i + j * W);
      sum[j] = fma(v, v, sum[j]);
    }
  for (int j = 0; i < dim; i += W, j++) {
    vf v = load_upto<T>(x + i, dim - i);
    sum[j] = fma(v, v, sum[j]);
  }
  return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
INLINE void norm_row(const typename T::type* x, int64_t dim, const typename T::type* weight,
                     float eps, typename T::type* out) {
  const float factor = 1.0f / std::sqrt(sum_of_squares<T>(x, dim) / (float)dim + eps);
  for (int64_t i = 0; i < dim; i += W) {
    vf y = round_to<T>(load_upto<T>(x + i, dim - i) * factor);
    store_upto<T>(out + i, load_upto<T>(weight + i, dim - i) * y, dim - i);
  }
}

template <class T>
INLINE void add_row(const typename T::type* x, const typename T::type* y, int64_t dim,
                    typename T::type* out) {
  for (int64_t i = 0; i < dim; i += W)
    store_upto<T>(out + i, load_upto<T>(x + i, dim - i) + load_upto<T>(y + i, dim - i), dim - i);
}

template <class T>
INLINE void silu_mul_row(const typename T::type* gate, int64_t dim, typename T::type* out) {
  for (int64_t i = 0; i < dim; i += W) {
    vf g = load_upto<T>(gate + i, dim - i), up = load_upto<T>(gate + dim + i, dim - i);
    store_upto<T>(out + i, round_to<T>(g / (exp(-g) + 1.0f)) * up, dim - i);
  }
}

template <class T>
INLINE void rotate(typename T::type* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += W) {
    const int64_t left = half - i;
    vf c = round_to<T>(load_upto<F32>(cos + i, left)), s = round_to<T>(load_upto<F32>(sin + i, left));
    vf first = load_upto<T>(x + i, left), second = load_upto<T>(x + half + i, left);
    store_upto<T>(x + i, round_to<T>(first * c) - round_to<T>(second * s), left);
    store_upto<T>(x + half + i, round_to<T>(second * c) + round_to<T>(first * s), left);
  }
}

}  // namespace
}  // namespace xpyd

using namespace xpyd;

extern "C" {

// x: [outer, inner, dim] with strides in values, last one 1; out: contiguous.
void xpyd_rms_norm(int dtype, const void* x, int64_t outer, int64_t inner, int64_t outer_stride,
                   int64_t inner_stride, int64_t dim, const void* weight, float eps, void* out) {
  with_dtype(dtype, [&](auto t) {
    typedef decltype(t) T;
    typedef typename T::type V;
    for_rows(outer * inner, dim, [&](int64_t row) {
      const V* from = (const V*)x + row / inner * outer_stride + row % inner * inner_stride;
      norm_row<T>(from, dim, (const V*)weight, eps, (V*)out + row * dim);
    });
  });
}

// x, residual, total, out: [rows, dim] contiguous.
void xpyd_add_rms_norm(int dtype, const void* x, const void* residual, int64_t rows, int64_t dim,
                       const void* weight, float eps, void* total, void* out) {
  with_dtype(dtype, [&](auto t) {
    typedef decltype(t) T;
    typedef typename T::type V;
    for_rows(rows, 2 * dim, [&](int64_t row) {
      V* sum = (V*)total + row * dim;
      add_row<T>((const V*)x + row * dim, (const V*)residual + row * dim, dim, sum);
      norm_row<T>(sum, dim, (const V*)weight, eps, (V*)out + row * dim);
    });
  });
}

// gate_up: [rows, 2 * dim], rows `stride` values apart; out: [rows, dim] contiguous.
void xpyd_silu_mul(int dtype, const void* gate_up, int64_t rows, int64_t stride, int64_t dim,
                   void* out) {
  with_dtype(dtype, [&](auto t) {
    typedef decltype(t) T;
    typedef typename T::type V;
    for_rows(rows, 4 * dim, [&](int64_t row) {
      silu_mul_row<T>((const V*)gate_up + row * stride, dim, (V*)out + row * dim);
    });
  });
}

// x: [tokens, heads, …] in place, strides in values; cos, sin: [positions, half] float32 contiguous.
void xpyd_rope(int dtype, void* x, int64_t tokens, int64_t heads, int64_t token_stride,
               int64_t head_stride, const float* cos, const float* sin, int64_t half,
               const int64_t* positions) {
  with_dtype(dtype, [&](auto t) {
    typedef decltype(t) T;
    for_rows(tokens, heads * half * 4, [&](int64_t token) {
      const int64_t at = positions[token] * half;
      for (int64_t head = 0; head < heads; head++)
        rotate<T>((typename T::type*)x + token * token_stride + head * head_stride, cos + at,
                  sin + at, half);
    });
  });
}

// One of K and V, strides in bytes. rows: [tokens, heads, row_bytes]; slots of -1 are skipped.
void xpyd_store_kv(const char* rows, int64_t tokens, int64_t heads, int64_t row_bytes,
                   int64_t token_stride, int64_t head_stride, char* cache, int64_t block_stride,
                   int64_t cache_head_stride, int64_t cache_token_stride, int64_t block_size,
                   const int64_t* slots) {
  for_rows(tokens, heads * row_bytes, [&](int64_t token) {
    const int64_t slot = slots[token];
    if (slot < 0) return;
    char* to = cache + slot / block_size * block_stride + slot % block_size * cache_token_stride;
    for (int64_t head = 0; head < heads; head++)
      std::memcpy(to + head * cache_head_stride, rows + token * token_stride + head * head_stride,
                  row_bytes);
  });
}
}
