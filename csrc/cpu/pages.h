// Memory that a kernel is about to fill.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pyface::cpu {

// Asks for huge pages where `bytes` from `data` on span some. Large blocks are new to a process each time they are
// allocated, and 512 times as many page faults would take longer than the resampling. numpy requests it too, torch does
// not.
inline void prefer_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHuge - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // only advice: it may fail
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace pyface::cpu
