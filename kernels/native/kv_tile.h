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

// Where the keys or values of one tile lie. Positions past the end get a row of zeros: what the
// cache holds there was never written, and zero times NaN is NaN.
template <class T>
struct TileRows {
  typedef typename T::type V;
  const V* at[KEYS];

  void find(const Cache& cache, const int32_t* table, int64_t block_size, int64_t head,
            int64_t first, int64_t count, const V* zeros) {
    const V* base = (const V*)cache.data + head * cache.head_stride;
    count = count < KEYS ? count : (int64_t)KEYS;
    int64_t block = first / block_size, offset = first % block_size;
    for (int64_t i = 0; i < count; block++, offset = 0) {
      const V* row = base + table[block] * cache.block_stride + offset * cache.token_stride;
      const int64_t end = count - i < block_size - offset ? count : i + block_size - offset;
      for (; i < end; i++, row += cache.token_stride) at[i] = row;
    }
    for (int64_t i = count < 0 ? 0 : count; i < KEYS; i++) at[i] = zeros;
  }

  // Asks for rows that the next tile will read: blocks lie all over memory, so the machine cannot
  // guess them. In portions, as only so many reads can be under way at once, and into the second
  // level, which can wait for more of them than the first and is not full of this tile.
  void prefetch(int64_t begin, int64_t end, int64_t head_dim) const {
    constexpr int64_t line = 64 / (int64_t)sizeof(V);
    for (int64_t i = begin; i < end; i++)
      for (int64_t d = 0; d < head_dim; d += line) __builtin_prefetch(at[i] + d, 0, 2);
  }
};

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

#if defined(XPYD_AVX512_BF16)
// Two vectors of 2 * W columns for one pair of keys.
INLINE void zip_pair(const uint16_t* even_row, const uint16_t* odd_row, __m512i* left,
                     __m512i* right) {
  alignas(64) static const uint16_t kZip[2][32] = {
      {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
      {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
       24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
  const __m512i first = _mm512_load_si512(kZip[0]), second = _mm512_load_si512(kZip[1]);
  const __m512i even = _mm512_loadu_si512(even_row), odd = _mm512_loadu_si512(odd_row);
  *left = _mm512_permutex2var_epi16(even, first, odd);
  *right = _mm512_permutex2var_epi16(even, second, odd);
}
#endif

// Panels over head_dim: panel[d / NR][step of keys][d % NR]; columns past head_dim are zero.
template <class T, class Dot>
INLINE void pack_values(const typename T::type* const* rows, int64_t head_dim,
                        typename Dot::b_type* panels) {
  constexpr int64_t steps = KEYS / Dot::kWidth;
  for (int64_t d = 0; d < head_dim; d += W) {
    float* out = (float*)panels + d / NR * steps * NR + d % NR;
#if defined(XPYD_AVX512_BF16)
    if (Dot::kWidth == 2 && head_dim - d >= 2 * W) {
      for (int64_t step = 0; step < steps; step++, out += NR) {
        __m512i left, right;
        zip_pair((const uint16_t*)rows[2 * step] + d, (const uint16_t*)rows[2 * step + 1] + d, &left,
                 &right);
        _mm512_storeu_si512(out, left);
        _mm512_storeu_si512(out + W, right);
      }
      d += W;
      continue;
    }
#endif
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
