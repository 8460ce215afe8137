// The inner loop of `linear` and of attention: a few rows times panels of columns.
//
// A panel holds NR columns for all steps of the sum, step after step, so it is read as one stream.
// Each result is one chain of additions in the order of the steps, whatever the number of rows handled
// at once: that is what makes every result independent of its neighbours.
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
  typedef typename T::type element;  // as it comes; b_type: all of a column in one step
  typedef float a_type;
  typedef element b_type;
  typedef vf b_vector;
  static constexpr int kWidth = 1;       // values of the sum per step
  static constexpr int kDirectRows = 0;  // 0: the panel is read as it is for any number of rows
  static int64_t place(int64_t c, int64_t) { return c; }
  static element encode(element value) { return value; }
  INLINE void load(const b_type* b, b_vector* left, b_vector* right) {
    *left = T::load(b);
    *right = T::load(b + W);
  }
  INLINE vf step(vf sum, a_type a, b_vector b) { return fma(splat(a), b, sum); }
};

#if defined(XPYD_AVX512_BF16)
// Two neighbouring bfloat16 values per step, in one instruction.
struct Pairs {
  typedef uint16_t element;
  typedef uint32_t a_type;
  typedef uint32_t b_type;
  typedef __m512bh b_vector;
  static constexpr int kWidth = 2;
  static constexpr int kDirectRows = 0;
  static int64_t place(int64_t c, int64_t w) { return c * 2 + w; }
  static element encode(element value) { return value; }
  INLINE void load(const b_type* b, b_vector* left, b_vector* right) {
    *left = (__m512bh)_mm512_loadu_si512(b);
    *right = (__m512bh)_mm512_loadu_si512(b + W);
  }
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

// out[r, c] (+)= sum over steps of a[r, step] * panel[step, c]. No prefetching: the machine follows
// one stream by itself, and asking past the end of a panel cost 10 to 20 % at one to four rows.
template <class Dot, int ROWS>
__attribute__((noinline)) static void multiply(const typename Dot::a_type* a, int64_t lda,
                                               const typename Dot::b_type* panel, int64_t steps,
                                               float* out, int64_t ldo, bool accumulate) {
  vf sum[ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++)
      sum[r][v] = accumulate ? F32::load(out + r * ldo + v * W) : vf{};
  for (int64_t s = 0; s < steps; s++) {
    typename Dot::b_vector left, right;
    Dot::load(panel + s * NR, &left, &right);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      const typename Dot::a_type value = a[r * lda + s];
      sum[r][0] = Dot::step(sum[r][0], value, left);
      sum[r][1] = Dot::step(sum[r][1], value, right);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++) F32::store(out + r * ldo + v * W, sum[r][v]);
}

// The same for a number of rows known at run time, at most MR.
template <class Dot, int ROWS = MR>
static void multiply_rows(int rows, const typename Dot::a_type* a, int64_t lda,
                          const typename Dot::b_type* panel, int64_t steps, float* out,
                          int64_t ldo, bool accumulate) {
  if (rows == ROWS) {
    multiply<Dot, ROWS>(a, lda, panel, steps, out, ldo, accumulate);
  } else if constexpr (ROWS > 1) {
    multiply_rows<Dot, ROWS - 1>(rows, a, lda, panel, steps, out, ldo, accumulate);
  }
}

// Rows in tiles of nearly equal height: neighbours of 14 are 8 + 7 rather than 14 + 1.
INLINE int64_t tile_count(int64_t rows) { return (rows + MR - 1) / MR; }
INLINE int64_t tile_start(int64_t rows, int64_t tiles, int64_t i) { return rows * i / tiles; }

}  // namespace xpyd
