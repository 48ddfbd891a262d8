// Max-out over background logits, forward and backward, and face probabilities, on maps of any strides.
#include <algorithm>
#include <cstring>

#include "../ops.h"
#include "elements.h"
#include "parallel.h"
#include "simd.h"

namespace pyface::cpu {
namespace {

struct MaxoutJob {
  Map logits, gradient, out;  // gradient: for the backward only
  int channels, num_background;
};

// The largest background of the cells of a strip.
template <class T>
struct Largest {
  using Order = decltype(order_of(T{}));
  decltype(bits_of(T{})) bits[kStrip];
  Order order[kStrip];
};

template <class T>
PYFACE_INLINE void find_largest(const T* p, int64_t channel_stride, int64_t column_stride, int num_background, int n,
                                Largest<T>& largest) {
  for (int i = 0; i < n; ++i) {
    largest.bits[i] = bits_of(p[i * column_stride]);
    largest.order[i] = order_of(p[i * column_stride]);
  }
  for (int c = 1; c < num_background; ++c) {
    p += channel_stride;
    for (int i = 0; i < n; ++i) take_larger(largest.bits[i], largest.order[i], p[i * column_stride]);
  }
}

template <class T>
PYFACE_INLINE void copy_strip(const T* from, int64_t from_stride, T* to, int64_t to_stride, int n) {
  if (from_stride == 1 && to_stride == 1)
    std::memcpy(to, from, n * sizeof(T));
  else
    for (int i = 0; i < n; ++i) to[i * to_stride] = from[i * from_stride];
}

template <class T>
PYFACE_INLINE void forward_strip(const MaxoutJob& job, const T* p, T* out, int64_t column_stride, int64_t out_stride,
                                 int n) {
  if (job.num_background == 3 && column_stride == 1) {  // S3FD's stay in registers
    const T *q = p + job.logits.channel_stride, *r = q + job.logits.channel_stride;
    for (int i = 0; i < n; ++i) set_bits(out[i * out_stride], largest_of_three(p[i], q[i], r[i]));
  } else {
    Largest<T> largest;
    find_largest(p, job.logits.channel_stride, column_stride, job.num_background, n, largest);
    for (int i = 0; i < n; ++i) set_bits(out[i * out_stride], largest.bits[i]);
  }
  for (int c = job.num_background; c < job.channels; ++c)
    copy_strip(p + c * job.logits.channel_stride, column_stride,
               out + (c - job.num_background + 1) * job.out.channel_stride, out_stride, n);
}

template <class T>
PYFACE_INLINE void backward_strip(const MaxoutJob& job, const T* p, const T* gradient, T* out, int64_t column_stride,
                                  int64_t gradient_stride, int64_t out_stride, int n) {
  using Order = typename Largest<T>::Order;
  Largest<T> largest;
  find_largest(p, job.logits.channel_stride, column_stride, job.num_background, n, largest);
  Order is_open[kStrip];  // no channel has taken the gradient yet
  for (int i = 0; i < n; ++i) is_open[i] = 1;
  for (int c = 0; c < job.num_background; ++c) {
    const T* from = p + c * job.logits.channel_stride;
    T* to = out + c * job.out.channel_stride;
    for (int i = 0; i < n; ++i) {
      const bool takes = is_open[i] & (order_of(from[i * column_stride]) == largest.order[i]);
      is_open[i] = takes ? Order{0} : is_open[i];
      set_bits(to[i * out_stride], takes ? bits_of(gradient[i * gradient_stride]) : decltype(bits_of(T{}))(0));
    }
  }
  for (int c = job.num_background; c < job.channels; ++c)
    copy_strip(gradient + (c - job.num_background + 1) * job.gradient.channel_stride, gradient_stride,
               out + c * job.out.channel_stride, out_stride, n);
}

// The constant 1 lets the loops over planes vectorise.
template <class T>
PYFACE_INLINE void maxout_of(const MaxoutJob& job, int64_t width, const Cells& cells) {
  const Elements<T> logits(job.logits), gradients(job.gradient), outs(job.out);
  const bool backward = job.gradient.data != nullptr;
  const bool planes =
      job.logits.column_stride == 1 && job.out.column_stride == 1 && (!backward || job.gradient.column_stride == 1);
  for (int64_t cell = cells.begin; cell < cells.end;) {
    const int64_t row = cell / width, column = cell % width;
    const int n = static_cast<int>(std::min({int64_t(kStrip), width - column, cells.end - cell}));
    const T* p = logits.at(cells.image, 0, row, column);
    T* out = const_cast<T*>(outs.at(cells.image, 0, row, column));
    const T* gradient = backward ? gradients.at(cells.image, 0, row, column) : nullptr;
    if (backward && planes)
      backward_strip(job, p, gradient, out, 1, 1, 1, n);
    else if (backward)
      backward_strip(job, p, gradient, out, job.logits.column_stride, job.gradient.column_stride, job.out.column_stride,
                     n);
    else if (planes)
      forward_strip(job, p, out, 1, 1, n);
    else
      forward_strip(job, p, out, job.logits.column_stride, job.out.column_stride, n);
    cell += n;
  }
}

PYFACE_INLINE void maxout_impl(const MaxoutJob& job, Dtype dtype, int64_t width, const Cells& cells) {
  if (dtype == Dtype::Float16)
    maxout_of<Half>(job, width, cells);
  else if (dtype == Dtype::BFloat16)
    maxout_of<BFloat>(job, width, cells);
  else
    maxout_of<float>(job, width, cells);
}

PYFACE_DISPATCH(void, maxout, (const MaxoutJob& job, Dtype dtype, int64_t width, const Cells& cells),
                (job, dtype, width, cells))

template <class T>
PYFACE_INLINE void probability_of(const Map& map, int num_background, int64_t width, const Cells& cells, float* out) {
  const Elements<T> logits(map);
  for (int64_t cell = cells.begin; cell < cells.end;) {
    const int64_t row = cell / width, column = cell % width;
    const int n = static_cast<int>(std::min({int64_t(kStrip), width - column, cells.end - cell}));
    face_evidence(logits.at(cells.image, 0, row, column), logits.channel_stride, logits.column_stride, num_background,
                  n, out + cell);
    for (int i = 0; i < n; ++i) out[cell + i] = sigmoid_fast(out[cell + i]);
    cell += n;
  }
}

PYFACE_INLINE void probability_impl(const Map& logits, Dtype dtype, int num_background, int64_t width,
                                    const Cells& cells, float* out) {
  if (dtype == Dtype::Float16)
    probability_of<Half>(logits, num_background, width, cells, out);
  else if (dtype == Dtype::BFloat16)
    probability_of<BFloat>(logits, num_background, width, cells, out);
  else
    probability_of<float>(logits, num_background, width, cells, out);
}

PYFACE_DISPATCH(void, probability,
                (const Map& logits, Dtype dtype, int num_background, int64_t width, const Cells& cells, float* out),
                (logits, dtype, num_background, width, cells, out))

// Waking a thread takes as long as computing this many cells.
constexpr int64_t kCellsPerThread = 65536;

// work(cells) for all cells of all images, in shares.
template <class Work>
void for_shares(int64_t batch, int64_t cells, int threads, const Work& work) {
  const int64_t shares = (cells + kCellsPerShare - 1) / kCellsPerShare;
  const int64_t useful = std::max(int64_t(1), batch * cells / kCellsPerThread);
  parallel_for(batch * shares, static_cast<int>(std::min(int64_t(threads), useful)), [&](int64_t i) {
    const int64_t begin = i % shares * kCellsPerShare;
    work(Cells{i / shares, begin, std::min(cells, begin + kCellsPerShare)});
  });
}

void run_maxout(const MaxoutJob& job, Dtype dtype, int64_t batch, int64_t height, int64_t width, int threads) {
  const bool one_row = is_one_row(job.logits, width) && is_one_row(job.out, width) &&
                       (!job.gradient.data || is_one_row(job.gradient, width));
  const int64_t cells = height * width;
  for_shares(batch, cells, threads, [&](const Cells& share) { maxout(job, dtype, one_row ? cells : width, share); });
}

}  // namespace

void maxout_background(const Map& logits, Dtype dtype, int64_t batch, int channels, int64_t height, int64_t width,
                       int num_background, const Map& out, int threads) {
  run_maxout({logits, {}, out, channels, num_background}, dtype, batch, height, width, threads);
}

void maxout_background_backward(const Map& logits, const Map& gradient, Dtype dtype, int64_t batch, int channels,
                                int64_t height, int64_t width, int num_background, const Map& out, int threads) {
  run_maxout({logits, gradient, out, channels, num_background}, dtype, batch, height, width, threads);
}

void face_probability(const Map& logits, Dtype dtype, int64_t batch, int64_t height, int64_t width, int num_background,
                      float* out, int threads) {
  const int64_t cells = height * width, run = is_one_row(logits, width) ? cells : width;
  for_shares(batch, cells, threads, [&](const Cells& share) {
    probability(logits, dtype, num_background, run, share, out + share.image * cells);
  });
}

}  // namespace pyface::cpu
