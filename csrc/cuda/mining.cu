// Choosing the hardest, or random, entries on the GPU without a sort: histograms find the last key that is chosen, keys
// being a loss or random number and then the entry, so that no two are equal.
//
// hard_negatives, balanced_sample and, for up to kOneBlock entries, online_hard are one launch, one block per image: it
// reads its entries several times, mostly from the cache. A longer online_hard is a memset, kPasses narrowings of the
// range in which the last key lies, each by many blocks together, and a launch that marks.
#include <algorithm>
#include <cuda/atomic>

#include "../ops.h"
#include "../sampling.h"
#include "common.cuh"
#include "select.cuh"

namespace pyface::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kAhead = 4;  // entries that a thread reads before it uses them
using Search = KeySearch<kThreads>;
constexpr int64_t kMaxEntries = (int64_t{1} << 31) - kAhead * kThreads;
constexpr int64_t kOneBlock = 1 << 16;
constexpr int64_t kMaxBlocks = 512;  // that narrow a range together
constexpr int kPasses = 6;           // of 11 bits each: a key has 64

struct Entry {
  float loss;
  int32_t index;  // as assign_anchors gives it

  __device__ bool is_positive() const { return index >= 0; }
  __device__ bool is_background() const { return index == kBackground && is_finite(loss); }
  __device__ uint32_t order() const { return descending_key(loss); }
};

// One image's entries.
struct Entries {
  const float* losses;   // [n]
  const int32_t* index;  // [n]
  int64_t n;

  __device__ Entry operator[](int64_t i) const { return {losses[i], index[i]}; }
};

// The entries of online_hard: all that are valid are alike.
struct MiniBatch {
  const float* losses;   // [n]
  const uint8_t* valid;  // [n] or nullptr
  int64_t n;

  __device__ Entry operator[](int64_t i) const {
    return {losses[i], valid == nullptr || valid[i] != 0 ? kBackground : kIgnored};
  }
};

// Calls visit(i, entry) for a thread's share of the entries, which `step` threads share.
template <typename Array, typename Visit>
__device__ void for_each(const Array& entries, int64_t thread, int64_t step, const Visit& visit) {
  for (int64_t first = thread; first < entries.n; first += kAhead * step) {
    Entry ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (first + i * step < entries.n) ahead[i] = entries[first + i * step];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (first + i * step < entries.n) visit(first + i * step, ahead[i]);
  }
}

template <typename Array, typename Visit>
__device__ void for_each(const Array& entries, const Visit& visit) {
  for_each(entries, threadIdx.x, kThreads, visit);
}

__device__ uint64_t key_of(uint32_t order, int64_t entry) {
  return static_cast<uint64_t>(order) << 32 | static_cast<uint32_t>(entry);
}

// Adds the threads' values to `sum`, in shared memory.
__device__ void add_all(uint32_t value, uint32_t& sum) {
  const uint32_t in_warp = warp_inclusive_sum(value);
  if (lane_id() == 31) atomicAdd(&sum, in_warp);
}

// What a block shares.
struct Shared {
  Search search;
  uint32_t positives, background;
};

template <typename Array>
__device__ void count(const Array& entries, Shared& shared) {
  if (threadIdx.x == 0) shared.positives = shared.background = 0;
  uint32_t positives = 0, background = 0;
  for_each(entries, [&](int64_t, const Entry& entry) {
    positives += entry.is_positive();
    background += entry.is_background();
  });
  __syncthreads();
  add_all(positives, shared.positives);
  add_all(background, shared.background);
  __syncthreads();
}

// The end of the keys up to `last`: all of them are less. No key is ~0, since no entry is.
__device__ uint64_t beyond(uint64_t last) { return last == ~uint64_t{0} ? last : last + 1; }

// The end of the first `wanted` keys: these and no others are less. visit(take) as in KeySearch.
template <typename Visit>
__device__ uint64_t end_of(Search& search, int64_t wanted, const Visit& visit) {
  if (wanted <= 0) return 0;
  return beyond(search.last_key(kAllKeys, static_cast<uint32_t>(wanted), static_cast<uint32_t>(wanted), visit));
}

// The end of the background's hardest entries.
template <typename Array>
__device__ uint64_t end_of_hardest(Search& search, const Array& entries, int64_t wanted) {
  return end_of(search, wanted, [&](const auto& take) {
    for_each(entries, [&](int64_t i, const Entry& entry) {
      if (entry.is_background()) take(key_of(entry.order(), i));
    });
  });
}

__device__ bool is_hard(const Entry& entry, int64_t i, uint64_t end) {
  return entry.is_background() && key_of(entry.order(), i) < end;
}

__global__ void __launch_bounds__(kThreads) choose_hard_negatives(const float* losses, const int32_t* index, int64_t n,
                                                                  double ratio, int64_t minimum, uint8_t* selected) {
  __shared__ Shared shared;
  const int64_t first = int64_t{blockIdx.x} * n;
  const Entries entries{losses + first, index + first, n};
  count(entries, shared);
  const int64_t wanted = wanted_negatives(ratio, minimum, shared.positives, shared.background);
  const uint64_t end = end_of_hardest(shared.search, entries, wanted);
  for_each(entries, [&](int64_t i, const Entry& entry) { selected[first + i] = is_hard(entry, i, end); });
}

__global__ void __launch_bounds__(kThreads)
    choose_balanced_sample(const float* losses, const int32_t* index, int64_t n, double ratio, double hard_fraction,
                           int64_t minimum, uint64_t seed, uint8_t* selected) {
  __shared__ Shared shared;
  const int64_t image = blockIdx.x, first = image * n;
  const Entries entries{losses + first, index + first, n};
  count(entries, shared);
  const int64_t background = shared.background;
  const BalancedShares shares =
      balanced_shares(hard_fraction, wanted_negatives(ratio, minimum, shared.positives, background), background);
  const int64_t hard = min(shares.hard_set, background);
  const uint64_t end_of_hard = end_of_hardest(shared.search, entries, hard);

  const auto random = [&](int64_t i) { return key_of(random_key(seed, image, i), i); };
  const auto end_of_random = [&](bool in_hard_set, int64_t wanted) {
    return end_of(shared.search, wanted, [&](const auto& take) {
      for_each(entries, [&](int64_t i, const Entry& entry) {
        if (entry.is_background() && is_hard(entry, i, end_of_hard) == in_hard_set) take(random(i));
      });
    });
  };
  const uint64_t end_in_hard = end_of_random(true, min(shares.from_hard, hard));
  const uint64_t end_in_rest = end_of_random(false, min(shares.from_rest, background - hard));
  for_each(entries, [&](int64_t i, const Entry& entry) {
    const uint64_t end = is_hard(entry, i, end_of_hard) ? end_in_hard : end_in_rest;
    selected[first + i] = entry.is_positive() || (entry.is_background() && random(i) < end);
  });
}

// How many entries online_hard keeps.
__device__ int64_t kept(double keep, uint32_t count) {
  return min(static_cast<int64_t>(ceil(keep * static_cast<double>(count))), int64_t{count});
}

__global__ void __launch_bounds__(kThreads) choose_online_hard(MiniBatch entries, double keep, uint8_t* selected) {
  __shared__ Shared shared;
  count(entries, shared);
  const uint64_t end = end_of_hardest(shared.search, entries, kept(keep, shared.background));
  for_each(entries, [&](int64_t i, const Entry& entry) { selected[i] = is_hard(entry, i, end); });
}

// Where many blocks search for the last key; all 0 at first.
struct Range {
  uint64_t low, high;  // the last key lies in here, from the first pass on
  uint64_t end;        // if found: the end of the keys up to it
  uint32_t wanted;     // keys from low on, up to it
  uint32_t is_found;
  uint32_t finished;  // blocks of this pass
  uint32_t buckets[Search::kBuckets];
};

// Adds this block's part of the histogram of [low, high] to that of all blocks.
__device__ void count_keys(const MiniBatch& entries, uint64_t low, uint64_t high, int shift, Search& search,
                           Range* range) {
  search.clear();
  for_each(entries, int64_t{blockIdx.x} * kThreads + threadIdx.x, int64_t{gridDim.x} * kThreads,
           [&](int64_t i, const Entry& entry) {
             const uint64_t key = key_of(entry.order(), i);
             if (entry.is_background() && key >= low && key <= high)
               atomicAdd(&search.buckets[(key - low) >> shift], 1u);
           });
  __syncthreads();
  for (int i = threadIdx.x; i < Search::kBuckets; i += kThreads)
    if (search.buckets[i] != 0) atomicAdd(&range->buckets[i], search.buckets[i]);
}

// Moves the whole histogram from the range to shared memory. Returns how many keys this thread's buckets hold.
__device__ uint32_t take_over(Search& search, Range* range) {
  uint32_t keys = 0;
  for (int i = threadIdx.x; i < Search::kBuckets; i += kThreads) {
    search.buckets[i] = __ldcg(&range->buckets[i]);
    keys += search.buckets[i];
    range->buckets[i] = 0;
  }
  return keys;
}

// All blocks count, and the last one to finish decides. The first pass reads every key, so it finds how many are
// wanted.
__global__ void __launch_bounds__(kThreads) narrow_range(MiniBatch entries, double keep, bool is_first, Range* range) {
  __shared__ Search search;
  __shared__ bool is_last;
  __shared__ uint32_t count;
  if (range->is_found) return;
  uint64_t low = is_first ? 0 : range->low, high = is_first ? ~uint64_t{0} : range->high;
  const int shift = Search::bucket_shift(low, high);
  count_keys(entries, low, high, shift, search, range);
  __syncthreads();
  if (threadIdx.x == 0) {
    // Releases what the whole block counted, and acquires what earlier blocks counted.
    const ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_device> finished(range->finished);
    is_last = finished.fetch_add(1, ::cuda::memory_order_acq_rel) == gridDim.x - 1;
    count = 0;
  }
  __syncthreads();
  if (!is_last) return;

  add_all(take_over(search, range), count);
  __syncthreads();
  const uint32_t wanted = is_first ? static_cast<uint32_t>(max(kept(keep, count), int64_t{0})) : range->wanted;
  if (wanted > 0) {
    search.find_bucket(wanted);
    search.narrow(low, high, shift);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  range->low = low;
  range->high = high;
  range->end = wanted > 0 ? beyond(high) : 0;
  range->wanted = wanted > 0 ? wanted - search.before : 0;
  range->is_found = wanted == 0 || range->wanted == search.inside;
  range->finished = 0;
}

__global__ void __launch_bounds__(kThreads) mark_hardest(MiniBatch entries, const Range* range, uint8_t* selected) {
  const uint64_t end = range->end;
  for_each(entries, int64_t{blockIdx.x} * kThreads + threadIdx.x, int64_t{gridDim.x} * kThreads,
           [&](int64_t i, const Entry& entry) { selected[i] = is_hard(entry, i, end); });
}

bool is_valid(int64_t batch, int64_t n) { return batch >= 0 && batch <= INT32_MAX && n >= 0 && n <= kMaxEntries; }

}  // namespace

size_t hard_negatives_workspace(int64_t, int64_t) { return 0; }

int hard_negatives(const float* losses, const int32_t* index, int64_t batch, int64_t n, double ratio, int64_t minimum,
                   uint8_t* selected, void*, size_t, int device, void* stream) {
  if (!is_valid(batch, n)) return cudaErrorInvalidValue;
  if (batch == 0 || n == 0) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  choose_hard_negatives<<<static_cast<unsigned>(batch), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      losses, index, n, ratio, minimum, selected);
  return launch_status();
}

size_t balanced_sample_workspace(int64_t, int64_t) { return 0; }

int balanced_sample(const float* losses, const int32_t* index, int64_t batch, int64_t n, double ratio,
                    double hard_fraction, int64_t minimum, uint64_t seed, uint8_t* selected, void*, size_t, int device,
                    void* stream) {
  if (!is_valid(batch, n)) return cudaErrorInvalidValue;
  if (batch == 0 || n == 0) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  choose_balanced_sample<<<static_cast<unsigned>(batch), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      losses, index, n, ratio, hard_fraction, minimum, seed, selected);
  return launch_status();
}

size_t online_hard_workspace(int64_t n) {
  Workspace workspace(nullptr);
  if (n <= kOneBlock) return 0;
  workspace.take<Range>(1);
  return workspace.bytes();
}

int online_hard(const float* losses, const uint8_t* valid, int64_t n, double keep, uint8_t* selected, void* workspace,
                size_t workspace_bytes, int device, void* stream) {
  if (!is_valid(1, n) || workspace_bytes < online_hard_workspace(n)) return cudaErrorInvalidValue;
  if (n == 0) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const MiniBatch entries{losses, valid, n};
  if (n <= kOneBlock) {
    choose_online_hard<<<1, kThreads, 0, cuda_stream>>>(entries, keep, selected);
    return launch_status();
  }
  Range* const range = Workspace(workspace).take<Range>(1);
  if (const int status = cudaMemsetAsync(range, 0, sizeof(Range), cuda_stream)) return status;
  const unsigned blocks = num_blocks(ceil_div(n, int64_t{kAhead} * kThreads), kMaxBlocks);
  for (int pass = 0; pass < kPasses; ++pass) {
    narrow_range<<<blocks, kThreads, 0, cuda_stream>>>(entries, keep, pass == 0, range);
    if (const int status = launch_status()) return status;
  }
  mark_hardest<<<blocks, kThreads, 0, cuda_stream>>>(entries, range, selected);
  return launch_status();
}

}  // namespace pyface::cuda
