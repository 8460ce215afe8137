// Both products of attention for a few rows, straight from the cache: keys are turned and values
// zipped in registers. For few rows, as in a decode step, writing panels (kv_tile.h) and reading them
// back costs more than it saves. Every sum is the chain that the panels give, bit for bit.
#pragma once

#include "kv_tile.h"

namespace xpyd {

#if defined(XPYD_AVX512_BF16)
constexpr bool kHasDirectTile = true;
constexpr int kDirectRows = 8;  // 8 sums + 8 vectors of keys, or 16 + 2 of values, in registers

// Four steps of sixteen keys, from [step, step + 4) of each row: turned[i] has step + i of all keys.
INLINE void turn_keys(const uint16_t* const* rows, int64_t step, __m512bh turned[4]) {
  __m512i part[4];  // of keys j, 4 + j, 8 + j, 12 + j: 128 bits each
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    auto at = [&](int q) { return _mm_loadu_si128((const __m128i*)(rows[4 * q + j] + 2 * step)); };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(at(0)), at(1), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(at(2)), at(3), 1);
    part[j] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  const __m512i a = _mm512_unpacklo_epi32(part[0], part[1]);
  const __m512i b = _mm512_unpackhi_epi32(part[0], part[1]);
  const __m512i c = _mm512_unpacklo_epi32(part[2], part[3]);
  const __m512i d = _mm512_unpackhi_epi32(part[2], part[3]);
  turned[0] = (__m512bh)_mm512_unpacklo_epi64(a, c);
  turned[1] = (__m512bh)_mm512_unpackhi_epi64(a, c);
  turned[2] = (__m512bh)_mm512_unpacklo_epi64(b, d);
  turned[3] = (__m512bh)_mm512_unpackhi_epi64(b, d);
}

// products[r, key] of ROWS queries with sixteen keys. steps: a multiple of 4.
template <int ROWS>
__attribute__((noinline)) static void multiply_keys(const uint32_t* query, int64_t steps,
                                                    const uint16_t* const* rows, float* products) {
  vf sum[ROWS] = {};
  for (int64_t s = 0; s < steps; s += 4) {
    __m512bh turned[4];
    turn_keys(rows, s, turned);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++)
        sum[r] = Pairs::step(sum[r], query[r * steps + s + i], turned[i]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) F32::store(products + r * KEYS, sum[r]);
}

// mixed[r, d .. d + NR) += weights[r] times the tile's values there.
template <int ROWS>
__attribute__((noinline)) static void multiply_values(const uint32_t* weights,
                                                      const uint16_t* const* rows, int64_t d,
                                                      float* mixed, int64_t columns) {
  constexpr int64_t steps = KEYS / 2;
  vf sum[ROWS][2];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++) sum[r][v] = F32::load(mixed + r * columns + v * W);
  for (int64_t s = 0; s < steps; s++) {
    __m512i left, right;
    zip_pair(rows[2 * s] + d, rows[2 * s + 1] + d, &left, &right);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const uint32_t weight = weights[r * steps + s];
      sum[r][0] = Pairs::step(sum[r][0], weight, (__m512bh)left);
      sum[r][1] = Pairs::step(sum[r][1], weight, (__m512bh)right);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++) F32::store(mixed + r * columns + v * W, sum[r][v]);
}

// The same for a number of rows known at run time, at most kDirectRows.
template <int ROWS = kDirectRows>
static void multiply_keys_rows(int count, const uint32_t* query, int64_t steps,
                               const uint16_t* const* rows, float* products) {
  if (count == ROWS) multiply_keys<ROWS>(query, steps, rows, products);
  else if constexpr (ROWS > 1)
    multiply_keys_rows<ROWS - 1>(count, query, steps, rows, products);
}

template <int ROWS = kDirectRows>
static void multiply_values_rows(int count, const uint32_t* weights, const uint16_t* const* rows,
                                 int64_t d, float* mixed, int64_t columns) {
  if (count == ROWS) multiply_values<ROWS>(weights, rows, d, mixed, columns);
  else if constexpr (ROWS > 1)
    multiply_values_rows<ROWS - 1>(count, weights, rows, d, mixed, columns);
}
#else
constexpr bool kHasDirectTile = false;
constexpr int kDirectRows = 0;
#endif

}  // namespace xpyd
