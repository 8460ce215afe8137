// y = x W^T + b over a weight packed into panels; float32 sums. Plain C interface, no allocation seen
// by the caller. See gemm.h for why a row's result does not depend on the other rows.
#include <algorithm>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "gemm.h"
#include "pool.h"

namespace xpyd {
namespace {

constexpr int64_t kRowBlockBytes = 640 << 10;  // of x kept in the second-level cache per pass over W
constexpr int64_t kTaskBytes = 128 << 10;      // of W per task when few rows make it a stream
constexpr int64_t kCopyPerTask = 16 << 10;     // values of x

int64_t panels_of(int64_t columns) { return (columns + NR - 1) / NR; }

template <class Dot>
int64_t steps_of(int64_t depth) { return (depth + Dot::kWidth - 1) / Dot::kWidth; }

template <class T>
void pack(const typename T::type* weight, int64_t stride, int64_t columns, int64_t depth,
          typename DotOf<T>::type::b_type* panels) {
  typedef typename DotOf<T>::type Dot;
  const int64_t steps = steps_of<Dot>(depth), width = Dot::kWidth;
  parallel_for(panels_of(columns), [&](int64_t p) {
    typename T::type* out = (typename T::type*)(panels + p * steps * NR);
    for (int64_t s = 0; s < steps; s++)
      for (int64_t c = 0; c < NR; c++)
        for (int64_t w = 0; w < width; w++) {
          int64_t n = p * NR + c, k = s * width + w;
          *out++ = n < columns && k < depth ? weight[n * stride + k] : typename T::type(0);
        }
  });
}

// x as the inner loop wants it: in place if it can be read there, else a copy in `scratch`.
template <class T>
const typename DotOf<T>::type::a_type* prepare(const typename T::type* x, int64_t rows,
                                               int64_t depth, int64_t* lda,
                                               std::vector<float>& scratch) {
  typedef typename DotOf<T>::type Dot;
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

template <class Out>
void finish(const float* tile, int64_t rows, int64_t columns, const float* bias,
            typename Out::type* out, int64_t ldo) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < columns; c += W) {
      vf y = F32::load(tile + r * NR + c);
      if (bias) y = y + load_upto<F32>(bias + c, columns - c);
      store_upto<Out>(out + r * ldo + c, y, columns - c);
    }
}

template <class T, class Out>
void run(const typename T::type* x, int64_t rows, int64_t depth, int64_t columns,
         const typename DotOf<T>::type::b_type* panels, const float* bias,
         typename Out::type* out) {
  typedef typename DotOf<T>::type Dot;
  static thread_local std::vector<float> scratch;
  const int64_t steps = steps_of<Dot>(depth), count = panels_of(columns), size = steps * NR;
  int64_t block = kRowBlockBytes / (steps * sizeof(typename Dot::a_type));
  block = block < 4 * MR ? 4 * MR : block / MR * MR;
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t height = std::min(rows - first, block);
    int64_t lda;
    const auto* a = prepare<T>(x + first * depth, height, depth, &lda, scratch);
    const int64_t bytes = size * sizeof(typename Dot::b_type), tiles = tile_count(height);
    const int64_t per_task = height > MR ? 1 : (kTaskBytes + bytes - 1) / bytes;
    parallel_for((count + per_task - 1) / per_task, [&](int64_t task) {
      float tile[MR * NR];
      const int64_t end = std::min(count, (task + 1) * per_task);
      for (int64_t p = task * per_task; p < end; p++)
        for (int64_t i = 0; i < tiles; i++) {
          const int64_t r = tile_start(height, tiles, i), n = tile_start(height, tiles, i + 1) - r;
          multiply_rows<Dot>((int)n, a + r * lda, lda, panels + p * size, steps, tile, NR, false);
          finish<Out>(tile, n, std::min<int64_t>(NR, columns - p * NR),
                      bias ? bias + p * NR : nullptr,
                      out + (first + r) * columns + p * NR, columns);
        }
    });
  }
}

}  // namespace
}  // namespace xpyd

using namespace xpyd;

extern "C" {

int64_t xpyd_linear_bytes(int dtype, int64_t columns, int64_t depth) {
  int64_t bytes = 0;
  with_dtype(dtype, [&](auto t) {
    typedef typename DotOf<decltype(t)>::type Dot;
    bytes = panels_of(columns) * steps_of<Dot>(depth) * NR * sizeof(typename Dot::b_type);
  });
  return bytes;
}

// weight: [columns, depth], rows `stride` values apart.
void xpyd_linear_pack(int dtype, const void* weight, int64_t stride, int64_t columns, int64_t depth,
                      void* panels) {
#if defined(__linux__)
  // A decode step reads every weight once; with small pages that took 5 to 20 % longer.
  const uintptr_t huge = 2 << 20, start = ((uintptr_t)panels + huge - 1) / huge * huge;
  const uintptr_t end = ((uintptr_t)panels + xpyd_linear_bytes(dtype, columns, depth)) / huge * huge;
  if (end > start) madvise((void*)start, end - start, MADV_HUGEPAGE);
#endif
  with_dtype(dtype, [&](auto t) {
    typedef decltype(t) T;
    pack<T>((const typename T::type*)weight, stride, columns, depth,
            (typename DotOf<T>::type::b_type*)panels);
  });
}

// x: [rows, depth] contiguous; bias: [columns] float32 or null; out: [rows, columns] contiguous.
void xpyd_linear(int dtype, int out_dtype, const void* x, int64_t rows, int64_t depth,
                 int64_t columns, const void* panels, const float* bias, void* out) {
  with_dtype(dtype, [&](auto t) {
    typedef decltype(t) T;
    auto* typed_x = (const typename T::type*)x;
    auto* typed_panels = (const typename DotOf<T>::type::b_type*)panels;
    if (out_dtype == kFloat32)
      run<T, F32>(typed_x, rows, depth, columns, typed_panels, bias, (float*)out);
    else
      run<T, T>(typed_x, rows, depth, columns, typed_panels, bias, (typename T::type*)out);
  });
}
}
