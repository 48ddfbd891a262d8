// box_voting on the GPU: clusters as nms finds them, sorted by cluster, become one box each.
#include <utility>

#include "suppress.cuh"

namespace pyface::cuda {
namespace {

// The entries, sorted by cluster and within it by score, become one box per cluster. One block, so that the clusters
// which are left out can be counted in order. A thread adds up a cluster in score order: the same sum as on the CPU.
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
  __shared__ uint32_t warp_heads[2][32];  // taken in turns, so that a step needs one barrier
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
    if (!is_head) continue;

    double sum[4] = {}, total = 0;
    for (int64_t member = at; member < n && cluster[member] == mine; ++member) {
      const Box b = load_box(boxes, order[member]);
      const double weight = fmaxf(scores[order[member]], 0.f);
      sum[0] += weight * b.x1;
      sum[1] += weight * b.y1;
      sum[2] += weight * b.x2;
      sum[3] += weight * b.y2;
      total += weight;
    }
    const Box best = load_box(boxes, order[at]);
    float* const out = voted_boxes + 4 * slot;
    out[0] = total > 0 ? static_cast<float>(sum[0] / total) : best.x1;
    out[1] = total > 0 ? static_cast<float>(sum[1] / total) : best.y1;
    out[2] = total > 0 ? static_cast<float>(sum[2] / total) : best.x2;
    out[3] = total > 0 ? static_cast<float>(sum[3] / total) : best.y2;
    voted_scores[slot] = scores[order[at]];
  }
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
  if (const int status = cudaMemsetAsync(voted_count, 0, sizeof(int32_t), cuda_stream)) return status;
  if (n == 0) return cudaSuccess;
  if (const int status = cudaMemsetAsync(voted_boxes, 0, 4 * n * sizeof(float), cuda_stream)) return status;
  if (const int status = cudaMemsetAsync(voted_scores, 0, n * sizeof(float), cuda_stream)) return status;

  // Clusters are what suppression finds: every box joins the first kept one that it overlaps. For floats, >= is > of
  // the next lower threshold.
  VotingWorkspace voting(workspace, n);
  TilesWorkspace& tiles = voting.tiles;
  const Suppression suppression(std::nextafter(float_above(iou_threshold), -INFINITY), overlap);
  if (const int status = run_tiles(boxes, scores, nullptr, nullptr, 1, n, suppression, -INFINITY, n, voting.keep,
                                   voting.keep_count, /*with_owner=*/true, tiles, cuda_stream))
    return status;
  std::swap(tiles.keys.current, tiles.keys.other);
  if (const int status = sort_pairs(tiles.keys, tiles.order, n, 32, tiles.sort, tiles.sort_bytes, cuda_stream))
    return status;
  vote<<<1, kThreads, 0, cuda_stream>>>(boxes, scores, tiles.keys.current, tiles.order.current, n, drop_singletons,
                                        voted_boxes, voted_scores, voted_count);
  return launch_status();
}

}  // namespace pyface::cuda
