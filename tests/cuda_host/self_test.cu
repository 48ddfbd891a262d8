// The emulated device as a program without Python, for any compiler and processor: what CUDA's names do, that mistakes
// are reported, and kernels of pyface against the CPU's. test_device.py builds and runs it.
#include <cuda_runtime.h>

#include <cstdio>
#include <cuda/atomic>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "ops.h"

extern "C" {
void cuda_host_begin(uint64_t seed, int counting, int checking_values, int device, const void* stream);
void cuda_host_buffer(const char* name, void* data, size_t bytes, int element_bytes, int kind);
const char* cuda_host_end();
}

namespace {

constexpr int kThreads = 96, kBlocks = 5;
constexpr uint64_t kSeeds = 4;
enum { kInput, kOutput, kWorkspace };

int failures = 0;
uint64_t seed = 0;  // of the order of threads

void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("wrong: %s (seed %llu)\n", what.c_str(), static_cast<unsigned long long>(seed));
  ++failures;
}

template <typename T>
std::vector<T>& expose(const char* name, std::vector<T>& array, int kind) {
  cuda_host_buffer(name, array.data(), array.size() * sizeof(T), sizeof(T), kind);
  return array;
}

// --- what CUDA's names do --------------------------------------------------------------------------------------------

constexpr int kExchanges = 14;

__global__ void exchange_values(int* out) {
  const int lane = threadIdx.x % 32, value = 3 * lane + 1;
  const unsigned odd = 0xaaaaaaaau;
  int* const own = out + kExchanges * threadIdx.x;
  own[0] = __shfl_sync(~0u, value, 5);
  own[1] = __shfl_up_sync(~0u, value, 3);
  own[2] = __shfl_down_sync(~0u, value, 3);
  own[3] = __shfl_xor_sync(~0u, value, 9);
  own[4] = __ballot_sync(~0u, lane % 3 == 0);
  own[5] = __any_sync(~0u, lane == 31) + 2 * __any_sync(~0u, false);
  own[6] = __all_sync(~0u, lane < 32) + 2 * __all_sync(~0u, lane < 31);
  own[7] = __match_any_sync(~0u, lane / 10);
  own[8] = __reduce_add_sync(~0u, value);
  own[9] = __reduce_min_sync(~0u, -value);
  own[10] = __reduce_max_sync(~0u, value);
  own[11] = lane % 2 == 1 ? __reduce_or_sync(odd, lane) : -1;
  own[12] = lane % 2 == 1 ? __popc(__ballot_sync(odd, true)) : -1;
  own[13] = __syncthreads_count(lane == 0) + 10 * __syncthreads_and(lane < 31) + 20 * __syncthreads_or(lane == 7);
}

void test_exchanges() {
  std::vector<int> out(kThreads * kExchanges);
  expose("out", out, kOutput);
  exchange_values<<<1, kThreads>>>(out.data());
  expect(cudaGetLastError() == cudaSuccess, "a launch");
  for (int thread = 0; thread < kThreads; ++thread) {
    const int lane = thread % 32, group = lane / 10;
    const auto value = [](int of) { return 3 * of + 1; };
    const bool is_odd = lane % 2 == 1;
    const int expected[kExchanges] = {value(5),
                                      value(lane < 3 ? lane : lane - 3),
                                      value(lane > 28 ? lane : lane + 3),
                                      value(lane ^ 9),
                                      0x49249249,
                                      1,
                                      1,
                                      static_cast<int>(group < 3 ? 0x3ffu << 10 * group : 0xc0000000u),
                                      3 * 496 + 32,
                                      -value(31),
                                      value(31),
                                      is_odd ? 31 : -1,
                                      is_odd ? 16 : -1,
                                      kThreads / 32 + 20};
    for (int i = 0; i < kExchanges; ++i)
      expect(out[kExchanges * thread + i] == expected[i],
             "exchange " + std::to_string(i) + " of thread " + std::to_string(thread));
  }
}

// Sums over a block by shared memory, then over blocks in their order of arrival: each waits for the one before.
struct Chain {
  int next, done, sum;
};

__global__ void add_in_order(Chain* chain, int* sums) {
  extern __shared__ int values[];
  __shared__ int place;
  values[threadIdx.x] = threadIdx.x;
  if (threadIdx.x == 0) place = atomicAdd(&chain->next, 1);
  __syncthreads();
  for (unsigned size = kThreads / 2; size >= 3; size /= 2) {
    if (threadIdx.x < size) values[threadIdx.x] += values[threadIdx.x + size];
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  ::cuda::atomic_ref<int, ::cuda::thread_scope_device> done(chain->done);
  while (done.load(::cuda::memory_order_acquire) < place) __nanosleep(20);
  chain->sum += values[0] + values[1] + values[2];
  sums[place] = chain->sum;
  done.store(place + 1, ::cuda::memory_order_release);
}

void test_blocks_in_a_chain() {
  std::vector<Chain> chain(1);
  std::vector<int> sums(kBlocks);
  expose("chain", chain, kOutput);
  expose("sums", sums, kOutput);
  cudaMemsetAsync(chain.data(), 0, sizeof(Chain));
  add_in_order<<<kBlocks, kThreads, kThreads * sizeof(int)>>>(chain.data(), sums.data());
  expect(cudaGetLastError() == cudaSuccess, "a launch");
  for (int i = 0; i < kBlocks; ++i)
    expect(sums[i] == (i + 1) * kThreads * (kThreads - 1) / 2, "sum of block " + std::to_string(i));
}

__global__ void change_all(int* numbers, float* sum) {
  const int own = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(numbers, own);
  atomicMin(numbers + 1, -own);
  atomicMax(numbers + 2, own);
  atomicOr(numbers + 3, 1 << own % 31);
  atomicAnd(numbers + 4, ~(1 << own % 31));
  int old = 0;
  for (int seen = atomicCAS(numbers + 5, old, old + 2); seen != old; seen = atomicCAS(numbers + 5, old, old + 2))
    old = seen;
  atomicAdd(sum, 0.5f);
}

void test_atomics() {
  std::vector<int> numbers(6);
  std::vector<float> sum(1);
  cudaMemsetAsync(expose("numbers", numbers, kOutput).data(), 0, numbers.size() * sizeof(int));
  cudaMemsetAsync(expose("sum", sum, kOutput).data(), 0, sizeof(float));
  change_all<<<kBlocks, kThreads>>>(numbers.data(), sum.data());
  expect(cudaGetLastError() == cudaSuccess, "a launch");
  const int n = kBlocks * kThreads;
  const std::vector<int> expected{n * (n - 1) / 2, 1 - n, n - 1, 0x7fffffff, 0, 2 * n};
  expect(numbers == expected && sum[0] == n / 2.f, "atomics");
}

// --- mistakes --------------------------------------------------------------------------------------------------------

enum class Mistake { None, NoBarrier, DivergentBarrier, BeyondTheEnd, Unwritten, BadMask, Misaligned, Byte, Cache };

__global__ void make(Mistake mistake, int* in_out, const int* in) {
  __shared__ int shared[kThreads];
  const int i = threadIdx.x;
  if (mistake != Mistake::Unwritten) shared[i] = 0;
  __syncthreads();
  if (i > 0) shared[i] = in[i];
  if (mistake == Mistake::DivergentBarrier && i == 7) return;
  if (mistake != Mistake::NoBarrier) __syncthreads();
  int value = shared[(i + 1) % kThreads];
  if (i < 32) value += __shfl_sync(mistake == Mistake::BadMask ? 0xffffu : ~0u, value, 0);
  if (mistake == Mistake::Misaligned && i == 0) value += *reinterpret_cast<const int*>(1 + (const char*)in);
  if (mistake == Mistake::Byte) atomicOr(reinterpret_cast<int8_t*>(in_out) + i, 1);
  in_out[i + (mistake == Mistake::BeyondTheEnd)] = value;
  if (mistake == Mistake::Cache) in_out[i] = __ldg(in_out + i);
}

__global__ void hand_over(int* values, bool has_release) {
  ::cuda::atomic_ref<int, ::cuda::thread_scope_device> flag(values[0]);
  if (blockIdx.x == 0) values[1] = 5;
  if (blockIdx.x == 0) flag.store(1, has_release ? ::cuda::memory_order_release : ::cuda::memory_order_relaxed);
  if (blockIdx.x == 0) return;
  while (flag.load(::cuda::memory_order_acquire) == 0) __nanosleep(20);
  values[2] = values[1];
}

void test_mistake(Mistake mistake, const std::string& words) {
  std::vector<int> in(kThreads, 1), out(kThreads);
  expose("in", in, kInput);
  expose("out", out, kOutput);
  make<<<1, kThreads>>>(mistake, out.data(), in.data());
  cudaGetLastError();  // as launchers do; the report says more
  const char* const found = cuda_host_end();
  const std::string report = found ? found : "nothing";
  expect(report.find(words) != std::string::npos, "instead of \"" + words + "\" is reported: " + report);
}

void test_hand_over(bool has_release) {
  std::vector<int> values(3);
  cudaMemsetAsync(expose("values", values, kOutput).data(), 0, values.size() * sizeof(int));
  hand_over<<<2, 1>>>(values.data(), has_release);
  cudaGetLastError();  // as launchers do; the report says more
  const std::string report = cuda_host_end() ? cuda_host_end() : "nothing";
  expect(report.find(has_release ? "nothing" : "race") != std::string::npos, "a flag between blocks: " + report);
}

// --- pyface's kernels ------------------------------------------------------------------------------------------------

struct Faces {
  std::vector<float> boxes, scores;
};

Faces random_faces(int n) {
  std::mt19937 numbers(n);
  std::uniform_real_distribution<float> uniform(0.f, 1.f);
  Faces faces;
  for (int i = 0; i < n; ++i) {
    const float x = 200 * uniform(numbers), y = 200 * uniform(numbers), side = 30 + 30 * uniform(numbers);
    faces.boxes.insert(faces.boxes.end(), {x, y, x + side, y + side});
    faces.scores.push_back(uniform(numbers));
  }
  return faces;
}

void test_nms(int n) {
  Faces faces = random_faces(n);
  const auto run = [&](std::vector<int64_t>& keep, std::vector<int32_t>& count, const auto& nms, auto... rest) {
    return nms(faces.boxes.data(), faces.scores.data(), nullptr, nullptr, 1, n, 0.3, -1.0, pyface::Overlap::Union, n,
               keep.data(), count.data(), rest...);
  };
  std::vector<int64_t> keep(n), expected(n);
  std::vector<int32_t> count(1), expected_count(1);
  run(expected, expected_count, pyface::cpu::nms, 1);
  std::vector<uint8_t> workspace(pyface::cuda::nms_workspace(1, n));
  expose("boxes", faces.boxes, kInput);
  expose("scores", faces.scores, kInput);
  expose("keep", keep, kOutput);
  expose("count", count, kOutput);
  expose("workspace", workspace, kWorkspace);
  run(keep, count, pyface::cuda::nms, workspace.data(), workspace.size(), 0, nullptr);
  expect(keep == expected && count == expected_count, "nms of " + std::to_string(n) + " boxes");
}

void test_densebox_targets(int width) {
  Faces faces = random_faces(6);
  std::vector<int64_t> splits{0, 2, 6};
  const pyface::DenseBoxGrid grid{29, width, 4, 12.5f};
  const pyface::DenseBoxTargets rule{50, 0.8f, 1.25f, 0.6f, 1.67f, 0.3f, 2.5f, 1};
  const auto run = [&](std::vector<int8_t>& label, std::vector<float>& offsets, const auto& targets, auto... rest) {
    return targets(faces.boxes.data(), 6, nullptr, splits.data(), 2, nullptr, 0, grid, rule, label.data(),
                   offsets.data(), nullptr, rest...);
  };
  std::vector<int8_t> label(2 * 29 * width), expected(label.size());
  std::vector<float> offsets(4 * label.size()), expected_offsets(offsets.size());
  run(expected, expected_offsets, pyface::cpu::densebox_targets, 1);
  std::vector<uint8_t> workspace(pyface::cuda::densebox_targets_workspace(2, 0, 29, width));
  expose("boxes", faces.boxes, kInput);
  expose("splits", splits, kInput);
  expose("label", label, kOutput);
  expose("offsets", offsets, kOutput);
  expose("workspace", workspace, kWorkspace);
  run(label, offsets, pyface::cuda::densebox_targets, workspace.data(), workspace.size(), 0, nullptr);
  expect(label == expected && offsets == expected_offsets, "targets on a map " + std::to_string(width) + " wide");
}

void run(const std::function<void()>& test) {
  cuda_host_begin(seed, 0, 1, 0, nullptr);
  test();
}

// Runs a test in which nothing must be reported.
void run_clean(const std::function<void()>& test) {
  run(test);
  if (const char* const report = cuda_host_end()) expect(false, report);
}

}  // namespace

int main() {
  for (seed = 1; seed <= kSeeds; ++seed) {
    run_clean(test_exchanges);
    run_clean(test_blocks_in_a_chain);
    run_clean(test_atomics);
    run_clean([] { test_nms(70); });
    run_clean([] { test_densebox_targets(33); });
    run([] { test_mistake(Mistake::None, "nothing"); });
    run([] { test_mistake(Mistake::NoBarrier, "race"); });
    run([] { test_mistake(Mistake::DivergentBarrier, "__syncthreads"); });
    run([] { test_mistake(Mistake::BeyondTheEnd, "writes 4 bytes out of bounds: 0 bytes after the end of out"); });
    run([] { test_mistake(Mistake::Unwritten, "nobody has written"); });
    run([] { test_mistake(Mistake::BadMask, "not in the mask"); });
    run([] { test_mistake(Mistake::Misaligned, "no multiple of 4"); });
    run([] { test_mistake(Mistake::Byte, "an atomic access to 1 bytes"); });
    run([] { test_mistake(Mistake::Cache, "by __ldg, which the same launch wrote"); });
    run([] { test_hand_over(true); });
    run([] { test_hand_over(false); });
  }
  run_clean([] { test_nms(4100); });  // blocks that wait for each other
  std::printf(failures == 0 ? "all well\n" : "%d wrong\n", failures);
  return failures != 0;
}
