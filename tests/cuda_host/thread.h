// A running launch's blocks, warps and threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "counts.h"
#include "device.h"
#include "fiber.h"
#include "memory.h"

namespace cuda_host {

struct Block;
struct Warp;

struct Thread {
  Block* block = nullptr;
  Warp* warp = nullptr;
  unsigned index = 0, lane = 0;  // within the block, within the warp
  dim3 index3;
  std::unique_ptr<Fiber> fiber;
  Site waits_at{"", "", 0};
  bool is_done = false;

  // Which accesses of others happened before its next access (memory.h).
  uint32_t time = 0;
  std::shared_ptr<const Clock> known, fenced, met;

  // What it has cost (counts.h).
  uint64_t steps = 0;
  uintptr_t last_sector = 0;
  bool last_writes = false;
};

// One exchange of a warp, from the first lane's arrival to the last one's departure.
struct Exchange {
  Site site{"", "", 0};
  uint32_t mask = 0, arrived = 0, left = 0;
  uint64_t values[32];
};

struct Warp {
  unsigned first = 0;            // thread of the block
  uint32_t lanes = 0, done = 0;  // bit masks: existing ones; those that have returned
  uint32_t time = 0;             // of its last __syncwarp
  Exchange exchanges[32];
  Instructions instructions;  // since its lanes last met, for counting
};

struct Block {
  Block(const dim3& index, unsigned size);

  dim3 index;
  uint32_t id;  // unique among the blocks of all launches
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int done = 0;
  Site barrier{"", "", 0};
  int arrived = 0, predicates = 0, result = 0;
  uint64_t barriers = 0;
  SharedMemory shared;
  uint32_t clock = 1, time = 0;  // `clock` advances with what orders accesses; `time`: at the last barrier
};

extern Thread* self;  // the thread that runs now; nullptr: the host

std::string describe(const Thread& thread);

// Keeps the first message, and ends the launch; does not return to a thread.
[[gnu::format(printf, 1, 2)]] void fail(const char* format, ...);

// The first message since begin_report(), which also seeds the order of threads. end_report() checks what the host did.
const std::string& report();
void begin_report(uint64_t seed, int device, const void* stream);
void end_report();

}  // namespace cuda_host
