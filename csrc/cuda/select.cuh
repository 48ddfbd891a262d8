// Selection without a sort: histograms in shared memory find the key up to which a given number of keys lie.
#pragma once

#include "block.cuh"

namespace pyface::cuda {

// Includes both ends.
struct KeyRange {
  uint64_t low, high;
};
constexpr KeyRange kAllKeys{0, ~uint64_t{0}};

// For blocks of kThreads threads, all of which call each function.
template <int kThreads>
struct KeySearch {
  static constexpr int kBuckets = 2 * kThreads;  // a thread has two of them
  static constexpr int kBucketBits = __builtin_ctz(kBuckets);

  uint32_t buckets[kBuckets];
  uint32_t warp_sums[32];
  uint32_t bucket, before, inside;  // what find_bucket found
  uint64_t warp_least[2][32];       // of the keys, and of their complements

  // Number of low bits in which the keys of a bucket differ.
  __device__ static int bucket_shift(uint64_t low, uint64_t high) {
    return max(0, 64 - __clzll(static_cast<long long>(high - low)) - kBucketBits);
  }

  // The key up to which at least `wanted` (>= 1) and at most `enough` keys of a range lie; the range must hold
  // `wanted` or more. visit(take) calls take(key) for all keys, in any threads of the block; it is called several
  // times. Keys must differ. If the bucket of the wanted-th key holds too many, it is the next range to be divided.
  template <typename Visit>
  __device__ uint64_t last_key(KeyRange range, uint32_t wanted, uint32_t enough, const Visit& visit) {
    uint64_t low = range.low, high = range.high;
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

  // The range of the keys from `low` on, of which there must be at least one; visit as for last_key. It costs a pass,
  // and saves more where keys are close: those of equal scores differ only in their low bits, and would share a bucket.
  template <typename Visit>
  __device__ KeyRange range_from(uint64_t low, const Visit& visit) {
    uint64_t least = ~uint64_t{0}, least_complement = ~uint64_t{0};
    visit([&](uint64_t key) {
      if (key < low) return;
      least = key < least ? key : least;
      least_complement = ~key < least_complement ? ~key : least_complement;
    });
    least = warp_min(least);
    least_complement = warp_min(least_complement);
    if (lane_id() == 0) {
      warp_least[0][warp_id()] = least;
      warp_least[1][warp_id()] = least_complement;
    }
    __syncthreads();
    const bool is_warp = lane_id() < kThreads / 32;
    return {warp_min(is_warp ? warp_least[0][lane_id()] : ~uint64_t{0}),
            ~warp_min(is_warp ? warp_least[1][lane_id()] : ~uint64_t{0})};
  }

  __device__ void clear() {
    for (int i = threadIdx.x; i < kBuckets; i += kThreads) buckets[i] = 0;
    __syncthreads();
  }

  // Finds the bucket of the wanted-th key (counted from 1): sets `bucket`, and the numbers of keys `before` and
  // `inside` it.
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

  // Narrows [low, high] to the bucket.
  __device__ void narrow(uint64_t& low, uint64_t& high, int shift) const {
    const uint64_t start = low + (static_cast<uint64_t>(bucket) << shift);
    const uint64_t width = (uint64_t{1} << shift) - 1;
    low = start;
    high = high - start < width ? high : start + width;
  }
};

}  // namespace pyface::cuda
