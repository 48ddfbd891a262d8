// Runs launches: blocks in random order, several at a time, their threads as fibers that stop at barriers, exchanges,
// atomics and sleeps, and continue in random order.
#include "device.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "counts.h"
#include "memory.h"
#include "thread.h"

#if !defined(CUDA_HOST_UCONTEXT)
asm(R"(
.text
.hidden cuda_host_switch
.globl cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_host_switch, .-cuda_host_switch
)");
#endif

namespace cuda_host {

Thread* self = nullptr;

namespace {

constexpr int kBlocksAtOnce = 3;
constexpr int kMaxThreads = 1024;
constexpr int kFailed = 719;              // cudaErrorLaunchFailure
constexpr int kInvalidConfiguration = 9;  // cudaErrorInvalidConfiguration
constexpr size_t kShared = 48 << 10;      // bytes that a launch gives a block without asking for more
constexpr int64_t kIdleTurns = 200;       // of each thread, until a launch counts as stuck
constexpr int64_t kFewBlocks = 2;

std::mt19937_64 random_numbers;
std::string error;
int status = 0;
const char* unasked = nullptr;      // the kernel launched last, until the host asks for its status
int device = 0, wanted_device = 0;  // the current one; the one that the caller's arrays are on
const void* wanted_stream = nullptr;

uint64_t random_below(uint64_t n) { return random_numbers() % n; }

// A running launch.
struct Grid {
  const char* kernel;
  dim3 size, block_size;
  size_t shared_bytes;
  void (*thread)(const void*);
  const void* call;
  std::deque<Thread*> ready;
  std::vector<std::unique_ptr<Block>> blocks;  // alive
  int64_t idle_turns = 0;                      // since a thread last made progress
};
Grid* grid = nullptr;

// Each takes two of a process's memory maps, of which Linux allows 65,530, and a test has many devices.
constexpr size_t kSpareFibers = 512;
std::vector<std::unique_ptr<Fiber>> spare_fibers;

std::unique_ptr<Fiber> take_fiber() {
  if (spare_fibers.empty()) return std::make_unique<Fiber>();
  std::unique_ptr<Fiber> fiber = std::move(spare_fibers.back());
  spare_fibers.pop_back();
  return fiber;
}

std::string place(const Site& site) {
  const std::string file = site.file;
  return std::string(site.name) + " (" + file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line) + ")";
}

bool is_same(const Site& a, const Site& b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

// The rest of the launch does not run.
[[noreturn]] void stop() {
  for (;;) self->fiber->suspend();
}

// Lets others run; returns when this thread's turn comes again.
void wait(const Site& site) {
  self->waits_at = site;
  grid->idle_turns = 0;
  self->fiber->suspend();
}

void make_ready(Thread* thread) { grid->ready.push_back(thread); }

// Continues some time later.
void yield() {
  ++grid->idle_turns;
  make_ready(self);
  self->fiber->suspend();
}

void run_thread() {
  grid->thread(grid->call);
  Block& block = *self->block;
  self->is_done = true;
  ++block.done;
  self->warp->done |= 1u << self->lane;
  grid->idle_turns = 0;
  if (block.arrived > 0)
    fail("%s returns while other threads of its block wait at %s", describe(*self).c_str(),
         place(block.barrier).c_str());
  for (;;) self->fiber->suspend();
}

void start_block(uint64_t number) {
  const dim3& size = grid->size;
  const dim3 index(number % size.x, number / size.x % size.y, number / size.x / size.y);
  auto block = std::make_unique<Block>(index, grid->block_size.x * grid->block_size.y * grid->block_size.z);
  for (Thread& thread : block->threads) {
    const unsigned i = thread.index;
    thread.index3 = dim3(i % grid->block_size.x, i / grid->block_size.x % grid->block_size.y,
                         i / grid->block_size.x / grid->block_size.y);
    thread.fiber = take_fiber();
    thread.fiber->start(run_thread);
    make_ready(&thread);
  }
  if (grid->shared_bytes > 0) block->shared.add(-1, "dynamic shared memory", grid->shared_bytes, 16);
  grid->blocks.push_back(std::move(block));
}

void release(std::unique_ptr<Block>& block) {
  count_block(*block);
  for (Thread& thread : block->threads)
    if (spare_fibers.size() < kSpareFibers) spare_fibers.push_back(std::move(thread.fiber));
  block = std::move(grid->blocks.back());
  grid->blocks.pop_back();
}

// No thread can continue: reports what each waits for.
void report_deadlock() {
  std::string text = "no thread can go on:";
  int named = 0;
  for (const auto& block : grid->blocks)
    for (const Thread& thread : block->threads) {
      if (thread.is_done ||
          (named > 0 && thread.index > 0 && is_same(thread.waits_at, block->threads[thread.index - 1].waits_at)))
        continue;
      if (++named > 4) break;
      text += " " + describe(thread) + " waits at " + place(thread.waits_at) + ";";
    }
  fail("%s", text.c_str());
}

// The thread that runs next: any, or while counting the one that has waited longest.
Thread* take_ready() {
  const size_t at = is_counting() ? 0 : random_below(grid->ready.size());
  Thread* const thread = grid->ready[at];
  if (at > 0) grid->ready[at] = grid->ready.back();
  at > 0 ? grid->ready.pop_back() : grid->ready.pop_front();
  return thread;
}

void run_grid() {
  const uint64_t count = uint64_t{grid->size.x} * grid->size.y * grid->size.z;
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (!is_counting()) std::shuffle(order.begin(), order.end(), random_numbers);
  const size_t blocks_at_once = is_counting() ? 1 : kBlocksAtOnce;
  size_t next = 0;
  while (status == 0) {
    while (next < count && grid->blocks.size() < blocks_at_once) start_block(order[next++]);
    if (grid->blocks.empty()) return;
    if (grid->ready.empty()) return report_deadlock();
    if (grid->idle_turns > kIdleTurns * static_cast<int64_t>(grid->ready.size()))
      return fail("its threads wait in loops for what never comes, %s among them", describe(*grid->ready[0]).c_str());
    self = take_ready();
    self->fiber->resume();
    Block* const block = self->block;
    self = nullptr;
    if (block->done < static_cast<int>(block->threads.size())) continue;
    release(*std::find_if(grid->blocks.begin(), grid->blocks.end(), [&](auto& b) { return b.get() == block; }));
  }
}

// The lanes of `mask` that have come to one exchange.
Exchange& join_exchange(const Site& site, uint32_t mask) {
  Warp& warp = *self->warp;
  const uint32_t own = 1u << self->lane;
  if (!(mask & own)) fail("%s is not in the mask 0x%08x of its %s", describe(*self).c_str(), mask, place(site).c_str());
  if (const uint32_t gone = mask & (warp.done | ~warp.lanes))
    fail("the mask 0x%08x of %s names lane %d, which has returned or never was, in %s", mask, place(site).c_str(),
         __builtin_ctz(gone), describe(*self).c_str());
  for (Exchange& other : warp.exchanges)
    if (other.mask == mask && is_same(other.site, site) && !(other.arrived & own) && other.arrived != mask)
      return other;
  for (Exchange& other : warp.exchanges) {
    if (other.mask != 0) continue;
    other.site = site;
    other.mask = mask;
    return other;
  }
  fail("more exchanges at once than a warp has lanes, at %s", place(site).c_str());
  std::abort();
}

// Waits until all lanes of the mask are there; the last one calls finish().
template <typename Finish>
Exchange& meet(const Site& site, uint32_t mask, uint64_t value, const Finish& finish) {
  Exchange& exchange = join_exchange(site, mask);
  count_step();
  exchange.values[self->lane] = value;
  exchange.arrived |= 1u << self->lane;
  if (exchange.arrived != mask) {
    wait(site);
    return exchange;
  }
  finish();
  if (mask == (self->warp->lanes & ~self->warp->done)) count_meeting(*self->warp);
  for (uint32_t others = mask & ~(1u << self->lane); others != 0; others &= others - 1)
    make_ready(&self->block->threads[self->warp->first + __builtin_ctz(others)]);
  return exchange;
}

void leave(Exchange& exchange) {
  exchange.left |= 1u << self->lane;
  if (exchange.left == exchange.mask) exchange = Exchange();
}

}  // namespace

// --- errors ----------------------------------------------------------------------------------------------------------

std::string describe(const Thread& thread) {
  char text[120];
  std::snprintf(text, sizeof text, "thread %u of block (%u, %u)", thread.index, thread.block->index.x,
                thread.block->index.y);
  return text;
}

void fail(const char* format, ...) {
  status = kFailed;
  if (error.empty()) {
    char text[2000];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    error = (grid ? std::string(grid->kernel) + ": " : std::string()) + text;
  }
  if (self) stop();
}

const std::string& report() { return error; }

void begin_report(uint64_t seed, int on_device, const void* stream) {
  error.clear();
  status = 0;
  unasked = nullptr;
  device = 0;
  wanted_device = on_device;
  wanted_stream = stream;
  random_numbers.seed(seed);
}

void end_report() {
  if (!error.empty()) return;
  if (unasked) return fail("nobody asks whether the launch of %s succeeded", unasked);
  if (device != 0) fail("device %d is left the current one", device);
}

int current_device() { return device; }
void set_device(int number) { device = number; }

bool is_in_order(const char* what, const void* stream) {
  if (device != wanted_device)
    fail("%s runs on device %d, and its arrays are on device %d", what, device, wanted_device);
  else if (stream != wanted_stream)
    fail("%s runs on another stream than the caller's", what);
  else if (unasked)
    fail("%s runs, and nobody has asked whether the launch of %s succeeded", what, unasked);
  else
    return true;
  return false;
}

int64_t fewer_blocks(int64_t most) { return is_counting() || random_below(2) == 0 ? most : std::min(most, kFewBlocks); }

int last_error(bool forget) {
  unasked = nullptr;
  const int now = status;
  if (forget) status = 0;
  return now;
}

const char* error_text(int code) {
  if (code == cuda_host::kFailed) return error.c_str();
  return code == 1 ? "invalid argument" : code == kInvalidConfiguration ? "invalid launch configuration" : "no error";
}

// --- launches --------------------------------------------------------------------------------------------------------

void Launch::run_threads(void (*thread)(const void*), const void* call, size_t call_bytes) const {
  if (status != 0 || !is_in_order(kernel_, stream_)) return;
  unasked = kernel_;
  const uint64_t threads = uint64_t{block_.x} * block_.y * block_.z;
  if (grid_.x == 0 || grid_.y == 0 || grid_.z == 0 || threads == 0 || threads > kMaxThreads || grid_.x > INT32_MAX ||
      grid_.y > 65535 || grid_.z > 65535 || block_.z > 64 || shared_bytes_ > kShared) {
    status = kInvalidConfiguration;
    return;
  }
  Grid running{kernel_, grid_, block_, shared_bytes_, thread, call, {}, {}, 0};
  grid = &running;
  begin_launch(call, call_bytes);
  count_launch();
  run_grid();
  end_launch(call);
  while (!running.blocks.empty()) release(running.blocks.back());
  grid = nullptr;
}

// --- what threads ask ------------------------------------------------------------------------------------------------

dim3 thread_index() { return self->index3; }
dim3 block_index() { return self->block->index; }
dim3 block_size() { return grid->block_size; }
dim3 grid_size() { return grid->size; }
int lane_index() { return self->lane; }

int sync_block(const Site& site, bool predicate) {
  Block& block = *self->block;
  if (block.done > 0)
    fail("%s comes to %s, but %d threads of its block have returned", describe(*self).c_str(), place(site).c_str(),
         block.done);
  if (block.arrived == 0)
    block.barrier = site;
  else if (!is_same(block.barrier, site))
    fail("%s comes to %s while others of its block wait at %s", describe(*self).c_str(), place(site).c_str(),
         place(block.barrier).c_str());
  const int size = static_cast<int>(block.threads.size());
  block.predicates += predicate;
  count_step();
  if (++block.arrived < size) {
    wait(site);
  } else {
    order_block(block);
    ++block.barriers;
    for (Warp& warp : block.warps) count_meeting(warp);
    block.result = block.predicates;
    block.arrived = block.predicates = 0;
    for (Thread& thread : block.threads)
      if (&thread != self) make_ready(&thread);
  }
  // No thread can come to another barrier before all have left this one, so the result still stands.
  return block.result;
}

void sync_warp(const Site& site, uint32_t mask) {
  leave(meet(site, mask, 0, [&] {
    if (mask == self->warp->lanes) order_warp(*self->warp);
  }));
}

void exchange(const Site& site, uint32_t mask, uint64_t value, uint64_t (&all)[32]) {
  Exchange& exchange = meet(site, mask, value, [] {});
  std::copy_n(exchange.values, 32, all);
  leave(exchange);
}

uint64_t value_of_lane(const Site& site, uint32_t mask, uint64_t value, int lane) {
  if (!(mask >> lane & 1))
    fail("%s reads lane %d at %s, whose mask 0x%08x does not have it", describe(*self).c_str(), lane,
         place(site).c_str(), mask);
  Exchange& exchange = meet(site, mask, value, [] {});
  const uint64_t theirs = exchange.values[lane];
  leave(exchange);
  return theirs;
}

unsigned lanes_with(const Site& site, uint32_t mask, uint64_t value, uint64_t wanted) {
  Exchange& exchange = meet(site, mask, value, [] {});
  unsigned lanes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1 && exchange.values[lane] == wanted) lanes |= 1u << lane;
  leave(exchange);
  return lanes;
}

void sleep() { yield(); }

void before_atomic(void* at, size_t size, bool reads, bool writes) {
  if (!self) return;
  if (!is_counting() && random_below(4) == 0) yield();
  check_atomic(at, size, reads, writes, __builtin_return_address(0));
  if (writes) grid->idle_turns = 0;
}

void* shared_memory(int id, const char* name, size_t size, size_t alignment) {
  return self->block->shared.add(id, name, size, alignment);
}

void* dynamic_shared_memory() { return self->block->shared.add(-1, "dynamic shared memory", 0, 16); }

}  // namespace cuda_host
