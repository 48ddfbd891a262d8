#include "simd.h"

#include <cstdlib>
#include <cstring>

namespace pyface::cpu {
namespace {

Simd detect() {
#if defined(PYFACE_X86)
  const char* limit = std::getenv("PYFACE_SIMD");
  if (limit && std::strcmp(limit, "baseline") == 0) return Simd::Baseline;
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && !(limit && std::strcmp(limit, "avx2") == 0)) return Simd::Avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Simd::Avx2;
#endif
  return Simd::Baseline;
}

}  // namespace

Simd simd() {
  static const Simd best = detect();
  return best;
}

const char* simd_name() {
  switch (simd()) {
    case Simd::Avx512:
      return "avx512";
    case Simd::Avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace pyface::cpu
