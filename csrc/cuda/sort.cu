#include <cub/device/device_radix_sort.cuh>

#include "sort.h"

namespace pyface::cuda {

size_t sort_workspace(int64_t n) {
  // CUB's radix sort over double buffers, 8 bits per pass, keeps for each pass and portion (2^28 items) 256 counters of
  // 4 bytes, and for each tile as many again. Its tiles hold several thousand items; 1024 leave a margin.
  constexpr size_t kCounters = 256 * 4, kPasses = 8, kTile = 1024, kPortion = size_t{1} << 27, kAlignments = 4096;
  const size_t items = static_cast<size_t>(n);
  return (items / kTile + 1) * kCounters + (items / kPortion + 2) * kPasses * (kCounters + 4) + kAlignments;
}

cudaError_t sort_pairs(PingPong<uint64_t>& keys, PingPong<uint32_t>& values, int64_t n, int bits, void* workspace,
                       size_t workspace_bytes, cudaStream_t stream) {
  cub::DoubleBuffer<uint64_t> key_buffer(keys.current, keys.other);
  cub::DoubleBuffer<uint32_t> value_buffer(values.current, values.other);
  const uint32_t items = static_cast<uint32_t>(n);
  size_t needed = 0;
  cudaError_t status =
      cub::DeviceRadixSort::SortPairs(nullptr, needed, key_buffer, value_buffer, items, 0, bits, stream);
  if (status != cudaSuccess) return status;
  if (needed > workspace_bytes) return cudaErrorInvalidValue;
  status = cub::DeviceRadixSort::SortPairs(workspace, needed, key_buffer, value_buffer, items, 0, bits, stream);
  keys = {key_buffer.Current(), key_buffer.Alternate()};
  values = {value_buffer.Current(), value_buffer.Alternate()};
  return status;
}

}  // namespace pyface::cuda
