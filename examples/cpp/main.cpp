// Suppresses overlapping boxes and letterboxes an image with pyface's CPU kernels; returns 1 when a result is wrong.
#include <ops.h>

#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

namespace {

constexpr int kThreads = 2;

// Which boxes remain, best first.
std::vector<int64_t> suppress(const std::vector<float>& boxes, const std::vector<float>& scores) {
  const int64_t n = static_cast<int64_t>(scores.size());
  const double every_score = -std::numeric_limits<double>::infinity();
  std::vector<int64_t> keep(n);
  int32_t count = 0;
  pyface::cpu::nms(boxes.data(), scores.data(), /*classes=*/nullptr, /*counts=*/nullptr, /*batch=*/1, n,
                   /*iou_threshold=*/0.5, every_score, pyface::Overlap::Union, /*max_detections=*/n, keep.data(),
                   &count, kThreads);
  keep.resize(count);
  return keep;
}

// The image at the top left of a square canvas, as float32 [3, side, side]: (pixel - 50) * 0.5, and 0 beside the image.
std::vector<float> letterbox(const pyface::Image& image, int side) {
  const double scale = static_cast<double>(side) / (image.height > image.width ? image.height : image.width);
  const pyface::Normalization normalization{{50, 50, 50}, {0.5f, 0.5f, 0.5f}};
  std::vector<float> out(3 * side * side);
  pyface::cpu::letterbox(&image, &scale, /*num_images=*/1, side, side, pyface::Interpolation::Bilinear, normalization,
                         out.data(), kThreads);
  return out;
}

}  // namespace

int main() {
  const std::vector<float> boxes{0, 0, 10, 10, 1, 1, 11, 11, 20, 20, 30, 30};  // x1, y1, x2, y2 of three boxes
  const std::vector<int64_t> keep = suppress(boxes, {0.9f, 0.8f, 0.7f});
  std::printf("nms keeps");
  for (const int64_t index : keep) std::printf(" %d", static_cast<int>(index));

  const std::vector<uint8_t> pixels(2 * 4 * 3, 100);  // 2 rows of 4 gray RGB pixels
  const std::vector<float> canvas = letterbox({pixels.data(), 2, 4}, 8);
  const float inside = canvas[0], outside = canvas[7 * 8];
  std::printf("\nletterbox gives %g within the image and %g beside it\n", inside, outside);

  const bool is_right = keep == std::vector<int64_t>{0, 2} && inside == 25 && outside == 0;
  if (!is_right) std::fprintf(stderr, "expected 0 2, 25 and 0\n");
  return is_right ? 0 : 1;
}
