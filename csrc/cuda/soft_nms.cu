// soft_nms on the GPU: one block keeps the best remaining box and lowers the scores of the others, again and again.
#include <algorithm>

#include "suppress.cuh"

namespace pyface::cuda {
namespace {

constexpr int kSoftShared = 2048;  // boxes that soft_nms keeps in shared memory

// One block. In each step every thread lowers the scores of its boxes by the box chosen last, and finds the best.
__global__ void __launch_bounds__(kThreads, 1)
    soft_nms_kernel(const float* boxes,   // [n, 4]
                    const float* scores,  // [n]
                    int n, SoftNms method, float threshold, float sigma, float limit, Overlap overlap,
                    float4* large_boxes,  // [n], used when n > kSoftShared
                    float* large_scores,  // [n], as above
                    int64_t* keep,        // [n]
                    float* kept_scores,   // [n]
                    int32_t* keep_count)  // [1]
{
  __shared__ float4 small_boxes[kSoftShared];
  __shared__ float small_scores[kSoftShared];
  __shared__ uint64_t warp_best[2][32];  // used in turns, so that a step needs one barrier
  const bool is_small = n <= kSoftShared;
  float4* const box = is_small ? small_boxes : large_boxes;
  float* const score = is_small ? small_scores : large_scores;  // NaN: invalid, dropped or chosen

  // A thread visits the same boxes throughout, so only reads of other threads' boxes must wait for a barrier.
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const Box b = load_box(boxes, i);
    box[i] = as_vector(b);
    score[i] = is_finite(b) && is_finite(scores[i]) ? scores[i] : NAN;
  }

  bool has_chosen = false;
  Box chosen{};
  float chosen_area = 0.f;
  int count = 0;
  for (;;) {
    uint64_t best = ~uint64_t{0};
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      float s = score[i];
      if (!(s > limit)) continue;
      if (has_chosen) {
        const Box b = as_box(box[i]);
        if (chosen.x1 < b.x2 && b.x1 < chosen.x2 && chosen.y1 < b.y2 && b.y1 < chosen.y2) {
          const float ratio = box_overlap(chosen, chosen_area, b, box_area(b), overlap);
          score[i] = s *= soft_nms_weight(ratio, method, threshold, sigma);
          if (!(s > limit)) continue;
        }
      }
      const uint64_t key = static_cast<uint64_t>(descending_key(s)) << 32 | static_cast<uint32_t>(i);
      best = key < best ? key : best;
    }
    best = warp_min(best);
    uint64_t* const bests = warp_best[count % 2];
    if (lane_id() == 0) bests[warp_id()] = best;
    __syncthreads();
    best = warp_min(lane_id() < num_warps() ? bests[lane_id()] : ~uint64_t{0});
    if (best == ~uint64_t{0}) break;
    const int index = static_cast<int>(static_cast<uint32_t>(best));
    if (index % blockDim.x == threadIdx.x) {
      keep[count] = index;
      kept_scores[count] = score[index];
      score[index] = NAN;
    }
    has_chosen = true;
    chosen = as_box(box[index]);
    chosen_area = box_area(chosen);
    ++count;
  }
  for (int i = count + threadIdx.x; i < n; i += blockDim.x) {
    keep[i] = -1;
    kept_scores[i] = 0.f;
  }
  if (threadIdx.x == 0) *keep_count = count;
}

struct SoftWorkspace {
  SoftWorkspace(void* base, int64_t n) {
    Workspace workspace(base);
    boxes = workspace.take<float4>(n);
    scores = workspace.take<float>(n);
    bytes = workspace.bytes();
  }

  float4* boxes;
  float* scores;
  size_t bytes;
};

}  // namespace

size_t soft_nms_workspace(int64_t n) { return n <= kSoftShared ? 0 : SoftWorkspace(nullptr, n).bytes; }

int soft_nms(const float* boxes, const float* scores, int64_t n, SoftNms method, double iou_threshold, double sigma,
             double score_threshold, Overlap overlap, int64_t* keep, float* kept_scores, int32_t* keep_count,
             void* workspace, size_t workspace_bytes, int device, void* stream) {
  // Loops may step past n by a block.
  if (n < 0 || n > kMaxEntries - 1 - kThreads || workspace_bytes < soft_nms_workspace(n)) return cudaErrorInvalidValue;
  const DeviceGuard guard(device);
  if (guard.status()) return guard.status();
  const SoftWorkspace large(workspace, n);
  int threads = 32;
  while (threads < std::min<int64_t>(n, kThreads)) threads *= 2;
  soft_nms_kernel<<<1, threads, 0, static_cast<cudaStream_t>(stream)>>>(
      boxes, scores, static_cast<int>(n), method, float_below(iou_threshold), static_cast<float>(sigma),
      float_below(score_threshold), overlap, large.boxes, large.scores, keep, kept_scores, keep_count);
  return launch_status();
}

}  // namespace pyface::cuda
