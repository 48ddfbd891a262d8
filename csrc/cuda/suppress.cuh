// What nms, soft_nms and box_voting share: boxes as vectors, the overlap test, and the path of nms for many boxes,
// which is also how box_voting finds its clusters.
#pragma once

#include <cmath>

#include "../ops.h"
#include "block.cuh"
#include "common.cuh"
#include "sort.h"

namespace pyface::cuda {

constexpr int kThreads = 1024;           // of the largest block, and boxes in a tile
constexpr uint32_t kNone = 0xffffffffu;  // the key of an invalid entry: behind those of all finite scores
constexpr int64_t kMaxEntries = int64_t{1} << 31;

// Four loads, because a tensor that starts inside another one need not be aligned to a box.
inline __device__ Box load_box(const float* boxes, int64_t i) {
  const float* const b = boxes + 4 * i;
  return {b[0], b[1], b[2], b[3]};
}

inline __device__ Box as_box(const float4& v) { return {v.x, v.y, v.z, v.w}; }
inline __device__ float4 as_vector(const Box& b) { return make_float4(b.x1, b.y1, b.x2, b.y2); }

// Whether box_overlap() > threshold, nearly always without its division. With q = inter / base, and rounding monotone:
// inter > above * base, even rounded, means q > above, thus float(q) >= above > threshold; and inter < threshold * base
// means q < threshold, thus float(q) <= threshold. Only what lies between is divided.
struct Suppression {
  float threshold, above, below;
  bool apart;  // boxes that do not touch (overlap 0) suppress each other as well
  Overlap kind;

  Suppression(float threshold, Overlap kind)
      : threshold(threshold),
        above(std::nextafter(threshold, INFINITY)),
        below(threshold),
        apart(threshold < 0.f),
        kind(kind) {
    if (apart) above = below = NAN;  // the shortcuts hold for thresholds >= 0
  }

  __device__ bool operator()(const Box& a, float area_a, const Box& b, float area_b) const {
    const float w = fminf(a.x2, b.x2) - fmaxf(a.x1, b.x1), h = fminf(a.y2, b.y2) - fmaxf(a.y1, b.y1);
    const float inter = fmaxf(w, 0.f) * fmaxf(h, 0.f);
    const float base = kind == Overlap::Union ? area_a + area_b - inter : fminf(area_a, area_b);
    if (inter < below * base) return false;
    if (inter > above * base) return true;
    return inter / base > threshold;
  }

  // Whether `b` may suppress a box within `bounds`.
  __device__ bool may_reach(const Box& b, const Box& bounds) const {
    return apart || (b.x1 < bounds.x2 && bounds.x1 < b.x2 && b.y1 < bounds.y2 && bounds.y1 < b.y2);
  }
};

// The workspace of the path for many boxes.
struct TilesWorkspace {
  TilesWorkspace(void* base, int64_t batch, int64_t n) {
    Workspace workspace(base);
    const size_t entries = static_cast<size_t>(batch) * n;
    keys = {workspace.take<uint64_t>(entries), workspace.take<uint64_t>(entries)};
    order = {workspace.take<uint32_t>(entries), workspace.take<uint32_t>(entries)};
    kept_boxes = workspace.take<float4>(entries);
    progress = workspace.take<uint64_t>(batch);
    ticket = workspace.take<uint32_t>(1);
    sort_bytes = sort_workspace(entries);
    sort = workspace.take<char>(sort_bytes);
    bytes = workspace.bytes();
  }

  PingPong<uint64_t> keys;
  PingPong<uint32_t> order;
  float4* kept_boxes;
  uint64_t* progress;
  uint32_t* ticket;
  void* sort;
  size_t sort_bytes, bytes;
};

// Sorts and resolves (nms.cu); with `with_owner` the owners of the sorted entries are left in workspace.keys.other.
int run_tiles(const float* boxes, const float* scores, const int64_t* classes, const int32_t* counts, int64_t batch,
              int64_t n, Suppression suppression, float score_threshold, int64_t max_detections, int64_t* keep,
              int32_t* keep_count, bool with_owner, TilesWorkspace& workspace, cudaStream_t stream);

}  // namespace pyface::cuda
