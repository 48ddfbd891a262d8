// Small convolutional networks over many small crops: MTCNN's R-Net and O-Net up to their dense layers.
//
// A crop goes from its pixels to its features in one thread, whose cache holds everything in between. Threads
// synchronise only once for all crops; a framework does so at each of a dozen layers. Activations lie channels last,
// padded to whole vectors of channels; a tile of pixels times a block of channels fills the registers. Sums may be
// fused, as in pnet.cpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "../ops.h"
#include "parallel.h"
#include "simd.h"

namespace pyface::cpu {
namespace {

constexpr int kPad = 16;  // channels are padded to a multiple of this

int padded(int channels) { return (channels + kPad - 1) / kPad * kPad; }

template <int kLanes>
struct Vector {
  typedef float Type __attribute__((vector_size(kLanes * sizeof(float))));
};

// One layer: the sizes of its maps, and its weights in the order in which they are read.
struct Layer {
  int in, out, kernel, pool;
  int in_size, size, pooled_size;  // sides of the square maps: in, after the convolution, after the pooling
  std::vector<float> weight;       // [kernel * kernel][in][padded(out)]
  std::vector<float> bias, slope;  // [padded(out)]
};

// Pixels [begin, begin + kPixels) of a layer's output (the last one repeated beyond the end), channels [channel,
// channel + kVectors vectors).
template <class Vec, int kVectors, int kPixels>
PYFACE_INLINE void convolve_tile(const Layer& layer, const float* in, int in_pitch, int channel, int begin,
                                 float* out) {
  constexpr int kLanes = sizeof(Vec) / sizeof(float);
  const int pitch = padded(layer.out), pixels = layer.size * layer.size;
  const float* corner[kPixels];
  Vec sum[kPixels][kVectors];
  for (int p = 0; p < kPixels; ++p) {
    const int pixel = std::min(begin + p, pixels - 1);
    corner[p] = in + (pixel / layer.size * layer.in_size + pixel % layer.size) * in_pitch;
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) std::memcpy(&sum[p][v], &layer.bias[channel + v * kLanes], sizeof(Vec));
  const float* weight = layer.weight.data() + channel;
  for (int ky = 0; ky < layer.kernel; ++ky)
    for (int kx = 0; kx < layer.kernel; ++kx) {
      const int offset = (ky * layer.in_size + kx) * in_pitch;
      for (int c = 0; c < layer.in; ++c, weight += pitch) {
        Vec w[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) std::memcpy(&w[v], weight + v * kLanes, sizeof(Vec));
#pragma GCC unroll 16
        for (int p = 0; p < kPixels; ++p) {
          const float value = corner[p][offset + c];
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[p][v] += value * w[v];
        }
      }
    }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
    const int pixel = std::min(begin + p, pixels - 1);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec slope;
      std::memcpy(&slope, &layer.slope[channel + v * kLanes], sizeof(Vec));
      const Vec value = sum[p][v] > 0.f ? sum[p][v] : sum[p][v] * slope;
      std::memcpy(out + int64_t(pixel) * pitch + channel + v * kLanes, &value, sizeof(Vec));
    }
  }
}

template <class Vec, int kVectors, int kPixels>
PYFACE_INLINE void convolve_block(const Layer& layer, const float* in, int in_pitch, int channel, float* out) {
  for (int begin = 0; begin < layer.size * layer.size; begin += kPixels)
    convolve_tile<Vec, kVectors, kPixels>(layer, in, in_pitch, channel, begin, out);
}

// 32 registers of 16 floats: 24 sums.
struct WideTiles {
  static PYFACE_INLINE void convolve(const Layer& layer, const float* in, int in_pitch, float* out) {
    using Vec = Vector<16>::Type;
    const int channels = padded(layer.out);
    int channel = 0;
    for (; channel + 64 <= channels; channel += 64) convolve_block<Vec, 4, 6>(layer, in, in_pitch, channel, out);
    for (; channel + 48 <= channels; channel += 48) convolve_block<Vec, 3, 8>(layer, in, in_pitch, channel, out);
    for (; channel + 32 <= channels; channel += 32) convolve_block<Vec, 2, 12>(layer, in, in_pitch, channel, out);
    for (; channel < channels; channel += 16) convolve_block<Vec, 1, 12>(layer, in, in_pitch, channel, out);
  }
};

// 16 registers of kLanes floats: 12 sums.
template <int kLanes>
struct NarrowTiles {
  static PYFACE_INLINE void convolve(const Layer& layer, const float* in, int in_pitch, float* out) {
    for (int channel = 0; channel < padded(layer.out); channel += 2 * kLanes)
      convolve_block<typename Vector<kLanes>::Type, 2, 6>(layer, in, in_pitch, channel, out);
  }
};

// Windows of layer.pool pixels at stride 2, clipped at the border.
PYFACE_INLINE void pool(const Layer& layer, const float* in, float* out) {
  const int pitch = padded(layer.out);
  for (int y = 0; y < layer.pooled_size; ++y)
    for (int x = 0; x < layer.pooled_size; ++x) {
      float* result = out + (y * layer.pooled_size + x) * pitch;
      std::fill_n(result, pitch, -INFINITY);
      for (int wy = 2 * y; wy < std::min(2 * y + layer.pool, layer.size); ++wy)
        for (int wx = 2 * x; wx < std::min(2 * x + layer.pool, layer.size); ++wx) {
          const float* value = in + (wy * layer.size + wx) * pitch;
          for (int c = 0; c < pitch; ++c) result[c] = std::max(result[c], value[c]);
        }
    }
}

// One crop [channels, size, size] -> its features [out, pooled_size, pooled_size]; a and b take turns as the maps.
template <class Tiles>
PYFACE_INLINE void run_crop(const float* crop, const std::vector<Layer>& layers, std::vector<float>& a,
                            std::vector<float>& b, float* features) {
  const Layer &first = layers.front(), &last = layers.back();
  const int pixels = first.in_size * first.in_size;
  for (int c = 0; c < first.in; ++c)
    for (int i = 0; i < pixels; ++i) a[i * first.in + c] = crop[c * pixels + i];
  int pitch = first.in;
  for (const Layer& layer : layers) {
    Tiles::convolve(layer, a.data(), pitch, b.data());
    if (layer.pool)
      pool(layer, b.data(), a.data());
    else
      a.swap(b);
    pitch = padded(layer.out);
  }
  const int cells = last.pooled_size * last.pooled_size;
  for (int c = 0; c < last.out; ++c)
    for (int i = 0; i < cells; ++i) features[c * cells + i] = a[i * pitch + c];
}

using Maps = std::vector<float>;

#if defined(PYFACE_X86)
PYFACE_AVX512 void run_avx512(const float* crop, const std::vector<Layer>& layers, Maps& a, Maps& b, float* features) {
  run_crop<WideTiles>(crop, layers, a, b, features);
}
PYFACE_AVX2 void run_avx2(const float* crop, const std::vector<Layer>& layers, Maps& a, Maps& b, float* features) {
  run_crop<NarrowTiles<8>>(crop, layers, a, b, features);
}
#endif
void run_baseline(const float* crop, const std::vector<Layer>& layers, Maps& a, Maps& b, float* features) {
  run_crop<NarrowTiles<4>>(crop, layers, a, b, features);
}

std::vector<Layer> prepare(int channels, int size, const ConvnetLayer* described, int num_layers) {
  std::vector<Layer> layers(num_layers);
  for (int i = 0; i < num_layers; ++i) {
    const ConvnetLayer& from = described[i];
    if (from.in != channels)
      throw std::invalid_argument("convnet: layer " + std::to_string(i) + " does not fit its input.");
    Layer& layer = layers[i];
    layer.in = channels;
    layer.out = from.out;
    layer.kernel = from.kernel;
    layer.pool = from.pool;
    layer.in_size = size;
    layer.size = size - from.kernel + 1;
    layer.pooled_size = from.pool ? convnet_pooled(layer.size, from.pool) : layer.size;
    const int taps = from.kernel * from.kernel, pitch = padded(from.out);
    layer.weight.assign(int64_t(taps) * channels * pitch, 0.f);
    layer.bias.assign(pitch, 0.f);
    layer.slope.assign(pitch, 0.f);
    for (int o = 0; o < from.out; ++o) {
      layer.bias[o] = from.bias[o];
      layer.slope[o] = from.slope[o];
      for (int c = 0; c < channels; ++c)
        for (int tap = 0; tap < taps; ++tap)
          layer.weight[(int64_t(tap) * channels + c) * pitch + o] =
              from.weight[(int64_t(o) * channels + c) * taps + tap];
    }
    channels = from.out;
    size = layer.pooled_size;
  }
  return layers;
}

}  // namespace

void convnet(const float* crops, int64_t n, int channels, int size, const ConvnetLayer* described, int num_layers,
             float* features, int out, int side, int threads) {
  if (num_layers < 1) throw std::invalid_argument("convnet needs a layer.");
  const std::vector<Layer> layers = prepare(channels, size, described, num_layers);
  size_t largest = static_cast<size_t>(channels) * size * size;
  for (const Layer& layer : layers)
    largest = std::max(largest, static_cast<size_t>(padded(layer.out)) * layer.size * layer.size);
  const Layer& last = layers.back();
  if (last.out != out || last.pooled_size != side)
    throw std::invalid_argument("convnet: features are not as large as the last layer's map.");
  const int64_t crop_values = int64_t(channels) * size * size;
  const int64_t feature_values = int64_t(last.out) * last.pooled_size * last.pooled_size;

  auto run = run_baseline;
#if defined(PYFACE_X86)
  if (simd() == Simd::Avx2) run = run_avx2;
  if (simd() == Simd::Avx512) run = run_avx512;
#endif
  constexpr int64_t kCropsAtOnce = 8;  // share the maps' memory
  parallel_for((n + kCropsAtOnce - 1) / kCropsAtOnce, threads, [&](int64_t part) {
    Maps a(largest), b(largest);
    for (int64_t i = part * kCropsAtOnce; i < std::min(n, (part + 1) * kCropsAtOnce); ++i)
      run(crops + i * crop_values, layers, a, b, features + i * feature_values);
  });
}

}  // namespace pyface::cpu
