// Boxes in the order in which suppression visits them: score descending, ties by index, invalid entries left out.
#pragma once

#include <cstdint>
#include <vector>

#include "../geometry.h"

namespace pyface::cpu {

// The indices of the entries of a segment that are finite in score and box and whose score is > score_threshold.
std::vector<int32_t> order_by_score(const Box* boxes, const float* scores, int64_t n, double score_threshold);

}  // namespace pyface::cpu
