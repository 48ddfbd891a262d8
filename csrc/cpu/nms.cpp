// Suppression on the CPU: nms (plain, per class, batched), soft_nms and box_voting.
#include <algorithm>
#include <cstring>
#include <queue>
#include <unordered_map>
#include <vector>

#include "../ops.h"
#include "grid.h"
#include "order.h"
#include "parallel.h"
#include "simd.h"

namespace pyface::cpu {
namespace {

constexpr int kLanes = 16;

// Sixteen boxes side by side, what one AVX-512 register holds; free places hold an empty box, which overlaps nothing.
struct alignas(64) Block {
  float x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];
};

// Kept boxes as chains of blocks, one chain per grid cell and one more for boxes that cover too many cells.
class KeptBoxes {
 public:
  KeptBoxes(int64_t chains, int64_t expected) : first_(chains, -1), fill_(chains, 0) {
    blocks_.reserve(expected / kLanes + 4);
    next_.reserve(expected / kLanes + 4);
  }

  void add(int64_t chain, const Box& b, float area) {
    if (first_[chain] < 0 || fill_[chain] == kLanes) {
      blocks_.push_back(empty_block());
      next_.push_back(first_[chain]);
      first_[chain] = static_cast<int32_t>(blocks_.size()) - 1;
      fill_[chain] = 0;
    }
    Block& block = blocks_[first_[chain]];
    const int lane = fill_[chain]++;
    block.x1[lane] = b.x1;
    block.y1[lane] = b.y1;
    block.x2[lane] = b.x2;
    block.y2[lane] = b.y2;
    block.area[lane] = area;
  }

  int32_t first(int64_t chain) const { return first_[chain]; }
  int32_t next(int32_t block) const { return next_[block]; }
  const Block& operator[](int32_t block) const { return blocks_[block]; }

 private:
  static Block empty_block() {
    Block block;
    std::fill_n(block.x1, kLanes, INFINITY);
    std::fill_n(block.y1, kLanes, INFINITY);
    std::fill_n(block.x2, kLanes, -INFINITY);
    std::fill_n(block.y2, kLanes, -INFINITY);
    std::fill_n(block.area, kLanes, 1.f);
    return block;
  }

  std::vector<Block> blocks_;
  std::vector<int32_t> next_, first_;
  std::vector<int32_t> fill_;
};

template <Overlap kOverlap>
PYFACE_INLINE bool any_overlaps(const Block& kept, const Box& b, float area, float threshold) {
  int hits = 0;
  for (int i = 0; i < kLanes; ++i) {
    const Box k{kept.x1[i], kept.y1[i], kept.x2[i], kept.y2[i]};
    hits |= box_overlap(k, kept.area[i], b, area, kOverlap) > threshold;
  }
  return hits != 0;
}

template <Overlap kOverlap>
PYFACE_INLINE bool chain_overlaps(const KeptBoxes& kept, int64_t chain, const Box& b, float area, float threshold) {
  for (int32_t block = kept.first(chain); block >= 0; block = kept.next(block))
    if (any_overlaps<kOverlap>(kept[block], b, area, threshold)) return true;
  return false;
}

// Greedy suppression of boxes[order[0..n)]: calls keep(rank) for each kept one until it has been called `limit` times.
// Boxes that cover more than kManyCells cells have chains of their own: such a box is compared with all boxes, and
// every box with the large ones. A few boxes are faster in one chain, without a grid.
template <Overlap kOverlap, class Keep>
PYFACE_INLINE void suppress_impl(const Box* boxes, const int32_t* order, int64_t n, float threshold, int64_t limit,
                                 Keep& keep) {
  constexpr int64_t kManyCells = 32, kGridPays = 128;
  const bool has_grid = n >= kGridPays;
  const Grid grid(boxes, order, has_grid ? n : 0);
  const int64_t large = grid.size(), all = large + 1;
  KeptBoxes kept(grid.size() + 2, std::min<int64_t>(n, kGridPays));
  int64_t found = 0;
  for (int64_t rank = 0; rank < n && found < limit; ++rank) {
    const Box b = boxes[order[rank]];
    const float area = box_area(b);
    // A box without area is kept: its overlaps are NaN or 0, so it neither suppresses nor is suppressed.
    if (!(area > 0.f)) {
      keep(rank), ++found;
      continue;
    }
    const CellRange cells = grid.cells(b);
    const bool is_large = !has_grid || cells.count() > kManyCells;
    bool suppressed = chain_overlaps<kOverlap>(kept, is_large ? all : large, b, area, threshold);
    if (!is_large)
      for (int64_t row = cells.top; row <= cells.bottom && !suppressed; ++row)
        for (int64_t column = cells.left; column <= cells.right && !suppressed; ++column)
          suppressed = chain_overlaps<kOverlap>(kept, grid.index(column, row), b, area, threshold);
    if (suppressed) continue;
    keep(rank), ++found;
    kept.add(all, b, area);
    if (!has_grid) continue;
    if (is_large)
      kept.add(large, b, area);
    else
      for (int64_t row = cells.top; row <= cells.bottom; ++row)
        for (int64_t column = cells.left; column <= cells.right; ++column) kept.add(grid.index(column, row), b, area);
  }
}

template <class Keep>
PYFACE_INLINE void suppress_by_overlap_impl(const Box* boxes, const int32_t* order, int64_t n, float threshold,
                                            Overlap overlap, int64_t limit, Keep& keep) {
  if (overlap == Overlap::Union)
    suppress_impl<Overlap::Union>(boxes, order, n, threshold, limit, keep);
  else
    suppress_impl<Overlap::Min>(boxes, order, n, threshold, limit, keep);
}

// The ranks of the kept boxes, ascending.
struct KeptRanks {
  std::vector<int32_t> ranks;
  PYFACE_INLINE void operator()(int64_t rank) { ranks.push_back(static_cast<int32_t>(rank)); }
};

PYFACE_DISPATCH(void, suppress_by_overlap,
                (const Box* boxes, const int32_t* order, int64_t n, float threshold, Overlap overlap, int64_t limit,
                 KeptRanks& keep),
                (boxes, order, n, threshold, overlap, limit, keep))

// boxes[order[...]] split by class, each part in score order, as ranks into `order`.
std::vector<std::vector<int32_t>> ranks_by_class(const int64_t* classes, const std::vector<int32_t>& order) {
  std::unordered_map<int64_t, size_t> part_of_class;
  std::vector<std::vector<int32_t>> parts;
  int64_t last_class = 0;
  size_t part = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const int64_t c = classes[order[rank]];
    if (rank == 0 || c != last_class) {
      part = part_of_class.emplace(c, parts.size()).first->second;
      if (part == parts.size()) parts.emplace_back();
      last_class = c;
    }
    parts[part].push_back(static_cast<int32_t>(rank));
  }
  return parts;
}

// The ranks that remain when each class is suppressed on its own.
std::vector<int32_t> keep_per_class(const Box* boxes, const int64_t* classes, const std::vector<int32_t>& order,
                                    float threshold, Overlap overlap, int64_t limit, int threads) {
  const auto parts = ranks_by_class(classes, order);
  std::vector<uint8_t> is_kept(order.size());
  parallel_for(static_cast<int64_t>(parts.size()), threads, [&](int64_t p) {
    std::vector<int32_t> part_order(parts[p].size());
    for (size_t i = 0; i < part_order.size(); ++i) part_order[i] = order[parts[p][i]];
    KeptRanks kept;
    suppress_by_overlap(boxes, part_order.data(), static_cast<int64_t>(part_order.size()), threshold, overlap, limit,
                        kept);
    for (const int32_t rank : kept.ranks) is_kept[parts[p][rank]] = 1;
  });
  std::vector<int32_t> ranks;
  for (size_t rank = 0; rank < order.size(); ++rank)
    if (is_kept[rank]) ranks.push_back(static_cast<int32_t>(rank));
  return ranks;
}

// The neighbours of a box among boxes[order[...]]: those that share a grid cell with it, each reported once, by rank.
// Ranks that were removed are never reported again.
class Neighbours {
 public:
  Neighbours(const Box* boxes, const std::vector<int32_t>& order)
      : grid_(boxes, order.data(), static_cast<int64_t>(order.size())),
        cells_(grid_.size()),
        removed_(order.size()),
        seen_(order.size(), -1) {
    for (size_t rank = 0; rank < order.size(); ++rank) {
      const int32_t r = static_cast<int32_t>(rank);
      all_.push_back(r);
      const CellRange range = grid_.cells(boxes[order[rank]]);
      if (range.count() > kManyCells)
        large_.push_back(r);
      else
        for_cells(range, [&](std::vector<int32_t>& cell) { cell.push_back(r); });
    }
  }

  void remove(int32_t rank) { removed_[rank] = 1; }
  bool removed(int32_t rank) const { return removed_[rank]; }

  // Calls visit(rank) for each neighbour; with `everywhere`, for every box.
  template <class Visit>
  void visit(const Box& b, bool everywhere, const Visit& visit) {
    ++query_;
    const CellRange range = grid_.cells(b);
    if (everywhere || range.count() > kManyCells) return visit_list(all_, visit);
    visit_list(large_, visit);
    for_cells(range, [&](std::vector<int32_t>& cell) { visit_list(cell, visit); });
  }

 private:
  static constexpr int64_t kManyCells = 32;

  template <class Use>
  void for_cells(const CellRange& range, const Use& use) {
    for (int64_t row = range.top; row <= range.bottom; ++row)
      for (int64_t column = range.left; column <= range.right; ++column) use(cells_[grid_.index(column, row)]);
  }

  template <class Visit>
  void visit_list(std::vector<int32_t>& list, const Visit& visit) {
    for (size_t i = 0; i < list.size();) {
      const int32_t rank = list[i];
      if (removed_[rank]) {  // removed boxes leave a list when it is next visited
        list[i] = list.back();
        list.pop_back();
        continue;
      }
      ++i;
      if (seen_[rank] == query_) continue;
      seen_[rank] = query_;
      visit(rank);
    }
  }

  Grid grid_;
  std::vector<std::vector<int32_t>> cells_;
  std::vector<int32_t> large_, all_;
  std::vector<uint8_t> removed_;
  std::vector<int32_t> seen_;
  int32_t query_ = -1;
};

}  // namespace

void nms(const float* boxes, const float* scores, const int64_t* classes, const int32_t* counts, int64_t batch,
         int64_t n, double iou_threshold, double score_threshold, Overlap overlap, int64_t max_detections,
         int64_t* keep, int32_t* keep_count, int threads) {
  const float threshold = float_below(iou_threshold);
  const int threads_within = batch == 1 ? threads : 1;
  parallel_for(batch, threads, [&](int64_t segment) {
    const Box* segment_boxes = reinterpret_cast<const Box*>(boxes) + segment * n;
    const int64_t valid = counts ? std::clamp<int64_t>(counts[segment], 0, n) : n;
    const auto order = order_by_score(segment_boxes, scores + segment * n, valid, score_threshold);
    KeptRanks kept;
    if (classes)
      kept.ranks = keep_per_class(segment_boxes, classes + segment * n, order, threshold, overlap, max_detections,
                                  threads_within);
    else
      suppress_by_overlap(segment_boxes, order.data(), static_cast<int64_t>(order.size()), threshold, overlap,
                          max_detections, kept);
    const int64_t count = std::min<int64_t>(static_cast<int64_t>(kept.ranks.size()), max_detections);
    int64_t* out = keep + segment * max_detections;
    for (int64_t i = 0; i < count; ++i) out[i] = order[kept.ranks[i]];
    std::fill(out + count, out + max_detections, -1);
    keep_count[segment] = static_cast<int32_t>(count);
  });
}

void soft_nms(const float* boxes, const float* scores, int64_t n, SoftNms method, double iou_threshold, double sigma,
              double score_threshold, Overlap overlap, int64_t* keep, float* kept_scores, int32_t* keep_count,
              int /*threads*/) {
  const Box* all_boxes = reinterpret_cast<const Box*>(boxes);
  const float threshold = float_below(iou_threshold), limit = float_below(score_threshold);
  const auto order = order_by_score(all_boxes, scores, n, score_threshold);

  // Scores only fall, so that of a queue entry may be outdated; such an entry is put back with its current score.
  struct Entry {
    float score;
    int32_t index, rank;
    bool operator<(const Entry& o) const { return score < o.score || (score == o.score && index > o.index); }
  };
  std::vector<float> score(order.size());
  std::vector<Entry> entries(order.size());
  for (size_t rank = 0; rank < order.size(); ++rank) {
    score[rank] = scores[order[rank]];
    entries[rank] = {score[rank], order[rank], static_cast<int32_t>(rank)};
  }
  std::priority_queue<Entry> queue(std::less<Entry>(), std::move(entries));

  Neighbours neighbours(all_boxes, order);
  int32_t count = 0;
  while (!queue.empty()) {
    Entry best = queue.top();
    queue.pop();
    const float present = score[best.rank];
    if (neighbours.removed(best.rank)) continue;
    if (present != best.score) {
      best.score = present;
      queue.push(best);
      continue;
    }
    keep[count] = best.index;
    kept_scores[count++] = present;
    neighbours.remove(best.rank);
    const Box& b = all_boxes[best.index];
    const float area = box_area(b);
    neighbours.visit(b, false, [&](int32_t rank) {
      const Box& other = all_boxes[order[rank]];
      const float ratio = box_overlap(b, area, other, box_area(other), overlap);
      score[rank] *= soft_nms_weight(ratio, method, threshold, static_cast<float>(sigma));
      if (!(score[rank] > limit)) neighbours.remove(rank);
    });
  }
  std::fill(keep + count, keep + n, -1);
  std::fill(kept_scores + count, kept_scores + n, 0.f);
  *keep_count = count;
}

void box_voting(const float* boxes, const float* scores, int64_t n, double iou_threshold, Overlap overlap,
                bool drop_singletons, float* voted_boxes, float* voted_scores, int32_t* voted_count, int /*threads*/) {
  const Box* all_boxes = reinterpret_cast<const Box*>(boxes);
  const float threshold = float_above(iou_threshold);
  const auto order = order_by_score(all_boxes, scores, n, -INFINITY);
  Neighbours neighbours(all_boxes, order);
  std::vector<int32_t> cluster;
  int32_t count = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const int32_t best = static_cast<int32_t>(rank);
    if (neighbours.removed(best)) continue;
    const Box& b = all_boxes[order[rank]];
    const float area = box_area(b);
    neighbours.remove(best);
    cluster.assign(1, best);
    const bool everywhere = threshold == 0.f;  // then boxes apart, with overlap 0, belong to the cluster as well
    neighbours.visit(b, everywhere, [&](int32_t other_rank) {
      const Box& other = all_boxes[order[other_rank]];
      if (!(box_overlap(b, area, other, box_area(other), overlap) >= threshold)) return;
      cluster.push_back(other_rank);
      neighbours.remove(other_rank);
    });
    if (drop_singletons && cluster.size() == 1) continue;
    std::sort(cluster.begin(), cluster.end());  // summed in score order, for the same sum everywhere
    double sum[4] = {}, total = 0;
    for (const int32_t member : cluster) {
      const float* box = boxes + int64_t(order[member]) * 4;
      const double weight = std::max(scores[order[member]], 0.f);
      for (int i = 0; i < 4; ++i) sum[i] += weight * box[i];
      total += weight;
    }
    float* out = voted_boxes + int64_t(count) * 4;
    for (int i = 0; i < 4; ++i) out[i] = total > 0 ? static_cast<float>(sum[i] / total) : (&b.x1)[i];
    voted_scores[count++] = scores[order[rank]];
  }
  std::fill(voted_boxes + int64_t(count) * 4, voted_boxes + n * 4, 0.f);
  std::fill(voted_scores + count, voted_scores + n, 0.f);
  *voted_count = count;
}

}  // namespace pyface::cpu
