// What every launcher needs: a guard that sets and restores the device, a status, and a workspace cut into arrays.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace pyface::cuda {

// Makes `device` the current one for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&previous_);
    if (status_ == cudaSuccess && previous_ != device) {
      status_ = cudaSetDevice(device);
      changed_ = status_ == cudaSuccess;
    }
    if (status_ != cudaSuccess) cudaGetLastError();  // reported here, so no later call reports it again
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  int status() const { return status_; }

 private:
  cudaError_t status_;
  int previous_ = 0;
  bool changed_ = false;
};

inline int launch_status() { return cudaGetLastError(); }

inline constexpr __host__ __device__ int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if defined(PYFACE_CUDA_HOST)
// The emulated device checks that kernels stay within each array, and launches fewer blocks now and then.
using cuda_host::declare_array, cuda_host::fewer_blocks, cuda_host::kWorkspaceGap;
#else
constexpr size_t kWorkspaceGap = 0;
template <typename T>
void declare_array(T*, size_t) {}
inline int64_t fewer_blocks(int64_t most) { return most; }
#endif

constexpr int64_t kMaxRows = 65535;  // blocks along the y axis of a grid

// Blocks for `wanted` shares of the work: at most `most`, which then take several shares each.
inline unsigned num_blocks(int64_t wanted, int64_t most) {
  return static_cast<unsigned>(std::min(wanted, fewer_blocks(most)));
}

// Cuts a workspace into aligned arrays. With a null base it only counts, so that one function describes both the size
// and the layout.
class Workspace {
 public:
  explicit Workspace(void* base) : start_(align(reinterpret_cast<uintptr_t>(base))), next_(start_) {}

  template <typename T>
  T* take(size_t count) {
    T* const array = reinterpret_cast<T*>(next_);
    next_ = align(next_ + count * sizeof(T) + kWorkspaceGap);
    declare_array(array, count);
    return array;
  }

  // Enough bytes for all arrays, wherever the workspace begins.
  size_t bytes() const { return next_ - start_ + kAlignment; }

 private:
  static constexpr uintptr_t kAlignment = 256;
  static uintptr_t align(uintptr_t at) { return (at + kAlignment - 1) / kAlignment * kAlignment; }

  uintptr_t start_, next_;
};

}  // namespace pyface::cuda
