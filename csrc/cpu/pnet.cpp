// MTCNN's P-Net in one pass over the image (docs/detectors.md 3.1).
//
// Its layers have few channels, so a framework spends its time moving maps through memory. Here a band of output rows
// is computed row by row; the rows of the layers between live in small rings that stay in the L2 cache, and bands are
// shared out to threads without a barrier between layers. Sums may be fused (this file alone is compiled with
// -ffp-contract=fast): nothing compares a network's sums bit for bit.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../ops.h"
#include "parallel.h"
#include "simd.h"

namespace pyface::cpu {
namespace {

constexpr int kIn = 3, kC1 = 10, kC2 = 16, kC3 = 32, kHeads = 6;

template <int kLanes>
struct Vector {
  typedef float Type __attribute__((vector_size(kLanes * sizeof(float))));
};

// Vectors are passed by reference: returning one needs an instruction set that only the callers are compiled for.
template <class Vec>
PYFACE_INLINE void load(Vec& v, const float* p) {
  std::memcpy(&v, p, sizeof v);
}

template <class Vec>
PYFACE_INLINE void store(float* p, const Vec& v) {
  std::memcpy(p, &v, sizeof v);
}

template <class Vec>
PYFACE_INLINE void prelu(Vec& v, float slope) {
  v = v > 0.f ? v : v * slope;
}

// One row of a convolution over the rows `rows` (each of one input channel and one kernel row), kTaps wide, with PReLU
// unless slope is nullptr. A step makes 2 vectors of kBlock output channels, which fill the registers.
//   weight [kOut / kBlock][kRows][kTaps][kBlock], bias and slope [kOut], out: kOut rows, `pitch` apart
//   width: output pixels, rounded up to whole steps; the rows must be readable that far
template <class Vec, int kRows, int kTaps, int kOut, int kBlock>
PYFACE_INLINE void convolve_row(const float* const* rows, const float* weight, const float* bias, const float* slope,
                                int width, float* out, int64_t pitch) {
  static_assert(kOut % kBlock == 0);
  constexpr int kLanes = sizeof(Vec) / sizeof(float);
  const Vec zero = {};
  for (int x = 0; x < width; x += 2 * kLanes) {
    const float* w = weight;
    for (int channel = 0; channel < kOut; channel += kBlock) {
      Vec low[kBlock], high[kBlock];
#pragma GCC unroll 16
      for (int o = 0; o < kBlock; ++o) low[o] = high[o] = zero + bias[channel + o];
      for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 3
        for (int tap = 0; tap < kTaps; ++tap, w += kBlock) {
          Vec v, next;
          load(v, rows[row] + x + tap);
          load(next, rows[row] + x + tap + kLanes);
#pragma GCC unroll 16
          for (int o = 0; o < kBlock; ++o) {
            low[o] += w[o] * v;
            high[o] += w[o] * next;
          }
        }
#pragma GCC unroll 16
      for (int o = 0; o < kBlock; ++o) {
        float* p = out + (channel + o) * pitch + x;
        if (slope) {
          prelu(low[o], slope[channel + o]);
          prelu(high[o], slope[channel + o]);
        }
        store(p, low[o]);
        store(p + kLanes, high[o]);
      }
    }
  }
}

// [out][in][3][3] to the order that convolve_row reads.
std::vector<float> packed(const float* weight, int out, int taps_per_output, int block) {
  std::vector<float> result(static_cast<size_t>(out) * taps_per_output);
  float* p = result.data();
  for (int channel = 0; channel < out; channel += block)
    for (int tap = 0; tap < taps_per_output; ++tap)
      for (int o = 0; o < block; ++o) *p++ = weight[(channel + o) * taps_per_output + tap];
  return result;
}

struct Shape {
  int height, width;    // of the image
  int height1, width1;  // after conv1
  int height2, width2;  // after the pooling, which rounds up
  int height_out, width_out;

  Shape(int h, int w)
      : height(h),
        width(w),
        height1(h - 2),
        width1(w - 2),
        height2((h - 1) / 2),
        width2((w - 1) / 2),
        height_out(height2 - 4),
        width_out(width2 - 4) {}
};

struct Packed {
  std::vector<float> conv1, conv2, conv3, heads;
};

// kBlock1 to kBlock3 divide 10, 16 and 32.
template <class Vec, int kBlock1, int kBlock23>
struct Band {
  static constexpr int kStep = 2 * sizeof(Vec) / sizeof(float);

  static int rounded(int width) { return (width + kStep - 1) / kStep * kStep; }

  static Packed pack(const PNetWeights& w) {
    return {packed(w.conv1, kC1, kIn * 9, kBlock1), packed(w.conv2, kC2, kC1 * 9, kBlock23),
            packed(w.conv3, kC3, kC2 * 9, kBlock23), packed(w.heads, kHeads, kC3, kHeads)};
  }

  // Output rows [begin, end) of one image [3, height, width] -> out [6, height_out, width_out].
  static PYFACE_INLINE void run(const float* image, const Shape& shape, const PNetWeights& weights, const Packed& w,
                                int begin, int end, float* out) {
    // A row of each layer, with room for whole steps, the taps beyond, and one pixel that the pooling may read.
    const int64_t wide = rounded(shape.width1) + kStep, narrow = rounded(shape.width2) + kStep;
    std::vector<float> memory(wide * (4 * kIn + 2 * kC1) + narrow * (3 * kC1 + 3 * kC2 + kC3 + kHeads));
    float* input = memory.data();            // [4 rows][3], row y at y % 4
    float* conv1 = input + wide * 4 * kIn;   // [2 rows][10]
    float* pool = conv1 + wide * 2 * kC1;    // [3 rows][10], row y at y % 3
    float* conv2 = pool + narrow * 3 * kC1;  // [3 rows][16], row y at y % 3
    float* conv3 = conv2 + narrow * 3 * kC2;
    float* heads = conv3 + narrow * kC3;
    const float* rows[kC2 * 3 > kC3 ? kC2 * 3 : kC3];

    int loaded = 2 * begin;  // input rows before this one were copied
    for (int y = begin; y < end + 4; ++y) {
      const int last = std::min(2 * y + 4, shape.height);
      for (; loaded < last; ++loaded)
        for (int c = 0; c < kIn; ++c)
          std::copy_n(image + (int64_t(c) * shape.height + loaded) * shape.width, shape.width,
                      input + ((loaded % 4) * kIn + c) * wide);

      const int pair = std::min(2, shape.height1 - 2 * y);  // the last row of the pooling may have only one
      for (int i = 0; i < pair; ++i) {
        for (int c = 0; c < kIn; ++c)
          for (int k = 0; k < 3; ++k) rows[c * 3 + k] = input + (((2 * y + i + k) % 4) * kIn + c) * wide;
        convolve_row<Vec, kIn * 3, 3, kC1, kBlock1>(rows, w.conv1.data(), weights.bias1, weights.slope1,
                                                    rounded(shape.width1), conv1 + i * kC1 * wide, wide);
      }
      for (int c = 0; c < kC1; ++c) {
        float* upper = conv1 + c * wide;
        float* lower = pair == 2 ? upper + kC1 * wide : upper;
        upper[shape.width1] = lower[shape.width1] = -INFINITY;
        float* pooled = pool + ((y % 3) * kC1 + c) * narrow;
        for (int x = 0; x < shape.width2; ++x) {
          const float left = std::max(upper[2 * x], lower[2 * x]);
          const float right = std::max(upper[2 * x + 1], lower[2 * x + 1]);
          pooled[x] = std::max(left, right);
        }
      }
      if (y < begin + 2) continue;

      const int y2 = y - 2;
      for (int c = 0; c < kC1; ++c)
        for (int k = 0; k < 3; ++k) rows[c * 3 + k] = pool + (((y2 + k) % 3) * kC1 + c) * narrow;
      convolve_row<Vec, kC1 * 3, 3, kC2, kBlock23>(rows, w.conv2.data(), weights.bias2, weights.slope2,
                                                   rounded(shape.width2 - 2), conv2 + (y2 % 3) * kC2 * narrow, narrow);
      if (y2 < begin + 2) continue;

      const int y3 = y2 - 2;
      for (int c = 0; c < kC2; ++c)
        for (int k = 0; k < 3; ++k) rows[c * 3 + k] = conv2 + (((y3 + k) % 3) * kC2 + c) * narrow;
      const int width = rounded(shape.width_out);
      convolve_row<Vec, kC2 * 3, 3, kC3, kBlock23>(rows, w.conv3.data(), weights.bias3, weights.slope3, width, conv3,
                                                   narrow);
      for (int c = 0; c < kC3; ++c) rows[c] = conv3 + c * narrow;
      convolve_row<Vec, kC3, 1, kHeads, kHeads>(rows, w.heads.data(), weights.bias_heads, nullptr, width, heads,
                                                narrow);
      for (int c = 0; c < kHeads; ++c)
        std::copy_n(heads + c * narrow, shape.width_out, out + (int64_t(c) * shape.height_out + y3) * shape.width_out);
    }
  }
};

#if defined(PYFACE_X86)
using Wide = Band<Vector<16>::Type, 10, 8>;  // 32 registers of 16 floats
using Narrow = Band<Vector<8>::Type, 5, 4>;  // 16 registers of 8 floats
#else
using Narrow = Band<Vector<4>::Type, 5, 4>;
#endif

using Run = void (*)(const float*, const Shape&, const PNetWeights&, const Packed&, int, int, float*);

#if defined(PYFACE_X86)
PYFACE_AVX512 void run_avx512(const float* image, const Shape& shape, const PNetWeights& weights, const Packed& packed,
                              int begin, int end, float* out) {
  Wide::run(image, shape, weights, packed, begin, end, out);
}
PYFACE_AVX2 void run_avx2(const float* image, const Shape& shape, const PNetWeights& weights, const Packed& packed,
                          int begin, int end, float* out) {
  Narrow::run(image, shape, weights, packed, begin, end, out);
}
#endif
void run_baseline(const float* image, const Shape& shape, const PNetWeights& weights, const Packed& packed, int begin,
                  int end, float* out) {
  Narrow::run(image, shape, weights, packed, begin, end, out);
}

}  // namespace

void pnet(const float* images, int64_t batch, int height, int width, const PNetWeights& weights, float* out,
          int threads) {
  const Shape shape(height, width);
  Run run = run_baseline;
  Packed packed;
#if defined(PYFACE_X86)
  if (simd() == Simd::Avx512) run = run_avx512, packed = Wide::pack(weights);
  if (simd() == Simd::Avx2) run = run_avx2;
#endif
  if (packed.conv1.empty()) packed = Narrow::pack(weights);
  // A band computes four rows of the earlier layers again, so it should have many more rows; each thread should get
  // several bands.
  constexpr int kLeastRows = 16;
  const int64_t wanted = std::max<int64_t>(1, 3 * threads / std::max<int64_t>(batch, 1));
  const int bands = static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max(1, shape.height_out / kLeastRows)));
  parallel_for(batch * bands, threads, [&](int64_t i) {
    const int64_t image = i / bands, band = i % bands;
    run(images + image * 3 * height * width, shape, weights, packed, static_cast<int>(band * shape.height_out / bands),
        static_cast<int>((band + 1) * shape.height_out / bands),
        out + image * kHeads * shape.height_out * shape.width_out);
  });
}

}  // namespace pyface::cpu
