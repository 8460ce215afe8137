// The inner loop of `linear` and of attention: a few rows times panels of columns.
//
// A panel holds NR columns for all steps of the sum, step after step, so it is read as one stream.
// Each result is one chain of additions in the order of the steps, whatever the number of rows or of
// panels handled at once: that is what makes every result independent of its neighbours.
#pragma once

#include "simd.h"

namespace xpyd {

constexpr int NR = 2 * W;  // columns per panel: two vectors

#if defined(XPYD_AVX512)
constexpr int MR = 14;  // rows at once: 28 sums + 2 panel vectors fill the 32 registers
#elif defined(XPYD_AVX2)
constexpr int MR = 6;
#else
constexpr int MR = 5;
#endif

// One value of each operand per step, multiplied in float32. T: how the panel is stored.
template <class T>
struct Singles {
  typedef T storage;
  typedef float a_type;
  typedef typename T::type b_type;
  typedef vf b_vector;
  static constexpr int kWidth = 1;  // values of the sum per step
  INLINE b_vector load(const b_type* b) { return T::load(b); }
  INLINE vf step(vf sum, a_type a, b_vector b) { return fma(splat(a), b, sum); }
};

#if defined(XPYD_AVX512_BF16)
// Two neighbouring bfloat16 values per step, in one instruction.
struct Pairs {
  typedef BF16 storage;
  typedef uint32_t a_type;
  typedef uint32_t b_type;
  typedef __m512bh b_vector;
  static constexpr int kWidth = 2;
  INLINE b_vector load(const b_type* b) { return (__m512bh)_mm512_loadu_si512(b); }
  INLINE vf step(vf sum, a_type a, b_vector b) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), b);
  }
};
template <class T>
struct DotOf { typedef Singles<T> type; };
template <>
struct DotOf<BF16> { typedef Pairs type; };
#else
template <class T>
struct DotOf { typedef Singles<T> type; };
#endif

// out[r, p * NR + c] (+)= sum over steps of a[r, step] * panel p[step, c]
template <class Dot, int ROWS, int PANELS>
__attribute__((noinline)) static void multiply(const typename Dot::a_type* a, int64_t lda, const typename Dot::b_type* b,
                     int64_t panel_size, int64_t steps, float* out, int64_t ldo, bool accumulate) {
  vf sum[ROWS][2 * PANELS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < 2 * PANELS; v++)
      sum[r][v] = accumulate ? F32::load(out + r * ldo + v * W) : vf{};
  for (int64_t s = 0; s < steps; s++) {
    typename Dot::b_vector column[2 * PANELS];
#pragma GCC unroll 8
    for (int v = 0; v < 2 * PANELS; v++) {
      const typename Dot::b_type* from = b + (v / 2) * panel_size + s * NR + (v % 2) * W;
      if (ROWS <= 8) __builtin_prefetch((const char*)from + 3072);
      column[v] = Dot::load(from);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      typename Dot::a_type value = a[r * lda + s];
#pragma GCC unroll 8
      for (int v = 0; v < 2 * PANELS; v++) sum[r][v] = Dot::step(sum[r][v], value, column[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < 2 * PANELS; v++) F32::store(out + r * ldo + v * W, sum[r][v]);
}

// The same for a number of rows known at run time, at most MR.
template <class Dot, int ROWS = MR>
__attribute__((noinline)) static void multiply_rows(int rows, const typename Dot::a_type* a, int64_t lda,
                          const typename Dot::b_type* b, int64_t steps, float* out, int64_t ldo,
                          bool accumulate) {
  if (rows == ROWS) {
    multiply<Dot, ROWS, 1>(a, lda, b, 0, steps, out, ldo, accumulate);
  } else if constexpr (ROWS > 1) {
    multiply_rows<Dot, ROWS - 1>(rows, a, lda, b, steps, out, ldo, accumulate);
  }
}

// Few rows: several panels at once hide the latency of the sums.
template <class Dot>
static void multiply_wide(int rows, const typename Dot::a_type* a, int64_t lda,
                          const typename Dot::b_type* b, int64_t panel_size, int64_t steps,
                          float* out, int64_t ldo) {
  if (rows == 1) multiply<Dot, 1, 2>(a, lda, b, panel_size, steps, out, ldo, false);
  else multiply<Dot, 2, 2>(a, lda, b, panel_size, steps, out, ldo, false);
}

// Rows in tiles of nearly equal height: neighbours of 14 are 8 + 7 rather than 14 + 1.
INLINE int64_t tile_count(int64_t rows) { return (rows + MR - 1) / MR; }
INLINE int64_t tile_start(int64_t rows, int64_t tiles, int64_t i) { return rows * i / tiles; }

}  // namespace xpyd
