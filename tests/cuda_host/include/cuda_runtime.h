// CUDA's names on the emulated device: those that pyface's kernels use, and closely related ones.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "device.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define CUDART_VERSION 13000

#define threadIdx (::cuda_host::thread_index())
#define blockIdx (::cuda_host::block_index())
#define blockDim (::cuda_host::block_size())
#define gridDim (::cuda_host::grid_size())
constexpr int warpSize = 32;

// --- the runtime -----------------------------------------------------------------------------------------------------

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaErrorInvalidValue = 1;

inline cudaError_t cudaGetDevice(int* device) {
  *device = ::cuda_host::current_device();
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  ::cuda_host::set_device(device);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return ::cuda_host::last_error(true); }
inline cudaError_t cudaPeekAtLastError() { return ::cuda_host::last_error(false); }
inline const char* cudaGetErrorString(cudaError_t status) { return ::cuda_host::error_text(status); }
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* array, int value, size_t bytes, cudaStream_t stream = nullptr) {
  if (!::cuda_host::is_in_order("cudaMemsetAsync", stream) ||
      !::cuda_host::use_array("cudaMemsetAsync", array, bytes, ::cuda_host::Use::Write))
    return ::cuda_host::last_error(false);
  ::cuda_host::count_library(1, 0, bytes);
  std::memset(array, value, bytes);
  return cudaSuccess;
}

// --- vectors ---------------------------------------------------------------------------------------------------------

struct float3 {
  float x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// --- numbers ---------------------------------------------------------------------------------------------------------

// Of a number and a NaN, CUDA's functions return the number.
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) || a != a ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) || a != a ? static_cast<T>(b) : static_cast<T>(a);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(bits)); }

namespace cuda_host {
template <typename To, typename From>
To bits_as(From from) {
  To to{};
  static_assert(sizeof(From) <= sizeof(To) && std::is_trivially_copyable_v<From>);
  std::memcpy(&to, &from, sizeof(From));
  return to;
}
template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace cuda_host

inline unsigned __float_as_uint(float value) { return ::cuda_host::bits_as<unsigned>(value); }
inline int __float_as_int(float value) { return ::cuda_host::bits_as<int>(value); }
inline float __uint_as_float(unsigned bits) { return ::cuda_host::bits_as<float>(bits); }
inline float __int_as_float(int bits) { return ::cuda_host::bits_as<float>(bits); }

// --- barriers, fences and exchanges within a warp --------------------------------------------------------------------

#define CUDA_HOST_SITE(name) (::cuda_host::Site{name, __FILE__, __LINE__})
#define __syncthreads_count(p) ::cuda_host::sync_block(CUDA_HOST_SITE("__syncthreads"), p)
#define __syncthreads() (void)__syncthreads_count(false)
#define __syncthreads_or(p) (__syncthreads_count(p) != 0)
#define __syncthreads_and(p) (__syncthreads_count(!(p)) == 0)
#define __syncwarp \
  ::cuda_host::WarpBarrier { CUDA_HOST_SITE("__syncwarp") }
// Lanes beyond either end keep their own value.
#define CUDA_HOST_SHUFFLE(name, mask, value, lane) ::cuda_host::shuffle(CUDA_HOST_SITE(name), mask, value, lane)
#define __shfl_sync(mask, value, lane) CUDA_HOST_SHUFFLE("__shfl_sync", mask, value, (lane) & 31)
#define __shfl_up_sync(mask, value, step) \
  CUDA_HOST_SHUFFLE("__shfl_up_sync", mask, value, ::cuda_host::lane_index() - int(step))
#define __shfl_down_sync(mask, value, step) \
  CUDA_HOST_SHUFFLE("__shfl_down_sync", mask, value, ::cuda_host::lane_index() + int(step))
#define __shfl_xor_sync(mask, value, bits) \
  CUDA_HOST_SHUFFLE("__shfl_xor_sync", mask, value, ::cuda_host::lane_index() ^ (bits))
#define CUDA_HOST_VOTE(name, mask, p) ::cuda_host::lanes_with(CUDA_HOST_SITE(name), mask, bool(p), true)
#define __ballot_sync(mask, p) CUDA_HOST_VOTE("__ballot_sync", mask, p)
#define __any_sync(mask, p) (CUDA_HOST_VOTE("__any_sync", mask, p) != 0)
#define __all_sync(mask, p) (CUDA_HOST_VOTE("__all_sync", mask, !(p)) == 0)
#define __match_any_sync(...) ::cuda_host::match_any(CUDA_HOST_SITE("__match_any_sync"), __VA_ARGS__)
#define CUDA_HOST_REDUCE(name, mask, value, joined) \
  ::cuda_host::reduce(CUDA_HOST_SITE(name), [](auto a, auto b) { return joined; }, mask, value)
#define __reduce_add_sync(mask, value) CUDA_HOST_REDUCE("__reduce_add_sync", mask, value, a + b)
#define __reduce_min_sync(mask, value) CUDA_HOST_REDUCE("__reduce_min_sync", mask, value, b < a ? b : a)
#define __reduce_max_sync(mask, value) CUDA_HOST_REDUCE("__reduce_max_sync", mask, value, a < b ? b : a)
#define __reduce_and_sync(mask, value) CUDA_HOST_REDUCE("__reduce_and_sync", mask, value, (a & b))
#define __reduce_or_sync(mask, value) CUDA_HOST_REDUCE("__reduce_or_sync", mask, value, (a | b))

inline void __threadfence() { ::cuda_host::fence(); }
inline void __nanosleep(unsigned) { ::cuda_host::sleep(); }

namespace cuda_host {

struct WarpBarrier {
  Site site;
  void operator()(uint32_t mask = ~0u) const { sync_warp(site, mask); }
};

template <typename T>
T shuffle(const Site& site, uint32_t mask, T value, int lane) {
  const bool is_lane = lane >= 0 && lane < warpSize;
  return from_bits<T>(value_of_lane(site, mask, bits_as<uint64_t>(value), is_lane ? lane : lane_index()));
}

template <typename T>
unsigned match_any(const Site& site, uint32_t mask, T value) {
  return lanes_with(site, mask, bits_as<uint64_t>(value), bits_as<uint64_t>(value));
}

template <typename T, typename Join>
T reduce(const Site& site, const Join& join, uint32_t mask, T value) {
  uint64_t all[32];
  exchange(site, mask, bits_as<uint64_t>(value), all);
  const int first = __builtin_ctz(mask);
  T result = from_bits<T>(all[first]);
  for (int lane = first + 1; lane < 32; ++lane)
    if (mask >> lane & 1) result = join(result, from_bits<T>(all[lane]));
  return result;
}

}  // namespace cuda_host

// --- memory ----------------------------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* at) {
  ::cuda_host::check_read_only(at, sizeof(T));
  return *at;
}
template <typename T>
T __ldcg(const T* at) {
  return *at;
}

#define CUDA_HOST_ATOMIC(name, now)                                                                        \
  template <typename T, typename V>                                                                        \
  T name(T* at, V given) {                                                                                 \
    const T value = static_cast<T>(given);                                                                 \
    return ::cuda_host::change_atomically(at, ::cuda_host::Order::Relaxed, [&](T old) { return T(now); }); \
  }
CUDA_HOST_ATOMIC(atomicAdd, old + value)
CUDA_HOST_ATOMIC(atomicAnd, (old & value))
CUDA_HOST_ATOMIC(atomicOr, (old | value))
CUDA_HOST_ATOMIC(atomicMin, min(old, value))
CUDA_HOST_ATOMIC(atomicMax, max(old, value))
CUDA_HOST_ATOMIC(atomicExch, ((void)old, value))

template <typename T, typename V, typename W>
T atomicCAS(T* at, V expected, W value) {
  return ::cuda_host::change_atomically(at, ::cuda_host::Order::Relaxed, [&](T old) {
    return old == static_cast<T>(expected) ? static_cast<T>(value) : old;
  });
}
