// CUB's radix sort on the emulated device: the same results and the same use of its arrays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../../cuda_runtime.h"

namespace cub {

template <typename T>
struct DoubleBuffer {
  T* d_buffers[2];
  int selector = 0;
  DoubleBuffer(T* current, T* alternate) : d_buffers{current, alternate} {}
  T* Current() const { return d_buffers[selector]; }
  T* Alternate() const { return d_buffers[selector ^ 1]; }
};

struct DeviceRadixSort {
  template <typename Key, typename Value>
  static cudaError_t SortPairs(void* storage, size_t& bytes, DoubleBuffer<Key>& keys, DoubleBuffer<Value>& values,
                               uint32_t n, int begin_bit, int end_bit, cudaStream_t stream) {
    if (storage == nullptr) {
      // Counters of 256 digits for each pass and each tile of some thousand items, as one pass of CUB's needs.
      constexpr size_t kCounters = 256 * 4, kTile = 3072, kPasses = sizeof(Key);
      bytes = (kPasses + n / kTile + 1) * kCounters + 512;
      return cudaSuccess;
    }
    using ::cuda_host::Use;
    const auto use = [](const auto* array, size_t count, Use use) {
      return ::cuda_host::use_array("cub::DeviceRadixSort", array, count * sizeof(*array), use);
    };
    if (!::cuda_host::is_in_order("cub::DeviceRadixSort", stream)) return ::cuda_host::last_error(false);
    if (!use(static_cast<char*>(storage), bytes, Use::Spoil) || !use(keys.Current(), n, Use::Read) ||
        !use(values.Current(), n, Use::Read))
      return ::cuda_host::last_error(false);
    const std::vector<Key> key(keys.Current(), keys.Current() + n);
    const std::vector<Value> value(values.Current(), values.Current() + n);
    std::vector<uint32_t> order(n);
    std::iota(order.begin(), order.end(), 0u);
    const int bits = end_bit - begin_bit;
    const Key mask = (bits >= static_cast<int>(8 * sizeof(Key)) ? ~Key{0} : (Key{1} << bits) - 1) << begin_bit;
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t i, uint32_t j) { return (key[i] & mask) < (key[j] & mask); });
    const int passes = (bits + 7) / 8, odd_passes = passes & 1;  // each takes 8 bits, from one buffer to the other
    constexpr uint32_t kOneBlock = 256 * 9;                      // pairs of 12 bytes that CUB sorts by one launch
    constexpr uint64_t kPair = sizeof(Key) + sizeof(Value);
    if (n <= kOneBlock)
      ::cuda_host::count_library(1, n * kPair, n * kPair);
    else  // two memsets, a histogram and a scan; then for each pass a memset and a kernel
      ::cuda_host::count_library(4 + 2 * passes, n * (sizeof(Key) + passes * kPair), n * passes * kPair);
    keys.selector ^= odd_passes;
    values.selector ^= odd_passes;
    if (!use(keys.Current(), n, Use::Write) || !use(values.Current(), n, Use::Write) ||
        !use(keys.Alternate(), n, Use::Spoil) || !use(values.Alternate(), n, Use::Spoil))
      return ::cuda_host::last_error(false);
    for (uint32_t i = 0; i < n; ++i) {
      keys.Current()[i] = key[order[i]];
      values.Current()[i] = value[order[i]];
    }
    return cudaSuccess;
  }
};

}  // namespace cub
