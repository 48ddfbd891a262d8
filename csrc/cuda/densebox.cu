// DenseBox on the GPU.
//
// decode_densebox takes two kernels and a memset, whatever passes: one thread per cell appends what passes to a list,
// then one block per image takes the list's best (survivors.cuh, which decode_anchors uses too).
//
// densebox_targets takes a kernel for labels and offsets, in which a thread is a cell of one map and an image's boxes
// pass through shared memory, and one for the gray zone. That one needs all positive cells, and it must not read labels
// that neighbours change meanwhile: the first kernel also keeps a bit for each cell.
#include <algorithm>

#include "../densebox.h"
#include "survivors.cuh"

namespace pyface::cuda {
namespace {

constexpr int kCells = 128;  // of a block of find_survivors

struct Decoding {
  Map scores, offsets;
  int64_t batch;
  DenseBoxGrid grid;
  float min_score;
  AnchorDecoding how;
  CandidateArrays out;
  Survivors survivors;
};

// The decoded and clipped box of a cell; false when it is dropped.
template <Dtype kDtype>
__device__ bool decode(const Decoding& plan, int64_t image, int row, int column, Box& box) {
  const Pixel<kDtype> offsets(plan.offsets, image, row, column);
  box = decode_cell(row, column, offsets[0], offsets[1], offsets[2], offsets[3], plan.grid);
  const bool is_valid = is_finite(box);
  if (plan.how.sizes != nullptr) box = clip_box(box, plan.how.sizes[2 * image], plan.how.sizes[2 * image + 1]);
  return is_valid && has_min_side(box, plan.how.min_side);
}

// A row of the grid takes an image. It also clears the output, because here many blocks share that work.
template <Dtype kDtype>
__global__ void __launch_bounds__(kCells) find_survivors(const __grid_constant__ Decoding plan) {
  const uint32_t width = plan.grid.width, cell = blockIdx.x * kCells + threadIdx.x;
  const bool is_inside = cell < width * plan.grid.height;
  const int row = is_inside ? cell / width : 0, column = is_inside ? cell - row * width : 0;
  const int64_t slots = plan.how.max_candidates;
  for (int64_t image = blockIdx.y; image < plan.batch; image += gridDim.y) {
    clear_slots(plan.out, image * slots + cell, (image + 1) * slots, int64_t{gridDim.x} * kCells);
    const float score = is_inside ? Pixel<kDtype>(plan.scores, image, row, column)[0] : NAN;
    Box box{};
    const bool survives = score > plan.min_score && is_finite(score) && decode<kDtype>(plan, image, row, column, box);
    plan.survivors.add(survives, image, 0, cell, score, box, clamp_score(score));
  }
}

__global__ void __launch_bounds__(kSelectThreads, 1) select_best(const __grid_constant__ Decoding plan) {
  __shared__ Chunks::Shared shared;
  select_candidates(shared, plan.survivors, blockIdx.x, plan.how.max_candidates, plan.out,
                    [&](uint32_t cell, int, int64_t to) { plan.out.index[to] = cell; });
}

bool is_valid(const DenseBoxGrid& grid) {
  return grid.height >= 0 && grid.width >= 0 && int64_t{grid.height} * grid.width <= kMaxEntries;
}

// Cells of a block, boxes of a chunk. A warp is a row of a tile.
constexpr int kTileWidth = 32, kTileHeight = 8, kTile = kTileWidth * kTileHeight;

struct Targets {
  const float* boxes;
  int64_t num_boxes;
  const uint8_t* ignore;
  const int64_t* splits;
  int64_t batch;
  const float* landmarks;
  int num_landmarks;
  DenseBoxGrid grid;
  DenseBoxTargets how;
  int8_t* label;
  float* offsets;
  int8_t* landmark_label;
  uint32_t* positive;  // [batch, num_maps, height, words]: a bit for each cell

  // Returns the size in bytes.
  size_t place(void* base, int64_t images, int64_t points, int64_t height, int64_t width) {
    Workspace workspace(base);
    positive = workspace.take<uint32_t>(images * (1 + points) * height * ceil_div(width, 32));
    return workspace.bytes();
  }

  __device__ int64_t num_cells() const { return int64_t{grid.height} * grid.width; }
  __device__ int words() const { return (grid.width + 31) / 32; }  // of a row
  __device__ uint32_t* positive_row(int64_t map_of_all, int64_t row) const {
    return positive + (map_of_all * grid.height + row) * words();
  }
  __device__ int num_maps() const { return 1 + num_landmarks; }  // of an image: faces, then each landmark
  __device__ int8_t* label_map(int64_t image, int map) const {
    return map == 0 ? label + image * num_cells() : landmark_label + (image * num_landmarks + map - 1) * num_cells();
  }
};

// A block's cells, kTileWidth x kTileHeight of them, and this thread's cell.
struct Tile {
  int top, left, row, column;
  bool is_inside;

  __device__ explicit Tile(const DenseBoxGrid& grid) {
    const int across = (grid.width + kTileWidth - 1) / kTileWidth;
    top = static_cast<int>(blockIdx.x) / across * kTileHeight;
    left = static_cast<int>(blockIdx.x) % across * kTileWidth;
    row = top + static_cast<int>(threadIdx.x) / kTileWidth;
    column = left + static_cast<int>(threadIdx.x) % kTileWidth;
    is_inside = row < grid.height && column < grid.width;
  }

  // Whether some cell of [low, low + size) may be within `reach` of `x`, on one axis. In doubt, as for NaN, it may.
  __device__ static bool may_reach(float x, float reach, int low, int size) {
    const float below = static_cast<float>(low) - x, above = x - static_cast<float>(low + size - 1);
    return !(below > reach || above > reach);
  }

  __device__ bool may_meet(const Disc& disc) const {
    const float reach = max(disc.radius, 0.f) + 1.f;  // 1: the cell that the centre lies in, and rounding
    return may_reach(disc.x, reach, left, kTileWidth) && may_reach(disc.y, reach, top, kTileHeight);
  }

  __device__ bool may_meet(const Box& box, int stride) const {
    return to_pixel(left + kTileWidth - 1, stride) >= box.x1 && to_pixel(left, stride) < box.x2 &&
           to_pixel(top + kTileHeight - 1, stride) >= box.y1 && to_pixel(top, stride) < box.y2;
  }
};

// What a box does to a map.
enum class Mark : int32_t { Nothing, Positive, IgnoreDisc, IgnoreBox };

struct Marking {
  Mark mark;
  Disc disc;
};

// For map 0, that of the faces, or the map of landmark `map` - 1.
__device__ Marking marking_of(const Targets& plan, int64_t at, const Box& box, int map) {
  const DenseBoxRole role = densebox_role(box, plan.ignore != nullptr && plan.ignore[at] != 0, plan.how);
  if (role == DenseBoxRole::None) return {Mark::Nothing, {}};
  if (role == DenseBoxRole::Ignored) return {Mark::IgnoreBox, {}};
  const Mark mark = role == DenseBoxRole::Face ? Mark::Positive : Mark::IgnoreDisc;
  if (map == 0) return {mark, face_disc(box, plan.grid, plan.how)};
  const float* const point = plan.landmarks + 2 * (at * plan.num_landmarks + map - 1);
  if (!is_finite(point[0]) || !is_finite(point[1])) return {Mark::IgnoreBox, {}};
  return {mark, landmark_disc(point[0], point[1], plan.grid, plan.how)};
}

// The boxes of an image that may do something to a tile, a chunk at a time, in their order.
struct Chunk {
  Box boxes[kTile];
  Marking markings[kTile];
  int32_t counts[kTile / 32];

  // Fills it with boxes [first, end) as far as it holds them; returns how many.
  __device__ int fill(const Targets& plan, const Tile& tile, int64_t first, int64_t end, int map) {
    const int64_t at = first + threadIdx.x;
    Box box{};
    Marking marking{Mark::Nothing, {}};
    if (at < end) {
      box = {plan.boxes[4 * at], plan.boxes[4 * at + 1], plan.boxes[4 * at + 2], plan.boxes[4 * at + 3]};
      marking = marking_of(plan, at, box, map);
    }
    const bool counts_here = marking.mark == Mark::IgnoreBox
                                 ? tile.may_meet(box, plan.grid.stride)
                                 : marking.mark != Mark::Nothing && tile.may_meet(marking.disc);
    const uint32_t lanes = __ballot_sync(kWarp, counts_here);
    if (lane_id() == 0) counts[warp_id()] = __popc(lanes);
    __syncthreads();  // now the previous chunk is no longer used, either
    int place = __popc(lanes & bits_below(lane_id())), size = 0;
    for (int warp = 0; warp < kTile / 32; ++warp) {
      if (warp < warp_id()) place += counts[warp];
      size += counts[warp];
    }
    if (counts_here) {
      boxes[place] = box;
      markings[place] = marking;
    }
    __syncthreads();
    return size;
  }
};

// What boxes make of one cell.
struct CellTarget {
  int8_t label = 0;
  float distance = 0.f;  // to the owner's centre, in units of its radius
  Box owner{};

  __device__ void meet(const Marking& marking, const Box& box, int row, int column, int stride) {
    if (marking.mark == Mark::IgnoreBox) {
      if (label != 1 && holds(box, row, column, stride)) label = -1;
      return;
    }
    const float squared = squared_distance(marking.disc, row, column);
    if (!covers(marking.disc, row, column, squared)) return;
    if (marking.mark == Mark::IgnoreDisc) {
      if (label != 1) label = -1;
      return;
    }
    const float relative = relative_distance(marking.disc, squared);
    if (label == 1 && !(relative < distance)) return;
    label = 1;
    distance = relative;
    owner = box;
  }
};

// A row of the grid takes a map.
__global__ void __launch_bounds__(kTile) write_targets(const __grid_constant__ Targets plan) {
  __shared__ Chunk chunk;
  const Tile tile(plan.grid);
  for (int64_t i = blockIdx.y; i < plan.batch * plan.num_maps(); i += gridDim.y) {
    const int64_t image = i / plan.num_maps();
    const int map = static_cast<int>(i % plan.num_maps());
    // Splits are clamped to the number of boxes, since the host cannot check them.
    const int64_t begin = min(max(plan.splits[image], int64_t{0}), plan.num_boxes);
    const int64_t end = min(max(plan.splits[image + 1], begin), plan.num_boxes);
    CellTarget target;
    for (int64_t first = begin; first < end; first += kTile) {
      const int size = chunk.fill(plan, tile, first, end, map);
      for (int b = 0; b < size; ++b)
        target.meet(chunk.markings[b], chunk.boxes[b], tile.row, tile.column, plan.grid.stride);
    }
    const bool is_positive = target.label == 1;
    const uint32_t positive = __ballot_sync(kWarp, tile.is_inside && is_positive);
    if (lane_id() == 0 && tile.is_inside) plan.positive_row(i, tile.row)[tile.column / 32] = positive;
    if (!tile.is_inside) continue;
    const int64_t cell = int64_t{tile.row} * plan.grid.width + tile.column;
    plan.label_map(image, map)[cell] = target.label;
    if (map != 0) continue;
    float* const offsets = plan.offsets + 4 * image * plan.num_cells() + cell;
    offsets[0] = is_positive ? encode_corner(tile.column, target.owner.x1, plan.grid) : 0.f;
    offsets[plan.num_cells()] = is_positive ? encode_corner(tile.row, target.owner.y1, plan.grid) : 0.f;
    offsets[2 * plan.num_cells()] = is_positive ? encode_corner(tile.column, target.owner.x2, plan.grid) : 0.f;
    offsets[3 * plan.num_cells()] = is_positive ? encode_corner(tile.row, target.owner.y2, plan.grid) : 0.f;
  }
}

// Whether a positive cell of a map lies within `gray` cells of the thread's own; `reach` is `gray` rounded down.
__device__ bool is_gray(const Targets& plan, int64_t map_of_all, const Tile& tile, int reach) {
  const Disc disc{static_cast<float>(tile.column), static_cast<float>(tile.row), plan.how.gray};
  const auto last_of = [&](int at, int size) { return static_cast<int>(min(int64_t{at} + reach, size - int64_t{1})); };
  const int last_row = last_of(tile.row, plan.grid.height), last = last_of(tile.column, plan.grid.width);
  const int first = max(tile.column - reach, 0);
  for (int row = max(tile.row - reach, 0); row <= last_row; ++row) {
    const uint32_t* const words = plan.positive_row(map_of_all, row);
    for (int word = first / 32; word <= last / 32; ++word) {
      const uint32_t from_first = ~bits_below(max(first - 32 * word, 0));
      const uint32_t to_last = kWarp >> max(32 * word + 31 - last, 0);
      for (uint32_t positive = words[word] & from_first & to_last; positive != 0; positive &= positive - 1) {
        const int column = 32 * word + __ffs(static_cast<int>(positive)) - 1;
        if (squared_distance(disc, row, column) <= disc.radius * disc.radius) return true;
      }
    }
  }
  return false;
}

__global__ void __launch_bounds__(kTile) add_gray_zone(const __grid_constant__ Targets plan, int reach) {
  const Tile tile(plan.grid);
  if (!tile.is_inside) return;
  const int64_t cell = int64_t{tile.row} * plan.grid.width + tile.column;
  for (int64_t i = blockIdx.y; i < plan.batch * plan.num_maps(); i += gridDim.y) {
    int8_t* const label = plan.label_map(i / plan.num_maps(), static_cast<int>(i % plan.num_maps()));
    if (label[cell] == 0 && is_gray(plan, i, tile, reach)) label[cell] = -1;
  }
}

}  // namespace

size_t decode_densebox_workspace(int64_t batch, int64_t num_cells, int64_t) {
  return survivors_workspace(batch, num_cells);
}

int decode_densebox(const Map& scores, const Map& offsets, Dtype dtype, int64_t batch, const DenseBoxGrid& grid,
                    double score_threshold, const AnchorDecoding& decoding, const CandidateArrays& out, void* workspace,
                    size_t workspace_bytes, int device, void* stream) {
  if (batch < 0 || batch > INT32_MAX || decoding.max_candidates < 0 || !is_valid(grid)) return cudaErrorInvalidValue;
  if (batch == 0) return cudaSuccess;
  const int64_t num_cells = int64_t{grid.height} * grid.width;
  if (workspace_bytes < survivors_workspace(batch, num_cells)) return cudaErrorInvalidValue;
  Decoding plan{scores, offsets, batch, grid, float_below(score_threshold), decoding, out, {}};
  plan.survivors.num_levels = 1;
  plan.survivors.first[1] = static_cast<uint32_t>(num_cells);
  plan.survivors.limit[0] = INT32_MAX;
  plan.survivors.place(workspace, batch, num_cells);

  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (const int status = plan.survivors.clear(batch, cuda_stream)) return status;
  const dim3 tiles(static_cast<unsigned>(std::max(ceil_div(num_cells, kCells), int64_t{1})),
                   num_blocks(batch, kMaxRows));
  with_dtype(dtype, [&](auto kind) { find_survivors<kind.value><<<tiles, kCells, 0, cuda_stream>>>(plan); });
  if (const int status = launch_status()) return status;
  select_best<<<static_cast<unsigned>(batch), kSelectThreads, 0, cuda_stream>>>(plan);
  return launch_status();
}

size_t densebox_targets_workspace(int64_t batch, int num_landmarks, int64_t height, int64_t width) {
  return Targets().place(nullptr, batch, num_landmarks, height, width);
}

int densebox_targets(const float* boxes, int64_t num_boxes, const uint8_t* ignore, const int64_t* splits, int64_t batch,
                     const float* landmarks, int num_landmarks, const DenseBoxGrid& grid,
                     const DenseBoxTargets& targets, int8_t* label, float* offsets, int8_t* landmark_label,
                     void* workspace, size_t workspace_bytes, int device, void* stream) {
  if (batch < 0 || batch > INT32_MAX || num_boxes < 0 || num_landmarks < 0 || !is_valid(grid) || grid.stride <= 0)
    return cudaErrorInvalidValue;
  const int64_t num_tiles = ceil_div(grid.width, kTileWidth) * ceil_div(grid.height, kTileHeight);
  if (batch == 0 || num_tiles == 0) return cudaSuccess;
  if (workspace_bytes < densebox_targets_workspace(batch, num_landmarks, grid.height, grid.width))
    return cudaErrorInvalidValue;
  Targets plan{boxes, num_boxes, ignore, splits,  batch,          landmarks, num_landmarks,
               grid,  targets,   label,  offsets, landmark_label, {}};
  plan.place(workspace, batch, num_landmarks, grid.height, grid.width);

  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const dim3 tiles(static_cast<unsigned>(num_tiles), num_blocks(batch * (1 + num_landmarks), kMaxRows));
  write_targets<<<tiles, kTile, 0, cuda_stream>>>(plan);
  if (const int status = launch_status()) return status;
  const float longest = static_cast<float>(std::max(grid.height, grid.width));
  if (!(targets.gray >= 1.f) || num_boxes == 0) return cudaSuccess;  // cells lie at least 1 apart
  add_gray_zone<<<tiles, kTile, 0, cuda_stream>>>(plan, static_cast<int>(std::min(targets.gray, longest)));
  return launch_status();
}

}  // namespace pyface::cuda
