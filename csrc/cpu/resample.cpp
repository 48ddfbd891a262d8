// Resampling on the CPU: letterbox and crop_resize, uint8 images to normalised float planes in one pass.
//
// Both are separable: per output row, the source rows that it covers are summed into a float row of the image's width
// (SIMD over bytes that lie side by side), and the output's pixels are then weighted sums of that row.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../ops.h"
#include "pages.h"
#include "parallel.h"
#include "simd.h"

namespace pyface::cpu {
namespace {

// The source pixels that one output coordinate covers, and their weights. Pixels outside the image are left out: they
// are 0, so nothing is missing from the sum.
struct Taps {
  std::vector<int32_t> first, start;  // of output i: its first pixel, and where its weights begin (start has one more)
  std::vector<float> weight;

  // Output coordinate i covers [c - f/2, c + f/2), c = low + (i + 0.5) * scale, kept inside [low, high]; f is the
  // footprint. Pixel k covers [k, k + 1).
  Taps(double low, double high, double scale, Interpolation interpolation, int outputs, int pixels) {
    const double footprint = interpolation == Interpolation::Area ? std::max(1.0, scale) : 1.0, half = footprint / 2;
    first.reserve(outputs);
    start.reserve(outputs + 1);
    for (int i = 0; i < outputs; ++i) {
      const double lowest = low + half, highest = high - half;
      const double centre = lowest > highest ? (low + high) / 2 : std::clamp(low + (i + 0.5) * scale, lowest, highest);
      const double from = std::clamp(centre - half, 0.0, double(pixels));
      const double to = std::clamp(centre + half, 0.0, double(pixels));
      const int begin = static_cast<int>(std::floor(from)), end = static_cast<int>(std::ceil(to));
      first.push_back(begin);
      start.push_back(static_cast<int32_t>(weight.size()));
      for (int k = begin; k < end; ++k)
        weight.push_back(static_cast<float>((std::min(k + 1.0, to) - std::max(double(k), from)) / footprint));
    }
    start.push_back(static_cast<int32_t>(weight.size()));
  }

  int count(int i) const { return start[i + 1] - start[i]; }
};

// row[x] = (row[x] if Add) + sum over t < Count of weight[t] * pixels[t * stride + x], for x in [0, n).
template <int Count, bool Add>
PYFACE_INLINE void sum_some_rows(const uint8_t* pixels, int64_t stride, const float* weight, int64_t n, float* row) {
  for (int64_t x = 0; x < n; ++x) {
    float sum = Add ? row[x] + weight[0] * static_cast<float>(pixels[x]) : weight[0] * static_cast<float>(pixels[x]);
    for (int t = 1; t < Count; ++t) sum += weight[t] * static_cast<float>(pixels[t * stride + x]);
    row[x] = sum;
  }
}

template <bool Add>
PYFACE_INLINE void sum_few_rows(const uint8_t* pixels, int64_t stride, const float* weight, int count, int64_t n,
                                float* row) {
  switch (count) {
    case 1:
      return sum_some_rows<1, Add>(pixels, stride, weight, n, row);
    case 2:
      return sum_some_rows<2, Add>(pixels, stride, weight, n, row);
    case 3:
      return sum_some_rows<3, Add>(pixels, stride, weight, n, row);
    case 4:
      return sum_some_rows<4, Add>(pixels, stride, weight, n, row);
  }
}

// row[x] = sum over t of weight[t] * pixels[t * stride + x], for x in [0, n); four rows at a time, added one by one.
PYFACE_INLINE void sum_rows_impl(const uint8_t* pixels, int64_t stride, const float* weight, int count, int64_t n,
                                 float* row) {
  if (count == 0) std::fill_n(row, n, 0.f);
  for (int t = 0; t < count; t += 4) {
    const int some = std::min(4, count - t);
    if (t == 0)
      sum_few_rows<false>(pixels, stride, weight, some, n, row);
    else
      sum_few_rows<true>(pixels + t * stride, stride, weight + t, some, n, row);
  }
}

PYFACE_DISPATCH(void, sum_rows,
                (const uint8_t* pixels, int64_t stride, const float* weight, int count, int64_t n, float* row),
                (pixels, stride, weight, count, n, row))

typedef float Pixel __attribute__((vector_size(4 * sizeof(float))));

// sums[x] = sum over t < Count of weights[x][t] * the pixel at row + places[x] + 3 t, for x in [0, n), as four floats
// of which the last belongs to the pixel's neighbour. Count is a constant where it is small, as when images shrink a
// little.
template <int Count>
PYFACE_INLINE void sum_columns_of(const float* row, const int32_t* places, const float* weights, int count, int64_t n,
                                  float* sums) {
  const int taps = Count > 0 ? Count : count;
  for (int64_t x = 0; x < n; ++x, weights += taps) {
    const float* source = row + places[x];
    Pixel sum = {}, pixel;
    for (int t = 0; t < taps; ++t, source += 3) {
      std::memcpy(&pixel, source, sizeof pixel);
      sum += weights[t] * pixel;
    }
    std::memcpy(sums + 4 * x, &sum, sizeof sum);
  }
}

PYFACE_INLINE void sum_columns_impl(const float* row, const int32_t* places, const float* weights, int count, int64_t n,
                                    float* sums) {
  switch (count) {
    case 1:
      return sum_columns_of<1>(row, places, weights, count, n, sums);
    case 2:
      return sum_columns_of<2>(row, places, weights, count, n, sums);
    case 3:
      return sum_columns_of<3>(row, places, weights, count, n, sums);
    case 4:
      return sum_columns_of<4>(row, places, weights, count, n, sums);
    default:
      return sum_columns_of<0>(row, places, weights, count, n, sums);
  }
}

PYFACE_DISPATCH(void, sum_columns,
                (const float* row, const int32_t* places, const float* weights, int count, int64_t n, float* sums),
                (row, places, weights, count, n, sums))

// plane[x] = (sums[4 x] - mean) * scale.
PYFACE_INLINE void normalise_impl(const float* sums, float mean, float scale, int64_t n, float* plane) {
  for (int64_t x = 0; x < n; ++x) plane[x] = (sums[4 * x] - mean) * scale;
}

PYFACE_DISPATCH(void, normalise, (const float* sums, float mean, float scale, int64_t n, float* plane),
                (sums, mean, scale, n, plane))

// Output rows [row_begin, row_end) of one image; `plane` and `pitch` are the output's strides in floats.
void resample_rows(const Image& image, const Taps& xs, const Taps& ys, int out_w, int row_begin, int row_end,
                   const Normalization& normalization, float* out, int64_t plane, int64_t pitch) {
  int left = image.width, right = 0, count = 0;
  for (int x = 0; x < out_w; ++x)
    if (xs.count(x) > 0) {
      left = std::min(left, xs.first[x]), right = std::max(right, xs.first[x] + xs.count(x));
      count = std::max(count, xs.count(x));
    }
  const int64_t values = std::max(0, right - left) * int64_t(3), stride = int64_t(image.width) * 3;
  // All outputs have as many taps as the one with the most; the extra ones have the weight 0. The row has room for
  // their pixels, and for the fourth float of the last one.
  std::vector<float> row(values + 3 * count + 1), sums(4 * int64_t(out_w)), weights(int64_t(out_w) * count);
  std::vector<int32_t> places(out_w);
  for (int x = 0; x < out_w; ++x) {
    places[x] = xs.count(x) > 0 ? 3 * (xs.first[x] - left) : 0;
    std::copy_n(xs.weight.data() + xs.start[x], xs.count(x), weights.data() + int64_t(x) * count);
  }
  const auto& [mean, scale] = normalization;
  for (int y = row_begin; y < row_end; ++y) {
    if (values > 0)
      sum_rows(image.data + ys.first[y] * stride + int64_t(left) * 3, stride, ys.weight.data() + ys.start[y],
               ys.count(y), values, row.data());
    sum_columns(row.data(), places.data(), weights.data(), count, out_w, sums.data());
    for (int channel = 0; channel < 3; ++channel)
      normalise(sums.data() + channel, mean[channel], scale[channel], out_w, out + y * pitch + channel * plane);
  }
}

// Calls rows(item, begin, end) for all rows of all items, cut so finely that the threads share even a single item.
template <class Rows>
void parallel_rows(int64_t items, int rows_per_item, int threads, const Rows& rows) {
  const int64_t parts = std::clamp<int64_t>((4 * threads + items - 1) / std::max<int64_t>(items, 1), 1, rows_per_item);
  parallel_for(items * parts, threads, [&](int64_t i) {
    const int64_t part = i % parts;
    rows(i / parts, static_cast<int>(part * rows_per_item / parts),
         static_cast<int>((part + 1) * rows_per_item / parts));
  });
}

}  // namespace

void letterbox(const Image* images, const double* scales, int64_t num_images, int out_h, int out_w,
               Interpolation interpolation, Normalization normalization, float* out, int threads) {
  const int64_t plane = int64_t(out_h) * out_w;
  prefer_huge_pages(out, num_images * 3 * plane * sizeof(float));
  parallel_rows(num_images, out_h, threads, [&](int64_t i, int begin, int end) {
    const Image& image = images[i];
    const auto region = [&](int size, int most) {
      return static_cast<int>(std::clamp(std::floor(size * scales[i] + 0.5), 1.0, static_cast<double>(most)));
    };
    const int height = region(image.height, out_h), width = region(image.width, out_w);
    const Taps xs(0, image.width, 1 / scales[i], interpolation, width, image.width);
    const Taps ys(0, image.height, 1 / scales[i], interpolation, height, image.height);
    float* canvas = out + i * 3 * plane;
    resample_rows(image, xs, ys, width, std::min(begin, height), std::min(end, height), normalization, canvas, plane,
                  out_w);
    for (int channel = 0; channel < 3; ++channel)
      for (int y = begin; y < end; ++y) {
        float* line = canvas + channel * plane + int64_t(y) * out_w;
        std::fill(line + (y < height ? width : 0), line + out_w, 0.f);
      }
  });
}

void crop_resize(const Image* images, int64_t num_images, const float* boxes, const int64_t* image_index, int64_t n,
                 int out_h, int out_w, Interpolation interpolation, Normalization normalization, float* out,
                 int threads) {
  const int64_t plane = int64_t(out_h) * out_w;
  prefer_huge_pages(out, n * 3 * plane * sizeof(float));
  parallel_rows(n, out_h, threads, [&](int64_t i, int begin, int end) {
    const Box& box = reinterpret_cast<const Box*>(boxes)[i];
    const bool is_empty = image_index[i] < 0 || image_index[i] >= num_images || !is_finite(box);
    const Image image = is_empty ? Image{nullptr, 0, 0} : images[image_index[i]];
    const Box source = is_empty ? Box{0, 0, 0, 0} : box;
    const auto taps = [&](double low, double high, int outputs, int pixels) {
      return Taps(low, high, std::max(0.0, high - low) / outputs, interpolation, outputs, pixels);
    };
    resample_rows(image, taps(source.x1, source.x2, out_w, image.width),
                  taps(source.y1, source.y2, out_h, image.height), out_w, begin, end, normalization,
                  out + i * 3 * plane, plane, out_w);
  });
}

}  // namespace pyface::cpu
