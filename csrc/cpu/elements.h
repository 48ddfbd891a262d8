// Elements of a network's maps as float32: float, half and bfloat16. Integer arithmetic only, so that loops over them
// vectorise for every instruction set, and subnormal halves survive where the processor flushes subnormal floats.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../ops.h"
#include "simd.h"

namespace pyface::cpu {

struct Half {
  uint16_t bits;
};

struct BFloat {
  uint16_t bits;
};

PYFACE_INLINE float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

PYFACE_INLINE float to_float(float v) { return v; }

PYFACE_INLINE float to_float(BFloat v) { return float_of_bits(uint32_t(v.bits) << 16); }

PYFACE_INLINE float to_float(Half v) {
  const uint32_t magnitude = v.bits & 0x7fffu, sign = uint32_t(v.bits & 0x8000u) << 16;
  const uint32_t rebias = 112u << 23;  // from 15 to 127
  const uint32_t normal = (magnitude << 13) + rebias + (magnitude >= 0x7c00u ? rebias : 0u);
  const float subnormal = float_of_bits(0x3f000000u + magnitude) - 0.5f;  // 0.5 has steps of 2^-24
  uint32_t bits;
  std::memcpy(&bits, &subnormal, sizeof bits);
  return float_of_bits((magnitude < 0x0400u ? bits : normal) | sign);
}

// Elements as bits, for code that only moves them.
PYFACE_INLINE uint16_t bits_of(Half v) { return v.bits; }
PYFACE_INLINE uint16_t bits_of(BFloat v) { return v.bits; }
PYFACE_INLINE uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

PYFACE_INLINE void set_bits(Half& v, uint16_t bits) { v.bits = bits; }
PYFACE_INLINE void set_bits(BFloat& v, uint16_t bits) { v.bits = bits; }
PYFACE_INLINE void set_bits(float& v, uint32_t bits) { v = float_of_bits(bits); }

// Integers that compare as the elements do (-0 equals 0, NaN is above all) and are as wide, so a vector holds as many.
template <class Order, class Bits>
PYFACE_INLINE Order order_of_bits(Bits bits, Bits infinity) {
  const Order magnitude = static_cast<Order>(bits & std::numeric_limits<Order>::max());
  const Order sign = static_cast<Order>(static_cast<Order>(bits) >> std::numeric_limits<Order>::digits);  // 0 or -1
  const Order signed_magnitude = static_cast<Order>((magnitude ^ sign) - sign);
  return magnitude > static_cast<Order>(infinity) ? std::numeric_limits<Order>::max() : signed_magnitude;
}

PYFACE_INLINE int16_t order_of(Half v) { return order_of_bits<int16_t, uint16_t>(v.bits, 0x7c00u); }
PYFACE_INLINE int16_t order_of(BFloat v) { return order_of_bits<int16_t, uint16_t>(v.bits, 0x7f80u); }
PYFACE_INLINE int32_t order_of(float v) { return order_of_bits<int32_t, uint32_t>(bits_of(v), 0x7f800000u); }

// Bits and order of the larger of an element and v, of the first where they are equal; NaN is above all.
template <class Bits, class Order, class T>
PYFACE_INLINE void take_larger(Bits& bits, Order& order, T v) {
  const Order other = order_of(v);
  const bool takes = other > order;
  bits = takes ? bits_of(v) : bits;
  order = takes ? other : order;
}

// Bits of the largest of S3FD's three backgrounds.
template <class T>
PYFACE_INLINE auto largest_of_three(T a, T b, T c) {
  auto bits = bits_of(a);
  auto order = order_of(a);
  take_larger(bits, order, b);
  take_larger(bits, order, c);
  return bits;
}

// A map's elements of type T.
template <class T>
struct Elements {
  const T* data;
  int64_t batch_stride, channel_stride, row_stride, column_stride;

  explicit Elements(const Map& map)
      : data(static_cast<const T*>(map.data)),
        batch_stride(map.batch_stride),
        channel_stride(map.channel_stride),
        row_stride(map.row_stride),
        column_stride(map.column_stride) {}

  PYFACE_INLINE const T* at(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    return data + image * batch_stride + channel * channel_stride + row * row_stride + column * column_stride;
  }
};

// Cells are taken in strips, long enough for vectorised loops and short enough for the L1 cache.
constexpr int kStrip = 256;

// `n` elements as floats. kStride: the stride if it is known at compile time, else 0.
template <int kStride, class T>
PYFACE_INLINE void load_strip_of(const T* p, int64_t any_stride, int n, float* out) {
  const int64_t stride = kStride ? kStride : any_stride;
  for (int i = 0; i < n; ++i) out[i] = to_float(p[i * stride]);
}

template <class T>
PYFACE_INLINE void load_strip(const T* p, int64_t stride, int n, float* out) {
  if (stride == 1)
    load_strip_of<1>(p, stride, n, out);
  else
    load_strip_of<0>(p, stride, n, out);
}

template <int kStride, class T>
PYFACE_INLINE void face_evidence_of(const T* first, int64_t step, int64_t any_stride, int num_background, int n,
                                    float* x) {
  const int64_t stride = kStride ? kStride : any_stride;
  load_strip_of<kStride>(first, any_stride, n, x);
  if (num_background == 0) return;
  for (int c = 1; c < num_background; ++c) {
    const T* p = first + c * step;
    for (int i = 0; i < n; ++i) x[i] = max_or_nan(x[i], to_float(p[i * stride]));
  }
  const T* face = first + num_background * step;
  for (int i = 0; i < n; ++i) x[i] = to_float(face[i * stride]) - x[i];
}

// S3FD's three backgrounds in planes of 16 bits: compared as they are, so that only the largest is converted.
template <class T>
PYFACE_INLINE void face_evidence_beside_three(const T* first, int64_t step, int n, float* x) {
  const T *second = first + step, *third = second + step, *face = third + step;
  for (int i = 0; i < n; ++i) x[i] = to_float(face[i]) - to_float(T{largest_of_three(first[i], second[i], third[i])});
}

// The evidence for a face in `n` cells side by side: face logit minus largest background logit, or the one logit; NaN
// where a logit is NaN.
//   first: background 0 of the first cell's anchor; from one logit to the next are `step` elements
template <class T>
PYFACE_INLINE void face_evidence(const T* first, int64_t step, int64_t column_stride, int num_background, int n,
                                 float* x) {
  if constexpr (sizeof(T) == 2) {
    if (column_stride == 1 && num_background == 3) return face_evidence_beside_three(first, step, n, x);
  }
  if (column_stride == 1)
    face_evidence_of<1>(first, step, column_stride, num_background, n, x);
  else if (column_stride == 2)  // channels_last, as are the next
    face_evidence_of<2>(first, step, column_stride, num_background, n, x);
  else if (column_stride == 4)
    face_evidence_of<4>(first, step, column_stride, num_background, n, x);
  else
    face_evidence_of<0>(first, step, column_stride, num_background, n, x);
}

// Whether the rows of a map follow each other without gaps, so that height x width cells are one long row.
inline bool is_one_row(const Map& map, int64_t width) { return map.row_stride == width * map.column_stride; }

// Cells [begin, end) of an image, counted by rows; a thread's share of the work.
struct Cells {
  int64_t image, begin, end;
};

inline constexpr int64_t kCellsPerShare = 8192;

}  // namespace pyface::cpu
