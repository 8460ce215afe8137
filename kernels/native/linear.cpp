// y = x W^T + b over a weight packed into panels; float32 sums. Plain C interface, no allocation seen
// by the caller. See gemm.h for why a row's result does not depend on the other rows.
#include <algorithm>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "pool.h"
#include "quantized.h"

namespace xpyd {
namespace {

constexpr int64_t kRowBlockBytes = 640 << 10;  // of x kept in the second-level cache per pass over W
// Of W per task when few rows make it a stream: long ones keep the machine reading ahead, as long as
// each thread has some of them.
constexpr int64_t kLeastTaskBytes = 128 << 10, kMostTaskBytes = 512 << 10, kTasksPerThread = 4;
constexpr int64_t kCopyPerTask = 16 << 10;     // values of x

int64_t task_bytes(int64_t total) {
  const int64_t share = total / (num_threads() * kTasksPerThread);
  return std::min(kMostTaskBytes, std::max(kLeastTaskBytes, share));
}

int64_t panels_of(int64_t columns) { return (columns + NR - 1) / NR; }

template <class Dot>
int64_t steps_of(int64_t depth) { return (depth + Dot::kWidth - 1) / Dot::kWidth; }

template <class Dot>
void pack(const typename Dot::element* weight, int64_t stride, int64_t columns, int64_t depth,
          void* panels) {
  typedef typename Dot::element V;
  const int64_t steps = steps_of<Dot>(depth), width = Dot::kWidth;
  parallel_for(panels_of(columns), [&](int64_t p) {
    V* out = (V*)panels + p * steps * NR * width;
    for (int64_t s = 0; s < steps; s++, out += NR * width)
      for (int64_t c = 0; c < NR; c++)
        for (int64_t w = 0; w < width; w++) {
          int64_t n = p * NR + c, k = s * width + w;
          out[Dot::place(c, w)] = n < columns && k < depth ? Dot::encode(weight[n * stride + k]) : V(0);
        }
  });
}

// x as the inner loop wants it: in place if it can be read there, else a copy in `scratch`.
template <class T, class Dot>
const typename Dot::a_type* prepare(const typename T::type* x, int64_t rows, int64_t depth,
                                    int64_t* lda, std::vector<float>& scratch) {
  typedef typename Dot::a_type A;
  const int64_t steps = steps_of<Dot>(depth);
  // Rows a multiple of 1 KiB apart would fall into few sets of the first-level cache.
  const bool collides = rows > 4 && depth * sizeof(typename T::type) % 1024 == 0;
  if (sizeof(A) == Dot::kWidth * sizeof(typename T::type) && depth % Dot::kWidth == 0 && !collides) {
    *lda = steps;
    return (const A*)x;
  }
  *lda = (steps + 15) / 16 * 16 + 16;
  if ((int64_t)scratch.size() < rows * *lda) scratch.resize(rows * *lda);
  A* copy = (A*)scratch.data();
  const int64_t stride = *lda;
  const int64_t per_task = std::max<int64_t>(1, kCopyPerTask / depth);
  parallel_for((rows + per_task - 1) / per_task, [&](int64_t task) {
    for (int64_t r = task * per_task; r < std::min(rows, (task + 1) * per_task); r++) {
      const typename T::type* from = x + r * depth;
      A* to = copy + r * stride;
      if constexpr (Dot::kWidth == 2) {
        to[steps - 1] = 0;
        std::memcpy(to, from, depth * sizeof *from);
      } else {
        for (int64_t k = 0; k < depth; k += W)
          F32::store(to + k, load_upto<T>(from + k, depth - k));
      }
    }
  });
  return copy;
}

// What becomes of the sums of a column: times its scale, plus its bias; either may be absent.
struct Finish {
  const float *scales, *bias;

  Finish of_panel(int64_t p) const {
    return {scales ? scales + p * NR : nullptr, bias ? bias + p * NR : nullptr};
  }

  template <class Out>
  void apply(const float* tile, int64_t rows, int64_t columns, typename Out::type* out,
             int64_t ldo) const {
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < columns; c += W) {
        vf y = F32::load(tile + r * NR + c);
        if (scales) y = y * load_upto<F32>(scales + c, columns - c);
        if (bias) y = y + load_upto<F32>(bias + c, columns - c);
        store_upto<Out>(out + r * ldo + c, y, columns - c);
      }
  }
};

// Rows [0, rows) of one panel's columns; `out` at the panel's first column.
template <class Dot, class Out>
void multiply_panel(const typename Dot::a_type* a, int64_t lda, int64_t rows,
                    const typename Dot::b_type* panel, int64_t steps, Finish finish,
                    int64_t columns, typename Out::type* out, int64_t ldo) {
  float tile[MR * NR];
  const int64_t tiles = tile_count(rows);
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t r = tile_start(rows, tiles, i), n = tile_start(rows, tiles, i + 1) - r;
    multiply_rows<Dot>((int)n, a + r * lda, lda, panel, steps, tile, NR, false);
    finish.apply<Out>(tile, n, columns, out + r * ldo, ldo);
  }
}

template <class Dot>
bool is_expanded(int64_t rows) { return Dot::kDirectRows > 0 && rows > Dot::kDirectRows; }

template <class T, class Dot, class Out>
void run(const typename T::type* x, int64_t rows, int64_t depth, int64_t columns,
         const void* packed, Finish finish, typename Out::type* out) {
  typedef typename Dot::b_type B;
  static thread_local std::vector<float> scratch;
  const B* panels = (const B*)packed;
  const int64_t steps = steps_of<Dot>(depth), count = panels_of(columns), size = steps * NR;
  int64_t block = kRowBlockBytes / (steps * sizeof(typename Dot::a_type));
  block = block < 4 * MR ? 4 * MR : block / MR * MR;
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t height = std::min(rows - first, block);
    int64_t lda;
    const auto* a = prepare<T, Dot>(x + first * depth, height, depth, &lda, scratch);
    const int64_t bytes = size * sizeof(B);
    const int64_t per_task = height > MR ? 1 : (task_bytes(count * bytes) + bytes - 1) / bytes;
    parallel_for((count + per_task - 1) / per_task, [&](int64_t task) {
      const int64_t end = std::min(count, (task + 1) * per_task);
      for (int64_t p = task * per_task; p < end; p++) {
        const B* panel = panels + p * size;
        const int64_t width = std::min<int64_t>(NR, columns - p * NR);
        typename Out::type* to = out + first * columns + p * NR;
        if constexpr (Dot::kDirectRows > 0) {
          if (is_expanded<Dot>(height)) {  // the same sums over the same numbers
            typedef typename Dot::expanded Wide;
            static thread_local std::vector<typename Wide::b_type> wide;
            if ((int64_t)wide.size() < size) wide.resize(size);
            Dot::expand(panel, steps, wide.data());
            multiply_panel<Wide, Out>(a, lda, height, wide.data(), steps, finish.of_panel(p),
                                      width, to, columns);
            continue;
          }
        }
        multiply_panel<Dot, Out>(a, lda, height, panel, steps, finish.of_panel(p), width, to,
                                 columns);
      }
    });
  }
}

template <class T, class Dot>
void run(int out_dtype, const void* x, int64_t rows, int64_t depth, int64_t columns,
         const void* panels, Finish finish, void* out) {
  auto* typed = (const typename T::type*)x;
  if (out_dtype == kFloat32)
    run<T, Dot, F32>(typed, rows, depth, columns, panels, finish, (float*)out);
  else
    run<T, Dot, T>(typed, rows, depth, columns, panels, finish, (typename T::type*)out);
}

// Calls f(T{}, Dot{}) for activations of `dtype`.
template <class F>
void with_dot(int dtype, bool quantized, F&& f) {
  with_dtype(dtype, [&](auto t) {
    typedef decltype(t) T;
    if (quantized) f(t, typename QuantizedDotOf<T>::type{});
    else f(t, typename DotOf<T>::type{});
  });
}

}  // namespace
}  // namespace xpyd

using namespace xpyd;

extern "C" {

// dtype: of the activations, and of a weight that is not quantized.
int64_t xpyd_linear_bytes(int dtype, int quantized, int64_t columns, int64_t depth) {
  int64_t bytes = 0;
  with_dot(dtype, quantized, [&](auto, auto dot) {
    typedef decltype(dot) Dot;
    bytes = panels_of(columns) * steps_of<Dot>(depth) * NR * sizeof(typename Dot::b_type);
  });
  return bytes;
}

// weight: [columns, depth], rows `stride` values apart; int8 from -127 to 127 if quantized.
void xpyd_linear_pack(int dtype, int quantized, const void* weight, int64_t stride, int64_t columns,
                      int64_t depth, void* panels) {
#if defined(__linux__)
  // A decode step reads every weight once; with small pages that took 5 to 20 % longer.
  const uintptr_t huge = 2 << 20, start = ((uintptr_t)panels + huge - 1) / huge * huge;
  const int64_t bytes = xpyd_linear_bytes(dtype, quantized, columns, depth);
  const uintptr_t end = ((uintptr_t)panels + bytes) / huge * huge;
  if (end > start) madvise((void*)start, end - start, MADV_HUGEPAGE);
#endif
  with_dot(dtype, quantized, [&](auto, auto dot) {
    typedef decltype(dot) Dot;
    pack<Dot>((const typename Dot::element*)weight, stride, columns, depth, panels);
  });
}

// x: [rows, depth] contiguous; scales: [columns] float32, or null if the weight is not quantized;
// bias: [columns] float32 or null; out: [rows, columns] contiguous.
void xpyd_linear(int dtype, int out_dtype, const void* x, int64_t rows, int64_t depth,
                 int64_t columns, const void* panels, const float* scales, const float* bias,
                 void* out) {
  with_dot(dtype, scales != nullptr, [&](auto t, auto dot) {
    run<decltype(t), decltype(dot)>(out_dtype, x, rows, depth, columns, panels, {scales, bias}, out);
  });
}
}
