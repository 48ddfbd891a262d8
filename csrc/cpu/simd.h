// Run-time choice of SIMD: a kernel is written once as an always-inlined template function over plain loops, and
// compiled for each instruction set by wrappers that differ only in their target. Multiply and add are not fused
// (-ffp-contract=off): results must not depend on the machine.
#pragma once

#define PYFACE_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__)
#define PYFACE_X86 1
#define PYFACE_AVX2 __attribute__((target("avx2,fma")))
#if defined(__clang__)
#define PYFACE_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#else
#define PYFACE_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")))
#endif
#endif

namespace pyface::cpu {

enum class Simd { Baseline, Avx2, Avx512 };

// The best instruction set of this machine; PYFACE_SIMD=baseline|avx2 in the environment lowers it (for tests).
Simd simd();
const char* simd_name();

}  // namespace pyface::cpu

// Defines `name` as a call of `name##_impl` compiled for the machine's instruction set. `params` and `args` are
// parenthesised lists.
#if defined(PYFACE_X86)
#define PYFACE_DISPATCH(ret, name, params, args)                             \
  PYFACE_AVX512 static ret name##_avx512 params { return name##_impl args; } \
  PYFACE_AVX2 static ret name##_avx2 params { return name##_impl args; }     \
  static ret name##_baseline params { return name##_impl args; }             \
  static ret name params {                                                   \
    switch (simd()) {                                                        \
      case Simd::Avx512:                                                     \
        return name##_avx512 args;                                           \
      case Simd::Avx2:                                                       \
        return name##_avx2 args;                                             \
      default:                                                               \
        return name##_baseline args;                                         \
    }                                                                        \
  }
#else
#define PYFACE_DISPATCH(ret, name, params, args) \
  static ret name params { return name##_impl args; }
#endif
