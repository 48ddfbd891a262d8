// Which entries mining chooses, shared by host and device: how many, and by which key. An op takes the entries with the
// smallest keys (descending_key of the loss, or random_key), ties by index.
#pragma once

#include <cmath>
#include <cstdint>

#include "geometry.h"

namespace pyface {

// SplitMix64 (Steele, Lea and Flood 2014): the output of its generator in state x.
PYFACE_HD uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A random key of an entry, which depends on these three numbers and on nothing else.
PYFACE_HD uint32_t random_key(uint64_t seed, int64_t image, int64_t entry) {
  const uint64_t stream = mix(mix(seed) + static_cast<uint64_t>(image));
  return static_cast<uint32_t>(mix(stream + static_cast<uint64_t>(entry)) >> 32);
}

// How many of `available` negatives are chosen for this many positives.
PYFACE_HD int64_t wanted_negatives(double ratio, int64_t minimum, int64_t positives, int64_t available) {
  const double by_ratio = std::floor(ratio * static_cast<double>(positives));
  if (by_ratio >= static_cast<double>(available) || minimum >= available) return available;
  const int64_t wanted = static_cast<int64_t>(by_ratio);
  return wanted > minimum ? wanted : minimum;
}

// How balanced_sample divides `wanted` of `available` negatives: how many of the hardest form the hard set, and how
// many are chosen from it and from the rest.
struct BalancedShares {
  int64_t hard_set, from_hard, from_rest;
};

PYFACE_HD BalancedShares balanced_shares(double hard_fraction, int64_t wanted, int64_t available) {
  const int64_t half = (wanted + 1) / 2;
  const int64_t fraction = static_cast<int64_t>(std::ceil(hard_fraction * static_cast<double>(available)));
  const int64_t hard_set = fraction > half ? fraction : half;
  const int64_t rest = available - hard_set;
  const int64_t from_rest = wanted - half < rest ? wanted - half : rest;
  return {hard_set, wanted - from_rest, from_rest};
}

}  // namespace pyface
