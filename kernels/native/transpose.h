// W x W transposition of 32-bit lanes held in W vectors.
#pragma once

#include "simd.h"

namespace xpyd {

// a0 b0 a1 b1 … from the first and from the second half of two vectors.
INLINE vf zip_first(vf a, vf b) {
#if defined(XPYD_AVX512)
  return XPYD_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(XPYD_AVX2)
  return XPYD_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return XPYD_SHUFFLE(a, b, 0, 4, 1, 5);
#endif
}

INLINE vf zip_second(vf a, vf b) {
#if defined(XPYD_AVX512)
  return XPYD_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(XPYD_AVX2)
  return XPYD_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return XPYD_SHUFFLE(a, b, 2, 6, 3, 7);
#endif
}

// Zipping each row of the upper half with its partner in the lower half, log2(W) times, turns rows
// into columns.
INLINE void transpose(vf rows[W]) {
#pragma GCC unroll 4
  for (int stage = 1; stage < W; stage *= 2) {
    vf zipped[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; i++) {
      zipped[2 * i] = zip_first(rows[i], rows[i + W / 2]);
      zipped[2 * i + 1] = zip_second(rows[i], rows[i + W / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) rows[i] = zipped[i];
  }
}

}  // namespace xpyd
