// Head maps to candidates on the GPU: decode_anchors. Two kernels and a memset, whatever passes.
//
//   find_survivors   A thread takes an anchor: reads its logits, decodes it if it passes, and appends it to its level's
//                    list.
//   select_best      One block an image takes the survivors chunk by chunk, best first, until it has enough. Nearly
//                    always all fit into the first chunk, which is sorted in shared memory; else a histogram says up to
//                    which key they do.
//
// Lists fill in any order. Keys are all different (logit, then anchor), so that sorting makes every run the same.
#include <algorithm>

#include "block.cuh"
#include "common.cuh"
#include "maps.cuh"

namespace pyface::cuda {
namespace {

constexpr int kTile = 128;      // cells that a block of find_survivors takes, one of their anchors each
constexpr int kThreads = 1024;  // of a block of select_best
constexpr int kItems = 4;       // keys that a thread sorts
constexpr int kChunk = kItems * kThreads;
constexpr int kBucketBits = 11, kBuckets = 1 << kBucketBits;
constexpr int64_t kMaxAnchors32 = (int64_t{1} << 31) - kChunk;  // in an image; loops step by a block beyond it
constexpr int64_t kMaxRows = 65535;                             // of a grid

// What find_survivors leaves for select_best. Anchors are numbered within the image, level by level.
struct Survivors {
  Survivors(void* base, int64_t batch, int64_t num_anchors) {
    Workspace workspace(base);
    count = workspace.take<uint32_t>(batch * kMaxLevels);
    keys = workspace.take<uint64_t>(batch * num_anchors);
    boxes = workspace.take<float4>(batch * num_anchors);
    scores = workspace.take<float>(batch * num_anchors);
    bytes = workspace.bytes();
  }

  uint32_t* count;  // [batch, kMaxLevels]
  uint64_t* keys;   // [batch, num_anchors]: a level's list begins at its first anchor; descending_key << 32 | anchor
  float4* boxes;    // [batch, num_anchors], by anchor
  float* scores;    // [batch, num_anchors], by anchor
  size_t bytes;
};

// All that the kernels are told; it travels as a kernel parameter, so nothing is copied from the host.
struct Plan {
  AnchorLevel levels[kMaxLevels];
  uint32_t first_tile[kMaxLevels + 1];    // in a grid's row
  uint32_t first_anchor[kMaxLevels + 1];  // within the image
  int32_t num_levels;
  int64_t batch;
  AnchorDecoding decoding;
  CandidateArrays out;
  Survivors survivors;

  __device__ int64_t num_anchors() const { return first_anchor[num_levels]; }
};
static_assert(sizeof(Plan) <= 4096, "kernel parameters hold 4 KiB");

// Where `value` lies among ascending firsts [0, num_levels].
__device__ int level_of(const uint32_t* firsts, int num_levels, uint32_t value) {
  int level = 0;
  while (level + 1 < num_levels && value >= firsts[level + 1]) ++level;
  return level;
}

// One anchor of one image.
template <Dtype kDtype>
struct Anchor {
  const AnchorLevel& level;
  int64_t image;
  uint32_t row, column;
  int k;

  __device__ Pixel<kDtype> at(const Map& map) const { return {map, image, row, column}; }

  // By the four deltas that a map holds for it.
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

  // visit(i, coordinate) for the ten coordinates of the landmarks.
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

  // The decoded and clipped box; false when the anchor is dropped for what it decodes to.
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

// Slots [begin, end) of an image's candidates, taken by this thread and every `step`-th from it, become empty.
__device__ void clear_slots(const CandidateArrays& out, int64_t begin, int64_t end, int64_t step) {
  for (int64_t slot = begin; slot < end; slot += step) {
    for (int i = 0; i < 4; ++i) out.boxes[4 * slot + i] = 0.f;
    out.scores[slot] = 0.f;
    out.index[slot] = -1;
    if (out.landmarks == nullptr) continue;
    for (int i = 0; i < 10; ++i) out.landmarks[10 * slot + i] = 0.f;
  }
}

// A grid's row takes an image, a block a tile of one level: the k-th anchors of neighbouring cells, whose logits lie
// side by side in memory. It also clears the output, which here many blocks share.
template <Dtype kDtype>
__global__ void __launch_bounds__(kTile) find_survivors(const __grid_constant__ Plan plan) {
  const int at = level_of(plan.first_tile, plan.num_levels, blockIdx.x);
  const AnchorLevel& level = plan.levels[at];
  const uint32_t num_anchors = level.num_anchors, width = level.width;
  // There is one tile even where there are no cells.
  const bool is_empty = blockIdx.x >= plan.first_tile[plan.num_levels];
  const uint32_t tile = is_empty ? 0 : (blockIdx.x - plan.first_tile[at]) / num_anchors;
  const uint32_t k = is_empty ? 0 : (blockIdx.x - plan.first_tile[at]) % num_anchors;
  const uint32_t cell = tile * kTile + threadIdx.x;
  const bool is_inside = !is_empty && cell < width * level.height;
  const uint32_t row = is_inside ? cell / width : 0, column = is_inside ? cell - row * width : 0;
  const uint32_t number = cell * num_anchors + k;  // in the level
  const int64_t slots = plan.decoding.max_candidates, first_slot = int64_t{blockIdx.x} * kTile + threadIdx.x;

  for (int64_t image = blockIdx.y; image < plan.batch; image += gridDim.y) {
    clear_slots(plan.out, image * slots + first_slot, (image + 1) * slots, int64_t{gridDim.x} * kTile);
    const Anchor<kDtype> anchor{level, image, row, column, static_cast<int>(k)};
    const float logit = is_inside ? anchor.logit() : NAN;
    Box box{};
    const bool survives = logit == logit && anchor.decode(plan.decoding, box);
    const uint32_t place = warp_append(&plan.survivors.count[image * kMaxLevels + at], survives);
    if (!survives) continue;
    const int64_t first = image * plan.num_anchors() + plan.first_anchor[at];
    plan.survivors.keys[first + place] =
        static_cast<uint64_t>(descending_key(logit)) << 32 | (plan.first_anchor[at] + number);
    plan.survivors.boxes[first + number] = make_float4(box.x1, box.y1, box.x2, box.y2);
    plan.survivors.scores[first + number] = sigmoid(logit);
  }
}

// One image's survivors in a block of select_best, taken chunk by chunk in the order of their keys.
class Chunks {
 public:
  struct Shared {
    uint64_t keys[kChunk];
    uint32_t buckets[kBuckets];
    uint32_t warp_counts[kMaxLevels][32];  // of the tile being numbered: keys of a level in a warp, then before it
    uint32_t warp_sums[32];
    uint32_t count[kMaxLevels];  // survivors of a level
    uint32_t seen[kMaxLevels];   // of these, how many came in earlier chunks
    uint32_t size;               // keys in the chunk
    uint32_t bucket, before, inside;
  };

  __device__ Chunks(Shared& shared, const Plan& plan, int64_t image)
      : shared_(shared), plan_(plan), keys_(plan.survivors.keys + image * plan.num_anchors()) {
    const int level = static_cast<int>(threadIdx.x);
    if (level < kMaxLevels) {
      shared_.count[level] = level < plan.num_levels ? plan.survivors.count[image * kMaxLevels + level] : 0;
      shared_.seen[level] = 0;
    }
    __syncthreads();
  }

  // Sorts the next best into shared_.keys: `wanted` or more where there are so many. Returns how many; 0 at the end.
  __device__ int next(int64_t wanted) {
    uint64_t left = 0;
    for (int level = 0; level < plan_.num_levels; ++level)
      if (is_open(level)) left += shared_.count[level] - shared_.seen[level];
    if (left == 0) return 0;
    const uint64_t last = left <= kChunk ? ~uint64_t{0} : last_key(min(wanted, int64_t{kChunk / 4 * 3}));
    gather(last);
    sort();
    first_ = last + 1;
    return static_cast<int>(shared_.size);
  }

  // Calls write(key, level, slot) for the chunk's keys that are among the best of their level, slots from `slot` on in
  // the order of keys. Returns the next slot. All threads stay until the last tile is numbered.
  template <typename Write>
  __device__ int64_t accept(int size, int64_t slot, const Write& write) {
    for (int first = 0; first < size; first += kThreads) {
      const int at = first + static_cast<int>(threadIdx.x);
      const uint64_t key = at < size ? shared_.keys[at] : 0;
      const int level = at < size ? level_of_key(key) : -1;
      const uint32_t rank = number_in_level(level);
      const bool is_taken = level >= 0 && rank < limit(level);
      const uint32_t taken = __ballot_sync(kWarp, is_taken);
      if (lane_id() == 0) shared_.warp_sums[warp_id()] = __popc(taken);
      __syncthreads();
      const uint32_t through = warp_inclusive_sum(shared_.warp_sums[lane_id()]);
      const uint32_t before = __shfl_sync(kWarp, through, warp_id()) - __popc(taken);
      if (is_taken) write(key, level, slot + before + __popc(taken & bits_below(lane_id())));
      slot += __shfl_sync(kWarp, through, 31);
    }
    return slot;
  }

 private:
  __device__ uint32_t limit(int level) const {
    return static_cast<uint32_t>(max(plan_.levels[level].max_candidates, 0));
  }

  // Whether the level may still give candidates.
  __device__ bool is_open(int level) const { return shared_.seen[level] < limit(level); }

  __device__ int level_of_key(uint64_t key) const {
    return level_of(plan_.first_anchor, plan_.num_levels, static_cast<uint32_t>(key));
  }

  // Calls visit(is_key, key) in all lanes for all keys of open levels that are not before first_. The lists are walked
  // as one, so that short ones cost no turn each.
  template <typename Visit>
  __device__ void visit_keys(const Visit& visit) const {
    uint32_t total = 0;
    for (int level = 0; level < plan_.num_levels; ++level)
      if (is_open(level)) total += shared_.count[level];
    for (uint32_t first = 0; first < total; first += kThreads) {
      uint32_t at = first + threadIdx.x;
      const bool is_inside = at < total;
      int level = 0;
      for (; is_inside && level < plan_.num_levels; ++level) {
        const uint32_t count = is_open(level) ? shared_.count[level] : 0;
        if (at < count) break;
        at -= count;
      }
      const uint64_t key = is_inside ? keys_[plan_.first_anchor[level] + at] : 0;
      visit(is_inside && key >= first_, key);
    }
  }

  // The key up to which there are between `wanted` and kChunk keys from first_ on. There must be more than kChunk.
  // A histogram over a range of keys finds the bucket in which the wanted-th lies; if the bucket holds too many, it is
  // the next range. Keys differ, so this ends.
  __device__ uint64_t last_key(int64_t wanted) {
    uint64_t low = first_, high = ~uint64_t{0};
    uint32_t before = 0;  // keys in [first_, low)
    for (;;) {
      const int shift = max(0, 64 - __clzll(static_cast<long long>(high - low)) - kBucketBits);
      for (int i = threadIdx.x; i < kBuckets; i += kThreads) shared_.buckets[i] = 0;
      __syncthreads();
      visit_keys([&](bool is_key, uint64_t key) {
        if (is_key && key >= low && key <= high) atomicAdd(&shared_.buckets[(key - low) >> shift], 1u);
      });
      __syncthreads();
      find_bucket(static_cast<uint32_t>(wanted) - before);
      before += shared_.before;
      const uint64_t start = low + (static_cast<uint64_t>(shared_.bucket) << shift);
      const uint64_t width = (uint64_t{1} << shift) - 1;
      low = start;
      high = high - start < width ? high : start + width;
      if (before + shared_.inside <= kChunk) return high;
    }
  }

  // shared_.bucket becomes the one in which the wanted-th key (from 1) lies, with the keys before and inside it.
  __device__ void find_bucket(uint32_t wanted) {
    static_assert(kBuckets == 2 * kThreads, "a thread has two buckets");
    const uint32_t left = shared_.buckets[2 * threadIdx.x], right = shared_.buckets[2 * threadIdx.x + 1];
    const uint32_t within = warp_inclusive_sum(left + right);
    if (lane_id() == 31) shared_.warp_sums[warp_id()] = within;
    __syncthreads();
    const uint32_t sum = shared_.warp_sums[lane_id()], through = warp_inclusive_sum(sum);
    const uint32_t before = __shfl_sync(kWarp, through - sum, warp_id()) + within - left - right;
    if (before < wanted && wanted <= before + left + right) {
      const bool is_left = wanted <= before + left;
      shared_.bucket = 2 * threadIdx.x + (is_left ? 0 : 1);
      shared_.before = is_left ? before : before + left;
      shared_.inside = is_left ? left : right;
    }
    __syncthreads();
  }

  // The keys from first_ to `last` into shared_.keys, in any order.
  __device__ void gather(uint64_t last) {
    __syncthreads();
    if (threadIdx.x == 0) shared_.size = 0;
    __syncthreads();
    visit_keys([&](bool is_key, uint64_t key) {
      const bool is_chosen = is_key && key <= last;
      const uint32_t place = warp_append(&shared_.size, is_chosen);
      if (is_chosen) shared_.keys[place] = key;
    });
    __syncthreads();
  }

  __device__ void sort() {
    const int size = static_cast<int>(shared_.size);
    uint64_t key[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int at = static_cast<int>(threadIdx.x) * kItems + i;
      key[i] = at < size ? shared_.keys[at] : ~uint64_t{0};
    }
    int power = 1;
    while (power < size) power *= 2;
    __syncthreads();
    block_sort(key, shared_.keys, power);
#pragma unroll
    for (int i = 0; i < kItems; ++i) shared_.keys[threadIdx.x * kItems + i] = key[i];
    __syncthreads();
  }

  // How many keys of its level came before this thread's, in this tile and all before. level -1: no key.
  __device__ uint32_t number_in_level(int level) {
    uint32_t within = 0;
    for (int l = 0; l < plan_.num_levels; ++l) {
      const uint32_t same = __ballot_sync(kWarp, level == l);
      if (lane_id() == 0) shared_.warp_counts[l][warp_id()] = __popc(same);
      if (level == l) within = __popc(same & bits_below(lane_id()));
    }
    __syncthreads();
    if (warp_id() < plan_.num_levels) {
      uint32_t* const counts = shared_.warp_counts[warp_id()];
      const uint32_t count = counts[lane_id()], through = warp_inclusive_sum(count);
      const uint32_t seen = shared_.seen[warp_id()];
      counts[lane_id()] = seen + through - count;
      __syncwarp();
      if (lane_id() == 31) shared_.seen[warp_id()] = seen + through;
    }
    __syncthreads();
    return level >= 0 ? shared_.warp_counts[level][warp_id()] + within : 0;
  }

  Shared& shared_;
  const Plan& plan_;
  const uint64_t* keys_;  // [num_anchors] of the image
  uint64_t first_ = 0;    // earlier keys are done
};

template <Dtype kDtype>
__device__ void write_candidate(const Plan& plan, int64_t image, uint32_t number, int at, int64_t slot) {
  const AnchorLevel& level = plan.levels[at];
  const uint32_t within = number - plan.first_anchor[at];
  const int64_t from = image * plan.num_anchors() + number;
  const int64_t to = image * plan.decoding.max_candidates + slot;
  const float4 box = plan.survivors.boxes[from];
  const float score = plan.survivors.scores[from];
  float* const out = plan.out.boxes + 4 * to;
  out[0] = box.x;
  out[1] = box.y;
  out[2] = box.z;
  out[3] = box.w;
  plan.out.scores[to] = score;
  plan.out.index[to] = level.first + within;
  if (plan.out.landmarks == nullptr || level.landmarks.data == nullptr) return;
  const uint32_t cell = within / level.num_anchors, row = cell / level.width;
  const Anchor<kDtype> anchor{level, image, row, cell - row * level.width,
                              static_cast<int>(within - cell * level.num_anchors)};
  anchor.visit_landmarks(anchor.start(plan.decoding), plan.decoding.center_variance,
                         [&](int i, float v) { plan.out.landmarks[10 * to + i] = v; });
}

template <Dtype kDtype>
__global__ void __launch_bounds__(kThreads, 1) select_best(const __grid_constant__ Plan plan) {
  __shared__ Chunks::Shared shared;
  const int64_t image = blockIdx.x, slots = plan.decoding.max_candidates;
  Chunks chunks(shared, plan, image);
  int64_t filled = 0;
  while (filled < slots) {
    const int size = chunks.next(slots - filled);
    if (size == 0) break;
    filled = chunks.accept(size, filled, [&](uint64_t key, int level, int64_t slot) {
      if (slot < slots) write_candidate<kDtype>(plan, image, static_cast<uint32_t>(key), level, slot);
    });
  }
  if (threadIdx.x == 0) plan.out.count[image] = static_cast<int32_t>(min(filled, slots));
}

bool is_valid(const AnchorLevel& level) {
  return level.height >= 0 && level.width >= 0 && level.stride >= 0 && level.num_background >= 0 &&
         level.num_anchors > 0 && level.num_anchors <= kMaxAnchors;
}

// False when an image has too many anchors, or a level's do not come after the one's before it.
bool number_anchors(Plan& plan) {
  int64_t tiles = 0, anchors = 0;
  for (int i = 0; i < plan.num_levels; ++i) {
    const AnchorLevel& level = plan.levels[i];
    if (!is_valid(level)) return false;
    const int64_t cells = int64_t{level.height} * level.width;
    if (cells > kMaxAnchors32 || anchors + cells * level.num_anchors > kMaxAnchors32) return false;
    if (i > 0 && level.first - plan.levels[i - 1].first < anchors - plan.first_anchor[i - 1]) return false;
    plan.first_tile[i] = static_cast<uint32_t>(tiles);
    plan.first_anchor[i] = static_cast<uint32_t>(anchors);
    tiles += ceil_div(cells, kTile) * level.num_anchors;
    anchors += cells * level.num_anchors;
  }
  plan.first_tile[plan.num_levels] = static_cast<uint32_t>(tiles);
  plan.first_anchor[plan.num_levels] = static_cast<uint32_t>(anchors);
  return true;
}

}  // namespace

size_t decode_anchors_workspace(int64_t batch, int64_t num_anchors, int64_t) {
  return batch <= 0 || num_anchors < 0 ? 0 : Survivors(nullptr, batch, num_anchors).bytes;
}

int decode_anchors(const AnchorLevel* levels, int num_levels, Dtype dtype, int64_t batch,
                   const AnchorDecoding& decoding, const CandidateArrays& out, void* workspace, size_t workspace_bytes,
                   int device, void* stream) {
  if (batch == 0) return cudaSuccess;
  if (batch < 0 || batch > INT32_MAX || num_levels < 0 || num_levels > kMaxLevels || decoding.max_candidates < 0)
    return cudaErrorInvalidValue;
  Plan plan{{}, {}, {}, num_levels, batch, decoding, out, Survivors(nullptr, 0, 0)};
  std::copy_n(levels, num_levels, plan.levels);
  if (!number_anchors(plan)) return cudaErrorInvalidValue;
  const int64_t num_anchors = plan.first_anchor[num_levels];
  if (workspace_bytes < decode_anchors_workspace(batch, num_anchors, decoding.max_candidates))
    return cudaErrorInvalidValue;
  plan.survivors = Survivors(workspace, batch, num_anchors);

  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (const int status = cudaMemsetAsync(plan.survivors.count, 0, batch * kMaxLevels * sizeof(uint32_t), cuda_stream))
    return status;
  const dim3 tiles(std::max(plan.first_tile[num_levels], 1u), static_cast<unsigned>(std::min(batch, kMaxRows)));
  with_dtype(dtype, [&](auto kind) { find_survivors<kind.value><<<tiles, kTile, 0, cuda_stream>>>(plan); });
  if (const int status = launch_status()) return status;
  with_dtype(dtype, [&](auto kind) {
    select_best<kind.value><<<static_cast<unsigned>(batch), kThreads, 0, cuda_stream>>>(plan);
  });
  return launch_status();
}

}  // namespace pyface::cuda
