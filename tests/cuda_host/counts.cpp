// Counts launches, traffic and waiting. Threads run in order then, one block after the other, so that the figures do
// not depend on the machine.
#include "counts.h"

#include <algorithm>

#include "thread.h"

namespace cuda_host {
namespace {

bool is_on = false;
Counts counts;
uint64_t launch_steps, launch_barriers;                                  // the most so far in this launch
std::unordered_map<uintptr_t, uint64_t> global_atomics, shared_atomics;  // in this launch; in this block

// What a launch adds when the next one begins, or all have ended.
void add_launch() {
  counts.steps += launch_steps;
  counts.barriers += launch_barriers;
  launch_steps = launch_barriers = 0;
  global_atomics.clear();
}

}  // namespace

bool is_counting() { return is_on; }

void begin_counts(bool on) {
  add_launch();
  shared_atomics.clear();
  counts = {};
  is_on = on;
}

void count_launch() {
  if (!is_on) return;
  add_launch();
  ++counts.launches;
}

void count_block(const Block& block) {
  if (!is_on) return;
  ++counts.blocks;
  for (const Thread& thread : block.threads) launch_steps = std::max(launch_steps, thread.steps);
  launch_barriers = std::max(launch_barriers, block.barriers);
  shared_atomics.clear();
}

void count_access(uintptr_t at, size_t size, bool writes, bool is_global, const void* instruction) {
  if (!is_on) return;
  uint32_t* visit = nullptr;
  Instruction* of = nullptr;
  if (is_global) {
    of = &self->warp->instructions[instruction];
    visit = &of->visits[self->lane];
    if (*visit == of->sectors.size()) of->sectors.emplace_back();
  }
  for (uintptr_t sector = at / kSectorBytes; sector <= (at + size - 1) / kSectorBytes; ++sector) {
    // Compilers split vectors into components differently, and a GPU has the rest of a sector in its cache.
    if (sector == self->last_sector && writes == self->last_writes) continue;
    self->last_sector = sector;
    self->last_writes = writes;
    ++self->steps;
    if (!is_global) continue;
    std::vector<uintptr_t>& together = of->sectors[*visit];
    if (std::find(together.begin(), together.end(), sector) != together.end()) continue;
    together.push_back(sector);
    ++(writes ? counts.sectors_written : counts.sectors_read);
  }
  if (visit) ++*visit;
}

void count_atomic(uintptr_t at, bool is_global) {
  if (!is_on) return;
  ++counts.atomics;
  ++self->steps;
  self->last_sector = 0;
  counts.contention = std::max(counts.contention, ++(is_global ? global_atomics : shared_atomics)[at]);
}

void count_step() {
  ++self->steps;
  self->last_sector = 0;
}

void count_meeting(Warp& warp) {
  if (is_on) warp.instructions.clear();
}

void count_library(uint64_t launches, uint64_t bytes_read, uint64_t bytes_written) {
  if (!is_on) return;
  counts.launches += launches;
  counts.sectors_read += (bytes_read + kSectorBytes - 1) / kSectorBytes;
  counts.sectors_written += (bytes_written + kSectorBytes - 1) / kSectorBytes;
}

}  // namespace cuda_host

// From Python, after the launches.
extern "C" __attribute__((visibility("default"))) const uint64_t* cuda_host_counts() {
  cuda_host::add_launch();
  return &cuda_host::counts.launches;
}
