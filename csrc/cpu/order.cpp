#include "order.h"

#include <algorithm>
#include <array>

namespace pyface::cpu {
namespace {

// Stable radix sort by the upper 32 bits, 11 bits at a time; the lower ones carry the index.
void radix_sort(std::vector<uint64_t>& items) {
  constexpr int kBits = 11, kBuckets = 1 << kBits, kPasses = 3;
  std::array<std::array<uint32_t, kBuckets>, kPasses> starts{};
  for (const uint64_t item : items)
    for (int pass = 0; pass < kPasses; ++pass) ++starts[pass][(item >> (32 + pass * kBits)) & (kBuckets - 1)];
  std::vector<uint64_t> other(items.size());
  for (int pass = 0; pass < kPasses; ++pass) {
    auto& start = starts[pass];
    uint32_t sum = 0;
    for (uint32_t& bucket : start) {
      const uint32_t size = bucket;
      bucket = sum;
      sum += size;
    }
    for (const uint64_t item : items) other[start[(item >> (32 + pass * kBits)) & (kBuckets - 1)]++] = item;
    items.swap(other);
  }
}

}  // namespace

std::vector<int32_t> order_by_score(const Box* boxes, const float* scores, int64_t n, double score_threshold) {
  const float limit = float_below(score_threshold);
  std::vector<uint64_t> items(n);
  size_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    items[count] = (static_cast<uint64_t>(descending_key(scores[i])) << 32) | static_cast<uint32_t>(i);
    count += scores[i] > limit && is_finite(scores[i]) && is_finite(boxes[i]);
  }
  items.resize(count);
  constexpr size_t kRadixPays = 512;
  if (count < kRadixPays)
    std::sort(items.begin(), items.end());
  else
    radix_sort(items);
  std::vector<int32_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = static_cast<int32_t>(static_cast<uint32_t>(items[i]));
  return order;
}

}  // namespace pyface::cpu
