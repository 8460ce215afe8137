// Keys and values of one tile of positions, taken out of the paged cache into panels (see gemm.h).
#pragma once

#include "gemm.h"
#include "transpose.h"

namespace xpyd {

constexpr int KEYS = 64;  // positions per tile; tiles start at multiples of it

// One side of the cache: [blocks, kv_heads, block_size, head_dim], strides in values.
struct Cache {
  const void* data;
  int64_t block_stride, head_stride, token_stride;
};

// Rows of `count` positions from `first` on, and a row of zeros for the rest of the tile: what the
// cache holds there was never written, and zero times NaN is NaN.
template <class T>
INLINE void find_rows(const Cache& cache, const int32_t* table, int64_t block_size, int64_t head,
                      int64_t first, int64_t count, const typename T::type* zeros,
                      const typename T::type** rows) {
  int64_t block = first / block_size, offset = first % block_size;
  for (int64_t i = 0; i < KEYS; i++) {
    if (i >= count) {
      rows[i] = zeros;
      continue;
    }
    rows[i] = (const typename T::type*)cache.data + table[block] * cache.block_stride +
              head * cache.head_stride + offset * cache.token_stride;
    if (++offset == block_size) offset = 0, block++;
  }
}

// W steps of one row, as 32-bit lanes; past the end zeros.
template <class T, class Dot>
INLINE vf load_steps(const typename T::type* row, int64_t step, int64_t steps, int64_t head_dim) {
  if constexpr (Dot::kWidth == 2) return load_upto<F32>((const float*)row + step, steps - step);
  else return load_upto<T>(row + step, head_dim - step);
}

// Panels over keys: panel[key / NR][step of head_dim][key % NR].
template <class T, class Dot>
INLINE void pack_keys(const typename T::type* const* rows, int64_t head_dim,
                      typename Dot::b_type* panels) {
  const int64_t steps = head_dim / Dot::kWidth;
  for (int64_t key = 0; key < KEYS; key += W) {
    float* out = (float*)panels + key / NR * steps * NR + key % NR;
    for (int64_t step = 0; step < steps; step += W) {
      vf block[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++)
        block[i] = load_steps<T, Dot>(rows[key + i], step, steps, head_dim);
      transpose(block);
      if (steps - step >= W) {
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) F32::store(out + (step + i) * NR, block[i]);
      } else {
        for (int i = 0; i < steps - step; i++) F32::store(out + (step + i) * NR, block[i]);
      }
    }
  }
}

// Panels over head_dim: panel[d / NR][step of keys][d % NR]; columns past head_dim are zero.
template <class T, class Dot>
INLINE void pack_values(const typename T::type* const* rows, int64_t head_dim,
                        typename Dot::b_type* panels) {
  constexpr int64_t steps = KEYS / Dot::kWidth;
  for (int64_t d = 0; d < head_dim; d += W) {
    float* out = (float*)panels + d / NR * steps * NR + d % NR;
    for (int64_t step = 0; step < steps; step++, out += NR) {
      if constexpr (Dot::kWidth == 2) {
        vu even = bits_of(load_upto<T>(rows[2 * step] + d, head_dim - d)) >> 16;
        vu odd = bits_of(load_upto<T>(rows[2 * step + 1] + d, head_dim - d));
        F32::store(out, float_of(even | odd));
      } else {
        F32::store(out, load_upto<T>(rows[step] + d, head_dim - d));
      }
    }
  }
}

}  // namespace xpyd
