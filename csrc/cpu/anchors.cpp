// Head maps to candidates on the CPU: the threshold is compared with logits, a strip of cells at a time, and only what
// passes is decoded. Each share of the work keeps its survivors in index order, so the result does not depend on the
// threads.
#include <algorithm>
#include <vector>

#include "../ops.h"
#include "candidates.h"
#include "elements.h"
#include "parallel.h"
#include "simd.h"

namespace pyface::cpu {
namespace {

// A thread's share: some cells of one level of one image.
struct Share {
  Cells cells;
  int level;
};

// The anchor moved by the four deltas that a map holds for it.
template <class T>
PYFACE_INLINE Box moved(const Box& anchor, const Map& map, int64_t image, int k, int64_t row, int64_t column,
                        const AnchorDecoding& decoding) {
  const Elements<T> deltas(map);
  const T* p = deltas.at(image, 4 * k, row, column);
  const int64_t step = deltas.channel_stride;
  return decode_box(anchor, to_float(p[0]), to_float(p[step]), to_float(p[2 * step]), to_float(p[3 * step]),
                    decoding.center_variance, decoding.size_variance);
}

template <class T>
PYFACE_INLINE bool decode_landmarks(const Box& anchor, const Map& map, int64_t image, int k, int64_t row,
                                    int64_t column, const AnchorDecoding& decoding, float* out) {
  const Elements<T> deltas(map);
  bool finite = true;
  for (int i = 0; i < kPointValues; ++i) {
    const float delta = to_float(*deltas.at(image, kPointValues * k + i, row, column));
    out[i] = i % 2 == 0 ? decode_coordinate(anchor.x1, anchor.x2, delta, decoding.center_variance)
                        : decode_coordinate(anchor.y1, anchor.y2, delta, decoding.center_variance);
    finite &= is_finite(out[i]);
  }
  return finite;
}

// Adds an anchor that passed the thresholds to the survivors, unless its box or its landmarks are invalid.
template <class T>
PYFACE_INLINE void decode(const AnchorLevel& level, const AnchorDecoding& decoding, int64_t image, int64_t cell, int k,
                          float evidence, Survivors& survivors) {
  const int64_t row = cell / level.width, column = cell % level.width;
  Box anchor = anchor_at(level.anchors[k], level.stride, row, column);
  if (level.offsets.data) anchor = moved<T>(anchor, level.offsets, image, k, row, column, decoding);
  Box box = moved<T>(anchor, level.boxes, image, k, row, column, decoding);
  if (!is_finite(box)) return;
  if (decoding.sizes) box = clip_box(box, decoding.sizes[2 * image], decoding.sizes[2 * image + 1]);
  if (!has_min_side(box, decoding.min_side)) return;
  if (level.landmarks.data) {
    float points[kPointValues];
    if (!decode_landmarks<T>(anchor, level.landmarks, image, k, row, column, decoding, points)) return;
    survivors.landmarks.insert(survivors.landmarks.end(), points, points + kPointValues);
  }
  survivors.boxes.push_back(box);
  survivors.evidence.push_back(evidence);
  survivors.index.push_back(level.first + cell * level.num_anchors + k);
}

template <class T>
PYFACE_INLINE void scan_of(const AnchorLevel& level, const AnchorDecoding& decoding, const Cells& cells,
                           Survivors& survivors) {
  const Elements<T> logits(level.logits), gate(level.gate), boxes(level.boxes);
  const bool has_gate = level.gate.data != nullptr;
  const bool one_row = is_one_row(level.logits, level.width) && (!has_gate || is_one_row(level.gate, level.width));
  const int64_t width = one_row ? int64_t(level.height) * level.width : level.width;
  const int num_anchors = level.num_anchors;
  float x[kMaxAnchors][kStrip], g[kStrip];
  int32_t places[kMaxAnchors * kStrip + 1];

  for (int64_t cell = cells.begin; cell < cells.end;) {
    const int64_t row = cell / width, column = cell % width;
    const int n = static_cast<int>(std::min({int64_t(kStrip), width - column, cells.end - cell}));
    for (int k = 0; k < num_anchors; ++k) {
      face_evidence(logits.at(cells.image, k, row, column), num_anchors * logits.channel_stride, logits.column_stride,
                    level.num_background, n, x[k]);
      if (!has_gate) continue;
      load_strip(gate.at(cells.image, k, row, column), gate.column_stride, n, g);
      for (int i = 0; i < n; ++i) x[k][i] = (g[i] > level.min_gate) & (g[i] < INFINITY) ? x[k][i] : -INFINITY;
    }
    const int count = passing(x, num_anchors, n, level.min_logit, places);
    for (int j = 0; j < count; ++j) {  // survivors' deltas are not in the cache yet
      const int64_t at = cell + places[j] / num_anchors;
      const T* p = boxes.at(cells.image, 4 * (places[j] % num_anchors), at / level.width, at % level.width);
      for (int d = 0; d < 4; ++d) __builtin_prefetch(p + d * boxes.channel_stride);
    }
    for (int j = 0; j < count; ++j) {
      const int i = places[j] / num_anchors, k = places[j] % num_anchors;
      decode<T>(level, decoding, cells.image, cell + i, k, x[k][i], survivors);
    }
    cell += n;
  }
}

PYFACE_INLINE void scan_impl(const AnchorLevel& level, Dtype dtype, const AnchorDecoding& decoding, const Cells& cells,
                             Survivors& survivors) {
  if (dtype == Dtype::Float16)
    scan_of<Half>(level, decoding, cells, survivors);
  else if (dtype == Dtype::BFloat16)
    scan_of<BFloat>(level, decoding, cells, survivors);
  else
    scan_of<float>(level, decoding, cells, survivors);
}

PYFACE_DISPATCH(void, scan,
                (const AnchorLevel& level, Dtype dtype, const AnchorDecoding& decoding, const Cells& cells,
                 Survivors& survivors),
                (level, dtype, decoding, cells, survivors))

std::vector<Share> shares_of(const AnchorLevel* levels, int num_levels, int64_t batch) {
  std::vector<Share> shares;
  for (int64_t image = 0; image < batch; ++image)
    for (int l = 0; l < num_levels; ++l) {
      const int64_t cells = int64_t(levels[l].height) * levels[l].width;
      for (int64_t begin = 0; begin < cells; begin += kCellsPerShare)
        shares.push_back({{image, begin, std::min(cells, begin + kCellsPerShare)}, l});
    }
  return shares;
}

// The best candidates of an image: each level's best, merged.
void write_best_of_levels(const AnchorLevel* levels, int num_levels, const Survivors& survivors, int64_t max_candidates,
                          const CandidateArrays& out, int64_t image) {
  int64_t taken[kMaxLevels] = {};
  write_best(survivors, max_candidates, out, image, sigmoid, [&](int64_t index) {
    int level = num_levels - 1;
    while (index < levels[level].first) --level;
    return taken[level]++ < levels[level].max_candidates;
  });
}

}  // namespace

void decode_anchors(const AnchorLevel* levels, int num_levels, Dtype dtype, int64_t batch,
                    const AnchorDecoding& decoding, const CandidateArrays& out, int threads) {
  if (batch == 0) return;
  const auto shares = shares_of(levels, num_levels, batch);
  std::vector<Survivors> survivors(shares.size());
  parallel_for(static_cast<int64_t>(shares.size()), threads,
               [&](int64_t i) { scan(levels[shares[i].level], dtype, decoding, shares[i].cells, survivors[i]); });
  const int64_t shares_an_image = static_cast<int64_t>(shares.size()) / batch;
  parallel_for(batch, threads, [&](int64_t image) {
    Survivors all;
    for (int64_t i = 0; i < shares_an_image; ++i) all.append(survivors[image * shares_an_image + i]);
    write_best_of_levels(levels, num_levels, all, decoding.max_candidates, out, image);
  });
}

}  // namespace pyface::cpu
