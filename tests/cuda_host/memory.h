// Which memory threads may touch, and who touched it last.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace cuda_host {

struct Block;
struct Warp;

// One thread's access to a cell, or the latest access of several threads.
struct Stamp {
  uint32_t block = 0;  // 0: nobody's
  uint32_t time = 0;   // of the block's clock
  uint16_t thread = 0;
  uint8_t spread = 0;  // 0: this thread's, 1: its warp's, 2: its block's, 3: of several blocks
  bool is_atomic = false;
};

// The smallest piece of memory whose accesses are told apart.
struct Cell {
  Stamp write, read, atomic_read;
};

enum class Kind : int { Input = 0, Output = 1, Workspace = 2 };

// An array that kernels may touch.
struct Region {
  uintptr_t begin, end;
  std::string name;
  Kind kind;
  int shift;                                       // 2^shift bytes are a cell
  std::unique_ptr<Cell[], void (*)(void*)> cells;  // none for inputs, which nobody may write
};

// The shared memory of a block: every variable lies in memory of its own.
class SharedMemory {
 public:
  void* add(int id, const char* name, size_t bytes, size_t alignment);
  Region* find(uintptr_t at);

 private:
  struct Variable {
    int id;
    void* start;
    std::unique_ptr<char[]> memory;
    Region region;
  };
  std::vector<Variable> variables_;
  size_t bytes_ = 0;
};

// What happened before a thread's next access: by block, warp or thread, all its accesses before a time of its block's
// clock.
using Clock = std::map<uint64_t, uint32_t>;

uint32_t new_block_id();
void begin_launch(const void* parameters, size_t bytes);
void end_launch(const void* parameters);
void order_block(Block& block);  // all that its threads did happened before what they do next
void order_warp(Warp& warp);
void check_atomic(void* at, size_t size, bool reads, bool writes, const void* from);

}  // namespace cuda_host
