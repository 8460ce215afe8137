// Paged attention with an online softmax over tiles of keys at fixed absolute positions.
//
// A query's result is a function of its own tiles in ascending order and of nothing else: tiles start
// at multiples of KEYS, sums start anew at multiples of kSplit (so that a long context can be shared
// among threads) and are merged in order, and a tile that a query does not see is not applied to it.
// So alone, in any chunk, with any neighbours and threads, it comes out the same to the last bit.
#include <utility>
#include <vector>

#include "attention_worker.h"
#include "pool.h"

namespace xpyd {
namespace {

constexpr int64_t kRowTarget = 112;  // rows (query, head of the group) that share a packed tile

struct Scratch {
  std::vector<float> floats;

  float* take(int64_t count) {
    if ((int64_t)floats.size() < count) floats.resize(count);
    return floats.data();
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
