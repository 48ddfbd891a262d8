#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "simd.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace pyface::cpu {
namespace {

struct Job {
  Job(const std::function<void(int64_t)>& body, int64_t n, int helpers_wanted)
      : body(body), n(n), helpers_wanted(helpers_wanted) {}

  const std::function<void(int64_t)>& body;
  int64_t n;
  std::atomic<int64_t> next{0};
  int helpers_wanted;
  std::atomic<int> helpers_inside{0};  // decremented only under the pool's mutex
  std::exception_ptr error;            // the first one
  std::mutex error_mutex;

  void work() {
    for (int64_t i = next++; i < n; i = next++) {
      try {
        body(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next = n;
      }
    }
  }
};

// How often a caller checks whether its helpers are done before it sleeps; some 50 microseconds.
constexpr int kPatience = 2000;

// Pauses briefly, which leaves the core to other threads.
inline void relax() {
#if defined(PYFACE_X86)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Threads wait for jobs in a list. Several callers may have jobs at once, each working on its own meanwhile; a job
// leaves the list when its caller has run out of work, and the caller then waits for the helpers inside it.
class Pool {
 public:
  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (num_threads_ < job.helpers_wanted) {
        std::thread([this] { serve(); }).detach();
        ++num_threads_;
      }
      jobs_.push_back(&job);
    }
    wake_.notify_all();
    job.work();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
    }
    // A helper inside is working on its last piece; sleeping and waking up would usually take longer.
    for (int i = 0; i < kPatience && job.helpers_inside > 0; ++i) relax();
    std::unique_lock<std::mutex> lock(mutex_);
    left_.wait(lock, [&] { return job.helpers_inside == 0; });
  }

 private:
  Job* next_job() {
    for (Job* job : jobs_)
      if (job->helpers_wanted > 0 && job->next < job->n) return job;
    return nullptr;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      wake_.wait(lock, [&] { return (job = next_job()) != nullptr; });
      --job->helpers_wanted;
      ++job->helpers_inside;
      lock.unlock();
      job->work();
      lock.lock();
      if (--job->helpers_inside == 0) left_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, left_;
  std::vector<Job*> jobs_;
  int num_threads_ = 0;
};

// The pool is never destroyed: its threads may outlive static destructors. After fork() the child has none of the
// threads and perhaps a locked mutex, so it forgets the old pool and makes a new one.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  static const bool registered = [] {
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, [] { pool = nullptr; });
#endif
    return true;
  }();
  (void)registered;
  Pool* current = pool;
  if (!current) {
    auto fresh = std::make_unique<Pool>();
    if (pool.compare_exchange_strong(current, fresh.get())) current = fresh.release();
  }
  return *current;
}

}  // namespace

void parallel_for(int64_t n, int threads, const std::function<void(int64_t)>& body) {
  const int64_t useful = n < threads ? n : threads;
  if (useful <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  Job job(body, n, static_cast<int>(useful - 1));
  the_pool().run(job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace pyface::cpu
