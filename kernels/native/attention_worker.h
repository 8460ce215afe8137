// One thread's work of paged attention: some queries of one sequence over one split of its keys.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "direct_tile.h"

namespace xpyd {

constexpr int64_t kSplit = 4096;  // positions after which sums start anew; a multiple of KEYS
constexpr float kNothing = -std::numeric_limits<float>::infinity();

struct Batch {
  const void* query;
  int64_t token_stride, query_head_stride;
  Cache keys, values;
  const int32_t* tables;
  int64_t table_stride;
  const int32_t* starts;
  const int32_t* contexts;
  int64_t seqs, heads, kv_heads, head_dim, block_size;
  float scale, softcap;
  int64_t window;  // how many positions a query sees, itself included
  void* out;

  int64_t group() const { return heads / kv_heads; }
  int64_t columns() const { return (head_dim + NR - 1) / NR * NR; }
};

// Some neighbouring queries of one sequence and the query heads of one KV head. Rows go query by
// query, so positions rise with the row.
struct Item {
  int64_t seq, kv_head, first_token, count, first_position;
  int64_t first_split, num_splits;
  int64_t partials;  // where its sums lie if its splits are tasks of their own, else -1
};

// Running softmax of some rows: peak, total, mixed values.
struct Sums {
  float *peak, *total, *mixed;

  static int64_t size(int64_t rows, int64_t columns) { return rows * (columns + 2); }
  Sums(float* at, int64_t rows) : peak(at), total(at + rows), mixed(at + 2 * rows) {}
};

// Weights as the second product wants them.
struct WholeWeights : F32 {
  INLINE vf exp2(vf x) { return exp2_below_one(x); }
};

#if defined(XPYD_AVX512_BF16)
struct WeightPairs {
  typedef uint16_t type;
  INLINE vf exp2(vf x) { return exp2_coarse(x); }
  INLINE void store(type* p, vf x) {
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(p, &rounded, sizeof rounded);
  }
};
#else
typedef WholeWeights WeightPairs;
#endif

constexpr float kLog2E = 1.44269504088896341f;

INLINE float exp2_one(float x) { return exp2_below_one(splat(x))[0]; }

INLINE void scale_row(float* row, int64_t columns, float factor) {
  for (int64_t c = 0; c < columns; c += W) F32::store(row + c, F32::load(row + c) * factor);
}

// Products of one row to exponents of two.
INLINE void to_exponents(const Batch& batch, const float* products, vf exponent[KEYS / W]) {
  if (batch.softcap > 0) {
    for (int i = 0; i < KEYS / W; i++) {
      vf twice = exp(F32::load(products + i * W) * (batch.scale * (2.0f / batch.softcap)));
      exponent[i] = (1.0f - 2.0f / (twice + 1.0f)) * (batch.softcap * kLog2E);
    }
  } else {
    const float factor = batch.scale * kLog2E;
#pragma GCC unroll 16
    for (int i = 0; i < KEYS / W; i++) exponent[i] = F32::load(products + i * W) * factor;
  }
}

// Products of one row to its weights, and its sums brought to the new peak. Columns [from, to) count.
template <class Weight>
INLINE void soften(const Batch& batch, const float* products, int64_t from, int64_t to,
                   float* peak, float* total, float* mixed, typename Weight::type* weights) {
  vf exponent[KEYS / W];
  to_exponents(batch, products, exponent);
  if (from > 0 || to < KEYS) {
    for (int i = 0; i < KEYS / W; i++) {
      vi column = lane_numbers() + i * W;
      vi is_seen = (column >= (int32_t)from) & (column < (int32_t)to);
      exponent[i] = is_seen ? exponent[i] : splat(kNothing);
    }
  }
  vf top = exponent[0];
#pragma GCC unroll 16
  for (int i = 1; i < KEYS / W; i++) top = max(top, exponent[i]);
  const float tile_peak = max_lanes(top), new_peak = *peak > tile_peak ? *peak : tile_peak;
  vf sum = {};
#pragma GCC unroll 16
  for (int i = 0; i < KEYS / W; i++) {
    vf weight = Weight::exp2(exponent[i] - new_peak);
    sum = sum + weight;
    Weight::store(weights + i * W, weight);
  }
  if (new_peak != *peak) {
    const float decay = exp2_one(*peak - new_peak);
    *total *= decay;
    scale_row(mixed, batch.columns(), decay);
    *peak = new_peak;
  }
  *total += sum_lanes(sum);
}

// The work on one item over one split.
template <class T>
struct Worker {
  // bfloat16 pairs where the machine has the instruction, else float32 panels.
  static constexpr bool kPairs = DotOf<T>::type::kWidth == 2;
  typedef typename std::conditional<kPairs, typename DotOf<T>::type, Singles<F32>>::type Dot;
  typedef typename std::conditional<kPairs, WeightPairs, WholeWeights>::type Weight;
  typedef typename Dot::a_type A;
  typedef typename Dot::b_type B;

  const Batch& batch;
  const Item& item;
  const int64_t rows = item.count * batch.group(), steps = batch.head_dim / Dot::kWidth;

  // What one thread needs beside the sums.
  struct Space {
    A* query;        // [rows, steps]
    float* products;  // [MR, KEYS]
    A* weights;      // [MR, KEYS], at most
    B *keys, *values;  // panels
    typename T::type* zeros;
    TileRows<T> key_rows[2], value_rows[2];  // of this tile and of the next
    int64_t turn = 0, asked = 0;
  };

  int64_t scratch_size() const {
    return rows * steps + 2 * MR * KEYS + KEYS * (steps + batch.columns()) + batch.head_dim;
  }

  Space lay_out(float* scratch) const {
    Space space;
    space.query = (A*)scratch;
    space.products = scratch + rows * steps;
    space.weights = (A*)(space.products + MR * KEYS);
    space.keys = (B*)(space.weights + MR * KEYS);
    space.values = space.keys + KEYS * steps;
    space.zeros = (typename T::type*)(space.values + KEYS * batch.columns());
    std::memset(space.zeros, 0, batch.head_dim * sizeof *space.zeros);
    return space;
  }

  // Sums over the split's keys into `sums`. scratch: scratch_size() floats.
  void attend(int64_t split, Sums sums, float* scratch) const {
    Space space = lay_out(scratch);
    const int64_t oldest = item.first_position - batch.window + 1;
    const int64_t begin = std::max((oldest < 0 ? 0 : oldest) / KEYS * KEYS, split * kSplit);
    const int64_t end = std::min(item.first_position + item.count, (split + 1) * kSplit);
    find_rows(space, begin);
    prefetch_some(space, KEYS);
    load_query(space.query);
    std::fill(sums.peak, sums.peak + rows, kNothing);
    std::fill(sums.total, sums.total + rows * (batch.columns() + 1), 0.0f);
    for (int64_t key = begin; key < end; key += KEYS) {
      space.turn ^= 1;
      space.asked = 0;
      find_rows(space, key + KEYS < end ? key + KEYS : -1);
      apply_tile(key, space, sums);
    }
  }

  // Into the place for the next tile; -1: there is none.
  void find_rows(Space& space, int64_t key) const {
    if (key < 0) {
      space.asked = KEYS;
      return;
    }
    const int32_t* table = batch.tables + item.seq * batch.table_stride;
    const int64_t count = batch.contexts[item.seq] - key, next = space.turn ^ 1;
    space.key_rows[next].find(batch.keys, table, batch.block_size, item.kv_head, key, count,
                              space.zeros);
    space.value_rows[next].find(batch.values, table, batch.block_size, item.kv_head, key, count,
                                space.zeros);
  }

  void prefetch_some(Space& space, int64_t count) const {
    const int64_t end = std::min<int64_t>(KEYS, space.asked + count);
    space.key_rows[space.turn ^ 1].prefetch(space.asked, end, batch.head_dim);
    space.value_rows[space.turn ^ 1].prefetch(space.asked, end, batch.head_dim);
    space.asked = end;
  }

  void load_query(A* query) const {
    for (int64_t r = 0; r < rows; r++) {
      const int64_t token = item.first_token + r / batch.group();
      const int64_t head = item.kv_head * batch.group() + r % batch.group();
      auto* from = (const typename T::type*)batch.query + token * batch.token_stride +
                   head * batch.query_head_stride;
      if constexpr (kPairs) std::memcpy(query + r * steps, from, steps * sizeof(A));
      else
        for (int64_t d = 0; d < steps; d += W)
          store_upto<F32>(query + r * steps + d, load_upto<T>(from + d, steps - d), steps - d);
    }
  }

  void apply_tile(int64_t key, Space& space, Sums sums) const {
    const int64_t group = batch.group();
    // Rows that see anything of the tile: positions in [key, key + KEYS - 1 + window).
    const int64_t low = std::max<int64_t>(0, key - item.first_position);
    const int64_t high = std::min(item.count, key + KEYS - 1 - item.first_position + batch.window);
    if (low >= high) return;
    const int64_t first = low * group, count = (high - low) * group;
    if (is_direct()) {
      apply_rows(key, first, (int)count, space, sums);
      prefetch_some(space, KEYS);
      return;
    }
    pack_keys<T, Dot>(space.key_rows[space.turn].at, batch.head_dim, space.keys);
    pack_values<T, Dot>(space.value_rows[space.turn].at, batch.head_dim, space.values);
    // A few rows go all the way before the next: their products stay in the first-level cache.
    const int64_t tiles = tile_count(count);
    for (int64_t i = 0; i < tiles; i++) {
      const int64_t begin = tile_start(count, tiles, i), end = tile_start(count, tiles, i + 1);
      apply_rows(key, first + begin, (int)(end - begin), space, sums);
    }
    prefetch_some(space, KEYS);
  }

  // Few rows are multiplied with the cache as it lies, without panels.
  bool is_direct() const {
    return kHasDirectTile && kPairs && rows <= kDirectRows && batch.head_dim % NR == 0;
  }

  void multiply_with_keys(int64_t first, int count, Space& space) const {
    const A* query = space.query + first * steps;
#if defined(XPYD_AVX512_BF16)
    if constexpr (kPairs) {
      if (is_direct()) {
        for (int64_t key = 0; key < KEYS; key += W) {
          multiply_keys_rows(count, query, steps, space.key_rows[space.turn].at + key,
                             space.products + key);
          prefetch_some(space, KEYS / 8);
        }
        return;
      }
    }
#endif
    for (int64_t p = 0; p < KEYS / NR; p++) {
      multiply_rows<Dot>(count, query, steps, space.keys + p * steps * NR, steps,
                         space.products + p * NR, KEYS, false);
      prefetch_some(space, 4);
    }
  }

  void multiply_with_values(int64_t first, int count, Space& space, Sums sums) const {
    constexpr int64_t weight_steps = KEYS / Dot::kWidth;
    const int64_t columns = batch.columns();
    for (int64_t c = 0; c < columns; c += NR) {
      float* mixed = sums.mixed + first * columns + c;
#if defined(XPYD_AVX512_BF16)
      if constexpr (kPairs) {
        if (is_direct()) {
          multiply_values_rows(count, space.weights, space.value_rows[space.turn].at, c, mixed,
                               columns);
          prefetch_some(space, KEYS / 8);
          continue;
        }
      }
#endif
      multiply_rows<Dot>(count, space.weights, weight_steps, space.values + c * weight_steps,
                         weight_steps, mixed, columns, true);
      prefetch_some(space, 4);
    }
  }

  void apply_rows(int64_t key, int64_t first, int count, Space& space, Sums sums) const {
    constexpr int64_t weight_steps = KEYS / Dot::kWidth;
    const int64_t group = batch.group(), columns = batch.columns();
    multiply_with_keys(first, count, space);
    int64_t position = item.first_position + first / group, left = group - first % group;
    for (int i = 0; i < count; i++) {
      const int64_t from = std::max<int64_t>(0, position - batch.window + 1 - key);
      const int64_t to = std::min<int64_t>(KEYS, position + 1 - key);
      soften<Weight>(batch, space.products + i * KEYS, from, to, sums.peak + first + i,
                     sums.total + first + i, sums.mixed + (first + i) * columns,
                     (typename Weight::type*)(space.weights + i * weight_steps));
      if (--left == 0) left = group, position++;
      prefetch_some(space, 6);
    }
    multiply_with_values(first, count, space, sums);
  }

  // Adds the sums of the next split to those of all before it.
  void merge(Sums into, Sums next) const {
    const int64_t columns = batch.columns();
    for (int64_t r = 0; r < rows; r++) {
      if (next.peak[r] == kNothing) continue;
      float *mixed = into.mixed + r * columns, *more = next.mixed + r * columns;
      const float peak = std::max(into.peak[r], next.peak[r]);
      const float keep = exp2_one(into.peak[r] - peak), add = exp2_one(next.peak[r] - peak);
      into.total[r] = into.total[r] * keep + next.total[r] * add;
      for (int64_t c = 0; c < columns; c += W)
        F32::store(mixed + c, F32::load(mixed + c) * keep + F32::load(more + c) * add);
      into.peak[r] = peak;
    }
  }

  void finish(Sums sums) const {
    for (int64_t r = 0; r < rows; r++) {
      const int64_t token = item.first_token + r / batch.group();
      const int64_t head = item.kv_head * batch.group() + r % batch.group();
      auto* out = (typename T::type*)batch.out + (token * batch.heads + head) * batch.head_dim;
      const float factor = 1.0f / sums.total[r];
      for (int64_t d = 0; d < batch.head_dim; d += W)
        store_upto<T>(out + d, F32::load(sums.mixed + r * batch.columns() + d) * factor,
                      batch.head_dim - d);
    }
  }
};

}  // namespace xpyd
