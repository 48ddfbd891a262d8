// Half precision on the emulated device: conversion only, as the kernels compute in float.
#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }

inline float __half2float(__half half) {
  const uint32_t sign = static_cast<uint32_t>(half.bits & 0x8000u) << 16;
  const uint32_t exponent = half.bits >> 10 & 0x1fu, fraction = half.bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float value = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    return sign != 0 ? -value : value;
  }
  const uint32_t wide = exponent == 0x1fu ? 0xffu : exponent + 112;
  return __uint_as_float(sign | wide << 23 | fraction << 13);
}
