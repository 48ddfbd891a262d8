// A small thread pool for the CPU kernels. It starts threads when they are first needed, survives fork() (a child
// starts its own), and links no OpenMP, so it cannot clash with the runtime that torch brings.
#pragma once

#include <cstdint>
#include <functional>

namespace pyface::cpu {

// Calls body(i) for each i in [0, n) on at most `threads` threads, the caller's included. Order is unspecified. The
// first exception that body throws ends the work and is thrown to the caller.
void parallel_for(int64_t n, int threads, const std::function<void(int64_t)>& body);

}  // namespace pyface::cpu
