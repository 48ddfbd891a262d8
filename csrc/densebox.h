// DenseBox's geometry, shared by host and device: which cells a face owns, and how a cell encodes its box
// (docs/detectors.md 1.2). Everything that decides a comparison stands here once.
#pragma once

#include "ops.h"

namespace pyface {

// A disc on the map, in cells; cell (row, column) has its centre at (column, row).
struct Disc {
  float x, y, radius;
};

// What a box is to the targets.
enum class DenseBoxRole : int32_t {
  None,     // neither side is > 0, or a coordinate is not finite, or a face of a size that counts as background
  Face,     // its disc is positive
  Near,     // a face of nearly the right size: its disc is ignored
  Ignored,  // all cells whose pixel lies inside are ignored
};

PYFACE_HD DenseBoxRole densebox_role(const Box& box, bool ignore, const DenseBoxTargets& targets) {
  if (!is_finite(box) || !(box.x2 > box.x1) || !(box.y2 > box.y1)) return DenseBoxRole::None;
  if (ignore) return DenseBoxRole::Ignored;
  const float side = (box.y2 - box.y1) / targets.face;
  if (side >= targets.positive_low && side <= targets.positive_high) return DenseBoxRole::Face;
  return side >= targets.ignore_low && side <= targets.ignore_high ? DenseBoxRole::Near : DenseBoxRole::None;
}

// A pixel's place on one axis of the map, in cells, and a cell's place in pixels.
PYFACE_HD float to_cells(float pixel, int32_t stride) {
  const float s = static_cast<float>(stride);
  return (pixel - s * 0.5f) / s;
}

PYFACE_HD float to_pixel(int64_t cell, int32_t stride) {
  const float s = static_cast<float>(stride);
  return static_cast<float>(cell) * s + s * 0.5f;
}

PYFACE_HD Disc face_disc(const Box& box, const DenseBoxGrid& grid, const DenseBoxTargets& targets) {
  return {to_cells((box.x1 + box.x2) * 0.5f, grid.stride), to_cells((box.y1 + box.y2) * 0.5f, grid.stride),
          (targets.radius * (box.y2 - box.y1)) / static_cast<float>(grid.stride)};
}

PYFACE_HD Disc landmark_disc(float x, float y, const DenseBoxGrid& grid, const DenseBoxTargets& targets) {
  return {to_cells(x, grid.stride), to_cells(y, grid.stride), targets.landmark_radius};
}

PYFACE_HD float squared_distance(const Disc& disc, int64_t row, int64_t column) {
  const float x = static_cast<float>(column) - disc.x, y = static_cast<float>(row) - disc.y;
  return x * x + y * y;
}

// Whether a disc covers a cell, given the squared distance of their centres. The cell that its centre lies in is
// covered however small the disc.
PYFACE_HD bool covers(const Disc& disc, int64_t row, int64_t column, float squared) {
  if (squared <= disc.radius * disc.radius) return true;
  return std::floor(disc.x + 0.5f) == static_cast<float>(column) &&
         std::floor(disc.y + 0.5f) == static_cast<float>(row);
}

// How far a cell lies from a disc's centre in units of its radius, squared: the smallest owns the cell.
PYFACE_HD float relative_distance(const Disc& disc, float squared) { return squared / (disc.radius * disc.radius); }

// Whether a cell's pixel lies in a box.
PYFACE_HD bool holds(const Box& box, int64_t row, int64_t column, int32_t stride) {
  const float x = to_pixel(column, stride), y = to_pixel(row, stride);
  return x >= box.x1 && x < box.x2 && y >= box.y1 && y < box.y2;
}

// A cell's distance to a corner's coordinate as the network returns it, and back.
PYFACE_HD float encode_corner(int64_t cell, float corner, const DenseBoxGrid& grid) {
  return (to_pixel(cell, grid.stride) - corner) / (static_cast<float>(grid.stride) * grid.unit);
}

PYFACE_HD float decode_corner(int64_t cell, float offset, const DenseBoxGrid& grid) {
  const float s = static_cast<float>(grid.stride);
  return (static_cast<float>(cell) - grid.unit * offset) * s + s * 0.5f;
}

PYFACE_HD Box decode_cell(int64_t row, int64_t column, float x1, float y1, float x2, float y2,
                          const DenseBoxGrid& grid) {
  return {decode_corner(column, x1, grid), decode_corner(row, y1, grid), decode_corner(column, x2, grid),
          decode_corner(row, y2, grid)};
}

// A raw score as a probability.
PYFACE_HD float clamp_score(float score) { return score > 0.f ? (score < 1.f ? score : 1.f) : 0.f; }

}  // namespace pyface
