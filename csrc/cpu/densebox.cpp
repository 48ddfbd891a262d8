// DenseBox on the CPU: maps to boxes (a strip of cells at a time, only what passes is decoded) and boxes to maps.
#include "../densebox.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "candidates.h"
#include "parallel.h"

namespace pyface::cpu {
namespace {

template <class T>
PYFACE_INLINE void scan_of(const Map& score_map, const Map& offset_map, const DenseBoxGrid& grid, float min_score,
                           const AnchorDecoding& decoding, const Cells& cells, Survivors& survivors) {
  const Elements<T> scores(score_map), offsets(offset_map);
  const int64_t width = is_one_row(score_map, grid.width) ? int64_t(grid.height) * grid.width : grid.width;
  float x[1][kStrip];
  int32_t places[kStrip + 1];
  for (int64_t cell = cells.begin; cell < cells.end;) {
    const int64_t column = cell % width;
    const int n = static_cast<int>(std::min({int64_t(kStrip), width - column, cells.end - cell}));
    load_strip(scores.at(cells.image, 0, cell / width, column), scores.column_stride, n, x[0]);
    const int count = passing(x, 1, n, min_score, places);
    for (int j = 0; j < count; ++j) {
      const int64_t at = cell + places[j], row = at / grid.width, col = at % grid.width;
      const T* p = offsets.at(cells.image, 0, row, col);
      const int64_t step = offsets.channel_stride;
      Box box =
          decode_cell(row, col, to_float(p[0]), to_float(p[step]), to_float(p[2 * step]), to_float(p[3 * step]), grid);
      if (!is_finite(box)) continue;
      if (decoding.sizes) box = clip_box(box, decoding.sizes[2 * cells.image], decoding.sizes[2 * cells.image + 1]);
      if (!has_min_side(box, decoding.min_side)) continue;
      survivors.boxes.push_back(box);
      survivors.evidence.push_back(x[0][places[j]]);
      survivors.index.push_back(at);
    }
    cell += n;
  }
}

PYFACE_INLINE void scan_impl(const Map& scores, const Map& offsets, Dtype dtype, const DenseBoxGrid& grid,
                             float min_score, const AnchorDecoding& decoding, const Cells& cells,
                             Survivors& survivors) {
  if (dtype == Dtype::Float16)
    scan_of<Half>(scores, offsets, grid, min_score, decoding, cells, survivors);
  else if (dtype == Dtype::BFloat16)
    scan_of<BFloat>(scores, offsets, grid, min_score, decoding, cells, survivors);
  else
    scan_of<float>(scores, offsets, grid, min_score, decoding, cells, survivors);
}

PYFACE_DISPATCH(void, scan,
                (const Map& scores, const Map& offsets, Dtype dtype, const DenseBoxGrid& grid, float min_score,
                 const AnchorDecoding& decoding, const Cells& cells, Survivors& survivors),
                (scores, offsets, dtype, grid, min_score, decoding, cells, survivors))

// Rows and columns [top, bottom) x [left, right) of a map.
struct Window {
  int64_t top, left, bottom, right;
};

// The cells whose distance to (x, y) may be up to `reach`, one more on each side for rounding. Bounds that leave the
// map are cut before they become integers.
Window around(float x, float y, float reach, const DenseBoxGrid& grid) {
  const auto cut = [](double v, int32_t size) { return v > 0 ? (v < size ? static_cast<int64_t>(v) : size) : 0; };
  const double r = std::ceil(double(reach)) + 1;
  return {cut(std::floor(y - r), grid.height), cut(std::floor(x - r), grid.width),
          cut(std::ceil(y + r) + 1, grid.height), cut(std::ceil(x + r) + 1, grid.width)};
}

Window around(const Box& box, const DenseBoxGrid& grid) {
  const Window low = around(to_cells(box.x1, grid.stride), to_cells(box.y1, grid.stride), 1, grid);
  const Window high = around(to_cells(box.x2, grid.stride), to_cells(box.y2, grid.stride), 1, grid);
  return {low.top, low.left, high.bottom, high.right};
}

template <class Visit>
void for_each_cell(const Window& window, const Visit& visit) {
  for (int64_t row = window.top; row < window.bottom; ++row)
    for (int64_t column = window.left; column < window.right; ++column) visit(row, column);
}

// A label map of one image; positive cells stay positive.
class Labels {
 public:
  Labels(int8_t* map, const DenseBoxGrid& grid) : map_(map), grid_(grid) {
    std::fill(map, map + int64_t(grid.height) * grid.width, int8_t{0});
  }

  bool is_positive(int64_t cell) const { return map_[cell] == 1; }
  void set_positive(int64_t cell) { map_[cell] = 1; }

  void ignore(int64_t cell) {
    if (map_[cell] != 1) map_[cell] = -1;
  }

  void ignore(const Box& box) {
    for_each_cell(around(box, grid_), [&](int64_t row, int64_t column) {
      if (holds(box, row, column, grid_.stride)) ignore(row * grid_.width + column);
    });
  }

  // Calls visit(row, column, squared distance) for each cell that the disc covers.
  template <class Visit>
  void for_each_covered(const Disc& disc, const Visit& visit) const {
    for_each_cell(around(disc.x, disc.y, disc.radius, grid_), [&](int64_t row, int64_t column) {
      const float squared = squared_distance(disc, row, column);
      if (covers(disc, row, column, squared)) visit(row, column, squared);
    });
  }

  void ignore(const Disc& disc) {
    for_each_covered(disc, [&](int64_t row, int64_t column, float) { ignore(row * grid_.width + column); });
  }

  void set_positive(const Disc& disc) {
    for_each_covered(disc, [&](int64_t row, int64_t column, float) { set_positive(row * grid_.width + column); });
  }

  // Ignores the cells within `gray` cells of each positive cell in the window.
  void add_gray_zone(float gray, const Window& window) {
    for_each_cell(window, [&](int64_t row, int64_t column) {
      if (!is_positive(row * grid_.width + column)) return;
      const float x = static_cast<float>(column), y = static_cast<float>(row);
      const Disc disc{x, y, gray};
      for_each_cell(around(x, y, gray, grid_), [&](int64_t i, int64_t j) {
        if (squared_distance(disc, i, j) <= gray * gray) ignore(i * grid_.width + j);
      });
    });
  }

 private:
  int8_t* map_;
  const DenseBoxGrid& grid_;
};

// One image's label and offsets.
void write_faces(const Box* boxes, const uint8_t* ignore, int64_t n, const DenseBoxGrid& grid,
                 const DenseBoxTargets& targets, int8_t* label, float* offsets) {
  const int64_t cells = int64_t(grid.height) * grid.width;
  std::fill(offsets, offsets + 4 * cells, 0.f);
  Labels labels(label, grid);
  std::vector<float> nearest(cells);
  for (int64_t g = 0; g < n; ++g) {
    const Box& box = boxes[g];
    const DenseBoxRole role = densebox_role(box, ignore && ignore[g], targets);
    const Disc disc = face_disc(box, grid, targets);
    if (role == DenseBoxRole::Ignored) labels.ignore(box);
    if (role == DenseBoxRole::Near) labels.ignore(disc);
    if (role != DenseBoxRole::Face) continue;
    labels.for_each_covered(disc, [&](int64_t row, int64_t column, float squared) {
      const int64_t cell = row * grid.width + column;
      const float distance = relative_distance(disc, squared);
      if (labels.is_positive(cell) && !(distance < nearest[cell])) return;
      labels.set_positive(cell);
      nearest[cell] = distance;
      offsets[cell] = encode_corner(column, box.x1, grid);
      offsets[cell + cells] = encode_corner(row, box.y1, grid);
      offsets[cell + 2 * cells] = encode_corner(column, box.x2, grid);
      offsets[cell + 3 * cells] = encode_corner(row, box.y2, grid);
    });
  }
  for (int64_t g = 0; g < n; ++g) {
    if (densebox_role(boxes[g], ignore && ignore[g], targets) != DenseBoxRole::Face) continue;
    const Disc disc = face_disc(boxes[g], grid, targets);
    labels.add_gray_zone(targets.gray, around(disc.x, disc.y, disc.radius, grid));
  }
}

// One image's label of one landmark; `points` are num_landmarks * 2 values apart.
void write_landmark(const Box* boxes, const uint8_t* ignore, int64_t n, const float* points, int64_t point_stride,
                    const DenseBoxGrid& grid, const DenseBoxTargets& targets, int8_t* label) {
  Labels labels(label, grid);
  const auto is_known = [&](int64_t g) {
    return is_finite(points[g * point_stride]) && is_finite(points[g * point_stride + 1]);
  };
  const auto disc_of = [&](int64_t g) {
    return landmark_disc(points[g * point_stride], points[g * point_stride + 1], grid, targets);
  };
  for (int64_t g = 0; g < n; ++g) {
    const DenseBoxRole role = densebox_role(boxes[g], ignore && ignore[g], targets);
    if (role == DenseBoxRole::None) continue;
    if (role == DenseBoxRole::Ignored || !is_known(g))
      labels.ignore(boxes[g]);
    else if (role == DenseBoxRole::Near)
      labels.ignore(disc_of(g));
    else
      labels.set_positive(disc_of(g));
  }
  for (int64_t g = 0; g < n; ++g) {
    if (densebox_role(boxes[g], ignore && ignore[g], targets) != DenseBoxRole::Face || !is_known(g)) continue;
    const Disc disc = disc_of(g);
    labels.add_gray_zone(targets.gray, around(disc.x, disc.y, disc.radius, grid));
  }
}

}  // namespace

void decode_densebox(const Map& scores, const Map& offsets, Dtype dtype, int64_t batch, const DenseBoxGrid& grid,
                     double score_threshold, const AnchorDecoding& decoding, const CandidateArrays& out, int threads) {
  const int64_t cells = int64_t(grid.height) * grid.width;
  const int64_t shares = (cells + kCellsPerShare - 1) / kCellsPerShare;
  const float min_score = float_below(score_threshold);
  std::vector<Survivors> survivors(batch * shares);
  parallel_for(batch * shares, threads, [&](int64_t i) {
    const int64_t begin = i % shares * kCellsPerShare;
    scan(scores, offsets, dtype, grid, min_score, decoding,
         {i / shares, begin, std::min(cells, begin + kCellsPerShare)}, survivors[i]);
  });
  parallel_for(batch, threads, [&](int64_t image) {
    Survivors all;
    for (int64_t i = 0; i < shares; ++i) all.append(survivors[image * shares + i]);
    write_best(all, decoding.max_candidates, out, image, clamp_score, [](int64_t) { return true; });
  });
}

void densebox_targets(const float* boxes, int64_t /*num_boxes*/, const uint8_t* ignore, const int64_t* splits,
                      int64_t batch, const float* landmarks, int num_landmarks, const DenseBoxGrid& grid,
                      const DenseBoxTargets& targets, int8_t* label, float* offsets, int8_t* landmark_label,
                      int threads) {
  const int64_t cells = int64_t(grid.height) * grid.width, maps = 1 + num_landmarks;
  parallel_for(batch * maps, threads, [&](int64_t i) {
    const int64_t image = i / maps, landmark = i % maps - 1, first = splits[image], n = splits[image + 1] - first;
    const Box* own = reinterpret_cast<const Box*>(boxes) + first;
    const uint8_t* own_ignore = ignore ? ignore + first : nullptr;
    if (landmark < 0)
      write_faces(own, own_ignore, n, grid, targets, label + image * cells, offsets + 4 * image * cells);
    else
      write_landmark(own, own_ignore, n, landmarks + 2 * (first * num_landmarks + landmark), 2 * num_landmarks, grid,
                     targets, landmark_label + (image * num_landmarks + landmark) * cells);
  });
}

}  // namespace pyface::cpu
