// box_voting on the GPU: clusters as nms finds them, sorted by cluster, become one box each.
#include <utility>

#include "suppress.cuh"

namespace pyface::cuda {
namespace {

constexpr int kLong = 32;  // clusters with more members are added up by a warp

// The five sums of a cluster, over its members in score order: the same as on the CPU.
struct Sums {
  double box[4], weight;

  __device__ void add(const Box& b, float score) {
    const double w = fmaxf(score, 0.f);
    box[0] += w * b.x1;
    box[1] += w * b.y1;
    box[2] += w * b.x2;
    box[3] += w * b.y2;
    weight += w;
  }
};

// Members that the lanes of a warp have loaded.
struct Members {
  float box[4][33];  // 33: lanes that read the same place of each row use different banks
  float weight[32];
};

// For one warp, the sums of the cluster that starts at `first`: each lane loads a member, then each of five lanes adds
// up one sum, so that no load waits for an addition.
__device__ Sums add_up(Members& members, const float* boxes, const float* scores, const uint64_t* cluster,
                       const uint32_t* order, int64_t first, int64_t n) {
  const uint64_t mine = cluster[first];
  const int lane = lane_id();
  double sum = 0;
  for (int size = 32; size == 32; first += 32) {
    const int64_t at = first + lane;
    const bool is_member = at < n && cluster[at] == mine;
    size = __popc(__ballot_sync(kWarp, is_member));
    if (is_member) {
      const Box b = load_box(boxes, order[at]);
      members.box[0][lane] = b.x1;
      members.box[1][lane] = b.y1;
      members.box[2][lane] = b.x2;
      members.box[3][lane] = b.y2;
      members.weight[lane] = fmaxf(scores[order[at]], 0.f);
    }
    __syncwarp();
    for (int i = 0; lane < 5 && i < size; ++i) {
      const double weight = members.weight[i];
      sum += lane < 4 ? weight * members.box[lane][i] : weight;
    }
    __syncwarp();
  }
  return {
      {__shfl_sync(kWarp, sum, 0), __shfl_sync(kWarp, sum, 1), __shfl_sync(kWarp, sum, 2), __shfl_sync(kWarp, sum, 3)},
      __shfl_sync(kWarp, sum, 4)};
}

// The entries, sorted by cluster and within it by score, become one box per cluster. There is only one block, so that
// clusters that are left out can be counted in order. A thread adds up a short cluster, its warp a long one.
__global__ void __launch_bounds__(kThreads, 1)
    vote(const float* boxes,       // [n, 4]
         const float* scores,      // [n]
         const uint64_t* cluster,  // [n] ascending; kNone for invalid entries
         const uint32_t* order,    // [n] indices
         int64_t n, bool drop_singletons,
         float* voted_boxes,    // [n, 4]
         float* voted_scores,   // [n]
         int32_t* voted_count)  // [1]
{
  __shared__ uint32_t warp_heads[2][32];  // used in turns, so that a step needs one barrier
  __shared__ Members members[32];
  int64_t count = 0;
  int turn = 0;
  for (int64_t first = 0; first < n && cluster[first] != kNone; first += kThreads, turn ^= 1) {
    const int64_t at = first + threadIdx.x;
    const uint64_t mine = at < n ? cluster[at] : kNone;
    const bool starts = mine != kNone && (at == 0 || cluster[at - 1] != mine);
    const bool is_alone = starts && (at + 1 == n || cluster[at + 1] != mine);
    const bool is_head = starts && !(drop_singletons && is_alone);
    const uint32_t heads = __ballot_sync(kWarp, is_head);
    if (lane_id() == 0) warp_heads[turn][warp_id()] = __popc(heads);
    __syncthreads();
    const uint32_t through = warp_inclusive_sum(warp_heads[turn][lane_id()]);
    const int before = warp_id() == 0 ? 0 : __shfl_sync(kWarp, through, warp_id() - 1);
    const int64_t slot = count + before + __popc(heads & bits_below(lane_id()));
    count += __shfl_sync(kWarp, through, 31);

    Sums sums{};
    const bool is_long = is_head && at + kLong < n && cluster[at + kLong] == mine;
    for (int64_t member = at; is_head && !is_long && member < n && cluster[member] == mine; ++member)
      sums.add(load_box(boxes, order[member]), scores[order[member]]);
    for (uint32_t todo = __ballot_sync(kWarp, is_long); todo != 0; todo &= todo - 1) {
      const int head = __ffs(static_cast<int>(todo)) - 1;
      const Sums whole = add_up(members[warp_id()], boxes, scores, cluster, order, at - lane_id() + head, n);
      if (lane_id() == head) sums = whole;
    }
    if (!is_head) continue;
    const Box best = load_box(boxes, order[at]);
    const float coordinates[4] = {best.x1, best.y1, best.x2, best.y2};
    for (int i = 0; i < 4; ++i)
      voted_boxes[4 * slot + i] = sums.weight > 0 ? static_cast<float>(sums.box[i] / sums.weight) : coordinates[i];
    voted_scores[slot] = scores[order[at]];
  }
  for (int64_t i = 4 * count + threadIdx.x; i < 4 * n; i += kThreads) voted_boxes[i] = 0.f;
  for (int64_t i = count + threadIdx.x; i < n; i += kThreads) voted_scores[i] = 0.f;
  if (threadIdx.x == 0) *voted_count = static_cast<int32_t>(count);
}

struct VotingWorkspace {
  VotingWorkspace(void* base, int64_t n) : tiles(nullptr, 0, 0) {
    Workspace workspace(base);
    keep = workspace.take<int64_t>(n);
    keep_count = workspace.take<int32_t>(1);
    const size_t tiles_bytes = TilesWorkspace(nullptr, 1, n).bytes;
    tiles = TilesWorkspace(workspace.take<char>(tiles_bytes), 1, n);
    bytes = workspace.bytes();
  }

  int64_t* keep;
  int32_t* keep_count;
  TilesWorkspace tiles;
  size_t bytes;
};

}  // namespace

size_t box_voting_workspace(int64_t n) { return n <= 0 ? 0 : VotingWorkspace(nullptr, n).bytes; }

int box_voting(const float* boxes, const float* scores, int64_t n, double iou_threshold, Overlap overlap,
               bool drop_singletons, float* voted_boxes, float* voted_scores, int32_t* voted_count, void* workspace,
               size_t workspace_bytes, int device, void* stream) {
  if (n < 0 || n >= kMaxEntries || workspace_bytes < box_voting_workspace(n)) return cudaErrorInvalidValue;
  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (n == 0) return cudaMemsetAsync(voted_count, 0, sizeof(int32_t), cuda_stream);

  // Clusters are what suppression finds: every box joins the first kept one that it overlaps. For floats, >= threshold
  // means > the next lower float.
  VotingWorkspace voting(workspace, n);
  TilesWorkspace& tiles = voting.tiles;
  const Suppression suppression(std::nextafter(float_above(iou_threshold), -INFINITY), overlap);
  if (const int status = run_tiles(boxes, scores, nullptr, nullptr, 1, n, suppression, -INFINITY, n, voting.keep,
                                   voting.keep_count, /*with_owner=*/true, tiles, cuda_stream))
    return status;
  std::swap(tiles.keys.current, tiles.keys.other);
  int bits = 1;  // these bits of kNone, too, exceed any cluster's number
  while (n >> bits > 0) ++bits;
  if (const int status = sort_pairs(tiles.keys, tiles.order, n, bits, tiles.sort, tiles.sort_bytes, cuda_stream))
    return status;
  vote<<<1, kThreads, 0, cuda_stream>>>(boxes, scores, tiles.keys.current, tiles.order.current, n, drop_singletons,
                                        voted_boxes, voted_scores, voted_count);
  return launch_status();
}

}  // namespace pyface::cuda
