// Matching of anchors and faces on the CPU. Neighbouring anchors are taken in blocks, and a block is compared only with
// faces that its bounds touch: first a range of blocks culls the image's faces, then each block culls the range's.
// Memory grows with the anchors plus the faces, never with their product. pyface.ops.assign_anchors describes rules 1
// to 4.
#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "../ops.h"
#include "parallel.h"
#include "simd.h"

namespace pyface::cpu {
namespace {

constexpr int kBlock = 64;                // anchors that are compared with a face together
constexpr int kBlocks = 16;               // blocks of a range
constexpr int kRange = kBlock * kBlocks;  // anchors of a range, a thread's share

constexpr Box kNowhere{INFINITY, INFINITY, -INFINITY, -INFINITY};  // touches and overlaps nothing

// Between the passes an anchor without a face holds kBestFace - its best face in `index`, or kNoFace when it overlaps
// none; kIgnored means that it is invalid.
constexpr int32_t kNoFace = -3, kBestFace = -4;

// An anchor that a face may get; what a face prefers comes first.
struct Claim {
  float overlap;
  int32_t anchor;
  bool operator<(const Claim& o) const { return overlap > o.overlap || (overlap == o.overlap && anchor < o.anchor); }
};

// An image's boxes; those that cannot have anchors are replaced by kNowhere.
struct Faces {
  std::vector<Box> boxes, ignored;
  std::vector<Claim> best;  // of every face, where best anchors are forced
  std::mutex mutex;         // of `best`
  int64_t count = 0;        // of faces that can have anchors

  void set(const Box* own, const uint8_t* ignore, int64_t n, bool force_best) {
    boxes.assign(n, kNowhere);
    if (force_best) best.assign(n, Claim{0.f, 0});
    for (int64_t i = 0; i < n; ++i) {
      if (!is_finite(own[i])) continue;
      if (ignore && ignore[i]) {
        ignored.push_back(own[i]);
      } else if (box_area(own[i]) > 0.f) {
        boxes[i] = own[i];
        ++count;
      }
    }
  }
};

// Consecutive anchors of one image and their results.
struct Range {
  const Box* anchors;
  const uint8_t* valid;  // or nullptr
  int32_t first, count;  // number of the first anchor in its image
  int32_t* index;
  float* overlap;
};

struct alignas(64) Block {
  float x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  Box bounds;
};

PYFACE_INLINE void grow(Box& bounds, const Box& b) {
  bounds.x1 = b.x1 < bounds.x1 ? b.x1 : bounds.x1;
  bounds.y1 = b.y1 < bounds.y1 ? b.y1 : bounds.y1;
  bounds.x2 = b.x2 > bounds.x2 ? b.x2 : bounds.x2;
  bounds.y2 = b.y2 > bounds.y2 ? b.y2 : bounds.y2;
}

PYFACE_INLINE Box anchor_of(const Block& block, int i) { return {block.x1[i], block.y1[i], block.x2[i], block.y2[i]}; }

PYFACE_INLINE void put(Block& block, int i, const Box& anchor) {
  block.x1[i] = anchor.x1;
  block.y1[i] = anchor.y1;
  block.x2[i] = anchor.x2;
  block.y2[i] = anchor.y2;
}

// The box around a block's anchors: first in each of sixteen lanes, as many as a register holds, then across the lanes.
PYFACE_INLINE Box bounds_of(const Block& block) {
  constexpr int kLanes = 16;
  float x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes];
  std::copy_n(block.x1, kLanes, x1);
  std::copy_n(block.y1, kLanes, y1);
  std::copy_n(block.x2, kLanes, x2);
  std::copy_n(block.y2, kLanes, y2);
  for (int begin = kLanes; begin < kBlock; begin += kLanes)
    for (int i = 0; i < kLanes; ++i) {
      const Box b = anchor_of(block, begin + i);
      x1[i] = b.x1 < x1[i] ? b.x1 : x1[i];
      y1[i] = b.y1 < y1[i] ? b.y1 : y1[i];
      x2[i] = b.x2 > x2[i] ? b.x2 : x2[i];
      y2[i] = b.y2 > y2[i] ? b.y2 : y2[i];
    }
  Box bounds = kNowhere;
  for (int i = 0; i < kLanes; ++i) grow(bounds, {x1[i], y1[i], x2[i], y2[i]});
  return bounds;
}

// Block `b` of a range. Places of anchors that are invalid or not finite, and places beyond the end, hold kNowhere.
PYFACE_INLINE void load(const Range& range, int b, Block& block) {
  const int begin = b * kBlock, count = std::min(kBlock, range.count - begin);
  const Box* anchors = range.anchors + begin;
  int32_t counts[kBlock];
  for (int i = 0; i < count; ++i) put(block, i, anchors[i]);
  for (int i = count; i < kBlock; ++i) put(block, i, kNowhere);
  for (int i = 0; i < kBlock; ++i) counts[i] = is_finite(anchor_of(block, i));
  if (range.valid)
    for (int i = 0; i < count; ++i) counts[i] &= range.valid[begin + i];
  for (int i = 0; i < kBlock; ++i) {
    put(block, i, counts[i] ? anchor_of(block, i) : kNowhere);
    block.area[i] = box_area(anchor_of(block, i));
  }
  block.bounds = bounds_of(block);
}

// Which boxes touch the bounds, ascending; returns how many.
PYFACE_INLINE int32_t cull(const std::vector<Box>& boxes, const Box& bounds, int32_t* touching) {
  int32_t count = 0;
  for (size_t i = 0; i < boxes.size(); ++i) {
    const Box& b = boxes[i];
    touching[count] = static_cast<int32_t>(i);
    count += (b.x1 < bounds.x2) & (bounds.x1 < b.x2) & (b.y1 < bounds.y2) & (bounds.y1 < b.y2);
  }
  return count;
}

// The faces that a range touches, ascending.
struct NearFaces {
  std::vector<Box> boxes;
  std::vector<int32_t> face;
  std::vector<Claim> best;

  NearFaces(const std::vector<Box>& all, const Box& bounds) : face(all.size()) {
    face.resize(cull(all, bounds, face.data()));
    boxes.reserve(face.size());
    for (const int32_t f : face) boxes.push_back(all[f]);
    best.assign(face.size(), Claim{0.f, 0});
  }
};

// The best face of every anchor of a block so far.
struct alignas(64) Best {
  float overlap[kBlock];
  int32_t face[kBlock];
};

// Compares a block with a face; the IoUs go to `ious`. Faces come ascending, so that ties stay with the lower one.
// Returns whether an IoU is > limit.
PYFACE_INLINE bool meet(const Block& block, const Box& box, int32_t face, float limit, Best& best, float* ious) {
  const float area = box_area(box);
  int above = 0;
  for (int i = 0; i < kBlock; ++i) {
    const float iou = box_overlap(anchor_of(block, i), block.area[i], box, area, Overlap::Union);
    const bool better = iou > best.overlap[i];
    best.overlap[i] = better ? iou : best.overlap[i];
    best.face[i] = better ? face : best.face[i];
    ious[i] = iou;
    above |= iou > limit;
  }
  return above != 0;
}

PYFACE_INLINE void match_block(const Block& block, int32_t first, NearFaces& near, int32_t* touching, bool force_best,
                               Best& best) {
  alignas(64) float ious[kBlock];
  std::fill_n(best.overlap, kBlock, 0.f);
  std::fill_n(best.face, kBlock, -1);
  const int32_t count = cull(near.boxes, block.bounds, touching);
  for (int32_t t = 0; t < count; ++t) {
    const int32_t f = touching[t];
    Claim& claim = near.best[f];
    const float limit = force_best ? claim.overlap : INFINITY;
    if (!meet(block, near.boxes[f], near.face[f], limit, best, ious)) continue;
    for (int i = 0; i < kBlock; ++i)
      if (ious[i] > claim.overlap) claim = {ious[i], first + i};
  }
}

// Rule 1, and the best anchors of faces.
PYFACE_INLINE void match_impl(const Range& range, float positive, bool force_best, Faces& faces) {
  Block blocks[kBlocks];
  const int num_blocks = (range.count + kBlock - 1) / kBlock;
  Box bounds = kNowhere;
  for (int b = 0; b < num_blocks; ++b) {
    load(range, b, blocks[b]);
    grow(bounds, blocks[b].bounds);
  }
  NearFaces near(faces.boxes, bounds);
  std::vector<int32_t> touching(near.boxes.size());
  Best best;
  for (int b = 0; b < num_blocks; ++b) {
    const int begin = b * kBlock, count = std::min(kBlock, range.count - begin);
    match_block(blocks[b], range.first + begin, near, touching.data(), force_best, best);
    for (int i = 0; i < count; ++i) {
      const int32_t face = best.face[i], without = face < 0 ? kNoFace : kBestFace - face;
      const bool valid = blocks[b].x1[i] < INFINITY;
      range.index[begin + i] = best.overlap[i] >= positive ? face : (valid ? without : kIgnored);
      range.overlap[begin + i] = best.overlap[i];
    }
  }
  if (!force_best) return;
  const std::lock_guard<std::mutex> lock(faces.mutex);
  for (size_t i = 0; i < near.face.size(); ++i) {
    Claim& claim = faces.best[near.face[i]];
    claim = std::min(claim, near.best[i]);
  }
}

PYFACE_DISPATCH(void, match, (const Range& range, float positive, bool force_best, Faces& faces),
                (range, positive, force_best, faces))

// Rule 2: the strongest claim comes last and stays.
void force_best_anchors(const Faces& faces, int32_t* index, float* overlap) {
  std::vector<int32_t> order;
  for (size_t f = 0; f < faces.best.size(); ++f)
    if (faces.best[f].overlap > 0.f) order.push_back(static_cast<int32_t>(f));
  std::sort(order.begin(), order.end(), [&](int32_t f, int32_t g) {
    const float a = faces.best[f].overlap, b = faces.best[g].overlap;
    return a < b || (a == b && f > g);
  });
  for (const int32_t f : order) {
    index[faces.best[f].anchor] = f;
    overlap[faces.best[f].anchor] = faces.best[f].overlap;
  }
}

// Rule 3. `wanted` anchors for every face, 0: the mean number, rounded half up.
void compensate(const Faces& faces, int64_t num_anchors, int64_t wanted, float above, int32_t* index,
                const float* overlap) {
  if (faces.count == 0) return;
  std::vector<int64_t> missing(faces.boxes.size(), 0), starts(faces.boxes.size() + 1, 0);
  int64_t matched = 0;
  for (int64_t a = 0; a < num_anchors; ++a)
    if (index[a] >= 0) {
      --missing[index[a]];
      ++matched;
    }
  if (wanted == 0) wanted = std::max<int64_t>(1, (2 * matched + faces.count) / (2 * faces.count));
  for (int64_t& m : missing) m = std::max<int64_t>(0, m + wanted);

  // The candidates of faces that lack anchors, face by face.
  const auto face_of = [&](int64_t a) -> int32_t {
    if (index[a] > kBestFace || !(overlap[a] > above)) return -1;
    const int32_t f = kBestFace - index[a];
    return missing[f] > 0 ? f : -1;
  };
  for (int64_t a = 0; a < num_anchors; ++a) {
    const int32_t f = face_of(a);
    if (f >= 0) ++starts[f + 1];
  }
  for (size_t f = 0; f < missing.size(); ++f) starts[f + 1] += starts[f];
  std::vector<Claim> candidates(starts.back());
  std::vector<int64_t> ends(starts.begin(), starts.end() - 1);
  for (int64_t a = 0; a < num_anchors; ++a) {
    const int32_t f = face_of(a);
    if (f >= 0) candidates[ends[f]++] = {overlap[a], static_cast<int32_t>(a)};
  }

  for (size_t f = 0; f < missing.size(); ++f) {
    const auto begin = candidates.begin() + starts[f], end = candidates.begin() + starts[f + 1];
    const auto last = begin + std::min<int64_t>(missing[f], end - begin);
    std::nth_element(begin, last, end);
    for (auto c = begin; c < last; ++c) index[c->anchor] = static_cast<int32_t>(f);
  }
}

// Rule 4, and what is left becomes background or ignored.
PYFACE_INLINE void finish_impl(const Range& range, float negative, const Faces& faces) {
  Block block;
  std::vector<int32_t> touching(faces.ignored.size());
  for (int b = 0; b * kBlock < range.count; ++b) {
    int32_t covered[kBlock] = {};
    if (!faces.ignored.empty()) {
      load(range, b, block);
      const int32_t count = cull(faces.ignored, block.bounds, touching.data());
      for (int32_t t = 0; t < count; ++t)
        for (int i = 0; i < kBlock; ++i)
          covered[i] |= covers_half(faces.ignored[touching[t]], anchor_of(block, i), block.area[i]);
    }
    const int begin = b * kBlock, count = std::min(kBlock, range.count - begin);
    int32_t* index = range.index + begin;
    const float* overlap = range.overlap + begin;
    for (int i = 0; i < count; ++i) {
      const int32_t without = ((overlap[i] < negative) & (covered[i] == 0)) ? kBackground : kIgnored;
      index[i] = index[i] < kIgnored ? without : index[i];
    }
  }
}

PYFACE_DISPATCH(void, finish, (const Range& range, float negative, const Faces& faces), (range, negative, faces))

}  // namespace

void assign_anchors(const float* anchors, int64_t anchor_stride, int64_t num_anchors, const float* boxes,
                    int64_t /*num_boxes*/, const uint8_t* ignore, const int64_t* splits, int64_t batch,
                    const uint8_t* valid, int64_t valid_stride, const Matching& matching, int32_t* index,
                    float* overlap, int threads) {
  const float positive = float_above(matching.positive), negative = float_above(matching.negative);
  std::vector<Faces> faces(batch);
  parallel_for(batch, threads, [&](int64_t image) {
    const int64_t first = splits[image];
    faces[image].set(reinterpret_cast<const Box*>(boxes) + first, ignore ? ignore + first : nullptr,
                     splits[image + 1] - first, matching.force_best);
  });

  const int64_t ranges = (num_anchors + kRange - 1) / kRange;
  const auto for_ranges = [&](const auto& use) {
    parallel_for(batch * ranges, threads, [&](int64_t i) {
      const int64_t image = i / ranges, first = i % ranges * kRange, place = image * num_anchors + first;
      use(Range{reinterpret_cast<const Box*>(anchors) + image * anchor_stride + first,
                valid ? valid + image * valid_stride + first : nullptr, static_cast<int32_t>(first),
                static_cast<int32_t>(std::min<int64_t>(kRange, num_anchors - first)), index + place, overlap + place},
          faces[image]);
    });
  };
  for_ranges([&](const Range& range, Faces& own) { match(range, positive, matching.force_best, own); });
  if (matching.force_best || matching.compensate >= 0)
    parallel_for(batch, threads, [&](int64_t image) {
      int32_t* own_index = index + image * num_anchors;
      float* own_overlap = overlap + image * num_anchors;
      if (matching.force_best) force_best_anchors(faces[image], own_index, own_overlap);
      if (matching.compensate >= 0)
        compensate(faces[image], num_anchors, matching.compensate, float_below(matching.compensate_above), own_index,
                   own_overlap);
    });
  for_ranges([&](const Range& range, const Faces& own) { finish(range, negative, own); });
}

}  // namespace pyface::cpu
