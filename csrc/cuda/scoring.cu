// Max-out over background logits, its backward, and the face probability. A thread takes one pixel in all channels; in
// either memory order a warp's pixels are neighbours, so each byte is read from memory once.
#include <algorithm>

#include "common.cuh"
#include "maps.cuh"

namespace pyface::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kColumns = 4096;  // of a grid at most, whose rows are images

// The size of a batch of maps; an image's pixels are numbered row by row.
struct Pixels {
  int64_t batch, height, width;

  __host__ __device__ int64_t per_image() const { return height * width; }
  bool is_valid() const {
    return batch >= 0 && height >= 0 && width >= 0 && (width == 0 || height <= UINT32_MAX / width);
  }
  bool is_empty() const { return batch == 0 || height == 0 || width == 0; }
  dim3 grid() const { return dim3(num_blocks(ceil_div(per_image(), kThreads), kColumns), num_blocks(batch, kMaxRows)); }
};

// Calls visit(image, row, column) for this thread's pixels.
template <typename Visit>
__device__ void visit_pixels(const Pixels& pixels, const Visit& visit) {
  const uint32_t width = static_cast<uint32_t>(pixels.width);
  for (int64_t image = blockIdx.y; image < pixels.batch; image += gridDim.y)
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pixels.per_image();
         i += static_cast<int64_t>(gridDim.x) * kThreads) {
      const uint32_t row = static_cast<uint32_t>(i) / width;
      visit(image, row, static_cast<uint32_t>(i) - row * width);
    }
}

// The channel of the first largest background logit; the first NaN where there is one.
template <Dtype kDtype>
__device__ int largest_background(const Pixel<kDtype>& logits, int num_background) {
  int best = 0;
  float largest = logits[0];
  for (int c = 1; c < num_background; ++c) {
    const float value = logits[c];
    if (largest == largest && (value > largest || value != value)) {
      largest = value;
      best = c;
    }
  }
  return best;
}

// Values are copied as they lie in memory: no conversion, and a NaN keeps its bits.
template <Dtype kDtype>
__global__ void __launch_bounds__(kThreads)
    maxout_kernel(Map logits,  // [batch, channels, height, width]
                  Map out,     // [batch, 1 + channels - num_background, height, width]
                  Pixels pixels, int channels, int num_background) {
  visit_pixels(pixels, [&](int64_t image, int64_t row, int64_t column) {
    const Pixel<kDtype> from(logits, image, row, column), to(out, image, row, column);
    to.set(0, from.raw(largest_background(from, num_background)));
    for (int c = num_background; c < channels; ++c) to.set(1 + c - num_background, from.raw(c));
  });
}

template <Dtype kDtype>
__global__ void __launch_bounds__(kThreads)
    maxout_backward_kernel(Map logits,    // [batch, channels, height, width]
                           Map gradient,  // [batch, 1 + channels - num_background, height, width]
                           Map out,       // [batch, channels, height, width]
                           Pixels pixels, int channels, int num_background) {
  visit_pixels(pixels, [&](int64_t image, int64_t row, int64_t column) {
    const Pixel<kDtype> from(gradient, image, row, column), to(out, image, row, column);
    const int best = largest_background(Pixel<kDtype>(logits, image, row, column), num_background);
    for (int c = 0; c < num_background; ++c) to.set(c, c == best ? from.raw(0) : 0);
    for (int c = num_background; c < channels; ++c) to.set(c, from.raw(1 + c - num_background));
  });
}

template <Dtype kDtype>
__global__ void __launch_bounds__(kThreads)
    probability_kernel(Map logits,  // [batch, num_background + 1, height, width]
                       Pixels pixels, int num_background,
                       float* out)  // [batch, height, width]
{
  visit_pixels(pixels, [&](int64_t image, int64_t row, int64_t column) {
    out[image * pixels.per_image() + row * pixels.width + column] =
        sigmoid_fast(face_logit(Pixel<kDtype>(logits, image, row, column), 0, 1, num_background));
  });
}

}  // namespace

int maxout_background(const Map& logits, Dtype dtype, int64_t batch, int channels, int64_t height, int64_t width,
                      int num_background, const Map& out, int device, void* stream) {
  const Pixels pixels{batch, height, width};
  if (!pixels.is_valid() || num_background < 1 || num_background > channels) return cudaErrorInvalidValue;
  if (pixels.is_empty()) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  with_dtype(dtype, [&](auto kind) {
    maxout_kernel<kind.value><<<pixels.grid(), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        logits, out, pixels, channels, num_background);
  });
  return launch_status();
}

int maxout_background_backward(const Map& logits, const Map& gradient, Dtype dtype, int64_t batch, int channels,
                               int64_t height, int64_t width, int num_background, const Map& out, int device,
                               void* stream) {
  const Pixels pixels{batch, height, width};
  if (!pixels.is_valid() || num_background < 1 || num_background > channels) return cudaErrorInvalidValue;
  if (pixels.is_empty()) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  with_dtype(dtype, [&](auto kind) {
    maxout_backward_kernel<kind.value><<<pixels.grid(), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        logits, gradient, out, pixels, channels, num_background);
  });
  return launch_status();
}

int face_probability(const Map& logits, Dtype dtype, int64_t batch, int64_t height, int64_t width, int num_background,
                     float* out, int device, void* stream) {
  const Pixels pixels{batch, height, width};
  if (!pixels.is_valid() || num_background < 0) return cudaErrorInvalidValue;
  if (pixels.is_empty()) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  with_dtype(dtype, [&](auto kind) {
    probability_kernel<kind.value>
        <<<pixels.grid(), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(logits, pixels, num_background, out);
  });
  return launch_status();
}

}  // namespace pyface::cuda
