// What the ops that decode head maps share: finding the cells that pass, and choosing the best candidates.
#pragma once

#include <algorithm>
#include <vector>

#include "../ops.h"
#include "elements.h"
#include "order.h"
#include "simd.h"

namespace pyface::cpu {

inline constexpr int kPointValues = 10;  // x, y of five landmarks

// What passed, by index ascending.
struct Survivors {
  std::vector<Box> boxes;
  std::vector<float> evidence, landmarks;
  std::vector<int64_t> index;

  void append(const Survivors& other) {
    boxes.insert(boxes.end(), other.boxes.begin(), other.boxes.end());
    evidence.insert(evidence.end(), other.evidence.begin(), other.evidence.end());
    landmarks.insert(landmarks.end(), other.landmarks.begin(), other.landmarks.end());
    index.insert(index.end(), other.index.begin(), other.index.end());
  }
};

// Places (cell * num_anchors + k) of a strip whose evidence is finite and > limit, ascending; returns how many. It
// writes one place more than it counts.
PYFACE_INLINE int passing(const float (*x)[kStrip], int num_anchors, int n, float limit, int32_t* places) {
  constexpr int kBlock = 64;  // most blocks hold nothing
  int count = 0;
  for (int begin = 0; begin < n; begin += kBlock) {
    const int end = std::min(n, begin + kBlock);
    int any = 0;
    for (int k = 0; k < num_anchors; ++k)
      for (int i = begin; i < end; ++i) any |= (x[k][i] > limit) & (x[k][i] < INFINITY);
    if (!any) continue;
    for (int i = begin; i < end; ++i)
      for (int k = 0; k < num_anchors; ++k) {
        places[count] = i * num_anchors + k;
        count += (x[k][i] > limit) & (x[k][i] < INFINITY);
      }
  }
  return count;
}

// The best candidates of an image, evidence descending, ties by index.
//   score(evidence) is the score that is written; admits(index) is called in that order and refuses surplus candidates
template <class Score, class Admits>
void write_best(const Survivors& survivors, int64_t max_candidates, const CandidateArrays& out, int64_t image,
                const Score& score, const Admits& admits) {
  const auto order = order_by_score(survivors.boxes.data(), survivors.evidence.data(),
                                    static_cast<int64_t>(survivors.boxes.size()), -INFINITY);
  int64_t count = 0;
  const int64_t first = image * max_candidates;
  Box* boxes = reinterpret_cast<Box*>(out.boxes) + first;
  float* scores = out.scores + first;
  int64_t* index = out.index + first;
  float* landmarks = out.landmarks ? out.landmarks + first * kPointValues : nullptr;
  for (const int32_t i : order) {
    if (count == max_candidates) break;
    if (!admits(survivors.index[i])) continue;
    boxes[count] = survivors.boxes[i];
    scores[count] = score(survivors.evidence[i]);
    index[count] = survivors.index[i];
    if (landmarks)
      std::copy_n(survivors.landmarks.data() + int64_t(i) * kPointValues, kPointValues,
                  landmarks + count * kPointValues);
    ++count;
  }
  out.count[image] = static_cast<int32_t>(count);
  std::fill(boxes + count, boxes + max_candidates, Box{0, 0, 0, 0});
  std::fill(scores + count, scores + max_candidates, 0.f);
  std::fill(index + count, index + max_candidates, -1);
  if (landmarks) std::fill(landmarks + count * kPointValues, landmarks + max_candidates * kPointValues, 0.f);
}

}  // namespace pyface::cpu
