// pybind11, and nothing else: addresses and numbers in, launchers called with the GIL released. Every check was made in
// pyface/ops/_extension.py. An address of a tensor is an integer (0: none), an image is (address, height, width), a map
// is (address, strides of batch, channel, row and column).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "cpu/simd.h"
#include "ops.h"

namespace py = pybind11;
using namespace pyface;

namespace {

using Address = uintptr_t;
using ImageTuple = std::tuple<Address, int32_t, int32_t>;
using MapArray = std::array<int64_t, 5>;
using LayerTuple = std::tuple<Address, Address, Address, int32_t, int32_t, int32_t>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

std::vector<Image> to_images(const std::vector<ImageTuple>& tuples) {
  std::vector<Image> images;
  images.reserve(tuples.size());
  for (const auto& [address, height, width] : tuples) images.push_back({at<const uint8_t>(address), height, width});
  return images;
}

Normalization to_normalization(const std::array<float, 3>& mean, const std::array<float, 3>& scale) {
  return {{mean[0], mean[1], mean[2]}, {scale[0], scale[1], scale[2]}};
}

Map to_map(const int64_t* numbers) {
  return {at<const void>(static_cast<Address>(numbers[0])), numbers[1], numbers[2], numbers[3], numbers[4]};
}

Map to_map(const MapArray& numbers) { return to_map(numbers.data()); }

// What decode_anchors takes, from flat lists, which pybind11 converts fastest.
struct DecodeArguments {
  std::vector<AnchorLevel> levels;
  AnchorDecoding decoding;
  CandidateArrays out;

  // numbers: a level's five maps, then height, width, stride, num_anchors, num_background, max_candidates
  // anchors: four numbers each; found: addresses of boxes, scores, landmarks (0: none), index, count
  DecodeArguments(const std::vector<int64_t>& numbers, const std::vector<double>& anchors,
                  const std::vector<double>& min_logits, double min_gate, const std::array<double, 2>& variances,
                  double min_side, Address sizes, int64_t max_candidates, const std::array<Address, 5>& found)
      : levels(min_logits.size()),
        decoding{static_cast<float>(variances[0]), static_cast<float>(variances[1]), float_above(min_side),
                 at<const float>(sizes), max_candidates},
        out{at<float>(found[0]), at<float>(found[1]), at<float>(found[2]), at<int64_t>(found[3]),
            at<int32_t>(found[4])} {
    const int64_t* n = numbers.data();
    const double* a = anchors.data();
    int64_t first = 0;
    for (size_t l = 0; l < levels.size(); ++l) {
      AnchorLevel& level = levels[l];
      for (Map* map : {&level.logits, &level.boxes, &level.landmarks, &level.gate, &level.offsets}) {
        *map = to_map(n);
        n += 5;
      }
      for (int32_t* field : {&level.height, &level.width, &level.stride, &level.num_anchors, &level.num_background,
                             &level.max_candidates})
        *field = static_cast<int32_t>(*n++);
      level.min_logit = float_below(min_logits[l]);
      level.min_gate = float_below(min_gate);
      level.first = first;
      first += int64_t(level.height) * level.width * level.num_anchors;
      for (int k = 0; k < level.num_anchors; ++k, a += 4)
        level.anchors[k] = {static_cast<float>(a[0]), static_cast<float>(a[1]), static_cast<float>(a[2]),
                            static_cast<float>(a[3])};
    }
  }
};

DenseBoxGrid to_grid(const std::array<int32_t, 3>& sizes, double unit) {
  return {sizes[0], sizes[1], sizes[2], static_cast<float>(unit)};
}

// numbers: face, positive band, ignore band, radius, gray, landmark radius
DenseBoxTargets to_targets(const std::array<float, 8>& numbers) {
  const auto [face, positive_low, positive_high, ignore_low, ignore_high, radius, gray, landmark_radius] = numbers;
  return {face, positive_low, positive_high, ignore_low, ignore_high, radius, gray, landmark_radius};
}

// found: addresses as in DecodeArguments; there are no landmarks
CandidateArrays to_candidates(const std::array<Address, 5>& found) {
  return {at<float>(found[0]), at<float>(found[1]), nullptr, at<int64_t>(found[3]), at<int32_t>(found[4])};
}

// positive, negative, force_best, compensate, compensate_above
using MatchingTuple = std::tuple<double, double, bool, int32_t, double>;

Matching to_matching(const MatchingTuple& numbers) {
  const auto& [positive, negative, force_best, compensate, compensate_above] = numbers;
  return {positive, negative, force_best, compensate, compensate_above};
}

void bind_cpu(py::module_ m) {
  m.def("nms", [](Address boxes, Address scores, Address classes, Address counts, int64_t batch, int64_t n,
                  double iou_threshold, double score_threshold, int overlap, int64_t max_detections, Address keep,
                  Address keep_count, int threads) {
    py::gil_scoped_release release;
    cpu::nms(at<const float>(boxes), at<const float>(scores), at<const int64_t>(classes), at<const int32_t>(counts),
             batch, n, iou_threshold, score_threshold, Overlap(overlap), max_detections, at<int64_t>(keep),
             at<int32_t>(keep_count), threads);
  });
  m.def("soft_nms", [](Address boxes, Address scores, int64_t n, int method, double iou_threshold, double sigma,
                       double score_threshold, int overlap, Address keep, Address kept_scores, Address keep_count) {
    py::gil_scoped_release release;
    cpu::soft_nms(at<const float>(boxes), at<const float>(scores), n, SoftNms(method), iou_threshold, sigma,
                  score_threshold, Overlap(overlap), at<int64_t>(keep), at<float>(kept_scores),
                  at<int32_t>(keep_count));
  });
  m.def("box_voting", [](Address boxes, Address scores, int64_t n, double iou_threshold, int overlap,
                         bool drop_singletons, Address voted_boxes, Address voted_scores, Address voted_count) {
    py::gil_scoped_release release;
    cpu::box_voting(at<const float>(boxes), at<const float>(scores), n, iou_threshold, Overlap(overlap),
                    drop_singletons, at<float>(voted_boxes), at<float>(voted_scores), at<int32_t>(voted_count));
  });
  m.def("letterbox", [](const std::vector<ImageTuple>& images, const std::vector<double>& scales, int out_h, int out_w,
                        int interpolation, const std::array<float, 3>& mean, const std::array<float, 3>& scale,
                        Address out, int threads) {
    py::gil_scoped_release release;
    const auto views = to_images(images);
    cpu::letterbox(views.data(), scales.data(), static_cast<int64_t>(views.size()), out_h, out_w,
                   Interpolation(interpolation), to_normalization(mean, scale), at<float>(out), threads);
  });
  m.def("crop_resize", [](const std::vector<ImageTuple>& images, Address boxes, Address image_index, int64_t n,
                          int out_h, int out_w, int interpolation, const std::array<float, 3>& mean,
                          const std::array<float, 3>& scale, Address out, int threads) {
    py::gil_scoped_release release;
    const auto views = to_images(images);
    cpu::crop_resize(views.data(), static_cast<int64_t>(views.size()), at<const float>(boxes),
                     at<const int64_t>(image_index), n, out_h, out_w, Interpolation(interpolation),
                     to_normalization(mean, scale), at<float>(out), threads);
  });
  m.def("pnet", [](Address pictures, int64_t batch, int height, int width, const std::array<Address, 11>& weights,
                   Address out, int threads) {
    py::gil_scoped_release release;
    const auto w = [&](int i) { return at<const float>(weights[i]); };
    const PNetWeights net{w(0), w(1), w(2), w(3), w(4), w(5), w(6), w(7), w(8), w(9), w(10)};
    cpu::pnet(at<const float>(pictures), batch, height, width, net, at<float>(out), threads);
  });
  m.def("convnet", [](Address crops, int64_t n, int channels, int size, const std::vector<LayerTuple>& tuples,
                      Address features, int threads) {
    py::gil_scoped_release release;
    std::vector<ConvnetLayer> layers;
    for (const auto& [weight, bias, slope, out, kernel, pool] : tuples)
      layers.push_back({at<const float>(weight), at<const float>(bias), at<const float>(slope), out, kernel, pool});
    cpu::convnet(at<const float>(crops), n, channels, size, layers.data(), static_cast<int>(layers.size()),
                 at<float>(features), threads);
  });
  m.def("maxout_background", [](const MapArray& logits, int dtype, int64_t batch, int channels, int64_t height,
                                int64_t width, int num_background, const MapArray& out, int threads) {
    py::gil_scoped_release release;
    cpu::maxout_background(to_map(logits), Dtype(dtype), batch, channels, height, width, num_background, to_map(out),
                           threads);
  });
  m.def("maxout_background_backward",
        [](const MapArray& logits, const MapArray& gradient, int dtype, int64_t batch, int channels, int64_t height,
           int64_t width, int num_background, const MapArray& out, int threads) {
          py::gil_scoped_release release;
          cpu::maxout_background_backward(to_map(logits), to_map(gradient), Dtype(dtype), batch, channels, height,
                                          width, num_background, to_map(out), threads);
        });
  m.def("face_probability", [](const MapArray& logits, int dtype, int64_t batch, int64_t height, int64_t width,
                               int num_background, Address out, int threads) {
    py::gil_scoped_release release;
    cpu::face_probability(to_map(logits), Dtype(dtype), batch, height, width, num_background, at<float>(out), threads);
  });
  m.def("decode_anchors", [](const std::vector<int64_t>& numbers, const std::vector<double>& anchors,
                             const std::vector<double>& min_logits, double min_gate, int dtype, int64_t batch,
                             const std::array<double, 2>& variances, double min_side, Address sizes,
                             int64_t max_candidates, const std::array<Address, 5>& found, int threads) {
    py::gil_scoped_release release;
    const DecodeArguments a(numbers, anchors, min_logits, min_gate, variances, min_side, sizes, max_candidates, found);
    cpu::decode_anchors(a.levels.data(), static_cast<int>(a.levels.size()), Dtype(dtype), batch, a.decoding, a.out,
                        threads);
  });
  m.def("decode_densebox", [](const MapArray& scores, const MapArray& offsets, int dtype, int64_t batch,
                              const std::array<int32_t, 3>& grid, double unit, double score_threshold, double min_side,
                              Address sizes, int64_t max_candidates, const std::array<Address, 5>& found, int threads) {
    py::gil_scoped_release release;
    const AnchorDecoding decoding{0, 0, float_above(min_side), at<const float>(sizes), max_candidates};
    cpu::decode_densebox(to_map(scores), to_map(offsets), Dtype(dtype), batch, to_grid(grid, unit), score_threshold,
                         decoding, to_candidates(found), threads);
  });
  m.def("densebox_targets", [](Address boxes, int64_t /*num_boxes*/, Address ignore, Address splits, int64_t batch,
                               Address landmarks, int num_landmarks, const std::array<int32_t, 3>& grid, double unit,
                               const std::array<float, 8>& numbers, const std::array<Address, 3>& maps, int threads) {
    py::gil_scoped_release release;
    cpu::densebox_targets(at<const float>(boxes), at<const uint8_t>(ignore), at<const int64_t>(splits), batch,
                          at<const float>(landmarks), num_landmarks, to_grid(grid, unit), to_targets(numbers),
                          at<int8_t>(maps[0]), at<float>(maps[1]), at<int8_t>(maps[2]), threads);
  });
  m.def("assign_anchors",
        [](Address anchors, int64_t anchor_stride, int64_t num_anchors, Address boxes, int64_t /*num_boxes*/,
           Address ignore, Address splits, int64_t batch, Address valid, int64_t valid_stride,
           const MatchingTuple& matching, Address index, Address overlap, int threads) {
          py::gil_scoped_release release;
          cpu::assign_anchors(at<const float>(anchors), anchor_stride, num_anchors, at<const float>(boxes),
                              at<const uint8_t>(ignore), at<const int64_t>(splits), batch, at<const uint8_t>(valid),
                              valid_stride, to_matching(matching), at<int32_t>(index), at<float>(overlap), threads);
        });
  m.def("hard_negatives", [](Address losses, Address index, int64_t batch, int64_t n, double ratio, int64_t minimum,
                             Address selected, int threads) {
    py::gil_scoped_release release;
    cpu::hard_negatives(at<const float>(losses), at<const int32_t>(index), batch, n, ratio, minimum,
                        at<uint8_t>(selected), threads);
  });
  m.def("balanced_sample", [](Address losses, Address index, int64_t batch, int64_t n, double ratio,
                              double hard_fraction, int64_t minimum, uint64_t seed, Address selected, int threads) {
    py::gil_scoped_release release;
    cpu::balanced_sample(at<const float>(losses), at<const int32_t>(index), batch, n, ratio, hard_fraction, minimum,
                         seed, at<uint8_t>(selected), threads);
  });
  m.def("online_hard", [](Address losses, Address valid, int64_t n, double keep, Address selected) {
    py::gil_scoped_release release;
    cpu::online_hard(at<const float>(losses), at<const uint8_t>(valid), n, keep, at<uint8_t>(selected));
  });
}

#if defined(PYFACE_HAS_CUDA)
void bind_cuda(py::module_ m) {
  m.def("nms_workspace", &cuda::nms_workspace);
  m.def("soft_nms_workspace", &cuda::soft_nms_workspace);
  m.def("box_voting_workspace", &cuda::box_voting_workspace);
  m.def("nms", [](Address boxes, Address scores, Address classes, Address counts, int64_t batch, int64_t n,
                  double iou_threshold, double score_threshold, int overlap, int64_t max_detections, Address keep,
                  Address keep_count, Address workspace, size_t workspace_bytes, int device, Address stream) {
    py::gil_scoped_release release;
    return cuda::nms(at<const float>(boxes), at<const float>(scores), at<const int64_t>(classes),
                     at<const int32_t>(counts), batch, n, iou_threshold, score_threshold, Overlap(overlap),
                     max_detections, at<int64_t>(keep), at<int32_t>(keep_count), at<void>(workspace), workspace_bytes,
                     device, at<void>(stream));
  });
  m.def("soft_nms", [](Address boxes, Address scores, int64_t n, int method, double iou_threshold, double sigma,
                       double score_threshold, int overlap, Address keep, Address kept_scores, Address keep_count,
                       Address workspace, size_t workspace_bytes, int device, Address stream) {
    py::gil_scoped_release release;
    return cuda::soft_nms(at<const float>(boxes), at<const float>(scores), n, SoftNms(method), iou_threshold, sigma,
                          score_threshold, Overlap(overlap), at<int64_t>(keep), at<float>(kept_scores),
                          at<int32_t>(keep_count), at<void>(workspace), workspace_bytes, device, at<void>(stream));
  });
  m.def("box_voting", [](Address boxes, Address scores, int64_t n, double iou_threshold, int overlap,
                         bool drop_singletons, Address voted_boxes, Address voted_scores, Address voted_count,
                         Address workspace, size_t workspace_bytes, int device, Address stream) {
    py::gil_scoped_release release;
    return cuda::box_voting(at<const float>(boxes), at<const float>(scores), n, iou_threshold, Overlap(overlap),
                            drop_singletons, at<float>(voted_boxes), at<float>(voted_scores), at<int32_t>(voted_count),
                            at<void>(workspace), workspace_bytes, device, at<void>(stream));
  });
  m.def("letterbox", [](const std::vector<ImageTuple>& images, const std::vector<double>& scales, int out_h, int out_w,
                        int interpolation, const std::array<float, 3>& mean, const std::array<float, 3>& scale,
                        Address out, int device, Address stream) {
    py::gil_scoped_release release;
    const auto views = to_images(images);
    return cuda::letterbox(views.data(), scales.data(), static_cast<int64_t>(views.size()), out_h, out_w,
                           Interpolation(interpolation), to_normalization(mean, scale), at<float>(out), device,
                           at<void>(stream));
  });
  m.def("crop_resize", [](const std::vector<ImageTuple>& images, Address boxes, Address image_index, int64_t n,
                          int out_h, int out_w, int interpolation, const std::array<float, 3>& mean,
                          const std::array<float, 3>& scale, Address out, int device, Address stream) {
    py::gil_scoped_release release;
    const auto views = to_images(images);
    return cuda::crop_resize(views.data(), static_cast<int64_t>(views.size()), at<const float>(boxes),
                             at<const int64_t>(image_index), n, out_h, out_w, Interpolation(interpolation),
                             to_normalization(mean, scale), at<float>(out), device, at<void>(stream));
  });
  m.def("maxout_background", [](const MapArray& logits, int dtype, int64_t batch, int channels, int64_t height,
                                int64_t width, int num_background, const MapArray& out, int device, Address stream) {
    py::gil_scoped_release release;
    return cuda::maxout_background(to_map(logits), Dtype(dtype), batch, channels, height, width, num_background,
                                   to_map(out), device, at<void>(stream));
  });
  m.def("maxout_background_backward",
        [](const MapArray& logits, const MapArray& gradient, int dtype, int64_t batch, int channels, int64_t height,
           int64_t width, int num_background, const MapArray& out, int device, Address stream) {
          py::gil_scoped_release release;
          return cuda::maxout_background_backward(to_map(logits), to_map(gradient), Dtype(dtype), batch, channels,
                                                  height, width, num_background, to_map(out), device, at<void>(stream));
        });
  m.def("face_probability", [](const MapArray& logits, int dtype, int64_t batch, int64_t height, int64_t width,
                               int num_background, Address out, int device, Address stream) {
    py::gil_scoped_release release;
    return cuda::face_probability(to_map(logits), Dtype(dtype), batch, height, width, num_background, at<float>(out),
                                  device, at<void>(stream));
  });
  m.def("decode_anchors_workspace", &cuda::decode_anchors_workspace);
  m.def("decode_anchors", [](const std::vector<int64_t>& numbers, const std::vector<double>& anchors,
                             const std::vector<double>& min_logits, double min_gate, int dtype, int64_t batch,
                             const std::array<double, 2>& variances, double min_side, Address sizes,
                             int64_t max_candidates, const std::array<Address, 5>& found, Address workspace,
                             size_t workspace_bytes, int device, Address stream) {
    py::gil_scoped_release release;
    const DecodeArguments a(numbers, anchors, min_logits, min_gate, variances, min_side, sizes, max_candidates, found);
    return cuda::decode_anchors(a.levels.data(), static_cast<int>(a.levels.size()), Dtype(dtype), batch, a.decoding,
                                a.out, at<void>(workspace), workspace_bytes, device, at<void>(stream));
  });
  m.def("decode_densebox_workspace", &cuda::decode_densebox_workspace);
  m.def("decode_densebox", [](const MapArray& scores, const MapArray& offsets, int dtype, int64_t batch,
                              const std::array<int32_t, 3>& grid, double unit, double score_threshold, double min_side,
                              Address sizes, int64_t max_candidates, const std::array<Address, 5>& found,
                              Address workspace, size_t workspace_bytes, int device, Address stream) {
    py::gil_scoped_release release;
    const AnchorDecoding decoding{0, 0, float_above(min_side), at<const float>(sizes), max_candidates};
    return cuda::decode_densebox(to_map(scores), to_map(offsets), Dtype(dtype), batch, to_grid(grid, unit),
                                 score_threshold, decoding, to_candidates(found), at<void>(workspace), workspace_bytes,
                                 device, at<void>(stream));
  });
  m.def("densebox_targets",
        [](Address boxes, int64_t num_boxes, Address ignore, Address splits, int64_t batch, Address landmarks,
           int num_landmarks, const std::array<int32_t, 3>& grid, double unit, const std::array<float, 8>& numbers,
           const std::array<Address, 3>& maps, int device, Address stream) {
          py::gil_scoped_release release;
          return cuda::densebox_targets(at<const float>(boxes), num_boxes, at<const uint8_t>(ignore),
                                        at<const int64_t>(splits), batch, at<const float>(landmarks), num_landmarks,
                                        to_grid(grid, unit), to_targets(numbers), at<int8_t>(maps[0]),
                                        at<float>(maps[1]), at<int8_t>(maps[2]), device, at<void>(stream));
        });
  m.def("assign_anchors_workspace", &cuda::assign_anchors_workspace);
  m.def("hard_negatives_workspace", &cuda::hard_negatives_workspace);
  m.def("balanced_sample_workspace", &cuda::balanced_sample_workspace);
  m.def("online_hard_workspace", &cuda::online_hard_workspace);
  m.def("assign_anchors", [](Address anchors, int64_t anchor_stride, int64_t num_anchors, Address boxes,
                             int64_t num_boxes, Address ignore, Address splits, int64_t batch, Address valid,
                             int64_t valid_stride, const MatchingTuple& matching, Address index, Address overlap,
                             Address workspace, size_t workspace_bytes, int device, Address stream) {
    py::gil_scoped_release release;
    return cuda::assign_anchors(at<const float>(anchors), anchor_stride, num_anchors, at<const float>(boxes), num_boxes,
                                at<const uint8_t>(ignore), at<const int64_t>(splits), batch, at<const uint8_t>(valid),
                                valid_stride, to_matching(matching), at<int32_t>(index), at<float>(overlap),
                                at<void>(workspace), workspace_bytes, device, at<void>(stream));
  });
  m.def("hard_negatives", [](Address losses, Address index, int64_t batch, int64_t n, double ratio, int64_t minimum,
                             Address selected, Address workspace, size_t workspace_bytes, int device, Address stream) {
    py::gil_scoped_release release;
    return cuda::hard_negatives(at<const float>(losses), at<const int32_t>(index), batch, n, ratio, minimum,
                                at<uint8_t>(selected), at<void>(workspace), workspace_bytes, device, at<void>(stream));
  });
  m.def("balanced_sample",
        [](Address losses, Address index, int64_t batch, int64_t n, double ratio, double hard_fraction, int64_t minimum,
           uint64_t seed, Address selected, Address workspace, size_t workspace_bytes, int device, Address stream) {
          py::gil_scoped_release release;
          return cuda::balanced_sample(at<const float>(losses), at<const int32_t>(index), batch, n, ratio,
                                       hard_fraction, minimum, seed, at<uint8_t>(selected), at<void>(workspace),
                                       workspace_bytes, device, at<void>(stream));
        });
  m.def("online_hard", [](Address losses, Address valid, int64_t n, double keep, Address selected, Address workspace,
                          size_t workspace_bytes, int device, Address stream) {
    py::gil_scoped_release release;
    return cuda::online_hard(at<const float>(losses), at<const uint8_t>(valid), n, keep, at<uint8_t>(selected),
                             at<void>(workspace), workspace_bytes, device, at<void>(stream));
  });
  m.def("error_string", &cuda::error_string);
  m.def("runtime_version", &cuda::runtime_version);
  m.def("driver_version", &cuda::driver_version);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "pyface's kernels; call them through pyface.ops, which checks what they are given.";
  m.attr("version") = PYFACE_VERSION;
  m.attr("source_hash") = PYFACE_SOURCE_HASH;
  m.attr("compiler") = PYFACE_COMPILER;
  m.attr("cuda_compiler") = PYFACE_CUDA_COMPILER;
  m.attr("cuda_archs") = PYFACE_CUDA_ARCHS;
  m.attr("simd") = cpu::simd_name();
  bind_cpu(m.def_submodule("cpu"));
#if defined(PYFACE_HAS_CUDA)
  m.attr("has_cuda") = true;
  bind_cuda(m.def_submodule("cuda"));
#else
  m.attr("has_cuda") = false;
#endif
}
