// A uniform grid over the plane, so that a box meets only its neighbours instead of all boxes.
//
// Coordinates beyond the grid fall into its border cells, and the mapping from coordinate to cell is monotone; two
// boxes that intersect therefore always share a cell, whatever the outliers. The grid's place and pitch come from a
// sample of the boxes and matter for speed only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../geometry.h"

namespace pyface::cpu {

struct CellRange {
  int32_t left, top, right, bottom;  // inclusive
  int64_t count() const { return int64_t(right - left + 1) * (bottom - top + 1); }
};

class Grid {
 public:
  // For `n` boxes, boxes[order[i]].
  Grid(const Box* boxes, const int32_t* order, int64_t n) {
    constexpr int64_t kSample = 512;
    const int64_t step = std::max<int64_t>(1, n / kSample);
    std::vector<float> xs, ys;
    double side = 0;
    for (int64_t i = 0; i < n; i += step) {
      const Box& b = boxes[order[i]];
      xs.insert(xs.end(), {b.x1, b.x2});
      ys.insert(ys.end(), {b.y1, b.y2});
      side += std::max(0.0, double(b.x2) - b.x1) + std::max(0.0, double(b.y2) - b.y1);
    }
    if (xs.empty()) return;
    // A pitch of 1.25 mean sides puts a box into some three cells. More cells than boxes would be empty ones.
    const double pitch = 1.25 * side / static_cast<double>(xs.size());
    const int limit = static_cast<int>(std::min(256.0, std::sqrt(static_cast<double>(n)) + 1));
    place(xs, pitch, limit, x0_, inverse_x_, columns_);
    place(ys, pitch, limit, y0_, inverse_y_, rows_);
  }

  int64_t size() const { return int64_t(columns_) * rows_; }

  CellRange cells(const Box& b) const { return {column(b.x1), row(b.y1), column(b.x2), row(b.y2)}; }

  int64_t index(int32_t column, int32_t row) const { return int64_t(row) * columns_ + column; }

 private:
  // Covers the middle 98 % of the sample.
  static void place(std::vector<float>& values, double pitch, int limit, double& start, double& inverse, int& cells) {
    const size_t cut = values.size() / 100;
    std::nth_element(values.begin(), values.begin() + cut, values.end());
    const double low = values[cut];
    std::nth_element(values.begin(), values.end() - 1 - cut, values.end());
    const double extent = double(values[values.size() - 1 - cut]) - low;
    start = low;
    cells = 1;
    inverse = 0;
    if (!(extent > 0)) return;
    cells = static_cast<int>(std::clamp(pitch > 0 ? extent / pitch : double(limit), 1.0, double(limit)));
    inverse = cells / extent;
  }

  static int32_t cell(double offset, double inverse, int cells) {
    return static_cast<int32_t>(std::clamp(offset * inverse, 0.0, cells - 1.0));
  }

  int32_t column(float x) const { return cell(x - x0_, inverse_x_, columns_); }
  int32_t row(float y) const { return cell(y - y0_, inverse_y_, rows_); }

  double x0_ = 0, y0_ = 0, inverse_x_ = 0, inverse_y_ = 0;
  int columns_ = 1, rows_ = 1;
};

}  // namespace pyface::cpu
