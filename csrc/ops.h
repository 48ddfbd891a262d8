// Every op's launchers, declared once. No torch header is needed to use them: raw pointers, sizes, a stream.
//
// Memory: the caller allocates all outputs and, on CUDA, the workspace, whose size the *_workspace function returns
// without a GPU. CUDA launchers never allocate, synchronise or touch the default stream; pointers live on `device`,
// and the status is 0 or a cudaError_t. CPU kernels may allocate scratch memory, and use at most `threads` threads;
// arguments that do not fit each other may throw std::invalid_argument.
//
// Boxes are float32 (x1, y1, x2, y2), width x2 - x1. An entry whose score or coordinate is not finite is dropped.
// Order is score descending, ties by index.
#pragma once

#include <cstddef>
#include <cstdint>

#include "geometry.h"

namespace pyface {

// One uint8 RGB image, rows of width * 3 bytes without gaps.
struct Image {
  const uint8_t* data;
  int32_t height;
  int32_t width;
};

// (pixel - mean) * scale, per channel.
struct Normalization {
  float mean[3];
  float scale[3];
};

// MTCNN's P-Net: convolutions [out, in, 3, 3], heads [6, 32], biases and PReLU slopes per channel.
struct PNetWeights {
  const float *conv1, *bias1, *slope1;
  const float *conv2, *bias2, *slope2;
  const float *conv3, *bias3, *slope3;
  const float *heads, *bias_heads;
};

// A layer of convnet: a square convolution [out, in, kernel, kernel] without padding, PReLU per channel, and
// max-pooling over `pool` x `pool` pixels at stride 2, rounding up (0: no pooling).
struct ConvnetLayer {
  const float *weight, *bias, *slope;
  int32_t in, out, kernel, pool;
};

// Side of a map of `size` pixels after such pooling; a window that begins outside is left out.
inline int convnet_pooled(int size, int pool) {
  const int windows = (size - pool + 1) / 2 + 1;
  return (windows - 1) * 2 >= size ? windows - 1 : windows;
}

// Element type of a network's maps; all arithmetic is float32.
enum class Dtype : int32_t { Float32 = 0, Float16 = 1, BFloat16 = 2 };

// A map [batch, channels, height, width] where it lies, strides in elements: NCHW, channels_last or a slice of either.
struct Map {
  const void* data;  // nullptr: there is no such map
  int64_t batch_stride, channel_stride, row_stride, column_stride;
};

constexpr int kMaxLevels = 8, kMaxAnchors = 8;

// One level of decode_anchors: its maps, and what its anchors are. K = num_anchors. Levels ascend by `first`, and
// either all have landmarks or none.
struct AnchorLevel {
  Map logits;     // (num_background + 1) * K channels: logit c of anchor k is channel c * K + k, backgrounds first
  Map boxes;      // 4 * K: dx, dy, dw, dh of anchor k from channel 4 * k
  Map landmarks;  // 10 * K or none: x, y of five points from channel 10 * k
  Map gate;       // K or none: logits of a first step, which an anchor must pass as well
  Map offsets;    // 4 * K or none: of a first step, which moves the anchor before `boxes` is applied
  int32_t height, width, stride;
  int32_t num_anchors, num_background;  // 0 backgrounds: one logit per anchor
  int32_t max_candidates;               // how many of this level are kept, the best ones
  float min_logit, min_gate;            // an anchor passes if its logit is > min_logit and its gate's is > min_gate
  int64_t first;                        // index of anchor 0 of cell (0, 0); index = first + cell * K + k, cells by row
  Box anchors[kMaxAnchors];             // of cell (0, 0); those of (row, column) lie stride * (column, row) further
};

// The settings of decode_anchors that all levels share.
struct AnchorDecoding {
  float center_variance, size_variance;
  float min_side;          // boxes whose shorter side, after clipping, is not >= this (and > 0) are dropped
  const float* sizes;      // [batch, 2] height and width that boxes are clipped to, or nullptr
  int64_t max_candidates;  // over all levels
};

// The candidates, sorted by logit descending, ties by index; beyond `count`: boxes, scores, landmarks 0, index -1.
struct CandidateArrays {
  float* boxes;      // [batch, max_candidates, 4]
  float* scores;     // [batch, max_candidates]
  float* landmarks;  // [batch, max_candidates, 5, 2] or nullptr
  int64_t* index;    // [batch, max_candidates]
  int32_t* count;    // [batch]
};

// The rules of assign_anchors.
struct Matching {
  double positive, negative;  // IoU >= positive: a face's anchor; < negative: background; else ignored
  bool force_best;            // every face also gets its best anchor, whatever their IoU (> 0)
  int32_t compensate;       // a face with fewer anchors gets more, up to this many; 0: the mean; -1: no face gets more
  double compensate_above;  // from unmatched anchors whose best face it is, with an IoU > this
};

// What assign_anchors writes for an anchor without a face.
constexpr int32_t kBackground = -1, kIgnored = -2;

// A map of DenseBox: cell i lies at stride * i + stride / 2 pixels, distances are in units of `unit` cells.
struct DenseBoxGrid {
  int32_t height, width, stride;
  float unit;
};

// The rules by which densebox_targets labels faces; a face's side is its height in pixels.
struct DenseBoxTargets {
  float face;                         // the side of the faces that the network finds
  float positive_low, positive_high;  // range of positive sides, relative to `face`
  float ignore_low, ignore_high;      // other sides within this range are ignored; all others are background
  float radius;                       // of the positive disc, relative to the side
  float gray;                         // distance in cells from a positive one within which cells are ignored
  float landmark_radius;              // of a landmark's disc, in cells
};

namespace cpu {

// Greedy suppression in `batch` independent segments of `n` boxes.
//   boxes   [batch, n, 4], scores [batch, n], both contiguous
//   classes [batch, n] or nullptr: boxes of different classes never suppress each other
//   counts  [batch] or nullptr: entries of a segment that are valid (clamped to [0, n])
//   a box is dropped if its score is not > score_threshold (-inf keeps all finite ones), or if its overlap with a
//   kept box is > iou_threshold
//   keep    [batch, max_detections], padded with -1; keep_count [batch]
void nms(const float* boxes, const float* scores, const int64_t* classes, const int32_t* counts, int64_t batch,
         int64_t n, double iou_threshold, double score_threshold, Overlap overlap, int64_t max_detections,
         int64_t* keep, int32_t* keep_count, int threads);

// Soft suppression of one segment: the best remaining box is kept, and the scores of the others are multiplied: linear,
// by 1 - overlap where overlap > iou_threshold; Gaussian, by exp(-overlap^2 / sigma). A box whose score is not >
// score_threshold is dropped.
//   keep [n], kept_scores [n] (the lowered scores), keep_count [1]; in the order of choice, which is score descending
void soft_nms(const float* boxes, const float* scores, int64_t n, SoftNms method, double iou_threshold, double sigma,
              double score_threshold, Overlap overlap, int64_t* keep, float* kept_scores, int32_t* keep_count,
              int threads);

// Box voting of one segment (docs/detectors.md 2.6d): the best remaining box and all with overlap >= iou_threshold to
// it become one box, the mean weighted by max(score, 0) (the best box itself where all weights are 0), with its score.
//   voted_boxes [n, 4], voted_scores [n], voted_count [1]; drop_singletons leaves out clusters of one
void box_voting(const float* boxes, const float* scores, int64_t n, double iou_threshold, Overlap overlap,
                bool drop_singletons, float* voted_boxes, float* voted_scores, int32_t* voted_count, int threads);

// Each image resized by its scale (output pixels per source pixel) into the top left of its canvas; the rest of the
// canvas is 0 in the output. scales [num_images] > 0, on the host; out [num_images, 3, out_h, out_w]
void letterbox(const Image* images, const double* scales, int64_t num_images, int out_h, int out_w,
               Interpolation interpolation, Normalization normalization, float* out, int threads);

// Crops of boxes resized to one size. A sample is taken inside the box only (as if the crop were cut out first, then
// resized); pixels outside the image are 0 before normalisation.
//   boxes [n, 4] (finite), image_index [n] in [0, num_images) (others give crops of zero pixels)
//   out [n, 3, out_h, out_w]
void crop_resize(const Image* images, int64_t num_images, const float* boxes, const int64_t* image_index, int64_t n,
                 int out_h, int out_w, Interpolation interpolation, Normalization normalization, float* out,
                 int threads);

// MTCNN's P-Net in one pass; there is no CUDA version, since cuDNN's convolutions are used there.
//   images [batch, 3, height, width], height and width >= 11
//   out [batch, 6, (height - 1) / 2 - 4, (width - 1) / 2 - 4]: logits of background and face, then the box offsets
void pnet(const float* images, int64_t batch, int height, int width, const PNetWeights& weights, float* out,
          int threads);

// A chain of layers over many small square crops (MTCNN's R-Net and O-Net up to their dense layers); no CUDA version.
//   crops [n, channels, size, size]; features [n, out, side, side], where out and side must be the last layer's
void convnet(const float* crops, int64_t n, int channels, int size, const ConvnetLayer* layers, int num_layers,
             float* features, int out, int side, int threads);

// Max-out: the first `num_background` of `channels` become their maximum (NaN if one is NaN), the others are copied.
//   logits [batch, channels, height, width] of any strides
//   out [batch, 1 + channels - num_background, height, width] in the memory order that it describes, same dtype
void maxout_background(const Map& logits, Dtype dtype, int64_t batch, int channels, int64_t height, int64_t width,
                       int num_background, const Map& out, int threads);

// Its backward: the first largest background gets the whole gradient, the other backgrounds 0.
//   gradient [batch, 1 + channels - num_background, ...], out [batch, channels, ...]
void maxout_background_backward(const Map& logits, const Map& gradient, Dtype dtype, int64_t batch, int channels,
                                int64_t height, int64_t width, int num_background, const Map& out, int threads);

// Face probability of logits [batch, num_background + 1, height, width]: softmax over the largest background and the
// face, or the sigmoid of the one logit. out float32 [batch, height, width]
void face_probability(const Map& logits, Dtype dtype, int64_t batch, int64_t height, int64_t width, int num_background,
                      float* out, int threads);

// Head maps to candidates in one pass: max-out and threshold on the logits (score = sigmoid(face - largest background),
// so the comparison needs no exponential), decoding of what passes, clipping, and merging the best of each level.
void decode_anchors(const AnchorLevel* levels, int num_levels, Dtype dtype, int64_t batch,
                    const AnchorDecoding& decoding, const CandidateArrays& out, int threads);

// The face, or background, of every anchor. Ignore boxes are not faces: an anchor without a face is kIgnored if one of
// them covers at least half of it. Invalid anchors are kIgnored. Ties: the lower index.
//   anchors [num_anchors, 4], those of image b from anchor b * anchor_stride on (0: shared); boxes [num_boxes, 4],
//   those of image b are splits[b] ... splits[b + 1] - 1; ignore [num_boxes] or nullptr
//   valid [num_anchors], shared or of each image, by valid_stride as for anchors, or nullptr
//   index [batch, num_anchors] counts within the image's boxes; overlap [batch, num_anchors] is the IoU with the face,
//   or with the best face where there is none (0 for invalid anchors)
void assign_anchors(const float* anchors, int64_t anchor_stride, int64_t num_anchors, const float* boxes,
                    int64_t num_boxes, const uint8_t* ignore, const int64_t* splits, int64_t batch,
                    const uint8_t* valid, int64_t valid_stride, const Matching& matching, int32_t* index,
                    float* overlap, int threads);

// Per image the max(minimum, ratio * positives) background entries (index == kBackground) with the largest finite
// losses, ties by index. losses, index, selected [batch, n]
void hard_negatives(const float* losses, const int32_t* index, int64_t batch, int64_t n, double ratio, int64_t minimum,
                    uint8_t* selected, int threads);

// Per image all positives, and max(minimum, ratio * positives) background entries: half of them from the hard set (the
// `hard_fraction` of the background with the largest finite losses, or as many as are needed), the others from the
// rest, each chosen by a hash of (seed, image, entry).
void balanced_sample(const float* losses, const int32_t* index, int64_t batch, int64_t n, double ratio,
                     double hard_fraction, int64_t minimum, uint64_t seed, uint8_t* selected, int threads);

// The ceil(keep * count) valid entries with the largest finite losses, ties by index; valid [n] or nullptr.
void online_hard(const float* losses, const uint8_t* valid, int64_t n, double keep, uint8_t* selected, int threads);

// Cells whose score is > score_threshold to boxes: corner = (cell - unit * offset) * stride + stride / 2.
//   scores [batch, 1, h, w], offsets [batch, 4, h, w] (x1, y1, x2, y2); decoding's variances are not used
void decode_densebox(const Map& scores, const Map& offsets, Dtype dtype, int64_t batch, const DenseBoxGrid& grid,
                     double score_threshold, const AnchorDecoding& decoding, const CandidateArrays& out, int threads);

// Boxes to maps. A cell belongs to the disc whose centre is nearest in units of its radius, ties by index.
//   boxes, ignore and splits as in assign_anchors; landmarks [num_boxes, num_landmarks, 2] (NaN: unknown) or nullptr
//   label [batch, h, w]: 1 face, 0 background, -1 ignored; offsets [batch, 4, h, w], 0 where there is no face;
//   landmark_label [batch, num_landmarks, h, w] in the same way
void densebox_targets(const float* boxes, int64_t num_boxes, const uint8_t* ignore, const int64_t* splits,
                      int64_t batch, const float* landmarks, int num_landmarks, const DenseBoxGrid& grid,
                      const DenseBoxTargets& targets, int8_t* label, float* offsets, int8_t* landmark_label,
                      int threads);

}  // namespace cpu

namespace cuda {

// Arguments as in cpu::; images is a host array whose `data` pointers lie on the device.
size_t nms_workspace(int64_t batch, int64_t n);
int nms(const float* boxes, const float* scores, const int64_t* classes, const int32_t* counts, int64_t batch,
        int64_t n, double iou_threshold, double score_threshold, Overlap overlap, int64_t max_detections, int64_t* keep,
        int32_t* keep_count, void* workspace, size_t workspace_bytes, int device, void* stream);

size_t soft_nms_workspace(int64_t n);
int soft_nms(const float* boxes, const float* scores, int64_t n, SoftNms method, double iou_threshold, double sigma,
             double score_threshold, Overlap overlap, int64_t* keep, float* kept_scores, int32_t* keep_count,
             void* workspace, size_t workspace_bytes, int device, void* stream);

size_t box_voting_workspace(int64_t n);
int box_voting(const float* boxes, const float* scores, int64_t n, double iou_threshold, Overlap overlap,
               bool drop_singletons, float* voted_boxes, float* voted_scores, int32_t* voted_count, void* workspace,
               size_t workspace_bytes, int device, void* stream);

int letterbox(const Image* images, const double* scales, int64_t num_images, int out_h, int out_w,
              Interpolation interpolation, Normalization normalization, float* out, int device, void* stream);

int crop_resize(const Image* images, int64_t num_images, const float* boxes, const int64_t* image_index, int64_t n,
                int out_h, int out_w, Interpolation interpolation, Normalization normalization, float* out, int device,
                void* stream);

int maxout_background(const Map& logits, Dtype dtype, int64_t batch, int channels, int64_t height, int64_t width,
                      int num_background, const Map& out, int device, void* stream);
int maxout_background_backward(const Map& logits, const Map& gradient, Dtype dtype, int64_t batch, int channels,
                               int64_t height, int64_t width, int num_background, const Map& out, int device,
                               void* stream);
int face_probability(const Map& logits, Dtype dtype, int64_t batch, int64_t height, int64_t width, int num_background,
                     float* out, int device, void* stream);

// `num_anchors` is the number of anchors of an image over all levels; the size suits all thresholds.
size_t decode_anchors_workspace(int64_t batch, int64_t num_anchors, int64_t max_candidates);
int decode_anchors(const AnchorLevel* levels, int num_levels, Dtype dtype, int64_t batch,
                   const AnchorDecoding& decoding, const CandidateArrays& out, void* workspace, size_t workspace_bytes,
                   int device, void* stream);

size_t assign_anchors_workspace(int64_t batch, int64_t num_anchors, int64_t num_boxes);
int assign_anchors(const float* anchors, int64_t anchor_stride, int64_t num_anchors, const float* boxes,
                   int64_t num_boxes, const uint8_t* ignore, const int64_t* splits, int64_t batch, const uint8_t* valid,
                   int64_t valid_stride, const Matching& matching, int32_t* index, float* overlap, void* workspace,
                   size_t workspace_bytes, int device, void* stream);

size_t hard_negatives_workspace(int64_t batch, int64_t n);
int hard_negatives(const float* losses, const int32_t* index, int64_t batch, int64_t n, double ratio, int64_t minimum,
                   uint8_t* selected, void* workspace, size_t workspace_bytes, int device, void* stream);

size_t balanced_sample_workspace(int64_t batch, int64_t n);
int balanced_sample(const float* losses, const int32_t* index, int64_t batch, int64_t n, double ratio,
                    double hard_fraction, int64_t minimum, uint64_t seed, uint8_t* selected, void* workspace,
                    size_t workspace_bytes, int device, void* stream);

size_t online_hard_workspace(int64_t n);
int online_hard(const float* losses, const uint8_t* valid, int64_t n, double keep, uint8_t* selected, void* workspace,
                size_t workspace_bytes, int device, void* stream);

size_t decode_densebox_workspace(int64_t batch, int64_t num_cells, int64_t max_candidates);
int decode_densebox(const Map& scores, const Map& offsets, Dtype dtype, int64_t batch, const DenseBoxGrid& grid,
                    double score_threshold, const AnchorDecoding& decoding, const CandidateArrays& out, void* workspace,
                    size_t workspace_bytes, int device, void* stream);

size_t densebox_targets_workspace(int64_t batch, int num_landmarks, int64_t height, int64_t width);
int densebox_targets(const float* boxes, int64_t num_boxes, const uint8_t* ignore, const int64_t* splits, int64_t batch,
                     const float* landmarks, int num_landmarks, const DenseBoxGrid& grid,
                     const DenseBoxTargets& targets, int8_t* label, float* offsets, int8_t* landmark_label,
                     void* workspace, size_t workspace_bytes, int device, void* stream);

// The text of a status, the CUDA version linked, and the newest one that the driver can run (0: no driver).
const char* error_string(int status);
int runtime_version();
int driver_version();

}  // namespace cuda
}  // namespace pyface
