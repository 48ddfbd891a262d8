// Survivors of a threshold and the best of them, for every decoder: what passes is appended to a list, in any order,
// and one block per image takes the lists' best. Keys are all different (score, then entry), so every run gives the
// same result.
#pragma once

#include <algorithm>

#include "block.cuh"
#include "common.cuh"
#include "maps.cuh"
#include "select.cuh"

namespace pyface::cuda {

constexpr int kSelectThreads = 1024;  // of a block that selects
constexpr int kItems = 4;             // keys that a thread sorts
constexpr int kChunk = kItems * kSelectThreads;
constexpr int64_t kMaxEntries = (int64_t{1} << 31) - kChunk;  // in an image, so that loops may step past it by a block

// The level of `value`: the last one whose first value is not above it. firsts [num_levels], ascending.
inline __device__ int level_of(const uint32_t* firsts, int num_levels, uint32_t value) {
  int level = 0;
  while (level + 1 < num_levels && value >= firsts[level + 1]) ++level;
  return level;
}

// The entries (anchors or cells) that passed. They are numbered within the image, level by level; each level has a
// list.
struct Survivors {
  uint32_t first[kMaxLevels + 1];  // first entry of each level; the last one: number of entries
  int32_t limit[kMaxLevels];       // how many of each level's best are kept
  int32_t num_levels;

  uint32_t* count;  // [batch, kMaxLevels]
  uint64_t* keys;   // [batch, num_entries]: a level's list begins at its first entry; descending_key << 32 | entry
  float4* boxes;    // [batch, num_entries], by entry
  float* scores;    // [batch, num_entries], by entry

  // Lays the arrays out, and returns their bytes.
  size_t place(void* base, int64_t batch, int64_t num_entries) {
    Workspace workspace(base);
    count = workspace.take<uint32_t>(batch * kMaxLevels);
    keys = workspace.take<uint64_t>(batch * num_entries);
    boxes = workspace.take<float4>(batch * num_entries);
    scores = workspace.take<float>(batch * num_entries);
    return workspace.bytes();
  }

  // To be called before anything is added.
  int clear(int64_t batch, cudaStream_t stream) const {
    return cudaMemsetAsync(count, 0, batch * kMaxLevels * sizeof(uint32_t), stream);
  }

  __device__ int64_t first_of(int64_t image) const { return image * first[num_levels]; }

  // Adds the entries of a warp's lanes that survive, all of one level. They are ordered by `order`.
  __device__ void add(bool survives, int64_t image, int level, uint32_t entry, float order, const Box& box,
                      float score) const {
    const uint32_t place = warp_append(&count[image * kMaxLevels + level], survives);
    if (!survives) return;
    keys[first_of(image) + first[level] + place] = static_cast<uint64_t>(descending_key(order)) << 32 | entry;
    boxes[first_of(image) + entry] = make_float4(box.x1, box.y1, box.x2, box.y2);
    scores[first_of(image) + entry] = score;
  }
};

inline size_t survivors_workspace(int64_t batch, int64_t num_entries) {
  return batch <= 0 || num_entries < 0 ? 0 : Survivors().place(nullptr, batch, num_entries);
}

// Empties every `step`-th slot of [begin, end): this thread's share of an image's candidates.
inline __device__ void clear_slots(const CandidateArrays& out, int64_t begin, int64_t end, int64_t step) {
  for (int64_t slot = begin; slot < end; slot += step) {
    for (int i = 0; i < 4; ++i) out.boxes[4 * slot + i] = 0.f;
    out.scores[slot] = 0.f;
    out.index[slot] = -1;
    if (out.landmarks == nullptr) continue;
    for (int i = 0; i < 10; ++i) out.landmarks[10 * slot + i] = 0.f;
  }
}

// One image's survivors in a block of kSelectThreads threads, taken chunk by chunk in the order of their keys.
class Chunks {
 public:
  struct Shared {
    uint64_t keys[kChunk];
    KeySearch<kSelectThreads> search;
    uint32_t warp_counts[kMaxLevels][32];  // of the tile being numbered: keys of a level in a warp, then before it
    uint32_t warp_sums[32];
    uint32_t count[kMaxLevels];  // survivors of a level
    uint32_t seen[kMaxLevels];   // of these, how many came in earlier chunks
    uint32_t size;               // keys in the chunk
  };

  __device__ Chunks(Shared& shared, const Survivors& survivors, int64_t image)
      : shared_(shared), survivors_(survivors), keys_(survivors.keys + survivors.first_of(image)) {
    const int level = static_cast<int>(threadIdx.x);
    if (level < kMaxLevels) {
      shared_.count[level] = level < survivors.num_levels ? survivors.count[image * kMaxLevels + level] : 0;
      shared_.seen[level] = 0;
    }
    __syncthreads();
  }

  // Sorts the next best into shared_.keys: `wanted` or more if there are that many. Returns their number, 0 at the end.
  __device__ int next(int64_t wanted) {
    uint64_t left = 0;
    for (int level = 0; level < survivors_.num_levels; ++level)
      if (is_open(level)) left += shared_.count[level] - shared_.seen[level];
    if (left == 0) return 0;
    const uint64_t last =
        left <= kChunk ? ~uint64_t{0} : last_key(static_cast<uint32_t>(min(wanted, int64_t{kChunk / 4 * 3})));
    gather(last);
    sort();
    first_ = last + 1;
    return static_cast<int>(shared_.size);
  }

  // Calls write(key, level, slot) for the chunk's keys that are among the best of their level, slots from `slot` on in
  // the order of keys. Returns the next slot. All threads take part until the last tile is numbered.
  template <typename Write>
  __device__ int64_t accept(int size, int64_t slot, const Write& write) {
    for (int first = 0; first < size; first += kSelectThreads) {
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
  __device__ uint32_t limit(int level) const { return static_cast<uint32_t>(max(survivors_.limit[level], 0)); }

  // Whether the level may still give candidates.
  __device__ bool is_open(int level) const { return shared_.seen[level] < limit(level); }

  __device__ int level_of_key(uint64_t key) const {
    return level_of(survivors_.first, survivors_.num_levels, static_cast<uint32_t>(key));
  }

  // Calls visit(is_key, key) in all lanes for all keys of open levels that are not before first_. The lists are walked
  // as one, so that short ones do not cost a turn each.
  template <typename Visit>
  __device__ void visit_keys(const Visit& visit) const {
    uint32_t total = 0;
    for (int level = 0; level < survivors_.num_levels; ++level)
      if (is_open(level)) total += shared_.count[level];
    for (uint32_t first = 0; first < total; first += kSelectThreads) {
      uint32_t at = first + threadIdx.x;
      const bool is_inside = at < total;
      int level = 0;
      for (; is_inside && level < survivors_.num_levels; ++level) {
        const uint32_t count = is_open(level) ? shared_.count[level] : 0;
        if (at < count) break;
        at -= count;
      }
      const uint64_t key = is_inside ? keys_[survivors_.first[level] + at] : 0;
      visit(is_inside && key >= first_, key);
    }
  }

  // The key up to which there are between `wanted` and kChunk keys from first_ on. There must be more than kChunk.
  __device__ uint64_t last_key(uint32_t wanted) {
    const auto visit = [&](const auto& take) {
      visit_keys([&](bool is_key, uint64_t key) {
        if (is_key) take(key);
      });
    };
    return shared_.search.last_key(shared_.search.range_from(first_, visit), wanted, kChunk, visit);
  }

  // Copies the keys from first_ to `last` into shared_.keys, in any order.
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
    for (int l = 0; l < survivors_.num_levels; ++l) {
      const uint32_t same = __ballot_sync(kWarp, level == l);
      if (lane_id() == 0) shared_.warp_counts[l][warp_id()] = __popc(same);
      if (level == l) within = __popc(same & bits_below(lane_id()));
    }
    __syncthreads();
    if (warp_id() < survivors_.num_levels) {
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
  const Survivors& survivors_;
  const uint64_t* keys_;  // [num_entries] of the image
  uint64_t first_ = 0;    // earlier keys are done
};

// The best of an image's survivors become its candidates. write(entry, level, slot) writes what only the caller has;
// `slot` counts over the whole batch.
template <typename Write>
__device__ void select_candidates(Chunks::Shared& shared, const Survivors& survivors, int64_t image,
                                  int64_t max_candidates, const CandidateArrays& out, const Write& write) {
  Chunks chunks(shared, survivors, image);
  int64_t filled = 0;
  while (filled < max_candidates) {
    const int size = chunks.next(max_candidates - filled);
    if (size == 0) break;
    filled = chunks.accept(size, filled, [&](uint64_t key, int level, int64_t slot) {
      if (slot >= max_candidates) return;
      const uint32_t entry = static_cast<uint32_t>(key);
      const int64_t from = survivors.first_of(image) + entry, to = image * max_candidates + slot;
      write(entry, level, to);  // first, since it needs the most registers
      const float4 box = survivors.boxes[from];
      out.boxes[4 * to] = box.x;
      out.boxes[4 * to + 1] = box.y;
      out.boxes[4 * to + 2] = box.z;
      out.boxes[4 * to + 3] = box.w;
      out.scores[to] = survivors.scores[from];
    });
  }
  if (threadIdx.x == 0) out.count[image] = static_cast<int32_t>(min(filled, max_candidates));
}

}  // namespace pyface::cuda
