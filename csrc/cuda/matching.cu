// Matching of anchors and faces on the GPU: assign_anchors. Memory holds a word per anchor and some counters per face;
// the overlaps of all anchors with all faces exist only in registers.
//
//   match_anchors      A thread takes an anchor, a block a tile of neighbouring ones. The image's boxes pass through
//                      shared memory in chunks, of which only those that touch the tile are compared. This alone
//                      writes the result, unless best anchors are forced or faces with few anchors compensated.
//   settle_faces       One block per image: faces claim their best anchors, then the candidates of each are counted.
//   spread_candidates  One thread per anchor: a candidate goes to its face, or to a list if the face has too many.
//   choose_candidates  One block per face with too many: histograms find the last candidate that it gets.
//
// Anchors and faces are compared in any order; maxima and counts of integers do not depend on it.
#include <algorithm>

#include "../ops.h"
#include "block.cuh"
#include "common.cuh"
#include "select.cuh"

namespace pyface::cuda {
namespace {

constexpr int kTile = 256;                                             // anchors of a block, and boxes in shared memory
constexpr int kImageThreads = 1024;                                    // of a block of settle_faces
constexpr int kChooseThreads = 128;                                    // of a block of choose_candidates
constexpr int64_t kChooseBlocks = 256;                                 // at most, per image
constexpr int64_t kMaxCount = (int64_t{1} << 31) - 2 * kImageThreads;  // so that loops may step past it by a block

// An anchor and the face that it goes to by IoU, as a number: the better claim is the larger one. A face's claim to its
// best anchor is above any other.
class Claim {
 public:
  __device__ explicit Claim(uint64_t bits) : bits_(bits) {}
  __device__ Claim(uint32_t iou_bits, int face, bool is_forced)
      : bits_(static_cast<uint64_t>(is_forced) << 62 | static_cast<uint64_t>(iou_bits) << 32 |
              ~static_cast<uint32_t>(face)) {}

  __device__ uint64_t bits() const { return bits_; }
  __device__ bool is_forced() const { return bits_ >> 62 != 0; }
  __device__ int face() const { return static_cast<int>(~static_cast<uint32_t>(bits_)); }
  __device__ uint32_t iou_bits() const { return static_cast<uint32_t>(bits_ >> 32) & 0x3fffffffu; }  // IoU <= 1
  __device__ float iou() const { return __uint_as_float(iou_bits()); }

 private:
  uint64_t bits_;
};
constexpr uint64_t kNoClaim = 0;  // its face is -1

// What is counted for a face.
struct FaceState {
  unsigned long long best;  // IoU bits << 32 | ~anchor, of its best anchor; 0: none
  uint32_t matched;         // anchors that are its own
  uint32_t candidates;      // unmatched anchors that it may get
  uint32_t wanted;          // how many of these it gets at most
  uint32_t first;           // of its candidates in the image's list, where they are too many
  uint32_t listed;          // candidates that are in the list
  uint32_t padding;
};

struct Workspaces {
  FaceState* faces;            // [num_boxes]
  unsigned long long* claims;  // [batch, num_anchors]
  uint64_t* list;              // [batch, num_anchors]: ~IoU bits << 32 | anchor, face after face

  size_t place(void* base, int64_t batch, int64_t num_anchors, int64_t num_boxes) {
    Workspace workspace(base);
    faces = workspace.take<FaceState>(num_boxes);
    claims = workspace.take<unsigned long long>(batch * num_anchors);
    list = workspace.take<uint64_t>(batch * num_anchors);
    return workspace.bytes();
  }
};

struct Plan {
  const float* anchors;
  int64_t anchor_stride, num_anchors;
  const float* boxes;
  int64_t num_boxes;
  const uint8_t* ignore;
  const int64_t* splits;
  int64_t batch;
  const uint8_t* valid;
  int64_t valid_stride;
  float positive, negative, above;  // IoU >= positive, < negative, > above
  bool forces, compensates;
  int32_t wanted;  // anchors per face; 0: the mean
  int32_t* index;
  float* overlap;
  Workspaces state;

  __device__ bool keeps_claims() const { return forces || compensates; }
  __device__ bool is_matched(const Claim& claim) const {
    return claim.is_forced() || (claim.face() >= 0 && claim.iou() >= positive);
  }
  __device__ bool is_candidate(const Claim& claim) const {
    return claim.face() >= 0 && !is_matched(claim) && claim.iou() > above;
  }
};

__device__ Box box_at(const float* boxes, int64_t i) {
  return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

// The boxes of an image. Splits are clamped to the number of boxes, since the host cannot check them.
struct Own {
  int64_t begin, end;

  __device__ Own(const Plan& plan, int64_t image)
      : begin(min(max(plan.splits[image], int64_t{0}), plan.num_boxes)),
        end(min(max(plan.splits[image + 1], begin), plan.num_boxes)) {}

  __device__ int size() const { return static_cast<int>(end - begin); }
};

__device__ bool is_ignored(const Plan& plan, int64_t box) { return plan.ignore != nullptr && plan.ignore[box] != 0; }
__device__ bool is_face(const Plan& plan, int64_t at, const Box& box) {
  return !is_ignored(plan, at) && is_finite(box) && box_area(box) > 0.f;
}

// False in every comparison of whether boxes touch.
__device__ Box nowhere() { return {INFINITY, INFINITY, -INFINITY, -INFINITY}; }
__device__ bool touch(const Box& a, const Box& b) { return a.x1 < b.x2 && b.x1 < a.x2 && a.y1 < b.y2 && b.y1 < a.y2; }

// The boxes of one image that touch a tile's bounds, a chunk at a time.
struct Chunk {
  alignas(16) Box boxes[kTile];
  int32_t faces[kTile];  // within the image, ~ of it for one to be ignored; ascending
  Box bounds[kTile / 32];
  int32_t counts[kTile / 32];

  // The bounds of all threads' boxes.
  __device__ Box bounds_of(Box box) {
    for (int step = 16; step > 0; step /= 2) {
      box.x1 = min(box.x1, __shfl_xor_sync(kWarp, box.x1, step));
      box.y1 = min(box.y1, __shfl_xor_sync(kWarp, box.y1, step));
      box.x2 = max(box.x2, __shfl_xor_sync(kWarp, box.x2, step));
      box.y2 = max(box.y2, __shfl_xor_sync(kWarp, box.y2, step));
    }
    __syncthreads();
    if (lane_id() == 0) bounds[warp_id()] = box;
    __syncthreads();
    for (int warp = 0; warp < kTile / 32; ++warp) {
      const Box other = bounds[warp];
      box = {min(box.x1, other.x1), min(box.y1, other.y1), max(box.x2, other.x2), max(box.y2, other.y2)};
    }
    return box;
  }

  // Fills it with boxes from `first` on that are within reach; returns how many.
  __device__ int fill(const Plan& plan, const Own& own, int64_t first, const Box& reach) {
    const int64_t at = first + threadIdx.x;
    const Box box = at < own.end ? box_at(plan.boxes, at) : nowhere();
    const bool ignored = at < own.end && is_ignored(plan, at);
    const bool counts_here = is_finite(box) && touch(box, reach) && (ignored || box_area(box) > 0.f);
    const uint32_t lanes = __ballot_sync(kWarp, counts_here);
    if (lane_id() == 0) counts[warp_id()] = __popc(lanes);
    __syncthreads();  // now the previous chunk is no longer used, either
    int place = __popc(lanes & bits_below(lane_id())), size = 0;
    for (int warp = 0; warp < kTile / 32; ++warp) {
      if (warp < warp_id()) place += counts[warp];
      size += counts[warp];
    }
    if (counts_here) {
      const int32_t face = static_cast<int32_t>(at - own.begin);
      boxes[place] = box;
      faces[place] = ignored ? ~face : face;
    }
    __syncthreads();
    return size;
  }
};

// The warp's lanes hold one face's IoUs with consecutive anchors; the face gets the best one.
__device__ void offer(FaceState& face, uint32_t iou_bits, int64_t anchor) {
  if (!__any_sync(kWarp, iou_bits != 0)) return;
  uint32_t best = iou_bits;
  for (int step = 16; step > 0; step /= 2) best = max(best, __shfl_xor_sync(kWarp, best, step));
  const uint32_t lanes = __ballot_sync(kWarp, iou_bits == best);
  if (lane_id() == __ffs(static_cast<int>(lanes)) - 1)
    atomicMax(&face.best, static_cast<unsigned long long>(best) << 32 | ~static_cast<uint32_t>(anchor));
}

// Returns a place in its list to each lane with `has_item`. Lanes with the same list share an atomic; neighbours often
// have the same.
__device__ uint32_t append_to(uint32_t* size_of_own, int list, bool has_item) {
  const uint32_t peers = __match_any_sync(kWarp, has_item ? static_cast<uint32_t>(list) : ~0u);
  const int leader = __ffs(static_cast<int>(peers)) - 1;
  uint32_t first = 0;
  if (has_item && lane_id() == leader) first = atomicAdd(size_of_own, static_cast<uint32_t>(__popc(peers)));
  return __shfl_sync(kWarp, first, leader) + __popc(peers & bits_below(lane_id()));
}

// kForces: faces record their best anchors.
template <bool kForces>
__global__ void __launch_bounds__(kTile) match_anchors(const __grid_constant__ Plan plan) {
  __shared__ Chunk chunk;
  const int64_t anchor = int64_t{blockIdx.x} * kTile + threadIdx.x;
  for (int64_t image = blockIdx.y; image < plan.batch; image += gridDim.y) {
    const Own own(plan, image);
    Box box = nowhere();
    if (anchor < plan.num_anchors && (plan.valid == nullptr || plan.valid[image * plan.valid_stride + anchor]))
      box = box_at(plan.anchors, image * plan.anchor_stride + anchor);
    const bool is_valid = is_finite(box);
    if (!is_valid) box = nowhere();
    const float area = box_area(box);
    const Box reach = chunk.bounds_of(box);

    float best = 0.f;
    int best_face = -1;
    bool is_covered = false;
    for (int64_t first = own.begin; first < own.end; first += kTile) {
      const int size = chunk.fill(plan, own, first, reach);
      for (int i = 0; i < size; ++i) {
        const Box other = chunk.boxes[i];
        const int face = chunk.faces[i];
        float iou = 0.f;
        if (touch(box, other)) {
          if (face < 0)
            is_covered |= covers_half(other, box, area);
          else
            iou = box_overlap(box, area, other, box_area(other), Overlap::Union);
        }
        if (iou > best) {
          best = iou;
          best_face = face;
        }
        if (kForces && face >= 0)
          offer(plan.state.faces[own.begin + face], iou > 0.f ? __float_as_uint(iou) : 0, anchor);
      }
    }

    const Claim claim = best_face >= 0 ? Claim(__float_as_uint(best), best_face, false) : Claim(kNoClaim);
    const bool is_matched = plan.is_matched(claim);
    if (plan.compensates) {
      const bool counts = is_matched || plan.is_candidate(claim);
      FaceState& face = plan.state.faces[counts ? own.begin + best_face : 0];
      append_to(is_matched ? &face.matched : &face.candidates, 2 * best_face + is_matched, counts);
    }
    if (anchor >= plan.num_anchors) continue;
    const int64_t at = image * plan.num_anchors + anchor;
    const bool is_background = is_valid && !is_covered && best < plan.negative;
    plan.index[at] = is_matched ? best_face : is_background ? kBackground : kIgnored;
    plan.overlap[at] = best;
    if (plan.keeps_claims()) plan.state.claims[at] = claim.bits();
  }
}

// One image in a block of settle_faces.
class Settling {
 public:
  struct Shared {
    uint32_t warp_sums[32];
    unsigned long long matched;
    uint32_t faces;
  };

  __device__ Settling(Shared& shared, const Plan& plan, int64_t image)
      : shared_(shared),
        plan_(plan),
        own_(plan, image),
        first_anchor_(image * plan.num_anchors),
        faces_(plan.state.faces + own_.begin) {}

  // Every face claims its best anchor; the best claim stands.
  __device__ void force_best() {
    for (int f = threadIdx.x; f < own_.size(); f += kImageThreads) {
      if (faces_[f].best == 0) continue;
      const Claim claim = best_claim(f);
      const Claim before(atomicMax(&plan_.state.claims[best_anchor(f)], static_cast<unsigned long long>(claim.bits())));
      if (plan_.compensates && claim.bits() > before.bits()) move(before, f);
    }
    __syncthreads();
    for (int f = threadIdx.x; f < own_.size(); f += kImageThreads) {
      if (faces_[f].best == 0) continue;
      const int64_t at = best_anchor(f);
      const Claim claim = best_claim(f);
      if (__ldcg(&plan_.state.claims[at]) != claim.bits()) continue;
      plan_.index[at] = f;
      plan_.overlap[at] = claim.iou();
    }
    __syncthreads();
  }

  // How many candidates each face gets; if it has more, also where they begin in the image's list.
  __device__ void share_candidates() {
    const uint32_t wanted = plan_.wanted > 0 ? plan_.wanted : mean();
    uint32_t listed = 0;
    for (int f = threadIdx.x, first = 0; first < own_.size(); f += kImageThreads, first += kImageThreads) {
      const bool is_inside = f < own_.size();
      const uint32_t matched = is_inside ? __ldcg(&faces_[f].matched) : 0;
      const uint32_t candidates = is_inside ? __ldcg(&faces_[f].candidates) : 0;
      const uint32_t missing = matched < wanted ? wanted - matched : 0;
      const uint32_t before = sum_before(missing > 0 && missing < candidates ? candidates : 0, listed);
      if (!is_inside) continue;
      faces_[f].wanted = missing;
      faces_[f].first = before;
    }
  }

 private:
  __device__ Claim best_claim(int f) const { return Claim(static_cast<uint32_t>(faces_[f].best >> 32), f, true); }
  __device__ int64_t best_anchor(int f) const { return first_anchor_ + ~static_cast<uint32_t>(faces_[f].best); }

  // Moves an anchor from its claim before to face f. Each claim is changed by one thread at a time, so the sums are
  // right.
  __device__ void move(const Claim& before, int f) const {
    if (plan_.is_matched(before))
      atomicAdd(&faces_[before.face()].matched, ~0u);
    else if (plan_.is_candidate(before))
      atomicAdd(&faces_[before.face()].candidates, ~0u);
    atomicAdd(&faces_[f].matched, 1u);
  }

  // The mean number of anchors per face, rounded half up, and at least 1.
  __device__ uint32_t mean() {
    if (threadIdx.x == 0) shared_.matched = shared_.faces = 0;
    __syncthreads();
    for (int f = threadIdx.x; f < own_.size(); f += kImageThreads) {
      if (!is_face(plan_, own_.begin + f, box_at(plan_.boxes, own_.begin + f))) continue;
      atomicAdd(&shared_.faces, 1u);
      atomicAdd(&shared_.matched, static_cast<unsigned long long>(__ldcg(&faces_[f].matched)));
    }
    __syncthreads();
    const uint64_t faces = max(shared_.faces, 1u), matched = shared_.matched;
    return static_cast<uint32_t>(max((2 * matched + faces) / (2 * faces), uint64_t{1}));
  }

  // Returns `total` plus the values of earlier threads; `total` grows by those of all threads.
  __device__ uint32_t sum_before(uint32_t value, uint32_t& total) {
    const uint32_t within = warp_inclusive_sum(value);
    __syncthreads();
    if (lane_id() == 31) shared_.warp_sums[warp_id()] = within;
    __syncthreads();
    const uint32_t sum = shared_.warp_sums[lane_id()], through = warp_inclusive_sum(sum);
    const uint32_t before = total + __shfl_sync(kWarp, through - sum, warp_id()) + within - value;
    total += __shfl_sync(kWarp, through, 31);
    return before;
  }

  Shared& shared_;
  const Plan& plan_;
  const Own own_;
  const int64_t first_anchor_;
  FaceState* const faces_;  // of the image
};

__global__ void __launch_bounds__(kImageThreads) settle_faces(const __grid_constant__ Plan plan) {
  __shared__ Settling::Shared shared;
  Settling settling(shared, plan, blockIdx.x);
  if (plan.forces) settling.force_best();
  if (plan.compensates) settling.share_candidates();
}

__global__ void __launch_bounds__(kTile) spread_candidates(const __grid_constant__ Plan plan) {
  const int64_t anchor = int64_t{blockIdx.x} * kTile + threadIdx.x;
  for (int64_t image = blockIdx.y; image < plan.batch; image += gridDim.y) {
    const int64_t first = image * plan.num_anchors, at = first + anchor;
    const Claim claim(anchor < plan.num_anchors ? plan.state.claims[at] : kNoClaim);
    const bool is_candidate = plan.is_candidate(claim);
    FaceState& face = plan.state.faces[is_candidate ? Own(plan, image).begin + claim.face() : 0];
    const bool is_wanted = is_candidate && face.wanted > 0, is_listed = is_wanted && face.wanted < face.candidates;
    const uint32_t place = append_to(&face.listed, claim.face(), is_listed);
    // Wrong splits may give two images the same face; even then no place lies beyond the list.
    if (is_listed && face.first + int64_t{place} < plan.num_anchors)
      plan.state.list[first + face.first + place] =
          static_cast<uint64_t>(~claim.iou_bits()) << 32 | static_cast<uint32_t>(anchor);
    if (is_wanted && !is_listed) plan.index[at] = claim.face();
  }
}

__global__ void __launch_bounds__(kChooseThreads) choose_candidates(const __grid_constant__ Plan plan) {
  __shared__ KeySearch<kChooseThreads> search;
  for (int64_t image = blockIdx.y; image < plan.batch; image += gridDim.y) {
    const Own own(plan, image);
    for (int f = blockIdx.x; f < own.size(); f += gridDim.x) {
      const FaceState& face = plan.state.faces[own.begin + f];
      const uint32_t size =
          static_cast<uint32_t>(max(min(int64_t{face.listed}, plan.num_anchors - face.first), int64_t{0}));
      if (face.wanted == 0 || face.wanted >= size) continue;
      const uint64_t* const keys = plan.state.list + image * plan.num_anchors + face.first;
      const auto visit = [&](const auto& take) {
        for (uint32_t i = threadIdx.x; i < size; i += kChooseThreads) take(keys[i]);
      };
      const uint64_t last = search.last_key(search.range_from(0, visit), face.wanted, face.wanted, visit);
      for (uint32_t i = threadIdx.x; i < size; i += kChooseThreads) {
        const uint32_t anchor = static_cast<uint32_t>(keys[i]);
        if (keys[i] <= last && anchor < plan.num_anchors) plan.index[image * plan.num_anchors + anchor] = f;
      }
    }
  }
}

bool is_valid(int64_t batch, int64_t num_anchors, int64_t num_boxes) {
  return batch >= 0 && batch <= INT32_MAX && num_anchors >= 0 && num_anchors <= kMaxCount && num_boxes >= 0 &&
         num_boxes <= kMaxCount / 2;
}

int launch(const Plan& plan, cudaStream_t stream) {
  const bool has_faces = plan.num_boxes > 0;
  const dim3 tiles(static_cast<unsigned>(ceil_div(plan.num_anchors, kTile)), num_blocks(plan.batch, kMaxRows));
  if (has_faces && (plan.forces || plan.compensates))
    if (const int status = cudaMemsetAsync(plan.state.faces, 0, plan.num_boxes * sizeof(FaceState), stream))
      return status;
  if (plan.forces && has_faces)
    match_anchors<true><<<tiles, kTile, 0, stream>>>(plan);
  else
    match_anchors<false><<<tiles, kTile, 0, stream>>>(plan);
  if (const int status = launch_status(); status || !has_faces) return status;
  if (!plan.forces && !plan.compensates) return cudaSuccess;
  settle_faces<<<static_cast<unsigned>(plan.batch), kImageThreads, 0, stream>>>(plan);
  if (const int status = launch_status(); status || !plan.compensates) return status;
  spread_candidates<<<tiles, kTile, 0, stream>>>(plan);
  if (const int status = launch_status()) return status;
  const dim3 faces(num_blocks(plan.num_boxes, kChooseBlocks), tiles.y);
  choose_candidates<<<faces, kChooseThreads, 0, stream>>>(plan);
  return launch_status();
}

}  // namespace

size_t assign_anchors_workspace(int64_t batch, int64_t num_anchors, int64_t num_boxes) {
  return is_valid(batch, num_anchors, num_boxes) ? Workspaces().place(nullptr, batch, num_anchors, num_boxes) : 0;
}

int assign_anchors(const float* anchors, int64_t anchor_stride, int64_t num_anchors, const float* boxes,
                   int64_t num_boxes, const uint8_t* ignore, const int64_t* splits, int64_t batch, const uint8_t* valid,
                   int64_t valid_stride, const Matching& matching, int32_t* index, float* overlap, void* workspace,
                   size_t workspace_bytes, int device, void* stream) {
  if (!is_valid(batch, num_anchors, num_boxes)) return cudaErrorInvalidValue;
  if (batch == 0 || num_anchors == 0) return cudaSuccess;
  if (workspace_bytes < assign_anchors_workspace(batch, num_anchors, num_boxes)) return cudaErrorInvalidValue;
  Plan plan{anchors,
            anchor_stride,
            num_anchors,
            boxes,
            num_boxes,
            ignore,
            splits,
            batch,
            valid,
            valid_stride,
            float_above(matching.positive),
            float_above(matching.negative),
            float_below(matching.compensate_above),
            matching.force_best,
            matching.compensate >= 0,
            matching.compensate,
            index,
            overlap,
            {}};
  plan.state.place(workspace, batch, num_anchors, num_boxes);
  if (num_boxes == 0) plan.forces = plan.compensates = false;  // the workspace holds no face

  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  return launch(plan, static_cast<cudaStream_t>(stream));
}

}  // namespace pyface::cuda
