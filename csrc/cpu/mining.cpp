// Choosing the hardest, or random, entries on the CPU: the k smallest 32-bit keys are found by counting digits, so
// nothing is sorted.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../ops.h"
#include "../sampling.h"
#include "parallel.h"

namespace pyface::cpu {
namespace {

// Entries of an image, ascending, and the keys that they are chosen by.
struct Keyed {
  std::vector<int32_t> entries;
  std::vector<uint32_t> keys;

  explicit Keyed(int64_t most) : entries(most), keys(most) {}

  int64_t size() const { return size_; }

  // Adds an entry if it counts; without a branch, which would often be mispredicted.
  void add(int64_t entry, uint32_t key, bool counts = true) {
    entries[size_] = static_cast<int32_t>(entry);
    keys[size_] = key;
    size_ += counts;
  }

 private:
  int64_t size_ = 0;
};

// The k-th smallest key (k >= 1, counted from 1), and how many of the keys equal to it are among the k smallest.
struct Limit {
  uint32_t key;
  int64_t ties;
};

// Digit by digit from the highest: only keys that share the digits found so far remain.
Limit kth_smallest(const uint32_t* keys, int64_t n, int64_t k) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  std::vector<uint32_t> left;
  uint32_t found = 0;
  for (int shift = 32 - kBits;; shift = std::max(0, shift - kBits)) {
    uint32_t counts[kBuckets] = {};
    for (int64_t i = 0; i < n; ++i) ++counts[(keys[i] >> shift) & (kBuckets - 1)];
    uint32_t digit = 0;
    while (counts[digit] < k) k -= counts[digit++];
    found |= digit << shift;
    if (shift == 0) return {found, k};
    std::vector<uint32_t> next(counts[digit] + 1);
    int64_t size = 0;
    for (int64_t i = 0; i < n; ++i) {
      next[size] = keys[i];
      size += ((keys[i] >> shift) & (kBuckets - 1)) == digit;
    }
    left.swap(next);
    keys = left.data();
    n = size;
  }
}

// Calls choose(entry) for the k smallest keys, ties by index, and leave(entry) for the others, entries ascending.
template <class Choose, class Leave>
void divide(const Keyed& from, int64_t k, const Choose& choose, const Leave& leave) {
  Limit limit{0, 0};
  if (k > 0 && k < from.size()) limit = kth_smallest(from.keys.data(), from.size(), k);
  if (k >= from.size()) limit = {UINT32_MAX, from.size()};
  for (int64_t i = 0; i < from.size(); ++i) {
    const uint32_t key = from.keys[i];
    if (key < limit.key || (key == limit.key && limit.ties-- > 0))
      choose(from.entries[i]);
    else
      leave(from.entries[i]);
  }
}

void select(const Keyed& from, int64_t k, uint8_t* selected) {
  divide(from, k, [&](int32_t entry) { selected[entry] = 1; }, [](int32_t) {});
}

int64_t count_positives(const int32_t* index, int64_t n) {
  return std::count_if(index, index + n, [](int32_t i) { return i >= 0; });
}

// The background of an image, keyed by loss.
Keyed background_of(const float* losses, const int32_t* index, int64_t n) {
  Keyed background(n + 1);
  for (int64_t i = 0; i < n; ++i)
    background.add(i, descending_key(losses[i]), (index[i] == kBackground) & is_finite(losses[i]));
  return background;
}

}  // namespace

void hard_negatives(const float* losses, const int32_t* index, int64_t batch, int64_t n, double ratio, int64_t minimum,
                    uint8_t* selected, int threads) {
  parallel_for(batch, threads, [&](int64_t image) {
    const int32_t* own = index + image * n;
    uint8_t* out = selected + image * n;
    std::fill(out, out + n, 0);
    const Keyed background = background_of(losses + image * n, own, n);
    select(background, wanted_negatives(ratio, minimum, count_positives(own, n), background.size()), out);
  });
}

void balanced_sample(const float* losses, const int32_t* index, int64_t batch, int64_t n, double ratio,
                     double hard_fraction, int64_t minimum, uint64_t seed, uint8_t* selected, int threads) {
  parallel_for(batch, threads, [&](int64_t image) {
    const int32_t* own = index + image * n;
    uint8_t* out = selected + image * n;
    for (int64_t i = 0; i < n; ++i) out[i] = own[i] >= 0;
    const Keyed background = background_of(losses + image * n, own, n);
    const int64_t wanted = wanted_negatives(ratio, minimum, count_positives(own, n), background.size());
    const BalancedShares shares = balanced_shares(hard_fraction, wanted, background.size());
    Keyed hard(shares.hard_set), rest(background.size() - shares.hard_set);
    divide(
        background, shares.hard_set, [&](int32_t entry) { hard.add(entry, random_key(seed, image, entry)); },
        [&](int32_t entry) { rest.add(entry, random_key(seed, image, entry)); });
    select(hard, shares.from_hard, out);
    select(rest, shares.from_rest, out);
  });
}

void online_hard(const float* losses, const uint8_t* valid, int64_t n, double keep, uint8_t* selected,
                 int /*threads*/) {
  std::fill(selected, selected + n, 0);
  Keyed samples(n + 1);
  for (int64_t i = 0; i < n; ++i)
    samples.add(i, descending_key(losses[i]), (!valid || valid[i]) && is_finite(losses[i]));
  select(samples, static_cast<int64_t>(std::ceil(keep * static_cast<double>(samples.size()))), selected);
}

}  // namespace pyface::cpu
