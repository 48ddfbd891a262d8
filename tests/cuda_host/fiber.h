// A call that can stop in the middle and continue later: how one CPU thread runs the threads of a block in turns.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__x86_64__) && !defined(CUDA_HOST_UCONTEXT)
// Saves the registers that a call preserves, and continues on another stack.
extern "C" void cuda_host_switch(void** from, void* to);
#else
#undef CUDA_HOST_UCONTEXT
#define CUDA_HOST_UCONTEXT  // several times slower, but available on every processor
#include <ucontext.h>
#endif

namespace cuda_host {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 64 << 10;

  Fiber() {
    const size_t guard = guard_bytes();
    void* const pages = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages, guard, PROT_NONE) != 0) throw std::bad_alloc();
    stack_ = static_cast<char*>(pages) + guard;
  }
  ~Fiber() { munmap(stack_ - guard_bytes(), guard_bytes() + kStackBytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  bool holds(uintptr_t at) const { return at - reinterpret_cast<uintptr_t>(stack_) < kStackBytes; }

#if !defined(CUDA_HOST_UCONTEXT)
  // The next resume() calls `entry`, which must not return.
  void start(void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack_ + kStackBytes);
    *--top = nullptr;                              // where `entry` would return to
    *--top = reinterpret_cast<void*>(entry);       // where the first switch returns to
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers that it restores
    own_ = top;
  }
  void resume() { cuda_host_switch(&resumer_, own_); }
  void suspend() { cuda_host_switch(&own_, resumer_); }
#else
  void start(void (*entry)()) {
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_;
    own_.uc_stack.ss_size = kStackBytes;
    own_.uc_link = nullptr;
    makecontext(&own_, entry, 0);
  }
  void resume() { swapcontext(&resumer_, &own_); }
  void suspend() { swapcontext(&own_, &resumer_); }
#endif

 private:
  // Below a stack: an overflow is a fault, not another thread's data. A page has 4 KiB, or up to 64 on aarch64.
  static size_t guard_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

  char* stack_;
#if !defined(CUDA_HOST_UCONTEXT)
  void *own_ = nullptr, *resumer_ = nullptr;
#else
  ucontext_t own_, resumer_;
#endif
};

}  // namespace cuda_host
