// How the threads of a warp and of a block work together: lanes, sums, and a sort in shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pyface::cuda {

constexpr unsigned kWarp = 0xffffffffu;  // all lanes

inline __device__ int lane_id() { return threadIdx.x % 32; }
inline __device__ int warp_id() { return threadIdx.x / 32; }
inline __device__ int num_warps() { return blockDim.x / 32; }
inline __device__ uint32_t bits_below(int bit) { return (1u << bit) - 1; }

inline __device__ uint32_t warp_inclusive_sum(uint32_t value) {
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t other = __shfl_up_sync(kWarp, value, step);
    if (lane_id() >= step) value += other;
  }
  return value;
}

inline __device__ uint64_t warp_min(uint64_t value) {
  for (int step = 16; step > 0; step /= 2) {
    const uint64_t other = __shfl_xor_sync(kWarp, value, step);
    value = other < value ? other : value;
  }
  return value;
}

// Makes room in a list for each lane of the warp with `has_item`, with one atomic; returns the lane's position.
inline __device__ uint32_t warp_append(uint32_t* size, bool has_item) {
  const uint32_t items = __ballot_sync(kWarp, has_item);
  uint32_t first = 0;
  if (lane_id() == 0 && items != 0) first = atomicAdd(size, static_cast<uint32_t>(__popc(items)));
  return __shfl_sync(kWarp, first, 0) + __popc(items & bits_below(lane_id()));
}

// Sorts `size` keys (a power of two) ascending, bitonically. Item i of thread t is key t * kItems + i. Steps within a
// thread's items cost nothing, steps within a warp a shuffle, and only wider ones a barrier; warps beyond `size` take
// part in the barriers only. All keys beyond `size` are ~0. A block barrier must separate earlier uses of `exchange`
// from this one.
template <int kItems>
__device__ void block_sort(uint64_t (&key)[kItems], uint64_t* exchange, int size) {
  static_assert(kItems <= 4 && (kItems & (kItems - 1)) == 0, "steps within a thread are 1 or 2");
  const bool is_idle = warp_id() * 32 * kItems >= size;
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      uint64_t other[kItems];
      if (step >= 32 * kItems) {
        if (!is_idle) {
#pragma unroll
          for (int i = 0; i < kItems; ++i) exchange[threadIdx.x * kItems + i] = key[i];
        }
        __syncthreads();
        if (!is_idle) {
#pragma unroll
          for (int i = 0; i < kItems; ++i) other[i] = exchange[(threadIdx.x * kItems + i) ^ step];
        }
        __syncthreads();
      }
      if (is_idle) continue;
      if (step < kItems) {
        // The items' places are known at compile time, so they stay in registers.
#pragma unroll
        for (int i = 0; i < kItems; ++i) other[i] = step == 1 ? key[(i ^ 1) % kItems] : key[(i ^ 2) % kItems];
      } else if (step < 32 * kItems) {
#pragma unroll
        for (int i = 0; i < kItems; ++i) other[i] = __shfl_xor_sync(kWarp, key[i], step / kItems);
      }
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int at = threadIdx.x * kItems + i;
        const bool takes_less = ((at & step) == 0) == ((at & run) == 0);
        if (takes_less == (other[i] < key[i])) key[i] = other[i];
      }
    }
  }
}

}  // namespace pyface::cuda
