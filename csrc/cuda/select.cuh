// Selection without a sort: the key up to which so many lie, found by histograms in shared memory.
#pragma once

#include "block.cuh"

namespace pyface::cuda {

// For blocks of kThreads threads, all of which call each function.
template <int kThreads>
struct KeySearch {
  static constexpr int kBuckets = 2 * kThreads;  // a thread has two of them
  static constexpr int kBucketBits = __builtin_ctz(kBuckets);

  uint32_t buckets[kBuckets];
  uint32_t warp_sums[32];
  uint32_t bucket, before, inside;  // what find_bucket found

  // Keys of a bucket differ in so many low bits.
  __device__ static int bucket_shift(uint64_t low, uint64_t high) {
    return max(0, 64 - __clzll(static_cast<long long>(high - low)) - kBucketBits);
  }

  // The key up to which at least `wanted` and at most `enough` of those from `low` on lie; there must be `wanted` or
  // more, which is 1 or more. visit(take) calls take(key) for all keys, here and there in the block, several times;
  // keys differ. The bucket in which the wanted-th key lies, if it holds too many, is the next range that is divided.
  template <typename Visit>
  __device__ uint64_t last_key(uint64_t low, uint32_t wanted, uint32_t enough, const Visit& visit) {
    uint64_t high = ~uint64_t{0};
    uint32_t passed = 0;  // keys before `low`, of those that count
    for (;;) {
      const int shift = bucket_shift(low, high);
      clear();
      visit([&](uint64_t key) {
        if (key >= low && key <= high) atomicAdd(&buckets[(key - low) >> shift], 1u);
      });
      __syncthreads();
      find_bucket(wanted - passed);
      passed += before;
      narrow(low, high, shift);
      if (passed + inside <= enough || shift == 0) return high;
    }
  }

  __device__ void clear() {
    for (int i = threadIdx.x; i < kBuckets; i += kThreads) buckets[i] = 0;
    __syncthreads();
  }

  // `bucket` becomes the one in which the wanted-th key (from 1) lies, with the keys before and inside it.
  __device__ void find_bucket(uint32_t wanted) {
    const uint32_t left = buckets[2 * threadIdx.x], right = buckets[2 * threadIdx.x + 1];
    const uint32_t within = warp_inclusive_sum(left + right);
    if (lane_id() == 31) warp_sums[warp_id()] = within;
    __syncthreads();
    const uint32_t sum = lane_id() < kThreads / 32 ? warp_sums[lane_id()] : 0, through = warp_inclusive_sum(sum);
    const uint32_t earlier = __shfl_sync(kWarp, through - sum, warp_id()) + within - left - right;
    if (earlier < wanted && wanted <= earlier + left + right) {
      const bool is_left = wanted <= earlier + left;
      bucket = 2 * threadIdx.x + (is_left ? 0 : 1);
      before = is_left ? earlier : earlier + left;
      inside = is_left ? left : right;
    }
    __syncthreads();
  }

  // [low, high] becomes the bucket's part of it.
  __device__ void narrow(uint64_t& low, uint64_t& high, int shift) const {
    const uint64_t start = low + (static_cast<uint64_t>(bucket) << shift);
    const uint64_t width = (uint64_t{1} << shift) - 1;
    low = start;
    high = high - start < width ? high : start + width;
  }
};

}  // namespace pyface::cuda
