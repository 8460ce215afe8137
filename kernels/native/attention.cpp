// Paged attention with an online softmax over tiles of keys at fixed absolute positions.
//
// A query's result is a function of its own tiles in ascending order and of nothing else: tiles start
// at multiples of KEYS, sums start anew at multiples of kSplit (so that a long context can be shared
// among threads) and are merged in order, and a tile that a query does not see is not applied to it.
// So alone, in any chunk, with any neighbours and threads, it comes out the same to the last bit.
#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "kv_tile.h"
#include "pool.h"

namespace xpyd {
namespace {

constexpr int64_t kSplit = 4096;    // positions
constexpr int64_t kRowTarget = 112;  // rows (query, head of the group) that share a packed tile
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

struct Scratch {
  std::vector<float> floats;

  float* take(int64_t count) {
    if ((int64_t)floats.size() < count) floats.resize(count);
    return floats.data();
  }
};

INLINE float exp_one(float x) { return exp(splat(x))[0]; }

INLINE void scale_row(float* row, int64_t columns, float factor) {
  for (int64_t c = 0; c < columns; c += W) F32::store(row + c, F32::load(row + c) * factor);
}

// Scores of one row to weights in place of dtype T (float32 for Singles); columns [from, to) count.
template <class Weight>
INLINE void soften(const Batch& batch, const float* scores, int64_t from, int64_t to, float* peak,
                   float* total, float* mixed, typename Weight::type* weights) {
  vf score[KEYS / W];
  vf top = splat(kNothing);
  vi lane;
  for (int i = 0; i < W; i++) lane[i] = i;
#pragma GCC unroll 16
  for (int i = 0; i < KEYS / W; i++) {
    vf s = F32::load(scores + i * W) * batch.scale;
    if (batch.softcap > 0) {
      vf twice = exp(s * (2.0f / batch.softcap));
      s = (1.0f - 2.0f / (twice + 1.0f)) * batch.softcap;
    }
    vi column = lane + i * W;
    s = (column >= (int32_t)from) & (column < (int32_t)to) ? s : splat(kNothing);
    score[i] = s;
    top = max(top, s);
  }
  const float new_peak = std::fmax(*peak, max_lanes(top));
  vf sum = {};
#pragma GCC unroll 16
  for (int i = 0; i < KEYS / W; i++) {
    vf weight = exp(score[i] - new_peak);
    sum = sum + weight;
    Weight::store(weights + i * W, weight);
  }
  if (new_peak != *peak) {
    const float decay = exp_one(*peak - new_peak);
    *total *= decay;
    scale_row(mixed, batch.columns(), decay);
    *peak = new_peak;
  }
  *total += sum_lanes(sum);
}

template <class Dot>
INLINE void multiply_all(int64_t rows, const typename Dot::a_type* a, int64_t lda,
                         const typename Dot::b_type* b, int64_t steps, float* out, int64_t ldo,
                         bool accumulate) {
  const int64_t tiles = tile_count(rows);
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t r = tile_start(rows, tiles, i), n = tile_start(rows, tiles, i + 1) - r;
    multiply_rows<Dot>((int)n, a + r * lda, lda, b, steps, out + r * ldo, ldo, accumulate);
  }
}

// The work on one item over one split.
template <class T>
struct Worker {
  // bfloat16 pairs where the machine has the instruction, else float32 panels.
  static constexpr bool kPairs = DotOf<T>::type::kWidth == 2;
  typedef typename std::conditional<kPairs, typename DotOf<T>::type, Singles<F32>>::type Dot;
  typedef typename std::conditional<kPairs, BF16, F32>::type Weight;
  typedef typename Dot::a_type A;
  typedef typename Dot::b_type B;

  const Batch& batch;
  const Item& item;
  const int64_t rows = item.count * batch.group(), steps = batch.head_dim / Dot::kWidth;

  int64_t scratch_size() const {
    return rows * (steps + KEYS + KEYS) + KEYS * (steps + batch.columns()) + batch.head_dim;
  }

  // Sums over the split's keys into `sums`. scratch: scratch_size() floats.
  void attend(int64_t split, Sums sums, float* scratch) const {
    A* query = (A*)scratch;
    float* scores = scratch + rows * steps;
    A* weights = (A*)(scores + rows * KEYS);
    B* panels = (B*)(weights + rows * KEYS);
    auto* zeros = (typename T::type*)(panels + KEYS * (steps + batch.columns()));
    std::memset(zeros, 0, batch.head_dim * sizeof *zeros);
    load_query(query);
    std::fill(sums.peak, sums.peak + rows, kNothing);
    std::fill(sums.total, sums.total + rows * (batch.columns() + 1), 0.0f);

    const int64_t last = item.first_position + item.count - 1;
    int64_t first = item.first_position - batch.window + 1;
    first = (first < 0 ? 0 : first) / KEYS * KEYS;
    const int64_t begin = std::max(first, split * kSplit);
    const int64_t end = std::min(last + 1, (split + 1) * kSplit);
    for (int64_t key = begin; key < end; key += KEYS)
      apply_tile(key, query, sums, scores, weights, panels, zeros);
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

  void apply_tile(int64_t key, const A* query, Sums sums, float* scores, A* weights, B* panels,
                  const typename T::type* zeros) const {
    const int64_t group = batch.group(), columns = batch.columns();
    // Rows that see anything of the tile: positions in [key, key + KEYS - 1 + window).
    const int64_t low = std::max<int64_t>(0, key - item.first_position);
    const int64_t high = std::min(item.count, key + KEYS - 1 - item.first_position + batch.window);
    if (low >= high) return;
    const int64_t r0 = low * group, n = (high - low) * group;
    pack(key, panels, zeros);
    for (int64_t p = 0; p < KEYS / NR; p++)
      multiply_all<Dot>(n, query + r0 * steps, steps, panels + p * steps * NR, steps,
                        scores + p * NR, KEYS, false);
    constexpr int64_t weight_steps = KEYS / Dot::kWidth;
    for (int64_t r = 0; r < n; r++) {
      const int64_t row = r0 + r, position = item.first_position + row / group;
      const int64_t from = std::max<int64_t>(0, position - batch.window + 1 - key);
      const int64_t to = std::min<int64_t>(KEYS, position + 1 - key);
      soften<Weight>(batch, scores + r * KEYS, from, to, sums.peak + row, sums.total + row,
                     sums.mixed + row * columns,
                     (typename Weight::type*)(weights + r * weight_steps));
    }
    const B* values = panels + KEYS * steps;
    for (int64_t c = 0; c < columns; c += NR)
      multiply_all<Dot>(n, weights, weight_steps, values + c * weight_steps, weight_steps,
                        sums.mixed + r0 * columns + c, columns, true);
  }

  void pack(int64_t key, B* panels, const typename T::type* zeros) const {
    const typename T::type* at[KEYS];
    const int32_t* table = batch.tables + item.seq * batch.table_stride;
    const int64_t count = std::min<int64_t>(KEYS, batch.contexts[item.seq] - key);
    find_rows<T>(batch.keys, table, batch.block_size, item.kv_head, key, count, zeros, at);
    pack_keys<T, Dot>(at, batch.head_dim, panels);
    find_rows<T>(batch.values, table, batch.block_size, item.kv_head, key, count, zeros, at);
    pack_values<T, Dot>(at, batch.head_dim, panels + KEYS * steps);
  }

  // Adds the sums of the next split to those of all before it.
  void merge(Sums into, Sums next) const {
    const int64_t columns = batch.columns();
    for (int64_t r = 0; r < rows; r++) {
      if (next.peak[r] == kNothing) continue;
      float *mixed = into.mixed + r * columns, *more = next.mixed + r * columns;
      const float peak = std::fmax(into.peak[r], next.peak[r]);
      const float keep = exp_one(into.peak[r] - peak), add = exp_one(next.peak[r] - peak);
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

std::vector<Item> items_of(const Batch& batch) {
  const int64_t per_item = std::max<int64_t>(1, kRowTarget / batch.group());
  std::vector<Item> items;
  for (int64_t seq = 0; seq < batch.seqs; seq++) {
    const int64_t start = batch.starts[seq], end = batch.starts[seq + 1];
    for (int64_t token = start; token < end; token += per_item) {
      const int64_t count = std::min(per_item, end - token);
      const int64_t position = batch.contexts[seq] - (end - token);
      const int64_t oldest = std::max<int64_t>(0, position - batch.window + 1);
      const int64_t first_split = oldest / kSplit;
      const int64_t num_splits = (position + count - 1) / kSplit - first_split + 1;
      for (int64_t head = 0; head < batch.kv_heads; head++)
        items.push_back({seq, head, token, count, position, first_split, num_splits, -1});
    }
  }
  return items;
}

thread_local Scratch local;

template <class T>
void run_item(const Batch& batch, const Item& item) {
  const Worker<T> worker{batch, item};
  const int64_t size = Sums::size(worker.rows, batch.columns());
  float* at = local.take(2 * size + worker.scratch_size());
  const Sums sums(at, worker.rows), next(at + size, worker.rows);
  worker.attend(item.first_split, sums, at + 2 * size);
  for (int64_t i = 1; i < item.num_splits; i++) {
    worker.attend(item.first_split + i, next, at + 2 * size);
    worker.merge(sums, next);
  }
  worker.finish(sums);
}

// Too few items for the threads: each split is a task, then the items merge theirs.
template <class T>
void run_splits(const Batch& batch, std::vector<Item>& items) {
  std::vector<std::pair<int64_t, int64_t>> tasks;  // item, split within it
  int64_t total = 0;
  for (int64_t i = 0; i < (int64_t)items.size(); i++) {
    items[i].partials = total;
    for (int64_t s = 0; s < items[i].num_splits; s++) tasks.emplace_back(i, s);
    total += items[i].num_splits * Sums::size(items[i].count * batch.group(), batch.columns());
  }
  std::vector<float> partials(total);
  auto sums_of = [&](const Worker<T>& worker, int64_t split) {
    const int64_t size = Sums::size(worker.rows, batch.columns());
    return Sums(partials.data() + worker.item.partials + split * size, worker.rows);
  };
  parallel_for((int64_t)tasks.size(), [&](int64_t task) {
    const Worker<T> worker{batch, items[tasks[task].first]};
    const int64_t split = tasks[task].second;
    worker.attend(worker.item.first_split + split, sums_of(worker, split),
                  local.take(worker.scratch_size()));
  });
  for (const Item& item : items) {
    const Worker<T> worker{batch, item};
    for (int64_t s = 1; s < item.num_splits; s++)
      worker.merge(sums_of(worker, 0), sums_of(worker, s));
    worker.finish(sums_of(worker, 0));
  }
}

template <class T>
void run(const Batch& batch) {
  std::vector<Item> items = items_of(batch);
  bool is_long = false;
  for (const Item& item : items) is_long |= item.num_splits > 1;
  if (is_long && (int64_t)items.size() < 2 * num_threads() && num_threads() > 1) {
    run_splits<T>(batch, items);
    return;
  }
  // Longest first would be fairer still, but the last tiles of a prompt are the longest: go backwards.
  const int64_t count = (int64_t)items.size();
  parallel_for(count, [&](int64_t i) { run_item<T>(batch, items[count - 1 - i]); });
}

}  // namespace
}  // namespace xpyd

using namespace xpyd;

extern "C" {

// Strides in values; k_strides, v_strides: block, head, token. sizes: seqs, heads, kv_heads, head_dim,
// block_size. window < 1 and softcap <= 0: none. out: [tokens, heads, head_dim] contiguous.
void xpyd_attention(int dtype, const void* query, int64_t token_stride, int64_t head_stride,
                    const void* keys, const int64_t* k_strides, const void* values,
                    const int64_t* v_strides, const int32_t* tables, int64_t table_stride,
                    const int32_t* starts, const int32_t* contexts, const int64_t* sizes,
                    float scale, int64_t window, float softcap, void* out) {
  Batch batch;
  batch.query = query;
  batch.token_stride = token_stride;
  batch.query_head_stride = head_stride;
  batch.keys = {keys, k_strides[0], k_strides[1], k_strides[2]};
  batch.values = {values, v_strides[0], v_strides[1], v_strides[2]};
  batch.tables = tables;
  batch.table_stride = table_stride;
  batch.starts = starts;
  batch.contexts = contexts;
  batch.seqs = sizes[0];
  batch.heads = sizes[1];
  batch.kv_heads = sizes[2];
  batch.head_dim = sizes[3];
  batch.block_size = sizes[4];
  batch.scale = scale;
  batch.softcap = softcap;
  batch.window = window < 1 ? std::numeric_limits<int32_t>::max() : window;
  batch.out = out;
  with_dtype(dtype, [&](auto t) { run<decltype(t)>(batch); });
}
}
