// Weights of 8 bits in the inner loop of gemm.h: whole numbers that become floats on their way into
// the registers. Activations keep their type, and the scale of a column is applied to its finished sum.
#pragma once

#include "gemm.h"

namespace xpyd {

// Any machine: one number at a time, multiplied in float32.
template <class T>
struct QuantizedDotOf { typedef Singles<I8> type; };

#if defined(XPYD_AVX512_BF16) && defined(__AVX512VBMI__)
// Two neighbouring numbers per step, as sign and magnitude. A magnitude below 128 is looked up in a
// table of bfloat16, its halves apart, as the machine looks up 64 bytes of 128 at once: seven
// instructions for 64 weights, where converting numbers takes sixteen.
struct CodedPairs {
  typedef int8_t element;
  typedef Pairs expanded;  // the same numbers, for many rows
  typedef uint32_t a_type;
  typedef uint16_t b_type;
  typedef __m512bh b_vector;
  static constexpr int kWidth = 2;
  static constexpr int kDirectRows = 8;  // more rows than this share one expansion of the panel

  // Where in its step a value goes: unpacking works within 128 bits, left half before right half.
  static int64_t place(int64_t c, int64_t w) {
    const int64_t word = c % W * 2 + w;
    return word / 8 * 16 + c / W * 8 + word % 8;
  }
  static int8_t encode(int8_t q) { return q < 0 ? (int8_t)(0x80 | -q) : q; }

  INLINE void load(const b_type* b, b_vector* left, b_vector* right) {
    const __m512i codes = _mm512_loadu_si512(b);
    const __m512i low = _mm512_permutex2var_epi8(table(0), codes, table(64));
    __m512i high = _mm512_permutex2var_epi8(table(128), codes, table(192));
    high = _mm512_ternarylogic_epi64(high, codes, _mm512_set1_epi8((char)0x80), 0xf8);  // | (& )
    *left = (__m512bh)_mm512_unpacklo_epi8(low, high);
    *right = (__m512bh)_mm512_unpackhi_epi8(low, high);
  }
  INLINE vf step(vf sum, a_type a, b_vector b) { return Pairs::step(sum, a, b); }

  // A panel as `Pairs` reads it.
  static void expand(const b_type* panel, int64_t steps, Pairs::b_type* out) {
    for (int64_t s = 0; s < steps; s++) {
      b_vector left, right;
      load(panel + s * NR, &left, &right);
      _mm512_storeu_si512(out + s * NR, (__m512i)left);
      _mm512_storeu_si512(out + s * NR + W, (__m512i)right);
    }
  }

 private:
  // bfloat16 of 0 to 127: the lower bytes, then the upper bytes.
  struct Table {
    alignas(64) uint8_t bytes[256];
    Table() {
      for (int i = 0; i < 128; i++) {
        const float value = (float)i;
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        bytes[i] = (uint8_t)(bits >> 16), bytes[128 + i] = (uint8_t)(bits >> 24);
      }
    }
  };
  static inline const Table kTable;
  INLINE __m512i table(int at) { return _mm512_load_si512(kTable.bytes + at); }
};

template <>
struct QuantizedDotOf<BF16> { typedef CodedPairs type; };
#endif

}  // namespace xpyd
