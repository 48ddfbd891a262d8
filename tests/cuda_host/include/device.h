// The emulated device as kernels use it: launches, threads, barriers, warp exchanges, atomics, shared memory.
// cuda_runtime.h gives these CUDA's names. README.md beside this folder says how it works.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_host {

// Where in the sources a thread synchronises.
struct Site {
  const char* name;
  const char* file;
  int line;
};

// --- threads ---------------------------------------------------------------------------------------------------------

// Constant for one thread, and kernels' code never outlives it.
[[gnu::const]] dim3 thread_index();
[[gnu::const]] dim3 block_index();
[[gnu::const]] dim3 block_size();
[[gnu::const]] dim3 grid_size();

int sync_block(const Site& site, bool predicate);  // returns for how many threads the predicate holds
void sync_warp(const Site& site, uint32_t mask);
void fence();
void sleep();  // lets other threads run

// Every lane of `mask` gives a value and gets those of all. Orders no memory, as on a GPU.
void exchange(const Site& site, uint32_t mask, uint64_t value, uint64_t (&all)[32]);
uint64_t value_of_lane(const Site& site, uint32_t mask, uint64_t value, int lane);
unsigned lanes_with(const Site& site, uint32_t mask, uint64_t value, uint64_t wanted);  // a bit for each
int lane_index();

// --- memory ----------------------------------------------------------------------------------------------------------

// The calling block's variable `id`; the first thread that needs it creates it.
void* shared_memory(int id, const char* name, size_t size, size_t alignment);
void* dynamic_shared_memory();

// Arrays of a workspace lie this far apart, and kernels may touch nothing between them.
constexpr size_t kWorkspaceGap = 256;
void declare_array(void* array, size_t bytes);

// A typed array. Raw storage (char) is not declared: kernels touch only the arrays into which its user divides it.
template <typename T>
void declare_array(T* array, size_t count) {
  if constexpr (!std::is_same_v<T, char>) declare_array(static_cast<void*>(array), count * sizeof(T));
}

// What a library's kernel (a memset, a sort) does to [array, array + bytes); false if it must not.
enum class Use { Read, Write, Spoil };  // Spoil: afterwards nothing may be read there
bool use_array(const char* who, const void* array, size_t bytes, Use use);

// Before a read through the cache that does not follow writes: this launch must not have written there.
void check_read_only(const void* at, size_t size);

// What a library's kernels and memsets cost (counts.h).
void count_library(uint64_t launches, uint64_t bytes_read, uint64_t bytes_written);

enum class Order { Relaxed = 0, Acquire = 1, Release = 2, Both = 3 };

// An atomic access to `size` bytes by the calling thread, which checks it; other threads may run before it.
void before_atomic(void* at, size_t size, bool reads, bool writes);
void after_atomic(void* at, Order order, bool reads, bool writes);

// Accesses that the compiler must not announce as ordinary ones.
#define CUDA_HOST_UNCHECKED __attribute__((no_sanitize("thread")))

template <typename T, typename Change>
CUDA_HOST_UNCHECKED inline T change_atomically(T* at, Order order, const Change& change) {
  before_atomic(at, sizeof(T), true, true);
  T old;
  std::memcpy(&old, at, sizeof(T));
  const T now = change(old);
  std::memcpy(at, &now, sizeof(T));
  after_atomic(at, order, true, true);
  return old;
}

// --- the host's calls ------------------------------------------------------------------------------------------------

int last_error(bool forget);
const char* error_text(int status);

int current_device();
void set_device(int device);

// Whether a launch, memset or sort is on the caller's device and stream; else it is an error.
bool is_in_order(const char* what, const void* stream);

// The limit on a grid's blocks: `most`, which no test's input reaches, or now and then a few blocks.
int64_t fewer_blocks(int64_t most);

// A kernel and its parameters, which every thread copies.
template <typename... P>
struct Call {
  void (*kernel)(P...);
  std::tuple<P...> parameters;

  static void run(const void* call) {
    const Call& own = *static_cast<const Call*>(call);
    std::apply(own.kernel, own.parameters);
  }
};

class Launch {
 public:
  Launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes = 0, void* stream = nullptr)
      : kernel_(kernel), grid_(grid), block_(block), shared_bytes_(shared_bytes), stream_(stream) {}

  template <typename... P, typename... A>
  void run(void (*kernel)(P...), A&&... arguments) const {
    static_assert((sizeof(P) + ... + 0) <= 4096, "kernel parameters hold 4 KiB");
    const Call<P...> call{kernel, std::tuple<P...>(std::forward<A>(arguments)...)};
    run_threads(&Call<P...>::run, &call, sizeof call);
  }

 private:
  void run_threads(void (*thread)(const void*), const void* call, size_t call_bytes) const;

  const char* kernel_;
  dim3 grid_, block_;
  size_t shared_bytes_;
  void* stream_;
};

}  // namespace cuda_host
