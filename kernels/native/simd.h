// Vectors of float as wide as the machine has them, and the storage types they load and store.
//
// Written with the vector extensions of GCC and Clang; intrinsics only where those have no word for
// it. Every lane goes through the same instructions and the ends of rows go through vectors padded
// with zeros, so a value never depends on where in a row or a tensor it stands. The build switches
// contraction off: a product and a sum are fused where `fma` is written and nowhere else.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace xpyd {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define XPYD_AVX512 1
constexpr int W = 16;
#if defined(__AVX512BF16__)
#define XPYD_AVX512_BF16 1
#if defined(__AVX512VBMI__)
constexpr const char* kIsa = "avx512-bf16";
#else
constexpr const char* kIsa = "avx512-bf16 without vbmi";  // quantized weights are summed otherwise
#endif
#else
constexpr const char* kIsa = "avx512";
#endif
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define XPYD_AVX2 1
constexpr int W = 8;
constexpr const char* kIsa = "avx2";
#else
constexpr int W = 4;
constexpr const char* kIsa = "portable";
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));

INLINE vf splat(float x) { return x - vf{}; }  // x - 0 is x, the negative zero too
INLINE vu splat_bits(uint32_t x) { return vu{} + x; }
INLINE vu bits_of(vf x) { return (vu)x; }
INLINE vf float_of(vu x) { return (vf)x; }

INLINE vf fma(vf a, vf b, vf c) {
#if defined(XPYD_AVX512)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(XPYD_AVX2)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// a > b ? a : b, so b if one of them is a NaN.
INLINE vf max(vf a, vf b) {
#if defined(XPYD_AVX512)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(XPYD_AVX2)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

#if defined(__clang__)
#define XPYD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define XPYD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, vi{__VA_ARGS__})
#endif

// f over all lanes as a tree: lane i with i + W/2, then i + W/4, and so on.
template <class F>
INLINE float reduce(vf x, F&& f) {
#if defined(XPYD_AVX512)
  x = f(x, XPYD_SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  x = f(x, XPYD_SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  x = f(x, XPYD_SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  x = f(x, XPYD_SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
#elif defined(XPYD_AVX2)
  x = f(x, XPYD_SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
  x = f(x, XPYD_SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
  x = f(x, XPYD_SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6));
#else
  x = f(x, XPYD_SHUFFLE(x, x, 2, 3, 0, 1));
  x = f(x, XPYD_SHUFFLE(x, x, 1, 0, 3, 2));
#endif
  return x[0];
}

INLINE float sum_lanes(vf x) {
  return reduce(x, [](vf a, vf b) { return a + b; });
}

INLINE float max_lanes(vf x) {
  return reduce(x, [](vf a, vf b) { return max(a, b); });
}

INLINE vi lane_numbers() {
#if defined(XPYD_AVX512)
  return vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(XPYD_AVX2)
  return vi{0, 1, 2, 3, 4, 5, 6, 7};
#else
  return vi{0, 1, 2, 3};
#endif
}

// exp in float32, relative error below 2e-7; 0 under -87.3 (also for -inf), inf over 88.7.
// Source of the polynomial: Cephes, expf.
INLINE vf exp(vf x) {
  const vf shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vf clamped = x > 88.8f ? splat(88.8f) : x;
  clamped = clamped < -87.3f ? splat(-87.3f) : clamped;
  vf shifted = fma(clamped, splat(1.44269504088896341f), shift);
  vf n = shifted - shift;
  vf r = fma(n, splat(-0.693359375f), clamped);
  r = fma(n, splat(2.12194440e-4f), r);
  vf y = splat(1.9875691500e-4f);
  y = fma(y, r, splat(1.3981999507e-3f));
  y = fma(y, r, splat(8.3334519073e-3f));
  y = fma(y, r, splat(4.1665795894e-2f));
  y = fma(y, r, splat(1.6666665459e-1f));
  y = fma(y, r, splat(5.0000001201e-1f));
  y = fma(y, r * r, r) + 1.0f;
  vu exponent = (bits_of(shifted) - bits_of(shift) + 127u) << 23;
  return x < -87.3f ? vf{} : y * float_of(exponent);
}

// 2^x for x <= 0, relative error below 2e-7; exactly 0 under -126.5, also for -inf.
// Source of the polynomial: Cephes, exp2f.
INLINE vf exp2_below_one(vf x) {
  x = max(splat(-127.0f), x);
#if defined(XPYD_AVX512)
  vf n = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const vf shift = splat(12582912.0f);
  vf n = (x + shift) - shift;
#endif
  vf r = x - n;
  vf y = splat(1.535336188319500e-4f);
  y = fma(y, r, splat(1.339887440266574e-3f));
  y = fma(y, r, splat(9.618437357674640e-3f));
  y = fma(y, r, splat(5.550332471162809e-2f));
  y = fma(y, r, splat(2.402264791363012e-1f));
  y = fma(y, r, splat(6.931472028550421e-1f));
  y = fma(y, r, splat(1.0f));
  vi exponent = (__builtin_convertvector(n, vi) + 127) << 23;  // of 2^-127: all bits zero
  return y * float_of((vu)exponent);
}

#if defined(XPYD_AVX512_BF16)
// The same for what becomes bfloat16 at once: relative error below 3e-6; exactly 0 under -150.
INLINE vf exp2_coarse(vf x) {
  x = max(splat(-1000.0f), x);
  vf n = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  vf r = x - n;
  vf y = splat(9.582852944731712e-3f);  // fitted for the least relative error in [-0.5, 0.5]
  y = fma(y, r, splat(5.5906426161527634e-2f));
  y = fma(y, r, splat(2.4024099111557007e-1f));
  y = fma(y, r, splat(6.931241750717163e-1f));
  y = fma(y, r, splat(1.0f));
  return (vf)_mm512_scalef_ps((__m512)y, (__m512)n);
}
#endif

// --- storage types -------------------------------------------------------------------------------

struct F32 {
  typedef float type;
  INLINE vf load(const type* p) {
    vf x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  INLINE void store(type* p, vf x) { std::memcpy(p, &x, sizeof x); }
};

struct BF16 {
  typedef uint16_t type;
  INLINE vf load(const type* p) {
    vh x;
    std::memcpy(&x, p, sizeof x);
    return float_of(__builtin_convertvector(x, vu) << 16);
  }
  INLINE void store(type* p, vf x) {  // to nearest, ties to even; a NaN stays a NaN
#if defined(XPYD_AVX512_BF16)
    const __m256bh h = _mm512_cvtneps_pbh((__m512)x);  // and what is too small to be normal is zero
#else
    vu u = bits_of(x);
    vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    vh h = __builtin_convertvector(x == x ? rounded : ((u >> 16) | 0x40u), vh);
#endif
    std::memcpy(p, &h, sizeof h);
  }
};

struct F16 {
  typedef uint16_t type;
#if defined(XPYD_AVX512)
  INLINE vf load(const type* p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  INLINE void store(type* p, vf x) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(XPYD_AVX2)
  INLINE vf load(const type* p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  INLINE void store(type* p, vf x) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  INLINE vf load(const type* p) {
    vh h;
    std::memcpy(&h, p, sizeof h);
    vu u = __builtin_convertvector(h, vu);
    vu magnitude = (u & 0x7fffu) << 13;
    vu scaled = bits_of(float_of(magnitude) * 0x1p112f);  // exact, subnormal numbers too
    scaled = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : scaled;
    return float_of(scaled | ((u & 0x8000u) << 16));
  }
  INLINE void store(type* p, vf x) {
    vu u = bits_of(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    vu normal = (a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13;
    vu tiny = bits_of(float_of(a) + 0.5f) - 0x3f000000u;  // the addition rounds to steps of 2^-24
    vu r = a < 0x38800000u ? tiny : normal;
    r = a >= 0x477ff000u ? splat_bits(0x7c00u) : r;
    r = a > 0x7f800000u ? splat_bits(0x7e00u) : r;
    vh h = __builtin_convertvector(r | sign, vh);
    std::memcpy(p, &h, sizeof h);
  }
#endif
};

// A quantized weight: a whole number from -127 to 127, of which every float type here is exact.
struct I8 {
  typedef int8_t type;
  INLINE vf load(const type* p) {
    typedef int8_t vb __attribute__((vector_size(W)));
    vb x;
    std::memcpy(&x, p, sizeof x);
    return __builtin_convertvector(__builtin_convertvector(x, vi), vf);
  }
};

// The last `count` < W values of a row; the other lanes are zero.
template <class T>
INLINE vf load_some(const typename T::type* p, int64_t count) {
  typename T::type padded[W] = {};
  std::memcpy(padded, p, count * sizeof *p);
  return T::load(padded);
}

template <class T>
INLINE void store_some(typename T::type* p, vf x, int64_t count) {
  typename T::type padded[W];
  T::store(padded, x);
  std::memcpy(p, padded, count * sizeof *p);
}

template <class T>
INLINE vf load_upto(const typename T::type* p, int64_t count) {
  return count >= W ? T::load(p) : load_some<T>(p, count);
}

template <class T>
INLINE void store_upto(typename T::type* p, vf x, int64_t count) {
  if (count >= W) T::store(p, x);
  else store_some<T>(p, x, count);
}

template <class T>
INLINE float load_one(const typename T::type* p) { return load_some<T>(p, 1)[0]; }

// Storage types as the Python side numbers them; keep in step with native_library.py.
enum DType { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Calls `f(T{})` with the storage type.
template <class F>
INLINE void with_dtype(int dtype, F&& f) {
  if (dtype == kBFloat16) f(BF16{});
  else if (dtype == kFloat16) f(F16{});
  else f(F32{});
}

}  // namespace xpyd
