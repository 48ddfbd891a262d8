// Elements of a network's maps: read where they lie, in any dtype and memory order.
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "../ops.h"

namespace pyface::cuda {

// An element as it lies in memory, and as the float that all arithmetic is done in.
template <Dtype kDtype>
struct Element;

template <>
struct Element<Dtype::Float32> {
  using Raw = uint32_t;
  __device__ static float to_float(Raw raw) { return __uint_as_float(raw); }
};

template <>
struct Element<Dtype::Float16> {
  using Raw = uint16_t;
  __device__ static float to_float(Raw raw) { return __half2float(__ushort_as_half(raw)); }
};

template <>
struct Element<Dtype::BFloat16> {
  using Raw = uint16_t;
  __device__ static float to_float(Raw raw) { return __uint_as_float(static_cast<uint32_t>(raw) << 16); }
};

// Calls run(std::integral_constant<Dtype, dtype>), so that a kernel can be chosen by its dtype.
template <typename Run>
void with_dtype(Dtype dtype, const Run& run) {
  if (dtype == Dtype::Float32)
    run(std::integral_constant<Dtype, Dtype::Float32>());
  else if (dtype == Dtype::Float16)
    run(std::integral_constant<Dtype, Dtype::Float16>());
  else
    run(std::integral_constant<Dtype, Dtype::BFloat16>());
}

// All channels of one pixel of a map.
template <Dtype kDtype>
class Pixel {
 public:
  using Raw = typename Element<kDtype>::Raw;

  __device__ Pixel(const Map& map, int64_t image, int64_t row, int64_t column)
      : data_(static_cast<const Raw*>(map.data) + image * map.batch_stride + row * map.row_stride +
              column * map.column_stride),
        channel_stride_(map.channel_stride) {}

  // No kernel reads a map that it writes, so a load need not wait for a store.
  __device__ Raw raw(int channel) const { return __ldg(data_ + channel * channel_stride_); }
  __device__ float operator[](int channel) const { return Element<kDtype>::to_float(raw(channel)); }

  // For a map that is written.
  __device__ void set(int channel, Raw value) const { const_cast<Raw*>(data_)[channel * channel_stride_] = value; }

 private:
  const Raw* data_;
  int64_t channel_stride_;
};

// Face logit minus the largest of the background logits; those of one anchor lie `step` channels apart, from `first`.
template <Dtype kDtype>
__device__ float face_logit(const Pixel<kDtype>& logits, int first, int step, int num_background) {
  const float face = logits[first + num_background * step];
  if (num_background == 0) return face;
  float background = logits[first];
  for (int c = 1; c < num_background; ++c) background = max_or_nan(background, logits[first + c * step]);
  return face - background;
}

}  // namespace pyface::cuda
