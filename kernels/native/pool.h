// Threads that share out numbered tasks. Which thread runs a task must not matter to its result.
#pragma once

#include <cstdint>
#include <type_traits>

namespace xpyd {

int num_threads();

// Runs run(context, i) for every i in [0, tasks), in no fixed order, and returns when all are done.
// The caller works too. If another thread is inside already, the caller does everything itself.
void parallel_for(int64_t tasks, void (*run)(void*, int64_t), void* context);

template <class F>
void parallel_for(int64_t tasks, F&& f) {
  typedef typename std::remove_reference<F>::type Function;
  parallel_for(
      tasks, [](void* context, int64_t i) { (*(Function*)context)(i); }, (void*)&f);
}

}  // namespace xpyd
