// One line for each launcher and device, after the texts that bind.h explains and the structs that launchers take.
#include "bind.h"
#include "cpu/simd.h"

namespace py = pybind11;
using namespace pyface;
using bind::def;

namespace pyface::bind {

template <>
struct Fields<Box> {
  static constexpr const char* kText = "x1, y1, x2, y2";
  static constexpr auto kMembers = std::tuple(&Box::x1, &Box::y1, &Box::x2, &Box::y2);
};

template <>
struct Fields<Normalization> {
  static constexpr const char* kText = "mean, scale";
  static constexpr auto kMembers = std::tuple(&Normalization::mean, &Normalization::scale);
};

template <>
struct Fields<PNetWeights> {
  static constexpr const char* kText =
      "conv1[10,3,3,3], bias1[10], slope1[10], conv2[16,10,3,3], bias2[16], slope2[16], conv3[32,16,3,3], bias3[32], "
      "slope3[32], heads[6,32], bias_heads[6]";
  static constexpr auto kMembers =
      std::tuple(&PNetWeights::conv1, &PNetWeights::bias1, &PNetWeights::slope1, &PNetWeights::conv2,
                 &PNetWeights::bias2, &PNetWeights::slope2, &PNetWeights::conv3, &PNetWeights::bias3,
                 &PNetWeights::slope3, &PNetWeights::heads, &PNetWeights::bias_heads);
};

template <>
struct Fields<ConvnetLayer> {
  static constexpr const char* kText = "weight[out,in,kernel,kernel], bias[out], slope[out], in, out, kernel, pool";
  static constexpr auto kMembers =
      std::tuple(&ConvnetLayer::weight, &ConvnetLayer::bias, &ConvnetLayer::slope, &ConvnetLayer::in,
                 &ConvnetLayer::out, &ConvnetLayer::kernel, &ConvnetLayer::pool);
};

template <>
struct Fields<AnchorLevel> {
  static constexpr const char* kText =
      "logits[batch,(num_background+1)*num_anchors,height,width], boxes[batch,4*num_anchors,height,width], "
      "landmarks[batch,10*num_anchors,height,width]?, gate[batch,num_anchors,height,width]?, "
      "offsets[batch,4*num_anchors,height,width]?, height, width, stride, num_anchors, num_background, "
      "max_candidates, min_logit>, min_gate>, first, anchors[num_anchors]";
  static constexpr auto kMembers =
      std::tuple(&AnchorLevel::logits, &AnchorLevel::boxes, &AnchorLevel::landmarks, &AnchorLevel::gate,
                 &AnchorLevel::offsets, &AnchorLevel::height, &AnchorLevel::width, &AnchorLevel::stride,
                 &AnchorLevel::num_anchors, &AnchorLevel::num_background, &AnchorLevel::max_candidates,
                 &AnchorLevel::min_logit, &AnchorLevel::min_gate, &AnchorLevel::first, &AnchorLevel::anchors);
};

template <>
struct Fields<AnchorDecoding> {
  static constexpr const char* kText = "center_variance, size_variance, min_side>=, sizes[batch,2]?, max_candidates";
  static constexpr auto kMembers =
      std::tuple(&AnchorDecoding::center_variance, &AnchorDecoding::size_variance, &AnchorDecoding::min_side,
                 &AnchorDecoding::sizes, &AnchorDecoding::max_candidates);
};

template <>
struct Fields<CandidateArrays> {
  static constexpr const char* kText =
      "boxes[batch,max_candidates,4], scores[batch,max_candidates], landmarks[batch,max_candidates,5,2]?, "
      "index[batch,max_candidates], count[batch]";
  static constexpr auto kMembers =
      std::tuple(&CandidateArrays::boxes, &CandidateArrays::scores, &CandidateArrays::landmarks,
                 &CandidateArrays::index, &CandidateArrays::count);
};

template <>
struct Fields<Matching> {
  static constexpr const char* kText = "positive, negative, force_best, compensate, compensate_above";
  static constexpr auto kMembers = std::tuple(&Matching::positive, &Matching::negative, &Matching::force_best,
                                              &Matching::compensate, &Matching::compensate_above);
};

template <>
struct Fields<DenseBoxGrid> {
  static constexpr const char* kText = "height, width, stride, unit";
  static constexpr auto kMembers =
      std::tuple(&DenseBoxGrid::height, &DenseBoxGrid::width, &DenseBoxGrid::stride, &DenseBoxGrid::unit);
};

template <>
struct Fields<DenseBoxTargets> {
  static constexpr const char* kText =
      "face, positive_low, positive_high, ignore_low, ignore_high, radius, gray, landmark_radius";
  static constexpr auto kMembers =
      std::tuple(&DenseBoxTargets::face, &DenseBoxTargets::positive_low, &DenseBoxTargets::positive_high,
                 &DenseBoxTargets::ignore_low, &DenseBoxTargets::ignore_high, &DenseBoxTargets::radius,
                 &DenseBoxTargets::gray, &DenseBoxTargets::landmark_radius);
};

}  // namespace pyface::bind

namespace {

constexpr char kNms[] =
    "nms(boxes[batch,n,4], scores[batch,n], classes[batch,n]?, counts[batch]?, batch, n, iou_threshold, "
    "score_threshold, overlap, max_detections, keep[batch,max_detections], keep_count[batch])";
constexpr char kSoftNms[] =
    "soft_nms(boxes[n,4], scores[n], n, method, iou_threshold, sigma, score_threshold, overlap, keep[n], "
    "kept_scores[n], keep_count[1])";
constexpr char kBoxVoting[] =
    "box_voting(boxes[n,4], scores[n], n, iou_threshold, overlap, drop_singletons, voted_boxes[n,4], voted_scores[n], "
    "voted_count[1])";
constexpr char kLetterbox[] =
    "letterbox(images[num_images], scales[num_images], num_images, out_h, out_w, interpolation, normalization, "
    "out[num_images,3,out_h,out_w])";
constexpr char kCropResize[] =
    "crop_resize(images[num_images], num_images, boxes[n,4], image_index[n], n, out_h, out_w, interpolation, "
    "normalization, out[n,3,out_h,out_w])";
constexpr char kPnet[] =
    "pnet(images[batch,3,height,width], batch, height, width, weights, out[batch,6,(height-1)/2-4,(width-1)/2-4])";
constexpr char kConvnet[] =
    "convnet(crops[n,channels,size,size], n, channels, size, layers[num_layers], num_layers, "
    "features[n,out,side,side], out, side)";
constexpr char kMaxout[] =
    "maxout_background(logits[batch,channels,height,width], dtype, batch, channels, height, width, num_background, "
    "out[batch,1+channels-num_background,height,width])";
constexpr char kMaxoutBackward[] =
    "maxout_background_backward(logits[batch,channels,height,width], "
    "gradient[batch,1+channels-num_background,height,width], dtype, batch, channels, height, width, num_background, "
    "out[batch,channels,height,width])";
constexpr char kProbability[] =
    "face_probability(logits[batch,num_background+1,height,width], dtype, batch, height, width, num_background, "
    "out[batch,height,width])";
constexpr char kDecodeAnchors[] = "decode_anchors(levels[num_levels], num_levels, dtype, batch, decoding, out)";
constexpr char kDecodeDenseBox[] =
    "decode_densebox(scores[batch,1,height,width], offsets[batch,4,height,width], dtype, batch, grid, "
    "score_threshold, decoding, out)";
constexpr char kDenseBoxTargets[] =
    "densebox_targets(boxes[num_boxes,4], num_boxes, ignore[num_boxes]?, splits[batch+1], batch, "
    "landmarks[num_boxes,num_landmarks,2]?, num_landmarks, grid, targets, label[batch,height,width], "
    "offsets[batch,4,height,width], landmark_label[batch,num_landmarks,height,width])";
constexpr char kAssignAnchors[] =
    "assign_anchors(anchors[(batch-1)*anchor_stride+num_anchors,4], anchor_stride, num_anchors, boxes[num_boxes,4], "
    "num_boxes, ignore[num_boxes]?, splits[batch+1], batch, valid[(batch-1)*valid_stride+num_anchors]?, valid_stride, "
    "matching, index[batch,num_anchors], overlap[batch,num_anchors])";
constexpr char kHardNegatives[] =
    "hard_negatives(losses[batch,n], index[batch,n], batch, n, ratio, minimum, selected[batch,n])";
constexpr char kBalancedSample[] =
    "balanced_sample(losses[batch,n], index[batch,n], batch, n, ratio, hard_fraction, minimum, seed, "
    "selected[batch,n])";
constexpr char kOnlineHard[] = "online_hard(losses[n], valid[n]?, n, keep, selected[n])";

void bind_cpu(py::module_ m) {
  def<cpu::nms>(m, kNms);
  def<cpu::soft_nms>(m, kSoftNms);
  def<cpu::box_voting>(m, kBoxVoting);
  def<cpu::letterbox>(m, kLetterbox);
  def<cpu::crop_resize>(m, kCropResize);
  def<cpu::pnet>(m, kPnet);
  def<cpu::convnet>(m, kConvnet);
  def<cpu::maxout_background>(m, kMaxout);
  def<cpu::maxout_background_backward>(m, kMaxoutBackward);
  def<cpu::face_probability>(m, kProbability);
  def<cpu::decode_anchors>(m, kDecodeAnchors);
  def<cpu::decode_densebox>(m, kDecodeDenseBox);
  def<cpu::densebox_targets>(m, kDenseBoxTargets);
  def<cpu::assign_anchors>(m, kAssignAnchors);
  def<cpu::hard_negatives>(m, kHardNegatives);
  def<cpu::balanced_sample>(m, kBalancedSample);
  def<cpu::online_hard>(m, kOnlineHard);
}

#if defined(PYFACE_HAS_CUDA)
void bind_cuda(py::module_ m) {
  def<cuda::nms, cuda::nms_workspace>(m, kNms);
  def<cuda::soft_nms, cuda::soft_nms_workspace>(m, kSoftNms);
  def<cuda::box_voting, cuda::box_voting_workspace>(m, kBoxVoting);
  def<cuda::letterbox>(m, kLetterbox);
  def<cuda::crop_resize>(m, kCropResize);
  def<cuda::maxout_background>(m, kMaxout);
  def<cuda::maxout_background_backward>(m, kMaxoutBackward);
  def<cuda::face_probability>(m, kProbability);
  def<cuda::decode_anchors, cuda::decode_anchors_workspace>(m, kDecodeAnchors);
  def<cuda::decode_densebox, cuda::decode_densebox_workspace>(m, kDecodeDenseBox);
  def<cuda::densebox_targets, cuda::densebox_targets_workspace>(m, kDenseBoxTargets);
  def<cuda::assign_anchors, cuda::assign_anchors_workspace>(m, kAssignAnchors);
  def<cuda::hard_negatives, cuda::hard_negatives_workspace>(m, kHardNegatives);
  def<cuda::balanced_sample, cuda::balanced_sample_workspace>(m, kBalancedSample);
  def<cuda::online_hard, cuda::online_hard_workspace>(m, kOnlineHard);
  m.def("error_string", &cuda::error_string);
  m.def("runtime_version", &cuda::runtime_version);
  m.def("driver_version", &cuda::driver_version);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "pyface's kernels; call them through pyface.ops, which checks their arguments.";
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
