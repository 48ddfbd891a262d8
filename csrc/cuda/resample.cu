// Images to normalised planes: letterbox and crop_resize.
//
// A thread computes one output pixel in all three planes from the source pixels under its footprint. A block's tile
// needs a window per column and per row, which are computed in double precision and shared. If footprints are wide, a
// warp shares each, lane by lane along its rows, and computes its 32 pixels one after the other.
#include <algorithm>
#include <cmath>

#include "../ops.h"
#include "common.cuh"

namespace pyface::cuda {
namespace {

constexpr unsigned kWarp = 0xffffffffu;
constexpr int kTileWidth = 32, kTileHeight = 8;  // of the pixels that a block computes at a time
constexpr int kThreads = kTileWidth * kTileHeight;
constexpr double kWide = 16;  // columns in a footprint from which a warp shares it

// The descriptors travel as kernel parameters (4 KiB at most), so nothing is copied from the host.
constexpr int kPlacedImages = 64, kImages = 128;

// One axis of a box, and how its output indices sample it.
struct Axis {
  double start, end;  // of the box; samples are taken within
  double scale;       // source pixels per output pixel
  double footprint;   // source pixels that a sample covers
  int size;           // of the image
};

__device__ Axis make_axis(double start, double end, double scale, int size, Interpolation interpolation) {
  return {start, end, scale, interpolation == Interpolation::Area ? fmax(scale, 1.0) : 1.0, size};
}

// The source pixels [first, last) under a sample, which covers [low, high), counted from `first`.
struct Window {
  int first, last;
  float low, high;

  // The covered part of the i-th pixel from `first`.
  __device__ float weight(int i) const {
    return fmaxf(fminf(static_cast<float>(i + 1), high) - fmaxf(static_cast<float>(i), low), 0.f);
  }
};

__device__ Window window_of(const Axis& axis, int index) {
  const double half = 0.5 * axis.footprint, lowest = axis.start + half, highest = axis.end - half;
  const double centre = lowest > highest ? 0.5 * (axis.start + axis.end)
                                         : fmin(fmax(axis.start + (index + 0.5) * axis.scale, lowest), highest);
  const double low = centre - half, high = centre + half, size = axis.size;
  // Clipped before the conversion, which boxes far outside would overflow.
  const int first = static_cast<int>(fmin(fmax(floor(low), 0.0), size));
  const int last = static_cast<int>(fmin(fmax(ceil(high), 0.0), size));
  return {first, last, static_cast<float>(low - first), static_cast<float>(high - first)};
}

// The sum of the pixels under a window, each times its covered part; of every `step`-th column from the `offset`-th.
__device__ float3 sum_pixels(const Image& image, const Window& x, const Window& y, int offset, int step) {
  float3 sum = make_float3(0.f, 0.f, 0.f);
  for (int row = 0; row < y.last - y.first; ++row) {
    const uint8_t* const pixels = image.data + (static_cast<int64_t>(y.first + row) * image.width + x.first) * 3;
    float3 row_sum = make_float3(0.f, 0.f, 0.f);
    for (int column = offset; column < x.last - x.first; column += step) {
      const uint8_t* const pixel = pixels + 3 * static_cast<int64_t>(column);
      const float weight = x.weight(column);
      row_sum.x += weight * pixel[0];
      row_sum.y += weight * pixel[1];
      row_sum.z += weight * pixel[2];
    }
    const float weight = y.weight(row);
    sum.x += weight * row_sum.x;
    sum.y += weight * row_sum.y;
    sum.z += weight * row_sum.z;
  }
  return sum;
}

__device__ float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kWarp, value, step);
  return value;
}

__host__ __device__ int64_t num_tiles(int out_h, int out_w) {
  return ceil_div(out_h, kTileHeight) * ceil_div(out_w, kTileWidth);
}

// The windows of a tile's columns and rows.
struct Windows {
  Window x[kTileWidth], y[kTileHeight];
};

// A block's share (tiles blockIdx.y, blockIdx.y + gridDim.y, ...) of one image's planes; 0 outside the region.
__device__ void resample(const Image& image, const Axis& x_axis, const Axis& y_axis, int region_h, int region_w,
                         int out_h, int out_w, const Normalization& normalization, float* out /* [3, out_h, out_w] */) {
  __shared__ Windows windows;
  const int64_t pixels = static_cast<int64_t>(out_h) * out_w, tiles = num_tiles(out_h, out_w);
  const float part = static_cast<float>(1.0 / (x_axis.footprint * y_axis.footprint));
  const bool is_shared = x_axis.footprint >= kWide;
  const int lane = threadIdx.x % kTileWidth, tile_row = threadIdx.x / kTileWidth;
  for (int64_t tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
    const int64_t across = ceil_div(out_w, kTileWidth);
    const int first_x = static_cast<int>(tile % across) * kTileWidth;
    const int first_y = static_cast<int>(tile / across) * kTileHeight;
    __syncthreads();  // the previous tile's windows are no longer used
    if (threadIdx.x < kTileWidth)
      windows.x[threadIdx.x] = window_of(x_axis, first_x + threadIdx.x);
    else if (threadIdx.x < kTileWidth + kTileHeight)
      windows.y[threadIdx.x - kTileWidth] = window_of(y_axis, first_y + threadIdx.x - kTileWidth);
    __syncthreads();
    const int x = first_x + lane, y = first_y + tile_row;
    const bool is_inside = y < region_h && x < region_w;
    float3 sum = make_float3(0.f, 0.f, 0.f);
    if (is_shared) {
      for (uint32_t todo = __ballot_sync(kWarp, is_inside); todo != 0; todo &= todo - 1) {
        const int owner = __ffs(todo) - 1;
        const float3 piece = sum_pixels(image, windows.x[owner], windows.y[tile_row], lane, 32);
        const float3 whole = make_float3(warp_sum(piece.x), warp_sum(piece.y), warp_sum(piece.z));
        if (lane == owner) sum = whole;
      }
    } else if (is_inside) {
      sum = sum_pixels(image, windows.x[lane], windows.y[tile_row], 0, 1);
    }
    if (x >= out_w || y >= out_h) continue;
    const int64_t pixel = static_cast<int64_t>(y) * out_w + x;
    const float value[3] = {sum.x * part, sum.y * part, sum.z * part};
    for (int c = 0; c < 3; ++c)
      out[c * pixels + pixel] = is_inside ? (value[c] - normalization.mean[c]) * normalization.scale[c] : 0.f;
  }
}

// An image and where on its canvas it goes.
struct Placed {
  Image image;
  int region_h, region_w;
  double scale;  // source pixels per output pixel, on both axes
};

struct PlacedImages {
  Placed item[kPlacedImages];
};

struct Images {
  Image item[kImages];
};

__global__ void __launch_bounds__(kThreads)
    letterbox_kernel(const __grid_constant__ PlacedImages images, int out_h, int out_w, Interpolation interpolation,
                     Normalization normalization,
                     float* out)  // [images, 3, out_h, out_w]
{
  const Placed placed = images.item[blockIdx.x];
  const Image& image = placed.image;
  resample(image, make_axis(0, image.width, placed.scale, image.width, interpolation),
           make_axis(0, image.height, placed.scale, image.height, interpolation), placed.region_h, placed.region_w,
           out_h, out_w, normalization, out + static_cast<int64_t>(blockIdx.x) * 3 * out_h * out_w);
}

// The crops of images [first, first + count), and with first = 0 also those of no image.
__global__ void __launch_bounds__(kThreads)
    crop_kernel(const __grid_constant__ Images images, int64_t first, int64_t count, int64_t num_images,
                const float* boxes,          // [n, 4]
                const int64_t* image_index,  // [n]
                int out_h, int out_w, Interpolation interpolation, Normalization normalization,
                float* out)  // [n, 3, out_h, out_w]
{
  const int64_t crop = blockIdx.x;
  const int64_t index = image_index[crop];
  const bool is_image = index >= 0 && index < num_images;
  if (is_image ? index < first || index >= first + count : first > 0) return;
  const float* const b = boxes + 4 * crop;
  Box box{b[0], b[1], b[2], b[3]};
  Image image{nullptr, 0, 0};  // without pixels everything is 0
  if (is_image && is_finite(box))
    image = images.item[index - first];
  else
    box = {0.f, 0.f, 0.f, 0.f};
  const double x1 = box.x1, y1 = box.y1, x2 = box.x2, y2 = box.y2;
  resample(image, make_axis(x1, x2, fmax(x2 - x1, 0.0) / out_w, image.width, interpolation),
           make_axis(y1, y2, fmax(y2 - y1, 0.0) / out_h, image.height, interpolation), out_h, out_w, out_h, out_w,
           normalization, out + crop * 3 * out_h * out_w);
}

Placed place(const Image& image, double scale, int out_h, int out_w) {
  if (image.height <= 0 || image.width <= 0 || !(scale > 0)) return {{nullptr, 0, 0}, 0, 0, 1.0};
  const auto region = [&](int size, int most) {
    return static_cast<int>(std::clamp(std::floor(size * scale + 0.5), 1.0, static_cast<double>(most)));
  };
  return {image, region(image.height, out_h), region(image.width, out_w), 1.0 / scale};
}

// Blocks along y: one per tile of the canvas, as far as a grid allows.
unsigned tile_blocks(int out_h, int out_w) { return num_blocks(num_tiles(out_h, out_w), kMaxRows); }

}  // namespace

int letterbox(const Image* images, const double* scales, int64_t num_images, int out_h, int out_w,
              Interpolation interpolation, Normalization normalization, float* out, int device, void* stream) {
  if (num_images < 0 || out_h < 0 || out_w < 0) return cudaErrorInvalidValue;
  if (num_images == 0 || out_h == 0 || out_w == 0) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  for (int64_t first = 0; first < num_images; first += kPlacedImages) {
    const int64_t count = std::min<int64_t>(num_images - first, kPlacedImages);
    PlacedImages placed{};
    for (int64_t i = 0; i < count; ++i) placed.item[i] = place(images[first + i], scales[first + i], out_h, out_w);
    const dim3 grid(static_cast<unsigned>(count), tile_blocks(out_h, out_w));
    letterbox_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        placed, out_h, out_w, interpolation, normalization, out + first * 3 * out_h * out_w);
    if (const int status = launch_status()) return status;
  }
  return cudaSuccess;
}

int crop_resize(const Image* images, int64_t num_images, const float* boxes, const int64_t* image_index, int64_t n,
                int out_h, int out_w, Interpolation interpolation, Normalization normalization, float* out, int device,
                void* stream) {
  if (num_images < 0 || n < 0 || n > INT32_MAX || out_h < 0 || out_w < 0) return cudaErrorInvalidValue;
  if (n == 0 || out_h == 0 || out_w == 0) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  for (int64_t first = 0; first == 0 || first < num_images; first += kImages) {
    const int64_t count = std::min<int64_t>(num_images - first, kImages);
    Images chunk{};
    std::copy_n(images + first, count, chunk.item);
    const dim3 grid(static_cast<unsigned>(n), tile_blocks(out_h, out_w));
    crop_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        chunk, first, count, num_images, boxes, image_index, out_h, out_w, interpolation, normalization, out);
    if (const int status = launch_status()) return status;
  }
  return cudaSuccess;
}

}  // namespace pyface::cuda
