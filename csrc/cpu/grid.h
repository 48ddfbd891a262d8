// A uniform grid over the plane, so that a box is compared with its neighbours only, not with all boxes.
//
// The plane is wrapped onto the grid, in both directions, so the grid needs no borders: wherever boxes lie, even in
// clusters far apart, they spread over its cells, and two boxes that intersect always share one. The pitch comes from a
// sample of the boxes and matters for speed only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../geometry.h"

namespace pyface::cpu {

// Cells of the unwrapped plane, inclusive.
struct CellRange {
  int64_t left, top, right, bottom;

  // At most kMost in each direction, so that nothing overflows; 0 when the range is empty.
  int64_t count() const {
    constexpr int64_t kMost = 1 << 20;
    return std::min(right - left + 1, kMost) * std::min(bottom - top + 1, kMost);
  }
};

class Grid {
 public:
  // For `n` boxes, boxes[order[i]]; without boxes it has one cell.
  Grid(const Box* boxes, const int32_t* order, int64_t n) {
    if (n == 0) return;
    constexpr int64_t kSample = 512;
    const int64_t step = std::max<int64_t>(1, n / kSample);
    std::vector<double> sides;
    for (int64_t i = 0; i < n; i += step) {
      const Box& b = boxes[order[i]];
      sides.push_back(std::max({0.0, double(b.x2) - b.x1, double(b.y2) - b.y1}));
    }
    std::nth_element(sides.begin(), sides.begin() + sides.size() / 2, sides.end());
    const double median = sides[sides.size() / 2];
    // A pitch of a typical longer side puts a box into two to four cells.
    inverse_ = 1 / (median > 1e-30 ? median : 1.0);
    // More cells than boxes would only add empty ones.
    while (side_ < 256 && int64_t(side_) * side_ < n) side_ *= 2;
  }

  int64_t size() const { return int64_t(side_) * side_; }

  // No cells for an inverted box, which intersects nothing: on its other axis it may be so long that a loop over rows
  // without columns never ends.
  CellRange cells(const Box& b) const {
    if (b.x2 < b.x1 || b.y2 < b.y1) return {0, 0, -1, -1};
    return {cell(b.x1), cell(b.y1), cell(b.x2), cell(b.y2)};
  }

  int64_t index(int64_t column, int64_t row) const { return (row & (side_ - 1)) * side_ + (column & (side_ - 1)); }

 private:
  int64_t cell(double coordinate) const {
    constexpr double kFar = 1e15;  // beyond it boxes share a cell, which is slow but correct
    return static_cast<int64_t>(std::floor(std::clamp(coordinate * inverse_, -kFar, kFar)));
  }

  double inverse_ = 0;
  int side_ = 1;  // a power of two
};

}  // namespace pyface::cpu
