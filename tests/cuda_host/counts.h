// What launches cost, whatever the hardware: the figures of docs/cuda.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace cuda_host {

struct Block;
struct Warp;

constexpr size_t kSectorBytes = 32;  // the least that a GPU moves

// In the order of COUNTS in host.py. The last three are those of the address, block or thread with the most in a
// launch: contention in the worst launch, barriers and steps summed over the launches, which follow one another.
struct Counts {
  uint64_t launches, blocks, sectors_read, sectors_written, atomics, contention, barriers, steps;
};

// One instruction of a warp: the lanes' n-th visits since the warp last met are one access.
struct Instruction {
  uint32_t visits[32] = {};
  std::vector<std::vector<uintptr_t>> sectors;  // by visit
};
using Instructions = std::unordered_map<const void*, Instruction>;  // by address

bool is_counting();
void begin_counts(bool on);
void count_launch();
void count_block(const Block& block);  // at its end
void count_access(uintptr_t at, size_t size, bool writes, bool is_global, const void* instruction);
void count_atomic(uintptr_t at, bool is_global);
void count_step();               // an exchange or a barrier of the calling thread
void count_meeting(Warp& warp);  // all its lanes are at one place
void count_library(uint64_t launches, uint64_t bytes_read, uint64_t bytes_written);

}  // namespace cuda_host
