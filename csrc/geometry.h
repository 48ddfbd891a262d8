// Box arithmetic shared by host and device: one IoU, one validity rule, one order of scores, one exponential.
//
// Both sides compile this without fused multiply-add (-ffp-contract=off, --fmad=false), so a comparison that
// decides which box survives gives the same result on every machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PYFACE_HD __host__ __device__ __forceinline__
#else
#define PYFACE_HD inline __attribute__((always_inline))
#endif

namespace pyface {

// What the intersection is divided by: the union (IoU), or the smaller area (MTCNN's O-Net, DenseBox's author).
enum class Overlap : int32_t { Union = 0, Min = 1 };

// How soft_nms lowers the score of a box that overlaps the chosen one.
enum class SoftNms : int32_t { Linear = 0, Gaussian = 1 };

// How far a resampled value reaches: Bilinear covers one source pixel whatever the scale; Area covers the output
// pixel's footprint, and never less than one source pixel (so it is bilinear when it enlarges).
enum class Interpolation : int32_t { Bilinear = 0, Area = 1 };

struct Box {
  float x1, y1, x2, y2;
};

// A number as 32 bits whose ascending order is the numbers' descending order. Adding 0 makes -0 equal to 0.
PYFACE_HD uint32_t descending_key(float value) {
  value += 0.f;
#if defined(__CUDA_ARCH__)
  const uint32_t bits = __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
#endif
  return (bits & 0x80000000u) ? bits : ~(bits | 0x80000000u);
}

PYFACE_HD float box_area(const Box& b) {
  // A box with x2 < x1 or y2 < y1 has area 0 (and overlaps nothing: its intersections are empty too).
  const float w = b.x2 - b.x1, h = b.y2 - b.y1;
  return (w > 0.f && h > 0.f) ? w * h : 0.f;
}

PYFACE_HD bool is_finite(float v) {
  // Not std::isfinite: this form survives -ffast-math in a user's own build and is the same on the device.
#if defined(__CUDA_ARCH__)
  const uint32_t bits = __float_as_uint(v);
#else
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
#endif
  return (bits & 0x7f800000u) != 0x7f800000u;
}

PYFACE_HD bool is_finite(const Box& b) {
  return is_finite(b.x1) && is_finite(b.y1) && is_finite(b.x2) && is_finite(b.y2);
}

// Overlap of two boxes whose areas are known, in torchvision's order of operations so that ties at the threshold
// fall the same way. NaN (0/0) and negative-size boxes compare false with everything, so they suppress nothing.
PYFACE_HD float box_overlap(const Box& a, float area_a, const Box& b, float area_b, Overlap kind) {
  const float left = a.x1 > b.x1 ? a.x1 : b.x1, top = a.y1 > b.y1 ? a.y1 : b.y1;
  const float right = a.x2 < b.x2 ? a.x2 : b.x2, bottom = a.y2 < b.y2 ? a.y2 : b.y2;
  const float w = right - left, h = bottom - top;
  const float inter = (w > 0.f ? w : 0.f) * (h > 0.f ? h : 0.f);
  if (kind == Overlap::Union) return inter / (area_a + area_b - inter);
  return inter / (area_a < area_b ? area_a : area_b);
}

// Whether a box covers at least half of another box's area; false if that is 0.
PYFACE_HD bool covers_half(const Box& cover, const Box& b, float area) {
  const float left = cover.x1 > b.x1 ? cover.x1 : b.x1, top = cover.y1 > b.y1 ? cover.y1 : b.y1;
  const float right = cover.x2 < b.x2 ? cover.x2 : b.x2, bottom = cover.y2 < b.y2 ? cover.y2 : b.y2;
  const float w = right - left, h = bottom - top;
  const float inter = (w > 0.f ? w : 0.f) * (h > 0.f ? h : 0.f);
  return (inter > 0.f) & (inter >= 0.5f * area);
}

// e^x for x <= 0 with a relative error of 2e-7 (0 below -87, where it would leave the normal floats; exactly 1 at 0).
// The libms of host and device differ in the last bit, and soft_nms compares the results.
PYFACE_HD float exp_negative(float x) {
  // x = k ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer, which then lies in the low bits.
  const float shifted = x * 1.44269504f + 12582912.f;
  const float k = shifted - 12582912.f;
  const float r = (x - k * 0.693359375f) - k * -2.12194440e-4f;  // ln 2 in two parts, the first exact times k
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = 1.f + (r + (r * r) * p);
#if defined(__CUDA_ARCH__)
  const float power = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);  // 2^k
#else
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  float power;
  std::memcpy(&power, &bits, sizeof power);
#endif
  return x < 0.f ? (x >= -87.f ? p * power : 0.f) : 1.f;
}

// What soft_nms multiplies a score by; 1 where the overlap is NaN.
PYFACE_HD float soft_nms_weight(float overlap, SoftNms method, float threshold, float sigma) {
  if (method == SoftNms::Linear) return overlap > threshold ? 1.f - overlap : 1.f;
  return overlap > 0.f ? exp_negative(-(overlap * overlap) / sigma) : 1.f;
}

// e^x with a relative error of 3e-16, for results that are rounded to float, where x beyond +-200 gives 0 or infinity.
// The std::exp of host and device differ in the last bit, which survives the rounding once in 1e8.
PYFACE_HD double exp_to_round(double x) {
  // As in exp_negative(), with 1.5 * 2^52 and the Taylor series up to r^13.
  constexpr double kShift = 6755399441055744.0;
  const double bounded = x < -200.0 ? -200.0 : (x > 200.0 ? 200.0 : x);
  const double shifted = bounded * 1.4426950408889634 + kShift;
  const double k = shifted - kShift;
  const double r = (bounded - k * 0.69314718036912382) - k * 1.9082149292705877e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = 1.0 + (r + (r * r) * p);
#if defined(__CUDA_ARCH__)
  const double power = __longlong_as_double((__double_as_longlong(shifted) << 52) + 0x3ff0000000000000ll);  // 2^k
#else
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 52) + 0x3ff0000000000000u;
  double power;
  std::memcpy(&power, &bits, sizeof power);
#endif
  return p * power;
}

// 1 / (1 + e^-x), rounded once: it rises with x, and both sides agree.
PYFACE_HD float sigmoid(float x) { return static_cast<float>(1.0 / (1.0 + exp_to_round(-static_cast<double>(x)))); }

// The same to 3e-7 in float32, for whole maps; NaN stays NaN.
PYFACE_HD float sigmoid_fast(float x) {
  const float e = exp_negative(x < 0.f ? x : -x);
  const float p = (x < 0.f ? e : 1.f) / (1.f + e);
  return x == x ? p : x;
}

// The factor by which a delta stretches an anchor's side, rounded once so that both sides agree.
PYFACE_HD float stretch(float delta, float size_variance) {
  return static_cast<float>(exp_to_round(static_cast<double>(delta * size_variance)));
}

// An anchor of cell (0, 0) as the one of (row, column).
PYFACE_HD Box anchor_at(const Box& anchor, int64_t stride, int64_t row, int64_t column) {
  const float x = static_cast<float>(stride * column), y = static_cast<float>(stride * row);
  return {anchor.x1 + x, anchor.y1 + y, anchor.x2 + x, anchor.y2 + y};
}

// A coordinate that a delta places relative to the anchor's side [low, high]: from its centre, in units of its length.
PYFACE_HD float decode_coordinate(float low, float high, float delta, float center_variance) {
  const float side = high - low;
  return (low + side * 0.5f) + (delta * center_variance) * side;
}

// An anchor and its deltas to a box: the centre moves, the sides stretch. What overflows is not finite afterwards.
PYFACE_HD Box decode_box(const Box& anchor, float dx, float dy, float dw, float dh, float center_variance,
                         float size_variance) {
  const float x = decode_coordinate(anchor.x1, anchor.x2, dx, center_variance);
  const float y = decode_coordinate(anchor.y1, anchor.y2, dy, center_variance);
  const float half_w = ((anchor.x2 - anchor.x1) * stretch(dw, size_variance)) * 0.5f;
  const float half_h = ((anchor.y2 - anchor.y1) * stretch(dh, size_variance)) * 0.5f;
  return {x - half_w, y - half_h, x + half_w, y + half_h};
}

// v clamped to [0, limit]; NaN if the limit is.
PYFACE_HD float clip_coordinate(float v, float limit) {
  const float above = v > 0.f ? v : 0.f;
  return above < limit ? above : limit;
}

PYFACE_HD Box clip_box(const Box& b, float height, float width) {
  return {clip_coordinate(b.x1, width), clip_coordinate(b.y1, height), clip_coordinate(b.x2, width),
          clip_coordinate(b.y2, height)};
}

// Whether both sides are > 0 and the shorter one is >= min_side; false for NaN.
PYFACE_HD bool has_min_side(const Box& b, float min_side) {
  const float w = b.x2 - b.x1, h = b.y2 - b.y1;
  return w > 0.f && h > 0.f && w >= min_side && h >= min_side;
}

// The larger of a and b; NaN if one of them is.
PYFACE_HD float max_or_nan(float a, float b) { return ((b > a) | (b != b)) ? b : a; }

// The largest float <= threshold: `overlap > threshold` in double equals `overlap > float_below(threshold)` in
// float, the type that SIMD and the device compare.
inline float float_below(double threshold) {
  const float f = static_cast<float>(threshold);
  return static_cast<double>(f) > threshold ? std::nextafter(f, -INFINITY) : f;
}

// The smallest float >= threshold, for `overlap >= threshold`.
inline float float_above(double threshold) {
  const float f = static_cast<float>(threshold);
  return static_cast<double>(f) < threshold ? std::nextafter(f, INFINITY) : f;
}

}  // namespace pyface
