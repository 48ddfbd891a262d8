// nms on the GPU. Two paths, one way to resolve. A block holds up to a few thousand candidates in its threads'
// registers, and takes the best 64 that are left, decides among them, and tests the others against those it kept; so
// the work grows with what is kept, and no N x N mask is ever stored.
//
//   Up to kSmall boxes per segment  One block per segment sorts in shared memory and resolves; one launch for all.
//   More                            One radix sort of all segments, then tiles of 1024 sorted boxes. A tile is first
//                                   compared with the boxes that earlier tiles of its segment kept, as these are
//                                   published, and resolves its own when it is its turn. Blocks draw their tiles from
//                                   a ticket counter, so whatever a block waits for is held by one that already runs.
//
// Within a block the candidates are arranged by place, not by score: the 32 boxes of a warp lie close together, and a
// kept box that misses their common bounds costs the warp one lane's test.
#include <algorithm>
#include <cuda/atomic>

#include "suppress.cuh"

namespace pyface::cuda {
namespace {

constexpr int kChunk = 64;            // boxes decided at a time: as many as a mask has bits
constexpr int kSmall = 4 * kThreads;  // boxes in a segment that one block takes

__device__ uint32_t key_of(const float* boxes, const float* scores, int64_t i, float score_threshold) {
  const float score = scores[i];
  const bool valid = score > score_threshold && is_finite(score) && is_finite(load_box(boxes, i));
  return valid ? descending_key(score) : kNone;
}

// One segment's input, and the order in which its boxes are visited.
struct Segment {
  const float* boxes;      // [n, 4]
  const int64_t* classes;  // [n] or nullptr
  const uint32_t* order;   // [ranks] -> index in the segment

  __device__ bool same_class(uint32_t i, uint32_t j) const { return classes == nullptr || classes[i] == classes[j]; }
};

// Where a segment's kept boxes go.
struct Kept {
  int64_t* keep;       // [limit] their indices
  int limit;           // max_detections, at most n
  float4* boxes;       // [limit] or nullptr: what later tiles of the segment are tested against
  uint64_t* owner;     // [ranks] or nullptr: the slot in `keep` of the box that suppressed this one, or its own
  uint64_t* progress;  // with `boxes`: tiles done << 32 | boxes kept
  uint64_t tile;

  // A block that reads this value also reads what this block wrote before it.
  __device__ void publish(uint64_t tiles_done, int kept) const {
    Progress(*progress).store(tiles_done << 32 | static_cast<uint64_t>(kept), ::cuda::memory_order_release);
  }
  __device__ uint64_t published() const { return Progress(*progress).load(::cuda::memory_order_acquire); }

 private:
  using Progress = ::cuda::atomic_ref<uint64_t, ::cuda::thread_scope_device>;
};

__device__ uint64_t bits_below64(int bit) { return (uint64_t{1} << bit) - 1; }

// The smallest box around the boxes of all lanes.
__device__ Box warp_bounds(Box b) {
  for (int step = 16; step > 0; step /= 2) {
    b.x1 = fminf(b.x1, __shfl_xor_sync(kWarp, b.x1, step));
    b.y1 = fminf(b.y1, __shfl_xor_sync(kWarp, b.y1, step));
    b.x2 = fmaxf(b.x2, __shfl_xor_sync(kWarp, b.x2, step));
    b.y2 = fmaxf(b.y2, __shfl_xor_sync(kWarp, b.y2, step));
  }
  return b;
}

// A block's candidates: each thread holds kItems, named by their rank in the segment's order within this block.
template <int kItems>
class Candidates {
 public:
  static constexpr int kCapacity = kItems * kThreads;
  // The coarse map by which boxes are arranged: a square of 2^kSide cells per side, numbered along a Z-order curve.
  static constexpr int kSide = 4, kCells = 1 << 2 * kSide;

  struct Shared {
    float4 chunk[kChunk];  // the boxes being decided, in order
    float chunk_area[kChunk];
    uint32_t chunk_index[kChunk];  // in the segment
    uint32_t chunk_rank[kChunk];
    uint64_t overlaps[kChunk];      // of a chunk's box: the earlier ones that suppress it if they are kept
    uint64_t chosen;                // the chunk's kept boxes
    float4 bounds[kCapacity / 32];  // of the 32 boxes that a warp holds as its item-th: [item * warps + warp]
    uint32_t left[kCapacity / 32];  // which ranks are undecided, one bit each
    uint32_t cells[kCells];
    uint16_t place[kCapacity];  // ranks, arranged by place
  };

  __device__ Candidates(Shared& shared, const Segment& segment, const Suppression& suppression)
      : shared_(shared), segment_(segment), suppression_(suppression) {}

  // Takes the boxes of ranks [0, count). A block barrier must separate the writing of segment.order from this call.
  __device__ void take(int count) {
    arrange(count);
#pragma unroll
    for (int e = 0; e < kItems; ++e) {
      const int at = e * blockDim.x + threadIdx.x;
      rank_[e] = at < count ? shared_.place[at] : -1;
      box_[e] = rank_[e] >= 0 ? load_box(segment_.boxes, segment_.order[rank_[e]]) : nowhere();
      area_[e] = box_area(box_[e]);
      const Box bounds = warp_bounds(box_[e]);
      if (lane_id() == 0) shared_.bounds[e * num_warps() + warp_id()] = as_vector(bounds);
    }
    for (int word = threadIdx.x; word < kCapacity / 32; word += blockDim.x) {
      const int bits = count - 32 * word;
      shared_.left[word] = bits >= 32 ? kWarp : bits > 0 ? bits_below(bits) : 0;
    }
    __syncthreads();
  }

  // Whether this thread still holds an undecided box.
  __device__ bool any_left() const {
    bool any = false;
#pragma unroll
    for (int e = 0; e < kItems; ++e) any |= rank_[e] >= 0;
    return any;
  }

  // Tests what is left against up to 32 kept boxes, those whose bits `kept` has. The arrays are in shared memory;
  // `slot` is the first box's slot in the segment's list.
  __device__ void suppress(const float4* boxes, const float* areas, const uint32_t* indices, uint32_t kept, int slot,
                           const Kept& out) {
#pragma unroll
    for (int e = 0; e < kItems; ++e) {
      if (!__any_sync(kWarp, rank_[e] >= 0)) continue;
      const Box bounds = as_box(shared_.bounds[e * num_warps() + warp_id()]);
      const bool reaches = (kept >> lane_id() & 1) && suppression_.may_reach(as_box(boxes[lane_id()]), bounds);
      for (uint32_t todo = __ballot_sync(kWarp, reaches); todo != 0; todo &= todo - 1) {
        const int k = __ffs(todo) - 1;
        if (rank_[e] < 0 || !suppression_(as_box(boxes[k]), areas[k], box_[e], area_[e])) continue;
        // Without classes `indices` may hold nothing.
        if (segment_.classes && !segment_.same_class(indices[k], segment_.order[rank_[e]])) continue;
        if (out.owner) out.owner[rank_[e]] = slot + __popc(kept & bits_below(k));
        atomicAnd(&shared_.left[rank_[e] / 32], ~(1u << rank_[e] % 32));
        rank_[e] = -1;
      }
    }
  }

  // Decides all that is left, in order, after `kept` boxes of the segment; returns the number of kept boxes then.
  __device__ int resolve(int kept, const Kept& out) {
    while (kept < out.limit) {
      const int size = next_chunk();
      if (size == 0) break;
      compare_chunk(size);
      // One warp decides while the others wait: done by all at once, it would take the block eight times as long.
      uint64_t overlaps[2];
      if (warp_id() == 0) {
        const uint64_t chosen = decide_chunk(size, out.limit - kept, overlaps);
        if (lane_id() == 0) shared_.chosen = chosen;
      }
      __syncthreads();
      const uint64_t chosen = shared_.chosen;
      if (warp_id() == 0) write_chunk(size, chosen, overlaps, kept, out);
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        const uint32_t bits = static_cast<uint32_t>(chosen >> 32 * half);
        const int before = half == 0 ? 0 : __popc(static_cast<uint32_t>(chosen));
        const int first = 32 * half;
        if (bits != 0)
          suppress(shared_.chunk + first, shared_.chunk_area + first, shared_.chunk_index + first, bits, kept + before,
                   out);
      }
      kept += __popcll(chosen);
      __syncthreads();
    }
    return kept;
  }

 private:
  __device__ static Box nowhere() { return {INFINITY, INFINITY, -INFINITY, -INFINITY}; }

  // Lists the ranks in shared_.place, neighbours next to each other. Ranks of one cell come in any order: what a warp
  // holds together decides how fast it is, never what is kept.
  __device__ void arrange(int count) {
    Box bounds = nowhere();
    for (int rank = threadIdx.x; rank < count; rank += blockDim.x) {
      const Box b = load_box(segment_.boxes, segment_.order[rank]);
      bounds = {fminf(bounds.x1, b.x1), fminf(bounds.y1, b.y1), fmaxf(bounds.x2, b.x2), fmaxf(bounds.y2, b.y2)};
    }
    bounds = warp_bounds(bounds);
    if (lane_id() == 0) shared_.bounds[warp_id()] = as_vector(bounds);
    for (int cell = threadIdx.x; cell < kCells; cell += blockDim.x) shared_.cells[cell] = 0;
    __syncthreads();
    bounds = warp_bounds(lane_id() < num_warps() ? as_box(shared_.bounds[lane_id()]) : nowhere());

    int cell[kItems] = {}, place[kItems] = {};
#pragma unroll
    for (int e = 0; e < kItems; ++e) {
      const int rank = e * blockDim.x + threadIdx.x;
      if (rank >= count) continue;
      cell[e] = cell_of(load_box(segment_.boxes, segment_.order[rank]), bounds);
      place[e] = atomicAdd(&shared_.cells[cell[e]], 1u);
    }
    __syncthreads();
    if (warp_id() == 0) {  // turns counts into first places
      constexpr int kPerLane = kCells / 32;
      uint32_t* const cells = shared_.cells + lane_id() * kPerLane;
      uint32_t sum = 0;
      for (int i = 0; i < kPerLane; ++i) sum += cells[i];
      uint32_t start = warp_inclusive_sum(sum) - sum;
      for (int i = 0; i < kPerLane; ++i) {
        const uint32_t size = cells[i];
        cells[i] = start;
        start += size;
      }
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kItems; ++e) {
      const int rank = e * blockDim.x + threadIdx.x;
      if (rank < count) shared_.place[shared_.cells[cell[e]] + place[e]] = static_cast<uint16_t>(rank);
    }
    __syncthreads();
  }

  __device__ static int cell_of(const Box& b, const Box& bounds) {
    const int column = cell_of(0.5f * b.x1 + 0.5f * b.x2, bounds.x1, bounds.x2);
    const int row = cell_of(0.5f * b.y1 + 0.5f * b.y2, bounds.y1, bounds.y2);
    int cell = 0;
    for (int bit = 0; bit < kSide; ++bit) cell |= (column >> bit & 1) << 2 * bit | (row >> bit & 1) << (2 * bit + 1);
    return cell;
  }

  __device__ static int cell_of(float centre, float low, float high) {
    constexpr float kLast = (1 << kSide) - 1;
    // fmaxf and fminf ignore a NaN, which bounds without extent, or beyond the range of floats, can give.
    return static_cast<int>(fminf(fmaxf((centre - low) / (high - low) * (kLast + 1), 0.f), kLast));
  }

  // Puts the best kChunk boxes that are left into shared_.chunk, in order, and no longer counts them as left. Returns
  // how many there were. Every warp counts for itself, which is quicker than waiting for one.
  __device__ int next_chunk() {
    constexpr int kWords = kItems;  // of shared_.left, for each lane
    uint32_t sum = 0;
    for (int i = 0; i < kWords; ++i) sum += __popc(shared_.left[lane_id() * kWords + i]);
    const uint32_t through = warp_inclusive_sum(sum);
    const int total = __shfl_sync(kWarp, through, 31);
    uint32_t taken = 0;
#pragma unroll
    for (int e = 0; e < kItems; ++e) {
      const int word = rank_[e] >= 0 ? rank_[e] / 32 : 0;
      int before = __shfl_sync(kWarp, through - sum, word / kWords);
      if (rank_[e] < 0) continue;
      for (int w = word / kWords * kWords; w < word; ++w) before += __popc(shared_.left[w]);
      before += __popc(shared_.left[word] & bits_below(rank_[e] % 32));
      if (before >= kChunk) continue;
      shared_.chunk[before] = as_vector(box_[e]);
      shared_.chunk_area[before] = area_[e];
      shared_.chunk_index[before] = segment_.order[rank_[e]];
      shared_.chunk_rank[before] = rank_[e];
      taken |= 1u << e;
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kItems; ++e) {
      if (!(taken >> e & 1)) continue;
      atomicAnd(&shared_.left[rank_[e] / 32], ~(1u << rank_[e] % 32));
      rank_[e] = -1;
    }
    return min(total, kChunk);
  }

  // Fills shared_.overlaps: a warp takes a row, a lane two columns.
  __device__ void compare_chunk(int size) {
    for (int i = warp_id(); i < size; i += num_warps()) {
      const Box box = as_box(shared_.chunk[i]);
      const float area = shared_.chunk_area[i];
      const auto suppressed_by = [&](int j) {
        return j < i && suppression_(as_box(shared_.chunk[j]), shared_.chunk_area[j], box, area) &&
               segment_.same_class(shared_.chunk_index[j], shared_.chunk_index[i]);
      };
      const uint32_t low = __ballot_sync(kWarp, suppressed_by(lane_id()));
      const uint32_t high = i > 32 ? __ballot_sync(kWarp, suppressed_by(lane_id() + 32)) : 0;
      if (lane_id() == 0) shared_.overlaps[i] = static_cast<uint64_t>(high) << 32 | low;
    }
    __syncthreads();
  }

  // For one warp: which boxes of the chunk are kept, at most `room`. A box is decided as soon as all that could
  // suppress it are, so this takes as many steps as the longest chain of overlaps, not as there are boxes. `overlaps`
  // receives the rows of this lane's two boxes.
  __device__ uint64_t decide_chunk(int size, int room, uint64_t (&overlaps)[2]) {
    uint64_t open = size == 64 ? ~uint64_t{0} : bits_below64(size), chosen = 0;
    for (int half = 0; half < 2; ++half) {
      const int i = lane_id() + 32 * half;
      overlaps[half] = i < size ? shared_.overlaps[i] : 0;
    }
    while (open != 0) {
      uint64_t free = 0, covered = 0;
      for (int half = 0; half < 2; ++half) {
        const bool is_open = open >> (lane_id() + 32 * half) & 1;
        const bool is_covered = (overlaps[half] & chosen) != 0, waits = (overlaps[half] & open) != 0;
        covered |= static_cast<uint64_t>(__ballot_sync(kWarp, is_open && is_covered)) << 32 * half;
        free |= static_cast<uint64_t>(__ballot_sync(kWarp, is_open && !is_covered && !waits)) << 32 * half;
      }
      chosen |= free;
      open &= ~(free | covered);
    }
    while (__popcll(chosen) > room) chosen &= ~(uint64_t{1} << (63 - __clzll(chosen)));
    return chosen;
  }

  // For one warp: writes the chunk's kept boxes and notifies the other blocks.
  __device__ void write_chunk(int size, uint64_t chosen, const uint64_t (&overlaps)[2], int kept, const Kept& out) {
    for (int half = 0; half < 2; ++half) {
      const int i = lane_id() + 32 * half;
      if (i >= size) continue;
      const bool is_kept = chosen >> i & 1;
      const uint64_t covering = overlaps[half] & chosen;
      if (is_kept) {
        const int slot = kept + __popcll(chosen & bits_below64(i));
        out.keep[slot] = shared_.chunk_index[i];
        if (out.boxes) out.boxes[slot] = shared_.chunk[i];
        if (out.owner) out.owner[shared_.chunk_rank[i]] = slot;
      } else if (out.owner && covering != 0) {
        out.owner[shared_.chunk_rank[i]] = kept + __popcll(chosen & bits_below64(__ffsll(covering) - 1));
      }
    }
    if (!out.progress) return;
    __syncwarp();
    if (lane_id() == 0) out.publish(out.tile, kept + __popcll(chosen));
  }

  Shared& shared_;
  const Segment segment_;
  const Suppression& suppression_;
  Box box_[kItems];
  float area_[kItems];
  int rank_[kItems];  // -1: no box, or decided
};

__device__ int valid_count(const int32_t* counts, int64_t segment, int64_t n) {
  return static_cast<int>(counts ? min(max(int64_t{counts[segment]}, int64_t{0}), n) : n);
}

template <int kItems>
__global__ void __launch_bounds__(kThreads, 1)
    nms_small(const float* boxes,      // [batch, n, 4]
              const float* scores,     // [batch, n]
              const int64_t* classes,  // [batch, n] or nullptr
              const int32_t* counts,   // [batch] or nullptr
              int n, Suppression suppression, float score_threshold, int64_t max_detections,
              int64_t* keep,        // [batch, max_detections]
              int32_t* keep_count)  // [batch]
{
  using Block = Candidates<kItems>;
  // First the keys, then the order that results from them.
  __shared__ uint64_t exchange[Block::kCapacity];
  __shared__ typename Block::Shared shared;
  __shared__ int total;
  uint32_t* const order = reinterpret_cast<uint32_t*>(exchange);

  const int64_t segment = blockIdx.x;
  boxes += 4 * segment * n;
  scores += segment * n;
  keep += segment * max_detections;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();

  // Only valid entries are gathered, in any order: their keys, which end with the index, are all different.
  const int entries = valid_count(counts, segment, n);
  for (int first = 0; first < entries; first += blockDim.x) {
    const int i = first + threadIdx.x;
    const uint32_t score = i < entries ? key_of(boxes, scores, i, score_threshold) : kNone;
    const uint32_t valid = __ballot_sync(kWarp, score != kNone);
    int at = 0;
    if (lane_id() == 0) at = atomicAdd(&total, __popc(valid));
    at = __shfl_sync(kWarp, at, 0) + __popc(valid & bits_below(lane_id()));
    if (score != kNone) exchange[at] = static_cast<uint64_t>(score) << 32 | static_cast<uint32_t>(i);
  }
  __syncthreads();
  const int count = total;

  uint64_t key[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int at = threadIdx.x * kItems + i;
    key[i] = at < count ? exchange[at] : ~uint64_t{0};
  }
  __syncthreads();
  int size = 1;
  while (size < count) size *= 2;
  block_sort(key, exchange, size);
#pragma unroll
  for (int i = 0; i < kItems; ++i) order[threadIdx.x * kItems + i] = static_cast<uint32_t>(key[i]);
  __syncthreads();

  Block block(shared, {boxes, classes ? classes + segment * n : nullptr, order}, suppression);
  block.take(count);
  const Kept out{keep, static_cast<int>(min(max_detections, int64_t{n})), nullptr, nullptr, nullptr, 0};
  const int kept = block.resolve(0, out);
  for (int64_t i = kept + threadIdx.x; i < max_detections; i += blockDim.x) keep[i] = -1;
  if (threadIdx.x == 0) keep_count[segment] = kept;
}

// The keys to sort by, and everything else that must be set before nms_tiles.
__global__ void nms_prepare(const float* boxes,     // [batch, n, 4]
                            const float* scores,    // [batch, n]
                            const int32_t* counts,  // [batch] or nullptr
                            int64_t batch, int64_t n, float score_threshold, int64_t max_detections,
                            uint64_t* keys,       // [batch * n]
                            uint32_t* order,      // [batch * n]
                            uint64_t* progress,   // [batch]
                            uint32_t* ticket,     // [1]
                            int64_t* keep,        // [batch, max_detections]
                            int32_t* keep_count)  // [batch]
{
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = thread; at < batch * n; at += threads) {
    const int64_t segment = at / n, i = at % n;
    const uint32_t key = i < valid_count(counts, segment, n) ? key_of(boxes, scores, at, score_threshold) : kNone;
    keys[at] = static_cast<uint64_t>(segment) << 32 | key;
    order[at] = static_cast<uint32_t>(i);
  }
  for (int64_t at = thread; at < batch * max_detections; at += threads) keep[at] = -1;
  for (int64_t segment = thread; segment < batch; segment += threads) {
    progress[segment] = 0;
    keep_count[segment] = 0;
  }
  if (thread == 0) *ticket = 0;
}

__global__ void __launch_bounds__(kThreads, 1)
    nms_tiles(const float* boxes,      // [batch, n, 4]
              const int64_t* classes,  // [batch, n] or nullptr
              const uint64_t* keys,    // [batch * n] sorted
              const uint32_t* order,   // [batch * n] indices within the segment
              int64_t batch, int64_t n, Suppression suppression, int64_t max_detections,
              float4* kept_boxes,   // [batch, n]
              uint64_t* progress,   // [batch]
              uint32_t* ticket,     // [1]
              int64_t* keep,        // [batch, max_detections]
              int32_t* keep_count,  // [batch]
              uint64_t* owner)      // [batch * n] or nullptr; kNone for invalid entries
{
  using Block = Candidates<1>;
  __shared__ typename Block::Shared shared;
  __shared__ float4 stage[kThreads];
  __shared__ float stage_area[kThreads];
  __shared__ uint32_t stage_index[kThreads];
  __shared__ uint32_t drawn;
  __shared__ uint64_t seen;

  if (threadIdx.x == 0) drawn = atomicAdd(ticket, 1u);
  __syncthreads();
  // Segments take turns, so that they advance side by side.
  const int64_t segment = drawn % batch;
  const uint64_t tile = drawn / batch;
  const int64_t first = static_cast<int64_t>(tile) * kThreads, at = first + threadIdx.x;
  const bool is_valid = at < n && static_cast<uint32_t>(keys[segment * n + at]) != kNone;
  const int count = __syncthreads_count(is_valid);  // of a sorted segment the valid entries come first
  if (owner) {
    owner += segment * n + first;
    if (at < n && !is_valid) owner[threadIdx.x] = kNone;
  }
  if (count == 0) return;

  boxes += 4 * segment * n;
  keep += segment * max_detections;
  kept_boxes += segment * n;
  const int limit = static_cast<int>(min(max_detections, n));
  const Kept out{keep, limit, kept_boxes, owner, progress + segment, tile};
  Block block(shared, {boxes, classes ? classes + segment * n : nullptr, order + segment * n + first}, suppression);
  block.take(count);

  int kept = 0;
  for (;;) {
    if (threadIdx.x == 0) {
      // Waits for more boxes, or for our turn.
      uint64_t now;
      while (now = out.published(), static_cast<int>(now & kWarp) == kept && now >> 32 != tile) __nanosleep(40);
      seen = now;
    }
    __syncthreads();
    const uint64_t now = seen;
    const int published = static_cast<int>(now & kWarp);
    if (published >= limit) return;
    const bool any_left = __syncthreads_or(block.any_left());
    while (kept < published) {
      const int size = any_left ? min(published - kept, kThreads) : published - kept;
      if (any_left) {
        if (static_cast<int>(threadIdx.x) < size) {
          // Past the first-level cache, which may hold the line as it was before the box was written.
          const float4 box = __ldcg(kept_boxes + kept + threadIdx.x);
          stage[threadIdx.x] = box;
          stage_area[threadIdx.x] = box_area(as_box(box));
          if (classes) stage_index[threadIdx.x] = static_cast<uint32_t>(__ldcg(keep + kept + threadIdx.x));
        }
        __syncthreads();
        for (int i = 0; i < size; i += 32) {
          const uint32_t bits = size - i >= 32 ? kWarp : bits_below(size - i);
          block.suppress(stage + i, stage_area + i, stage_index + i, bits, kept + i, out);
        }
        __syncthreads();
      }
      kept += size;
    }
    if (now >> 32 == tile) break;
  }
  kept = block.resolve(kept, out);
  if (threadIdx.x == 0) {
    keep_count[segment] = kept;
    out.publish(tile + 1, kept);
  }
}

}  // namespace

int run_tiles(const float* boxes, const float* scores, const int64_t* classes, const int32_t* counts, int64_t batch,
              int64_t n, Suppression suppression, float score_threshold, int64_t max_detections, int64_t* keep,
              int32_t* keep_count, bool with_owner, TilesWorkspace& workspace, cudaStream_t stream) {
  constexpr int kBlock = 256;
  constexpr int64_t kBlocks = 4096;
  const int64_t largest = std::max(batch * n, batch * max_detections);
  nms_prepare<<<num_blocks(ceil_div(largest, kBlock), kBlocks), kBlock, 0, stream>>>(
      boxes, scores, counts, batch, n, score_threshold, max_detections, workspace.keys.current, workspace.order.current,
      workspace.progress, workspace.ticket, keep, keep_count);
  if (const int status = launch_status()) return status;
  int bits = 32;
  while (batch > int64_t{1} << (bits - 32)) ++bits;
  if (const int status =
          sort_pairs(workspace.keys, workspace.order, batch * n, bits, workspace.sort, workspace.sort_bytes, stream))
    return status;
  nms_tiles<<<static_cast<unsigned>(batch * ceil_div(n, kThreads)), kThreads, 0, stream>>>(
      boxes, classes, workspace.keys.current, workspace.order.current, batch, n, suppression, max_detections,
      workspace.kept_boxes, workspace.progress, workspace.ticket, keep, keep_count,
      with_owner ? workspace.keys.other : nullptr);
  return launch_status();
}

size_t nms_workspace(int64_t batch, int64_t n) {
  return batch <= 0 || n <= kSmall ? 0 : TilesWorkspace(nullptr, batch, n).bytes;
}

int nms(const float* boxes, const float* scores, const int64_t* classes, const int32_t* counts, int64_t batch,
        int64_t n, double iou_threshold, double score_threshold, Overlap overlap, int64_t max_detections, int64_t* keep,
        int32_t* keep_count, void* workspace, size_t workspace_bytes, int device, void* stream) {
  if (batch == 0) return cudaSuccess;
  if (batch < 0 || n < 0 || max_detections < 0 || batch >= kMaxEntries || n >= kMaxEntries ||
      (n > 0 && batch > kMaxEntries / n) || workspace_bytes < nms_workspace(batch, n))
    return cudaErrorInvalidValue;
  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const Suppression suppression(float_below(iou_threshold), overlap);
  const float score_limit = float_below(score_threshold);

  if (n > kSmall && max_detections > 0) {
    TilesWorkspace tiles(workspace, batch, n);
    return run_tiles(boxes, scores, classes, counts, batch, n, suppression, score_limit, max_detections, keep,
                     keep_count, /*with_owner=*/false, tiles, cuda_stream);
  }
  const int size = max_detections > 0 ? static_cast<int>(n) : 0;
  int threads = 128;
  while (threads < std::min(size, kThreads)) threads *= 2;
  const auto launch = [&](auto kernel) {
    kernel<<<static_cast<unsigned>(batch), threads, 0, cuda_stream>>>(boxes, scores, classes, counts, size, suppression,
                                                                      score_limit, max_detections, keep, keep_count);
  };
  if (size <= kThreads)
    launch(nms_small<1>);
  else if (size <= 2 * kThreads)
    launch(nms_small<2>);
  else
    launch(nms_small<4>);
  return launch_status();
}

}  // namespace pyface::cuda
