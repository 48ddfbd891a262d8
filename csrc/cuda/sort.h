// The one sort of the CUDA side, behind plain types: CUB is what makes a CUDA build slow, so only sort.cu includes it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace pyface::cuda {

// Two arrays that a sort goes back and forth between; `current` holds the data.
template <typename T>
struct PingPong {
  T* current;
  T* other;
};

// Bytes of temporary storage: an upper bound that needs no GPU.
size_t sort_workspace(int64_t n);

// Sorts n (< 2^32) pairs by the lowest `bits` bits of the key, ascending and stable. A descending order of scores is
// an ascending order of keys made by descending_key().
cudaError_t sort_pairs(PingPong<uint64_t>& keys, PingPong<uint32_t>& values, int64_t n, int bits, void* workspace,
                       size_t workspace_bytes, cudaStream_t stream);

}  // namespace pyface::cuda
