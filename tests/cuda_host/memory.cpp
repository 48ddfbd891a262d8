// Checks every access of a kernel. The kernels are compiled with -fsanitize=thread, which makes the compiler call
// __tsan_read4(address) and its relatives before each access; here they are ours, and no sanitizer library is linked.
#include "memory.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "counts.h"
#include "thread.h"

#if defined(__clang__) && __clang_major__ < 16
#error "Clang before 16 does not announce copies of structs: use Clang 16 or later, or GCC"
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace cuda_host {
namespace {

constexpr uint32_t kHostBlock = 1;          // memsets and sorts happen before every later kernel
constexpr size_t kStaticShared = 48 << 10;  // bytes that a block may have
constexpr unsigned char kPoison = 0xa5;

std::vector<Region> regions;  // ascending, disjoint
size_t last_found = 0;
bool checks_values = true;  // races and reads of what nobody has written
uintptr_t workspace_begin = 0, workspace_end = 0;
uintptr_t parameters_begin = 0;

uint32_t next_block = kHostBlock + 1, first_block = next_block;
std::unordered_map<uintptr_t, std::shared_ptr<const Clock>> released;  // by the atomics of this launch
std::unordered_map<const Stamp*, std::vector<Stamp>> readers;          // of cells that several blocks read
const void* caller = nullptr;                                          // the instruction of the present access

// --- what happened before what ---------------------------------------------------------------------------------------

uint64_t key_of_block(uint32_t block) { return uint64_t{block} << 16; }
uint64_t key_of_warp(uint32_t block, unsigned thread) { return key_of_block(block) | 0x8000 | thread / 32; }
uint64_t key_of_thread(uint32_t block, unsigned thread) { return key_of_block(block) | 0x4000 | thread; }

std::shared_ptr<const Clock> joined(const std::shared_ptr<const Clock>& a, const std::shared_ptr<const Clock>& b) {
  if (!a || a == b) return b;
  if (!b) return a;
  auto both = std::make_shared<Clock>(*a);
  for (const auto& [key, time] : *b) {
    uint32_t& known = (*both)[key];
    known = std::max(known, time);
  }
  return both;
}

// All that happened before this moment of the calling thread.
std::shared_ptr<const Clock> snapshot() {
  Block& block = *self->block;
  auto clock = self->known ? std::make_shared<Clock>(*self->known) : std::make_shared<Clock>();
  self->time = ++block.clock;
  (*clock)[key_of_block(block.id)] = block.time;
  (*clock)[key_of_warp(block.id, self->index)] = self->warp->time;
  (*clock)[key_of_thread(block.id, self->index)] = self->time;
  return clock;
}

bool knows(uint64_t key, uint32_t time) {
  if (!self->known) return false;
  const auto entry = self->known->find(key);
  return entry != self->known->end() && time < entry->second;
}

// Whether an access happened before what the calling thread does now.
bool is_before(const Stamp& stamp) {
  if (stamp.block < first_block) return true;
  if (stamp.block == self->block->id) {
    if (stamp.time < self->block->time) return true;
    if (stamp.spread < 2 && stamp.thread / 32 == self->index / 32 && stamp.time < self->warp->time) return true;
    if (stamp.spread == 0 && stamp.thread == self->index) return true;
  }
  return knows(key_of_block(stamp.block), stamp.time) ||
         (stamp.spread < 2 && knows(key_of_warp(stamp.block, stamp.thread), stamp.time)) ||
         (stamp.spread == 0 && knows(key_of_thread(stamp.block, stamp.thread), stamp.time));
}

// --- cells -----------------------------------------------------------------------------------------------------------

Stamp stamp_of_self(bool is_atomic) {
  return {self->block->id, self->time, static_cast<uint16_t>(self->index), 0, is_atomic};
}

std::string location(const Region& region, uintptr_t at) {
  return region.name + " + " + std::to_string(at - region.begin) + " bytes";
}

// The instruction, as the tests' addr2line finds it.
std::string instruction() {
  Dl_info info;
  if (!caller || !dladdr(caller, &info)) return "";
  char text[40];
  std::snprintf(text, sizeof text, " [at 0x%zx]",
                reinterpret_cast<uintptr_t>(caller) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1);
  return text;
}

void report_race(const Stamp& other, const char* they, const char* now, const Region& region, uintptr_t at) {
  const std::string who = other.spread > 0 ? "other threads" : "thread " + std::to_string(other.thread);
  fail("race: %s %s %s, which %s of %s %s with no barrier, or release and acquire, between them%s",
       describe(*self).c_str(), now, location(region, at).c_str(), who.c_str(),
       other.block == self->block->id ? "the same block" : "another block", they, instruction().c_str());
}

void check_order(const Stamp& other, bool is_atomic, const char* they, const char* now, const Region& region,
                 uintptr_t at) {
  if (other.block != 0 && !(is_atomic && other.is_atomic) && !is_before(other))
    report_race(other, they, now, region, at);
}

void note_read(Stamp& read, const Stamp& now) {
  if (read.block == 0 || (read.spread < 3 && is_before(read))) {
    read = now;
  } else if (read.spread < 3 && read.block == now.block) {
    const int apart = read.thread == now.thread ? 0 : read.thread / 32 == now.thread / 32 ? 1 : 2;
    read = {now.block, now.time, now.thread, static_cast<uint8_t>(std::max<int>(read.spread, apart)), now.is_atomic};
  } else {
    std::vector<Stamp>& all = readers[&read];
    if (read.spread < 3) all = {read};
    read.spread = 3;
    for (Stamp& other : all) {
      if (other.block != now.block) continue;
      other = {now.block, now.time, now.thread, 2, now.is_atomic};
      return;
    }
    all.push_back(now);
  }
}

void touch(Cell& cell, bool reads, bool writes, bool is_atomic, const Region& region, uintptr_t at) {
  const char* const now = writes ? "writes" : "reads";
  if (reads && cell.write.block == 0)
    fail("%s reads %s, which nobody has written%s", describe(*self).c_str(), location(region, at).c_str(),
         instruction().c_str());
  check_order(cell.write, is_atomic, "wrote", now, region, at);
  if (!writes) return note_read(is_atomic ? cell.atomic_read : cell.read, stamp_of_self(is_atomic));
  for (Stamp* const read : {&cell.read, &cell.atomic_read}) {
    if (read->spread == 3) {
      for (const Stamp& reader : readers[read]) check_order(reader, is_atomic, "read", now, region, at);
      readers.erase(read);
    } else {
      check_order(*read, is_atomic, "read", now, region, at);
    }
    *read = Stamp();
  }
  cell.write = stamp_of_self(is_atomic);
}

// --- regions ---------------------------------------------------------------------------------------------------------

Region make_region(uintptr_t begin, size_t bytes, std::string name, Kind kind, int shift) {
  void* const cells = kind == Kind::Input ? nullptr : std::calloc((bytes >> shift) + 1, sizeof(Cell));
  return {begin, begin + bytes, std::move(name), kind, shift, {static_cast<Cell*>(cells), std::free}};
}

std::vector<Region>::iterator first_ending_after(uintptr_t at) {
  return std::upper_bound(regions.begin(), regions.end(), at,
                          [](uintptr_t address, const Region& region) { return address < region.end; });
}

Region* find(uintptr_t at) {
  if (last_found >= regions.size() || at < regions[last_found].begin || at >= regions[last_found].end)
    last_found = first_ending_after(at) - regions.begin();
  return last_found < regions.size() && at >= regions[last_found].begin ? &regions[last_found] : nullptr;
}

// For an address outside every array: the array that it is nearest to.
std::string nearest(uintptr_t at) {
  const Region* best = nullptr;
  uintptr_t least = 4096;
  for (const Region& region : regions) {
    const uintptr_t distance = at < region.begin ? region.begin - at : at - region.end;
    if (distance < least) best = &region, least = distance;
  }
  if (!best) return "no array is near";
  return std::to_string(least) + (at < best->begin ? " bytes before " : " bytes after the end of ") + best->name +
         " (" + std::to_string(best->end - best->begin) + " bytes)";
}

// Only inputs may lie in each other: they become one.
void insert(Region region) {
  auto at = first_ending_after(region.begin);
  while (at != regions.end() && at->begin < region.end) {
    if (at->kind != Kind::Input || region.kind != Kind::Input)
      return fail("%s overlaps %s", region.name.c_str(), at->name.c_str());
    region.begin = std::min(region.begin, at->begin);
    region.end = std::max(region.end, at->end);
    at = regions.erase(at);
  }
  regions.insert(at, std::move(region));
}

// Kernel parameters lie in a cache of their own.
void count(const Region& region, uintptr_t at, size_t size, bool reads, bool writes, bool is_global) {
  if (region.begin == parameters_begin) return;
  if (reads && writes)
    count_atomic(at, is_global);
  else
    count_access(at, size, writes, is_global, caller);
}

struct Access {
  bool reads, writes, is_atomic;
};

void check(const void* address, size_t size, size_t alignment, Access access, const void* from) {
  if (!self || size == 0) return;
  const auto [reads, writes, is_atomic] = access;
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  caller = from;
  if (at % alignment != 0)
    fail("%s %s %zu bytes at an address that is no multiple of %zu%s", describe(*self).c_str(),
         writes ? "writes" : "reads", size, alignment, instruction().c_str());
  if (self->fiber->holds(at)) return;
  Region* region = self->block->shared.find(at);
  const bool is_global = region == nullptr;
  if (is_global) region = find(at);
  if (!region || at + size > region->end)
    fail("%s %s %zu bytes out of bounds: %s%s", describe(*self).c_str(), writes ? "writes" : "reads", size,
         region ? ("across the end of " + region->name).c_str() : nearest(at).c_str(), instruction().c_str());
  count(*region, at, size, reads, writes, is_global);
  if (region->kind == Kind::Input) {
    if (writes)
      fail("%s writes %s, an input%s", describe(*self).c_str(), location(*region, at).c_str(), instruction().c_str());
    return;
  }
  const size_t first = (at - region->begin) >> region->shift, last = (at + size - 1 - region->begin) >> region->shift;
  for (size_t i = first; i <= last; ++i) {
    if (checks_values)
      touch(region->cells[i], reads, writes, is_atomic, *region, at);
    else if (writes)
      region->cells[i].write = stamp_of_self(is_atomic);
  }
}

void check_read(const void* at, size_t size, size_t alignment, const void* from) {
  check(at, size, alignment, {true, false, false}, from);
}
void check_write(const void* at, size_t size, size_t alignment, const void* from) {
  check(at, size, alignment, {false, true, false}, from);
}

}  // namespace

// --- shared memory ---------------------------------------------------------------------------------------------------

void* SharedMemory::add(int id, const char* name, size_t bytes, size_t alignment) {
  for (const Variable& variable : variables_)
    if (variable.id == id) return variable.start;
  bytes_ += bytes;
  if (bytes_ > kStaticShared && id >= 0) fail("a block has %zu bytes of shared memory, more than 48 KiB", bytes_);
  // Aligned as requested and no further, at the same place within a sector in every run.
  constexpr size_t kLine = 128;
  auto memory = std::make_unique<char[]>(bytes + alignment + kLine);
  const uintptr_t start = (reinterpret_cast<uintptr_t>(memory.get()) + kLine - 1) / kLine * kLine + alignment % kLine;
  std::memset(reinterpret_cast<void*>(start), kPoison, bytes);
  variables_.push_back({id, reinterpret_cast<void*>(start), std::move(memory),
                        make_region(start, bytes, std::string("shared ") + name, Kind::Workspace, 1)});
  return variables_.back().start;
}

Region* SharedMemory::find(uintptr_t at) {
  for (Variable& variable : variables_)
    if (at >= variable.region.begin && at < variable.region.end) return &variable.region;
  return nullptr;
}

// --- blocks ----------------------------------------------------------------------------------------------------------

Block::Block(const dim3& index, unsigned size)
    : index(index), id(new_block_id()), threads(size), warps((size + 31) / 32) {
  for (unsigned i = 0; i < size; ++i) {
    Warp& warp = warps[i / 32];
    warp.first = i / 32 * 32;
    warp.lanes |= 1u << i % 32;
    threads[i].block = this;
    threads[i].warp = &warp;
    threads[i].index = i;
    threads[i].lane = i % 32;
  }
}

uint32_t new_block_id() { return next_block++; }

void begin_launch(const void* parameters, size_t bytes) {
  first_block = next_block;
  released.clear();
  readers.clear();
  parameters_begin = reinterpret_cast<uintptr_t>(parameters);
  insert(make_region(reinterpret_cast<uintptr_t>(parameters), bytes, "kernel parameters", Kind::Input, 0));
}

void end_launch(const void* parameters) {
  const auto is_ours = [&](const Region& r) { return r.begin == reinterpret_cast<uintptr_t>(parameters); };
  regions.erase(std::remove_if(regions.begin(), regions.end(), is_ours), regions.end());
}

void order_block(Block& block) {
  block.time = ++block.clock;
  std::shared_ptr<const Clock> known;
  for (const Thread& thread : block.threads) known = joined(known, thread.known);
  for (Thread& thread : block.threads) {
    thread.time = block.time;
    thread.known = known;
  }
}

void order_warp(Warp& warp) {
  Block& block = *self->block;
  warp.time = ++block.clock;
  std::shared_ptr<const Clock> known;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (warp.lanes >> lane & 1) known = joined(known, block.threads[warp.first + lane].known);
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(warp.lanes >> lane & 1)) continue;
    Thread& thread = block.threads[warp.first + lane];
    thread.time = warp.time;
    thread.known = known;
  }
}

void fence() {
  self->known = joined(self->known, self->met);
  self->met = nullptr;
  self->fenced = snapshot();
}

void check_atomic(void* at, size_t size, bool reads, bool writes, const void* from) {
  caller = from;
  if (size < 4)
    fail("%s: an atomic access to %zu bytes, which a GPU makes of one to the four around them%s",
         describe(*self).c_str(), size, instruction().c_str());
  check(at, size, size, {reads, writes, true}, from);
}

void after_atomic(void* at, Order order, bool reads, bool writes) {
  if (!self) return;
  const int bits = static_cast<int>(order);
  const uintptr_t address = reinterpret_cast<uintptr_t>(at);
  if (reads) {
    const auto entry = released.find(address);
    if (entry != released.end()) {
      self->met = joined(self->met, entry->second);
      if (bits & static_cast<int>(Order::Acquire)) self->known = joined(self->known, entry->second);
    }
  }
  if (!writes) return;
  const std::shared_ptr<const Clock> given = bits & static_cast<int>(Order::Release) ? snapshot() : self->fenced;
  if (!reads) released.erase(address);  // a store begins anew; a read-modify-write continues what was released before
  if (given) released[address] = joined(released[address], given);
}

void check_read_only(const void* address, size_t size) {
  if (!self) return;
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  const Region* const region = find(at);
  if (!region || region->kind == Kind::Input || at + size > region->end) return;  // the read itself checks bounds
  caller = __builtin_return_address(0);
  for (size_t i = (at - region->begin) >> region->shift; i <= (at + size - 1 - region->begin) >> region->shift; ++i)
    if (region->cells[i].write.block >= first_block)
      fail("%s reads %s by __ldg, which the same launch wrote%s", describe(*self).c_str(),
           location(*region, at).c_str(), instruction().c_str());
}

// --- the host's side -------------------------------------------------------------------------------------------------

void declare_array(void* array, size_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(array);
  if (bytes == 0 || begin < workspace_begin || begin >= workspace_end) return;  // sizes are only being counted
  if (begin + bytes > workspace_end) return fail("an array of %zu bytes reaches beyond the workspace", bytes);
  if (const Region* same = find(begin); same && same->begin == begin && same->end == begin + bytes) return;
  insert(make_region(begin, bytes, "workspace array at byte " + std::to_string(begin - workspace_begin),
                     Kind::Workspace, 2));
}

bool use_array(const char* who, const void* array, size_t bytes, Use use) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(array), end = begin + bytes;
  Region* const region = find(begin);
  if (!region || end > region->end) {
    // Raw storage is no array, and must keep clear of those.
    const bool is_raw =
        use == Use::Spoil && begin >= workspace_begin && end <= workspace_end &&
        std::none_of(regions.begin(), regions.end(), [&](const Region& r) { return r.begin < end && begin < r.end; });
    if (!is_raw) fail("%s uses %zu bytes out of bounds: %s", who, bytes, nearest(begin).c_str());
    return is_raw;
  }
  if (region->kind == Kind::Input) {
    if (use != Use::Read) fail("%s writes an input", who);
    return use == Use::Read;
  }
  for (size_t at = begin; at < end; at += size_t{1} << region->shift) {
    Cell& cell = region->cells[(at - region->begin) >> region->shift];
    if (use == Use::Read && cell.write.block == 0) {
      fail("%s reads %s, which nobody has written", who, location(*region, at).c_str());
      return false;
    }
    if (use != Use::Read) cell.write.block = use == Use::Write ? kHostBlock : 0;
  }
  return true;
}

}  // namespace cuda_host

// --- what Python calls around an op ----------------------------------------------------------------------------------

using namespace cuda_host;

EXPORT void cuda_host_begin(uint64_t seed, int counting, int checking_values, int device, const void* stream) {
  checks_values = checking_values != 0;
  regions.clear();
  workspace_begin = workspace_end = 0;
  begin_report(seed, device, stream);
  begin_counts(counting != 0);
}

EXPORT void cuda_host_buffer(const char* name, void* data, size_t bytes, int element_bytes, int kind) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  if (bytes == 0) return;
  if (static_cast<Kind>(kind) != Kind::Input) std::memset(data, kPoison, bytes);
  if (static_cast<Kind>(kind) == Kind::Workspace) {
    workspace_begin = begin;
    workspace_end = begin + bytes;
  } else {
    insert(make_region(begin, bytes, name, static_cast<Kind>(kind), std::min(__builtin_ctz(element_bytes), 2)));
  }
}

// After the launches: nullptr, or what is wrong.
EXPORT const char* cuda_host_end() {
  end_report();
  for (const Region& region : regions)
    if (region.kind == Kind::Output && report().empty())
      for (size_t i = 0; i < (region.end - region.begin) >> region.shift; ++i)
        if (region.cells[i].write.block == 0) {
          fail("%s is left unwritten", location(region, region.begin + (i << region.shift)).c_str());
          break;
        }
  return report().empty() ? nullptr : report().c_str();
}

// --- what the compiler calls before accesses -------------------------------------------------------------------------

#define CALLER __builtin_return_address(0)
#define HOOKS(size)                                                                      \
  EXPORT void __tsan_read##size(void* at) { check_read(at, size, size, CALLER); }        \
  EXPORT void __tsan_write##size(void* at) { check_write(at, size, size, CALLER); }      \
  EXPORT void __tsan_unaligned_read##size(void* at) { check_read(at, size, 1, CALLER); } \
  EXPORT void __tsan_unaligned_write##size(void* at) { check_write(at, size, 1, CALLER); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
EXPORT void __tsan_read_range(void* at, size_t size) { check_read(at, size, 1, CALLER); }
EXPORT void __tsan_write_range(void* at, size_t size) { check_write(at, size, 1, CALLER); }
// Clang calls these in place of the library's.
EXPORT void* __tsan_memcpy(void* to, const void* from, size_t size) {
  check_read(from, size, 1, CALLER);
  check_write(to, size, 1, CALLER);
  return std::memmove(to, from, size);
}
EXPORT void* __tsan_memmove(void*, const void*, size_t) __attribute__((alias("__tsan_memcpy")));
EXPORT void* __tsan_memset(void* to, int value, size_t size) {
  check_write(to, size, 1, CALLER);
  return std::memset(to, value, size);
}
EXPORT void __tsan_init() {}
EXPORT void __tsan_func_entry(void*) {}
EXPORT void __tsan_func_exit() {}
