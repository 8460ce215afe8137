// What the sampler does per row of float32 logits, and its noise. The noise is defined in
// kernels/noise.py; the steps here are the same, one rounding each, so every face gives the same bits.
#include <algorithm>
#include <limits>

#include "pool.h"
#include "transpose.h"

namespace xpyd {
namespace {

typedef uint64_t vq __attribute__((vector_size(W * 4)));

int64_t first_nan(const float* x, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (x[i] != x[i]) return i;
  return -1;
}

// Lowest index of the largest value; a NaN counts as larger than all.
int64_t argmax_row(const float* x, int64_t count) {
  vf best = splat(-std::numeric_limits<float>::infinity());
  vi at = lane_numbers(), here = lane_numbers(), nan = {};
  int64_t i = 0;
  for (; i + W <= count; i += W, here += W) {
    vf v = F32::load(x + i);
    vi is_better = v > best;
    nan |= v != v;
    at = is_better ? here : at;
    best = is_better ? v : best;
  }
  float value = -std::numeric_limits<float>::infinity();
  int64_t index = count < W ? 0 : std::numeric_limits<int64_t>::max();
  bool has_nan = false;
  for (int lane = 0; lane < W && count >= W; lane++) {
    has_nan |= nan[lane] != 0;
    if (best[lane] > value || (best[lane] == value && at[lane] < index))
      value = best[lane], index = at[lane];
  }
  for (; i < count; i++) {
    has_nan |= x[i] != x[i];
    if (x[i] > value) value = x[i], index = i;
  }
  return has_nan ? first_nan(x, count) : index;
}

void log_softmax_row(const float* x, int64_t count, float* out) {
  const float low = -std::numeric_limits<float>::infinity();
  vf top = splat(low);
  for (int64_t i = 0; i < count; i += W) {
    vf v = load_upto<F32>(x + i, count - i);
    v = lane_numbers() < (int32_t)std::min<int64_t>(W, count - i) ? v : splat(low);
    top = max(top, v);  // a NaN is passed over here and spreads through the sum
  }
  const float peak = max_lanes(top);
  vf sum[4] = {};
  for (int64_t i = 0, j = 0; i < count; i += W, j = (j + 1) % 4) {
    vf v = load_upto<F32>(x + i, count - i);
    v = lane_numbers() < (int32_t)std::min<int64_t>(W, count - i) ? v : splat(low);
    sum[j] = sum[j] + exp(v - peak);
  }
  const float total = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
  const float log_total = std::log(total);
  for (int64_t i = 0; i < count; i += W)
    store_upto<F32>(out + i, (load_upto<F32>(x + i, count - i) - peak) - log_total, count - i);
}

// --- noise ---------------------------------------------------------------------------------------

INLINE vq multiply_even(vu a, uint32_t b) {
#if defined(XPYD_AVX512)
  return (vq)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi32((int)b));
#elif defined(XPYD_AVX2)
  return (vq)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi32((int)b));
#else
  return ((vq)a & 0xffffffffull) * (uint64_t)b;
#endif
}

INLINE void multiply(vu a, uint32_t b, vu* high, vu* low) {
  const vq even = multiply_even(a, b), odd = multiply_even((vu)((vq)a >> 32), b);
  *high = (vu)((even >> 32) | (odd & 0xffffffff00000000ull));
  *low = (vu)((even & 0xffffffffull) | (odd << 32));
}

// Key and counter of a draw, W at once.
struct Draw {
  vu key0, key1, position0, position1;

  static Draw of(uint64_t seed, uint64_t position) {
    return {splat_bits((uint32_t)seed), splat_bits((uint32_t)(seed >> 32)),
            splat_bits((uint32_t)position), splat_bits((uint32_t)(position >> 32))};
  }

  void set(int lane, uint64_t seed, uint64_t position) {
    key0[lane] = (uint32_t)seed;
    key1[lane] = (uint32_t)(seed >> 32);
    position0[lane] = (uint32_t)position;
    position1[lane] = (uint32_t)(position >> 32);
  }
};

// Philox-4x32-10 on W counters at once.
INLINE void philox(const Draw& draw, vu quad, vu word[4]) {
  vu key0 = draw.key0, key1 = draw.key1;
  word[0] = quad;
  word[1] = vu{};
  word[2] = draw.position0;
  word[3] = draw.position1;
  for (int round = 0; round < 10; round++) {
    vu high0, low0, high1, low1;
    multiply(word[0], 0xD2511F53u, &high0, &low0);
    multiply(word[2], 0xCD9E8D57u, &high1, &low1);
    word[0] = high1 ^ word[1] ^ key0;
    word[1] = low1;
    word[2] = high0 ^ word[3] ^ key1;
    word[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// x = 2^e (1 + f)
INLINE void split(vf x, vf* f, vf* e) {
  vu bits = bits_of(x) + (0x3F800000u - 0x3F3504F3u);
  *f = float_of((bits & 0x7FFFFFu) + 0x3F3504F3u) - 1.0f;
  *e = __builtin_convertvector((vi)(bits >> 23) - 127, vf);
}

INLINE vf log(vf f, vf e) {
  const float polynomial[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                              -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                              2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  vf square = f * f, y = splat(polynomial[0]);
#pragma GCC unroll 8
  for (int i = 1; i < 9; i++) y = y * f + polynomial[i];
  y = y * f * square + e * -2.12194440e-4f;
  y = y - square * 0.5f;
  return (f + y) + e * 0.693359375f;
}

INLINE vf gumbel_of(vu word) {
  const vi is_upper = (vi)word < 0;
  vu folded = is_upper ? ~word : word;
  vf x = (__builtin_convertvector((vi)folded, vf) + 0.5f) * 0x1p-32f;
  vf f, e;
  split(x, &f, &e);
  const vi is_beyond = x > 0.2928932309150696f;
  vf upper_f = is_beyond ? 1.0f - (x + x) : -x, upper_e = is_beyond ? splat(-1.0f) : vf{};
  f = is_upper ? upper_f : f;
  e = is_upper ? upper_e : e;
  split(-log(f, e), &f, &e);
  return -log(f, e);
}

// Noise of the 4 * W token ids from 4 * quad on.
INLINE void gumbel_block(const Draw& draw, int64_t quad, float* out) {
  vu word[4];
  philox(draw, (vu)lane_numbers() + (uint32_t)quad, word);
  vf a = gumbel_of(word[0]), b = gumbel_of(word[1]), c = gumbel_of(word[2]), d = gumbel_of(word[3]);
  vf even = zip_first(a, c), odd = zip_first(b, d);
  F32::store(out, zip_first(even, odd));
  F32::store(out + W, zip_second(even, odd));
  even = zip_second(a, c), odd = zip_second(b, d);
  F32::store(out + 2 * W, zip_first(even, odd));
  F32::store(out + 3 * W, zip_second(even, odd));
}

constexpr int64_t kNoisePerTask = 8192;  // a multiple of 4 * W

}  // namespace
}  // namespace xpyd

using namespace xpyd;

extern "C" {

// logits: [rows, count] float32, rows `stride` values apart. out: the index of each row's largest
// value, then for each row whether that value is finite.
void xpyd_best(const float* logits, int64_t rows, int64_t stride, int64_t count, int64_t* out) {
  parallel_for(rows, [&](int64_t r) {
    const float* row = logits + r * stride;
    out[r] = argmax_row(row, count);
    out[rows + r] = std::isfinite(row[out[r]]);
  });
}

void xpyd_log_softmax(const float* logits, int64_t rows, int64_t stride, int64_t count, float* out) {
  parallel_for(rows,
               [&](int64_t r) { log_softmax_row(logits + r * stride, count, out + r * count); });
}

// out: [rows, vocab]
void xpyd_gumbel(const int64_t* seeds, const int64_t* positions, int64_t rows, int64_t vocab,
                 float* out) {
  const int64_t parts = (vocab + kNoisePerTask - 1) / kNoisePerTask;
  parallel_for(rows * parts, [&](int64_t task) {
    const int64_t row = task / parts, begin = task % parts * kNoisePerTask;
    const int64_t end = std::min(vocab, begin + kNoisePerTask);
    float* to = out + row * vocab;
    const Draw draw = Draw::of(seeds[row], positions[row]);
    for (int64_t id = begin; id < end; id += 4 * W) {
      float block[4 * W];
      const bool is_whole = id + 4 * W <= end;
      gumbel_block(draw, id / 4, is_whole ? to + id : block);
      if (!is_whole) std::memcpy(to + id, block, (end - id) * sizeof(float));
    }
  });
}

// ids, out: [rows, count]
void xpyd_gumbel_at(const int64_t* seeds, const int64_t* positions, const int64_t* ids,
                    int64_t rows, int64_t count, float* out) {
  const int64_t total = rows * count;
  parallel_for((total + kNoisePerTask - 1) / kNoisePerTask, [&](int64_t task) {
    const int64_t end = std::min(total, (task + 1) * kNoisePerTask);
    for (int64_t i = task * kNoisePerTask; i < end; i += W) {
      Draw draw = {};
      vu id = {}, word[4];
      for (int64_t j = 0; j < W && i + j < end; j++) {
        id[j] = (uint32_t)ids[i + j];
        draw.set((int)j, seeds[(i + j) / count], positions[(i + j) / count]);
      }
      philox(draw, id >> 2, word);
      vu which = id & 3u;
      vu chosen = which == 0u ? word[0] : which == 1u ? word[1] : which == 2u ? word[2] : word[3];
      store_upto<F32>(out + i, gumbel_of(chosen), end - i);
    }
  });
}
}
