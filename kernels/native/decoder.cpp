// A forward pass of a Llama-like decoder in one call: the operations of the other files in their
// order, and nothing between them. A caller with an interpreter lock to give back and take again
// does so once a step instead of ten times a layer, and the threads of the pool stay awake.
//
// Nothing is computed differently here: every value is what the operations give one by one. Of the
// last layer only the rows whose logits are wanted go on after attention; no other row is read.
#include <cstring>
#include <vector>

#include "operations.h"
#include "simd.h"

namespace xpyd {
namespace {

// As `kernels/decoder.py` lays them out; sizes and strides in values.
struct Linear {
  int64_t inputs, outputs;
  const void* panels;
  const float *scales, *bias;  // null if there are none
};

struct Layer {
  const void *input_norm, *q_norm, *k_norm, *post_norm;  // q_norm, k_norm: null if there are none
  Linear qkv, output, gate_up, down;
  int64_t window;  // 0: none
};

struct Network {
  int64_t dtype, value_bytes, layers, vocab, hidden, heads, kv_heads, head_dim, intermediate, half;
  double eps, scale;
  const void* embedding;
  const Layer* layer;
  const void* norm;
  Linear head;
  const float *cos, *sin;
};

struct Step {
  int64_t tokens, seqs, rows, table_stride;
  const int64_t *token_ids, *positions, *slots, *logits_rows;
  const int32_t *starts, *contexts, *tables;
  char* cache;
  int64_t block_stride, layer_stride, side_stride, head_stride, token_stride, block_size;
  float* logits;  // [rows, vocab]
};

constexpr int64_t kAlign = 64;

struct Sizes {
  int64_t hidden, qkv, heads, gate_up, gated;

  static Sizes of(const Network& net) {
    return {net.hidden, (net.heads + 2 * net.kv_heads) * net.head_dim, net.heads * net.head_dim,
            2 * net.intermediate, net.intermediate};
  }
};

class Pass {
 public:
  Pass(const Network& net, const Step& step)
      : net_(net), step_(step), dtype_((int)net.dtype), size_(Sizes::of(net)) {}

  void run(char* scratch) {
    place(scratch);
    embed();
    int64_t rows = step_.tokens;
    for (int64_t i = 0; i < net_.layers; i++) {
      const Layer& layer = net_.layer[i];
      if (i == 0) norm(residual_, rows, layer.input_norm);
      else add_norm(rows, layer.input_norm);
      attend(layer, i);
      if (i == net_.layers - 1) rows = choose_rows();
      multiply(layer.output, mixed_, rows, hidden_);
      add_norm(rows, layer.post_norm);
      multiply(layer.gate_up, hidden_, rows, gate_up_);
      xpyd_silu_mul(dtype_, gate_up_, rows, size_.gate_up, net_.intermediate, gated_);
      multiply(layer.down, gated_, rows, hidden_);
    }
    add_norm(rows, net_.norm);
    multiply(net_.head, hidden_, rows, step_.logits, kFloat32);
  }

  int64_t scratch_bytes() {
    place(nullptr);
    return end_;
  }

 private:
  void place(char* scratch) {
    end_ = 0;
    auto take = [&](int64_t width) {
      char* at = scratch + end_;
      end_ += (step_.tokens * width * net_.value_bytes + kAlign - 1) / kAlign * kAlign;
      return at;
    };
    hidden_ = take(size_.hidden);
    residual_ = take(size_.hidden);
    mixed_ = take(size_.heads);
    // Either side of a layer is done before the other begins.
    const int64_t shared = end_;
    qkv_ = take(size_.qkv);
    normed_ = take(size_.qkv);
    const int64_t attention = end_;
    end_ = shared;
    gate_up_ = take(size_.gate_up);
    gated_ = take(size_.gated);
    end_ = end_ > attention ? end_ : attention;
  }

  void embed() {
    const int64_t bytes = net_.hidden * net_.value_bytes;
    for (int64_t t = 0; t < step_.tokens; t++)
      std::memcpy(residual_ + t * bytes, (const char*)net_.embedding + step_.token_ids[t] * bytes,
                  bytes);
  }

  void norm(const char* x, int64_t rows, const void* weight) {
    xpyd_rms_norm(dtype_, x, rows, 1, net_.hidden, net_.hidden, net_.hidden, weight, (float)net_.eps,
                  hidden_);
  }

  // residual += hidden; hidden = norm(residual)
  void add_norm(int64_t rows, const void* weight) {
    xpyd_add_rms_norm(dtype_, hidden_, residual_, rows, net_.hidden, weight, (float)net_.eps,
                      residual_, hidden_);
  }

  void multiply(const Linear& linear, const void* x, int64_t rows, void* out, int out_dtype = -1) {
    xpyd_linear(dtype_, out_dtype < 0 ? dtype_ : out_dtype, x, rows, linear.inputs, linear.outputs,
                linear.panels, linear.scales, linear.bias, out);
  }

  // Heads of the packed projection, or of their norms: where they are and how far apart tokens are.
  struct Heads {
    char* at;
    int64_t count, token_stride;
  };

  Heads normed(Heads from, const void* weight, char* out) {
    if (!weight) return from;
    xpyd_rms_norm(dtype_, from.at, step_.tokens, from.count, from.token_stride, net_.head_dim,
                  net_.head_dim, weight, (float)net_.eps, out);
    return {out, from.count, from.count * net_.head_dim};
  }

  void attend(const Layer& layer, int64_t index) {
    multiply(layer.qkv, hidden_, step_.tokens, qkv_);
    const int64_t q_bytes = size_.heads * net_.value_bytes;
    const int64_t kv_bytes = net_.kv_heads * net_.head_dim * net_.value_bytes;
    Heads q = normed({qkv_, net_.heads, size_.qkv}, layer.q_norm, normed_);
    Heads k = normed({qkv_ + q_bytes, net_.kv_heads, size_.qkv}, layer.k_norm,
                     normed_ + step_.tokens * q_bytes);
    for (const Heads& x : {q, k})
      xpyd_rope(dtype_, x.at, step_.tokens, x.count, x.token_stride, net_.head_dim, net_.cos,
                net_.sin, net_.half, step_.positions);
    char* keys = step_.cache + index * step_.layer_stride * net_.value_bytes;
    char* values = keys + step_.side_stride * net_.value_bytes;
    store(k, keys);
    store({qkv_ + q_bytes + kv_bytes, net_.kv_heads, size_.qkv}, values);
    const int64_t strides[] = {step_.block_stride, step_.head_stride, step_.token_stride};
    const int64_t sizes[] = {step_.seqs, net_.heads, net_.kv_heads, net_.head_dim, step_.block_size};
    xpyd_attention(dtype_, q.at, q.token_stride, net_.head_dim, keys, strides, values, strides,
                   step_.tables, step_.table_stride, step_.starts, step_.contexts, sizes,
                   (float)net_.scale, layer.window, 0.0f, mixed_);
  }

  void store(Heads x, char* side) {
    const int64_t bytes = net_.value_bytes, head = net_.head_dim * bytes;
    xpyd_store_kv(x.at, step_.tokens, net_.kv_heads, head, x.token_stride * bytes, head, side,
                  step_.block_stride * bytes, step_.head_stride * bytes, step_.token_stride * bytes,
                  step_.block_size, step_.slots);
  }

  // Moves the rows that need logits to the front; they rise, so none is overwritten before its turn.
  int64_t choose_rows() {
    const int64_t mixed = size_.heads * net_.value_bytes, hidden = net_.hidden * net_.value_bytes;
    for (int64_t r = 0; r < step_.rows; r++) {
      const int64_t from = step_.logits_rows[r];
      std::memmove(mixed_ + r * mixed, mixed_ + from * mixed, mixed);
      std::memmove(residual_ + r * hidden, residual_ + from * hidden, hidden);
    }
    return step_.rows;
  }

  const Network& net_;
  const Step& step_;
  const int dtype_;
  const Sizes size_;
  int64_t end_ = 0;
  char *hidden_, *residual_, *mixed_, *qkv_, *normed_, *gate_up_, *gated_;
};

}  // namespace
}  // namespace xpyd

using namespace xpyd;

extern "C" {

int64_t xpyd_decoder_scratch_bytes(const void* network, const void* step) {
  return Pass(*(const Network*)network, *(const Step*)step).scratch_bytes();
}

// token_ids are below the vocabulary's size; logits_rows rise.
void xpyd_decoder(const void* network, const void* step, char* scratch) {
  Pass(*(const Network*)network, *(const Step*)step).run(scratch);
}
}
