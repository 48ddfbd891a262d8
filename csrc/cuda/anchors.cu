// Head maps to candidates on the GPU: decode_anchors. Two kernels and a memset, whatever passes.
//
//   find_survivors   A thread takes an anchor: reads its logits, decodes it if it passes, and appends it to its level's
//                    list.
//   select_best      One block per image takes the survivors chunk by chunk, best first, until it has enough. Nearly
//                    always all fit into the first chunk, which is sorted in shared memory; else a histogram finds the
//                    key up to which they fit.
//
// Lists fill in any order. Keys are all different (logit, then anchor), so every run gives the same result.
#include <algorithm>

#include "survivors.cuh"

namespace pyface::cuda {
namespace {

constexpr int kTile = 128;  // cells that a block of find_survivors takes, one of their anchors each

// All inputs of the kernels, passed as a kernel parameter, so nothing is copied from the host.
struct Plan {
  AnchorLevel levels[kMaxLevels];
  uint32_t first_tile[kMaxLevels + 1];  // in a row of the grid
  int32_t num_levels;
  int64_t batch;
  AnchorDecoding decoding;
  CandidateArrays out;
  Survivors survivors;
};
static_assert(sizeof(Plan) <= 4096, "kernel parameters hold 4 KiB");

// One anchor of one image.
template <Dtype kDtype>
struct Anchor {
  const AnchorLevel& level;
  int64_t image;
  uint32_t row, column;
  int k;

  __device__ Pixel<kDtype> at(const Map& map) const { return {map, image, row, column}; }

  // A box moved by the four deltas that a map holds for this anchor.
  __device__ Box moved(const Box& box, const Map& map, const AnchorDecoding& decoding) const {
    const Pixel<kDtype> deltas = at(map);
    return decode_box(box, deltas[4 * k], deltas[4 * k + 1], deltas[4 * k + 2], deltas[4 * k + 3],
                      decoding.center_variance, decoding.size_variance);
  }

  // What `boxes` and `landmarks` are relative to: the anchor, or where a first step moved it.
  __device__ Box start(const AnchorDecoding& decoding) const {
    const Box box = anchor_at(level.anchors[k], level.stride, row, column);
    return level.offsets.data != nullptr ? moved(box, level.offsets, decoding) : box;
  }

  // Calls visit(i, coordinate) for the ten coordinates of the landmarks.
  template <typename Visit>
  __device__ void visit_landmarks(const Box& start, float center_variance, const Visit& visit) const {
    const Pixel<kDtype> deltas = at(level.landmarks);
#pragma unroll
    for (int i = 0; i < 10; i += 2) {
      visit(i, decode_coordinate(start.x1, start.x2, deltas[10 * k + i], center_variance));
      visit(i + 1, decode_coordinate(start.y1, start.y2, deltas[10 * k + i + 1], center_variance));
    }
  }

  // The logit that an anchor is ordered by, NaN for one that does not pass.
  __device__ float logit() const {
    const float logit = face_logit(at(level.logits), k, level.num_anchors, level.num_background);
    if (!(logit > level.min_logit && is_finite(logit))) return NAN;
    if (level.gate.data == nullptr) return logit;
    const float gate = at(level.gate)[k];
    return gate > level.min_gate && is_finite(gate) ? logit : NAN;
  }

  // The decoded and clipped box; false if the anchor is dropped because of it.
  __device__ bool decode(const AnchorDecoding& decoding, Box& box) const {
    const Box from = start(decoding);
    box = moved(from, level.boxes, decoding);
    bool is_valid = is_finite(box);
    if (level.landmarks.data != nullptr)
      visit_landmarks(from, decoding.center_variance, [&](int, float v) { is_valid &= is_finite(v); });
    if (decoding.sizes != nullptr) box = clip_box(box, decoding.sizes[2 * image], decoding.sizes[2 * image + 1]);
    return is_valid && has_min_side(box, decoding.min_side);
  }
};

// A row of the grid takes an image, a block a tile of one level: anchors whose logits lie side by side in memory. These
// are the k-th anchors of neighbouring cells, or in channels_last all anchors of a cell, then the next one's. It also
// clears the output, because here many blocks share that work.
template <Dtype kDtype>
__global__ void __launch_bounds__(kTile) find_survivors(const __grid_constant__ Plan plan) {
  const int at = level_of(plan.first_tile, plan.num_levels, blockIdx.x);
  const AnchorLevel& level = plan.levels[at];
  const uint32_t num_anchors = level.num_anchors, width = level.width;
  // There is one tile even where there are no cells.
  const bool is_empty = blockIdx.x >= plan.first_tile[plan.num_levels];
  const uint32_t tile = is_empty ? 0 : blockIdx.x - plan.first_tile[at];
  const bool by_cell = level.logits.channel_stride < level.logits.column_stride;
  const uint32_t place = tile * kTile + threadIdx.x;
  const uint32_t k = by_cell ? place % num_anchors : tile % num_anchors;
  const uint32_t cell = by_cell ? place / num_anchors : tile / num_anchors * kTile + threadIdx.x;
  const bool is_inside = !is_empty && cell < width * level.height;
  const uint32_t row = is_inside ? cell / width : 0, column = is_inside ? cell - row * width : 0;
  const uint32_t entry = plan.survivors.first[at] + cell * num_anchors + k;
  const int64_t slots = plan.decoding.max_candidates, first_slot = int64_t{blockIdx.x} * kTile + threadIdx.x;

  for (int64_t image = blockIdx.y; image < plan.batch; image += gridDim.y) {
    clear_slots(plan.out, image * slots + first_slot, (image + 1) * slots, int64_t{gridDim.x} * kTile);
    const Anchor<kDtype> anchor{level, image, row, column, static_cast<int>(k)};
    const float logit = is_inside ? anchor.logit() : NAN;
    Box box{};
    const bool survives = logit == logit && anchor.decode(plan.decoding, box);
    plan.survivors.add(survives, image, at, entry, logit, box, survives ? sigmoid(logit) : 0.f);
  }
}

// Writes what a candidate has besides its box and score.
template <Dtype kDtype>
__device__ void write_candidate(const Plan& plan, int64_t image, uint32_t entry, int at, int64_t to) {
  const AnchorLevel& level = plan.levels[at];
  const uint32_t within = entry - plan.survivors.first[at];
  plan.out.index[to] = level.first + within;
  if (plan.out.landmarks == nullptr || level.landmarks.data == nullptr) return;
  const uint32_t cell = within / level.num_anchors, row = cell / level.width;
  const Anchor<kDtype> anchor{level, image, row, cell - row * level.width,
                              static_cast<int>(within - cell * level.num_anchors)};
  anchor.visit_landmarks(anchor.start(plan.decoding), plan.decoding.center_variance,
                         [&](int i, float v) { plan.out.landmarks[10 * to + i] = v; });
}

template <Dtype kDtype>
__global__ void __launch_bounds__(kSelectThreads, 1) select_best(const __grid_constant__ Plan plan) {
  __shared__ Chunks::Shared shared;
  const int64_t image = blockIdx.x;
  select_candidates(shared, plan.survivors, image, plan.decoding.max_candidates, plan.out,
                    [&](uint32_t entry, int at, int64_t to) { write_candidate<kDtype>(plan, image, entry, at, to); });
}

bool is_valid(const AnchorLevel& level) {
  return level.height >= 0 && level.width >= 0 && level.stride >= 0 && level.num_background >= 0 &&
         level.num_anchors > 0 && level.num_anchors <= kMaxAnchors;
}

// False if an image has too many anchors, or a level's anchors do not come after those of the level before.
bool number_anchors(Plan& plan) {
  int64_t tiles = 0, anchors = 0;
  for (int i = 0; i < plan.num_levels; ++i) {
    const AnchorLevel& level = plan.levels[i];
    if (!is_valid(level)) return false;
    const int64_t cells = int64_t{level.height} * level.width;
    if (cells > kMaxEntries || anchors + cells * level.num_anchors > kMaxEntries) return false;
    if (i > 0 && level.first - plan.levels[i - 1].first < anchors - plan.survivors.first[i - 1]) return false;
    plan.first_tile[i] = static_cast<uint32_t>(tiles);
    plan.survivors.first[i] = static_cast<uint32_t>(anchors);
    plan.survivors.limit[i] = level.max_candidates;
    tiles += ceil_div(cells, kTile) * level.num_anchors;
    anchors += cells * level.num_anchors;
  }
  plan.first_tile[plan.num_levels] = static_cast<uint32_t>(tiles);
  plan.survivors.first[plan.num_levels] = static_cast<uint32_t>(anchors);
  plan.survivors.num_levels = plan.num_levels;
  return true;
}

}  // namespace

size_t decode_anchors_workspace(int64_t batch, int64_t num_anchors, int64_t) {
  return survivors_workspace(batch, num_anchors);
}

int decode_anchors(const AnchorLevel* levels, int num_levels, Dtype dtype, int64_t batch,
                   const AnchorDecoding& decoding, const CandidateArrays& out, void* workspace, size_t workspace_bytes,
                   int device, void* stream) {
  if (batch == 0) return cudaSuccess;
  if (batch < 0 || batch > INT32_MAX || num_levels < 0 || num_levels > kMaxLevels || decoding.max_candidates < 0)
    return cudaErrorInvalidValue;
  Plan plan{{}, {}, num_levels, batch, decoding, out, {}};
  std::copy_n(levels, num_levels, plan.levels);
  if (!number_anchors(plan)) return cudaErrorInvalidValue;
  const int64_t num_anchors = plan.survivors.first[num_levels];
  if (workspace_bytes < decode_anchors_workspace(batch, num_anchors, decoding.max_candidates))
    return cudaErrorInvalidValue;
  plan.survivors.place(workspace, batch, num_anchors);

  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (const int status = plan.survivors.clear(batch, cuda_stream)) return status;
  const dim3 tiles(std::max(plan.first_tile[num_levels], 1u), num_blocks(batch, kMaxRows));
  with_dtype(dtype, [&](auto kind) { find_survivors<kind.value><<<tiles, kTile, 0, cuda_stream>>>(plan); });
  if (const int status = launch_status()) return status;
  with_dtype(dtype, [&](auto kind) {
    select_best<kind.value><<<static_cast<unsigned>(batch), kSelectThreads, 0, cuda_stream>>>(plan);
  });
  return launch_status();
}

}  // namespace pyface::cuda
